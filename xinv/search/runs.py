"""The trials of a search as W&B shows them: one run each, all in the search's group.

The driver alone writes them, for it is the first to have a report in the record; no worker and no rank knows of W&B.
What is sent is read from the record, and what has been sent from the trial's own events (`track.Tracker`): a search
that was killed between the two sends the rest when it goes on, and sends nothing twice.
"""

from pathlib import Path
from typing import Any

from xinv.search.record import Past, Trial
from xinv.search.settings import SearchConfig
from xinv.track import Tracker, TrackSettings, read_events

SERIES = "validation"


class TrialRuns:
    """W&B runs of trials, opened at a trial's first report and closed when it ends or is left off.

    Args:
        config: the search.
        settings: of the base audit. With `mode` disabled nothing at all is done.
        past: the record.
        log: gets a note of each run.
    """

    def __init__(self, config: SearchConfig, settings: TrackSettings, past: Past, log: Path) -> None:
        # Reconstructions have no place in a search, whatever the base allows.
        self._config, self._settings = config, settings.model_copy(update={"images": False})
        self._past, self._log = past, log
        self._open: dict[str, tuple[Tracker, int]] = {}

    def catch_up(self) -> None:
        """Send what the record has of ended trials and an earlier start of the search did not come to."""
        for trial in self._past.trials.values():
            if self._on and trial.state != "running" and not _closed(self._folder(trial)):
                self.told(trial.id)

    def told(self, name: str) -> None:
        """Send what is new of a trial: reports, and when it has ended its final figures."""
        if not self._on:
            return
        trial = self._past.trials[name]
        tracker, sent = self._open.get(name) or self._begin(trial)
        for report in trial.reports:
            if report["epoch"] > sent:
                values = {key: report[key] for key in ("mse", "loss", "flops", "seconds")}
                tracker.event("metrics", series=SERIES, step=report["epoch"], values=values)
                sent = report["epoch"]
        self._open[name] = tracker, sent
        if trial.state != "running":
            best = {"mse": trial.score} if trial.reports else {}
            tracker.summary({"state": trial.state, "epochs": trial.epoch, **best})
            self.left(name)

    def left(self, name: str) -> None:
        """Close a trial's run; a later start of the search opens it again where it is not at its end."""
        if name in self._open:
            tracker, _ = self._open.pop(name)
            tracker.close(failed=self._past.trials[name].state == "failed")

    def close(self) -> None:
        for name in list(self._open):
            self.left(name)

    @property
    def _on(self) -> bool:
        return self._settings.mode != "disabled"

    def _folder(self, trial: Trial) -> Path:
        return self._config.folder / "trials" / trial.id

    def _begin(self, trial: Trial) -> tuple[Tracker, int]:
        folder = self._folder(trial)
        sent = [event["step"] for event in read_events(folder) if event["kind"] == "metrics"]
        name, shown = f"{self._config.name} {trial.id}", self._shown(trial)
        tracker = Tracker(folder, self._settings, name, shown, self._log, group=self._config.name, job="trial")
        return tracker, max(sent, default=0)

    def _shown(self, trial: Trial) -> dict[str, Any]:
        """The configuration of a trial's run: what it is, what it costs and on what it is trained."""
        return {
            "search": self._config.name,
            "trial": trial.id,
            "what": trial.title or trial.origin,
            "proposal": trial.proposal,
            "parameters": trial.parameters,
            **trial.candidate,
            "cost": trial.cost,
            "task": {key: value for key, value in (self._past.task or {}).items() if key != "kind"},
        }


def _closed(folder: Path) -> bool:
    return any(event["kind"] == "summary" for event in read_events(folder))
