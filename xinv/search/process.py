"""The processes that Ray Tune gives trials to, one after another: one that trains, or one that has ranks train."""

from pathlib import Path
from typing import Any

from ray.tune import Trainable

from xinv.files import read_json
from xinv.parallel import WorkerSettings, redirect
from xinv.search.settings import PlaceSettings
from xinv.search.trial import TrialRun
from xinv.train.inline import InProcess
from xinv.train.loop import TrainJob
from xinv.train.run import TrainingGroup

HEAD = {"CPU": 0.0, "node:__internal_head__": 0.001}
"""What Tune sets aside for a trial whose ranks Ray Train places: nothing, on the machine that lasts longest. (Tune
refuses a request for nothing at all.)"""


class TrialProcess(Trainable):
    """A trial of one worker: trains here. Config: {"trial", "job" (a file), "place", "folder", "log"}."""

    _group: InProcess | TrainingGroup

    def setup(self, config: dict[str, Any]) -> None:
        redirect(Path(config["log"]))
        self._open(PlaceSettings.model_validate(config["place"]), Path(config["folder"]), Path(config["log"]))
        self._begin(config)

    def _open(self, place: PlaceSettings, folder: Path, log: Path) -> None:
        self._group = InProcess(place.cpus)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._run.close()
        self._between()
        self._begin(new_config)
        return True

    def _between(self) -> None:
        """Before another trial: the memory of the last one."""
        self._group.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._run = TrialRun(TrainJob.model_validate(read_json(Path(config["job"]))), self._group)

    def step(self) -> dict[str, Any]:
        found = self._run.step()
        # What comes after "done" is not asked for; the trial's last result says how it ended.
        return {"done": True, **found} if "ended" in found else found

    def cleanup(self) -> None:
        self._run.close()
        self._group.close()


class TrialRanks(TrialProcess):
    """A trial of several workers: a group under Ray Train trains, which is kept for the next trial.

    Nobody kills it. Halving stops a trial at a validation, where all ranks wait for word; so they are free for the next
    one, or end by themselves when there is none, and Ray Train gives their places back.
    """

    def _open(self, place: PlaceSettings, folder: Path, log: Path) -> None:
        self._group = TrainingGroup(rank_settings(place), folder, log)

    def _between(self) -> None:
        """The group stays as it is."""


def rank_settings(place: PlaceSettings) -> WorkerSettings:
    """The group of one trial."""
    return WorkerSettings(
        count=place.workers,
        cpus=place.cpus,
        gpus=1 if place.gpus else 0,
        max_failures=place.max_failures,
        start_limit=place.start_limit,
    )


def trainable(place: PlaceSettings) -> tuple[type[TrialProcess], dict[str, float]]:
    """What Tune runs, and what it sets aside for it."""
    if place.workers > 1:
        return TrialRanks, HEAD
    return TrialProcess, {"CPU": place.cpus} | ({"GPU": place.gpus} if place.gpus else {})
