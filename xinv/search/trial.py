"""One trial in the process that was given it: a training that goes on when asked, one validation at a time."""

import time
import traceback
from typing import Any

import torch

from xinv.errors import InputError, WorkError
from xinv.train.inline import InProcess
from xinv.train.loop import Records, TrainJob


class TrialRun:
    """A training under way, begun or continued from its newest checkpoint at the first `step`.

    Args:
        job: the training.
        threads: CPU threads to compute with.
    """

    def __init__(self, job: TrainJob, threads: int) -> None:
        self._group = InProcess(threads)
        self._records: Records = self._group.validations(job)

    def step(self) -> dict[str, Any]:
        """Train up to the next validation.

        Returns:
            {"epoch", "mse", "loss", "seconds"}, or at the end {"ended": "finished" | "failed" | "bug", "reason"}:
            failed is what would fail again (a loss that is NaN, memory that is not there), a bug is anything that
            nobody foresaw, and ends the search.

        Raises:
            OSError: the disk.
        """
        begun = time.monotonic()
        try:
            record = next(self._records, None)
        except (InputError, WorkError, torch.OutOfMemoryError) as error:
            return {"ended": "failed", "reason": str(error).splitlines()[0]}
        except OSError:
            raise
        except Exception as error:
            traceback.print_exc()
            return {"ended": "bug", "reason": f"{type(error).__name__}: {error}"}
        if record is None:
            return {"ended": "finished", "reason": ""}
        values = record["values"]
        return {
            "epoch": record["epoch"],
            "mse": values["mse"],
            "loss": values["loss"],
            "seconds": time.monotonic() - begun,
        }

    def close(self) -> None:
        """Leave off where it stands, and free its memory."""
        self._records.close()
        self._group.close()
