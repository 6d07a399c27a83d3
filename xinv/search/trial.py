"""One trial: a training that goes on when asked, one validation at a time."""

import time
import traceback
from typing import Any

import torch

from xinv.errors import InputError, WorkError
from xinv.train.inline import InProcess
from xinv.train.loop import Records, TrainJob
from xinv.train.run import BugError, LostError, StartError, TrainingGroup


class TrialRun:
    """A training under way, begun or continued from its newest checkpoint at the first `step`.

    Args:
        job: the training.
        group: who trains: this process, or ranks placed by Ray Train.
    """

    def __init__(self, job: TrainJob, group: InProcess | TrainingGroup) -> None:
        self._records: Records = group.validations(job)

    def step(self) -> dict[str, Any]:
        """Train up to the next validation.

        Returns:
            {"epoch", "mse", "loss", "seconds"}, or at the end {"ended": "finished" | "failed" | "bug", "reason"}:
            failed is what would fail again (a loss that is NaN, memory that is not there), a bug is anything that
            nobody foresaw, or that no ranks could be placed, and ends the search.

        Raises:
            OSError: the disk. LostError: the group is gone; a new one could continue.
        """
        begun = time.monotonic()
        try:
            record = next(self._records, None)
        except (OSError, LostError):
            raise
        except (BugError, StartError) as error:
            return {"ended": "bug", "reason": str(error)}
        except (InputError, WorkError, torch.OutOfMemoryError) as error:
            return {"ended": "failed", "reason": str(error).splitlines()[0]}
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
        """Leave off where it stands."""
        self._records.close()
