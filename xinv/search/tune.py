"""A search on Ray Tune: who asks, who decides, and where a trial runs.

Tune places trials, keeps their processes for the next one, and starts those again that lost their machine. What it is
given to place comes from a `Course`, by way of three small classes in Tune's own terms: `Proposer` (a Searcher),
`Halving` (its asynchronous successive halving, by our epochs) and `TrialProcess` (a Trainable, in the worker:
`process.py`). Tune's own snapshots and logs are not used; `record.py` says why.

A trial is stopped between two validations, never within a step: its process is idle then, waits for the next candidate,
and no process or placement group is killed or leaked.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.error import TuneError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from xinv.errors import InputError, WorkError
from xinv.files import make_private, write_json
from xinv.parallel import check_alive
from xinv.progress import Progress, Show, clock
from xinv.search.best import live, rows
from xinv.search.course import Course
from xinv.search.forecast import Forecast
from xinv.search.process import trainable
from xinv.search.runs import TrialRuns
from xinv.search.settings import AshaSettings

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # result.json and the like: the record has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: nothing is lost
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_RESULT_BUFFER_LENGTH": "0",  # a trial goes on only when its last report is in the record
}

LOOK_EVERY = 5.0
"""Seconds between two looks at whether the cluster lives."""


class Rungs:
    """Tune's asynchronous successive halving over trials of our names and ages, and over what the record says of them.

    A rung at a trial's last epoch decides nothing, and Tune's would end the trial before its network is written.
    """

    def __init__(self, asha: AshaSettings, epochs: int) -> None:
        self._epochs = epochs
        self._asha = ASHAScheduler(
            time_attr="epoch",
            metric="score",
            mode="min",
            max_t=epochs,
            grace_period=asha.grace,
            reduction_factor=asha.reduction,
            stop_last_trials=False,
        )
        self._known: set[str] = set()

    def stops(self, trial: str, epoch: int, score: float) -> bool:
        """Whether a trial that reaches `epoch` with its lowest error `score` goes no further."""
        if epoch >= self._epochs:
            return False
        named: Any = SimpleNamespace(trial_id=trial)
        if trial not in self._known:
            self._known.add(trial)
            self._asha.on_trial_add(None, named)
        decision = self._asha.on_trial_result(None, named, {"epoch": epoch, "score": score})
        return bool(decision == TrialScheduler.STOP)

    def catch_up(self, course: Course) -> None:
        """Go through the reports of the record in their order; what was decided and not written down, is now."""
        last = {}
        for line in course.past.lines:
            if line["kind"] == "report":
                score = course.past.trials[line["trial"]].score_at(line["epoch"])
                last[line["trial"]] = self.stops(line["trial"], line["epoch"], score)
        for trial, stops in last.items():
            if stops and course.past.trials[trial].state == "running":
                course.end(trial, "stopped", _halved(course.past.trials[trial].epoch))


def _halved(epoch: int) -> str:
    return f"halved at epoch {epoch}"


class _Unsaved:
    """Tune pickles all that it is given, for a restore that never happens here: it gets an empty shell."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Halving(_Unsaved, FIFOScheduler):
    """The scheduler: the first to see a report. It goes into the record, then it is decided on."""

    def __init__(self, course: Course, rungs: Rungs | None, runs: TrialRuns, trouble: list[Exception]) -> None:
        super().__init__()
        self._course, self._rungs, self.runs, self._trouble = course, rungs, runs, trouble
        self.lost: dict[str, str] = {}
        """Why a trial last lost its process."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        with _Noted(self._trouble):
            decision = self._decide(trial.config["trial"], result)
            self.runs.told(trial.config["trial"])
            return decision

    def _decide(self, name: str, result: dict[str, Any]) -> str:
        course, epoch = self._course, int(result["epoch"])
        if course.past.trials[name].state != "running":
            return TrialScheduler.STOP  # started again by Tune after its end was written down
        if course.report(name, epoch, result["mse"], result["loss"], result["seconds"]):
            known = course.past.trials[name]
            if self._rungs and self._rungs.stops(name, epoch, known.score):
                course.end(name, "stopped", _halved(epoch))
                return TrialScheduler.STOP
        if course.time_is_up() and epoch < course.config.epochs:
            course.pause(name)
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        with _Noted(self._trouble):
            error = trial.get_pickled_error()
            cause = getattr(error, "cause", None)
            if isinstance(cause, OSError):
                raise cause
            check_alive()  # a trial is not to blame for the end of the whole cluster
            # Tune says this of every failure, those included after which it starts the trial again: no end yet.
            self.lost[trial.config["trial"]] = _last_line(error)


class Proposer(_Unsaved, Searcher):
    """The searcher: hands out the next candidate when a place is free, and hears how a trial ended."""

    def __init__(self, course: Course, halving: Halving, width: int, log: Path, trouble: list[Exception]) -> None:
        super().__init__()  # no metric: the results of a trial differ in kind, and `Course` knows what to make of them
        self._course, self._width, self._log, self._trouble = course, width, log, trouble
        self._halving = halving
        self._common = {
            "place": course.config.place.model_dump(mode="json"),
            "folder": str((course.config.folder / "ray").resolve()),
            "log": str(log.resolve()),
        }
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        with _Noted(self._trouble):
            if len(self._course.live) >= self._width:
                return None  # Tune asks one ahead; a proposal should know all that has ended
            trial = self._course.next()
            if trial is None:
                return Searcher.FINISHED
            self._names[trial_id] = trial.id
            job = self._course.task.job(trial.candidate, make_private(self._course.folder(trial.id)))
            file = job.folder / "job.json"
            write_json(file, job.model_dump(mode="json"))
            return {"trial": trial.id, "job": str(file), **self._common}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name = self._names[trial_id]
        with _Noted(self._trouble):
            if error:
                self._course.end(name, "failed", f"lost its process too often: {self._halving.lost.get(name)}")
            elif result and result.get("ended") == "bug":
                raise WorkError(f"Trial {name}: {result['reason']}. The log {self._log} has the rest.")
            elif result and "ended" in result:  # else `Halving` has seen to it
                self._course.end(name, result["ended"], result["reason"])
            self._halving.runs.told(name)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: see `save`."""


