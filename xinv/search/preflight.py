"""Whether a cluster can carry a search, worked out before anything is trained."""

from collections.abc import Mapping
from dataclasses import dataclass

from xinv.errors import InputError
from xinv.plan.room import PROCESS_BYTES
from xinv.search.settings import SearchConfig

GROUP_BYTES = 2_300 << 20
"""Memory of the eight processes of Ray Tune and Ray Train beside the workers of a trial of several (2.25 GB resident,
1.35 GB of it their own, measured on a CPU)."""
HEAD_BYTES = 176 << 10
"""Memory that one trial adds to the head, in the larger of two measurements over 200 trials (tests/bench/search.py
memory): 100 KiB to the driver, for its lines of the record and what Optuna and Tune keep of it, and 76 KiB to Ray's
processes. The smaller was 54 and 60 KiB."""


@dataclass(frozen=True)
class Room:
    """What was worked out: trials at once, and the sentence that says so."""

    width: int
    words: str


def room_for(config: SearchConfig, have: Mapping[str, float], memory_bytes: int) -> Room:
    """How many trials run side by side.

    Args:
        have: the cluster's resources as Ray names them: CPU, GPU, memory (bytes).
        memory_bytes: what the largest candidate known so far takes beside its process; on a GPU it is not counted here.

    Raises:
        InputError: not a single trial fits, or not as many as asked for; with the arithmetic.
    """
    place, workers = config.place, config.place.workers
    each = workers * (PROCESS_BYTES + (0 if place.gpus else memory_bytes)) + (GROUP_BYTES if workers > 1 else 0)
    times = f"{workers} x " if workers > 1 else ""
    limits = {
        f"{have.get('CPU', 0):g} CPU at {times}{place.cpus} a trial": int(have.get("CPU", 0) // (workers * place.cpus)),
        f"{_gib(have.get('memory', 0))} at {_gib(each)} a trial": int(have.get("memory", 0) // each),
    }
    if place.gpus:
        shares = int(have.get("GPU", 0)) * int(1 / place.gpus) // workers
        limits[f"{have.get('GPU', 0):g} GPU at {times}{place.gpus:g} a trial"] = shares
    fits = min(limits.values())
    arithmetic = "; ".join(f"{words}: room for {count}" for words, count in limits.items())
    if fits < 1:
        raise InputError(
            f"The cluster has no room for one trial ({arithmetic}). Lower place.cpus, place.gpus or "
            "place.workers, set space.max_memory, or use a larger cluster."
        )
    if place.at_once and place.at_once > fits:
        raise InputError(
            f"place.at_once is {place.at_once}, and the cluster has room for {fits} trials ({arithmetic}). "
            "Lower it, or use a larger cluster."
        )
    width = min(place.at_once or fits, config.budget.trials)
    head = f"about {config.budget.trials * HEAD_BYTES >> 20} MiB of the head's memory for all trials"
    return Room(width, f"{width} at once ({arithmetic}); {head}")


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