class _Line(_Unsaved, Callback):
    """The live line and table of the terminal; and Tune's pulse, at which the cluster is looked at."""

    def __init__(
        self, course: Course, ahead: Forecast, progress: Progress, show: Show, trouble: list[Exception]
    ) -> None:
        self._course, self._ahead, self._progress, self._show = course, ahead, progress, show
        self._trouble = trouble
        self._told = self._looked = 0.0

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        if now - self._told > 0.5:
            self._told = now
            self._progress(*standing(self._course, self._ahead))
            self._show(rows(live(self._course.past, self._course.live)))
        if now - self._looked > LOOK_EVERY:
            self._looked = now
            with _Noted(self._trouble):
                check_alive()


def standing(course: Course, ahead: Forecast) -> tuple[float, float, str]:
    """(done, total, note) of the live line: share of the trials or of the time, whichever is further."""
    past, budget = course.past, course.config.budget
    over = sum(trial.state != "running" for trial in past.trials.values())
    best = min(past.trials.values(), key=lambda trial: trial.score, default=None)
    known = f"best {best.score:.5f} ({best.title or best.id})" if best and best.reports else ""
    share, left = over / budget.trials, ahead.seconds(past)
    if budget.minutes is not None:
        share = max(share, min(1.0, course.elapsed() / (60 * budget.minutes)))
        allowed = max(0.0, 60 * budget.minutes - course.elapsed())
        left = allowed if left is None else min(left, allowed)
    if left is not None:
        known += f", about {clock(left)} left (an estimate)"
    return share, 1.0, f"{over}/{budget.trials} trials, {len(course.live)} running  {known}"


class _Noted:
    """Keeps what its body raises: Tune wraps exceptions of others beyond recognition."""

    def __init__(self, trouble: list[Exception]) -> None:
        self._trouble = trouble

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception):
            self._trouble.append(error)


def search(course: Course, ahead: Forecast, log: Path, runs: TrialRuns, progress: Progress, show: Show) -> None:
    """Run trials until the course has no more. Needs a connection (`parallel.connect`).

    Raises:
        InputError, WorkError, OSError: as raised by the course or a trial.
    """
    os.environ.update(QUIET)
    config, place = course.config, course.config.place
    trouble: list[Exception] = []
    rungs = Rungs(config.asha, config.epochs) if config.asha else None
    if rungs:
        rungs.catch_up(course)
    runs.catch_up()
    halving = Halving(course, rungs, runs, trouble)
    process, resources = trainable(place)
    tuner = tune.Tuner(
        tune.with_resources(process, resources),
        tune_config=tune.TuneConfig(
            search_alg=Proposer(course, halving, ahead.width, log, trouble),
            scheduler=halving,
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=_name,
            trial_name_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"start-{time.time_ns()}",  # a folder that exists would be taken for a run to go on with
            storage_path=str((config.folder / "ray").resolve()),
            failure_config=tune.FailureConfig(max_failures=place.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the training has its own
            callbacks=[_Line(course, ahead, progress, show, trouble)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except (TuneError, RuntimeError) as error:
        if not trouble:
            raise WorkError(f"Ray Tune ended: {_last_line(error)} The log {log} has the whole story.") from error
    if trouble:
        _raise(trouble[0], log)


def _raise(error: Exception, log: Path) -> None:
    if isinstance(error, InputError | WorkError | OSError):
        raise error
    raise WorkError(f"{type(error).__name__}: {error}. The log {log} has the whole story.") from error


def _name(trial: Any) -> str:
    return str(trial.config["trial"])


def _last_line(error: object) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
