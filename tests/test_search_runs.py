"""W&B's view of a search: one group, one run a trial, nothing sent twice, over restarts. Real offline files."""

from pathlib import Path
from typing import Any

import pytest
from searches import Play, load
from test_track import no_account, records, rows, wandb_files

from xinv.search.runs import TrialRuns
from xinv.search.settings import SearchConfig, base_audit

pytest.importorskip("optuna")
__all__ = ["no_account"]  # a fixture


def runs_of(config: SearchConfig, play: Play) -> TrialRuns:
    return TrialRuns(config, base_audit(config).track, play.record.past, config.folder / "log.txt")


def started(path: Path) -> Any:
    """What a .wandb file says of its run."""
    return next(record.run for record in records(path) if record.HasField("run"))


def test_a_trial_is_one_run_of_the_searchs_group_however_often_the_search_starts(tmp_path: Path) -> None:
    config = load(tmp_path, "overrides={track.mode: offline}", "asha=null", "budget.trials=2")
    play = Play(config)
    first, second = play.course.next(), play.course.next()
    assert first is not None and second is not None
    runs = runs_of(config, play)
    for trial, until in ((first, 2), (second, 1)):
        play.trial(trial, until)
        runs.told(trial.id)
        runs.told(trial.id)
    runs.close()
    play.trial(first)  # its driver was killed before any of this was told
    again = runs_of(config, play)
    again.catch_up()
    play.course.end(second.id, "failed", "lost its process too often")
    again.told(second.id)
    again.close()
    for trial, epochs, state in ((first, [[1, 2], [3, 4]], "finished"), (second, [[1], []], "failed")):
        files = wandb_files(config.folder / "trials" / trial.id)
        assert [[row["validation/step"] for row in rows(path)] for path in files] == epochs
        told = [started(path) for path in files]
        assert {(run.run_group, run.job_type, run.display_name) for run in told} == {
            ("tiny", "trial", f"tiny {trial.id}")
        }
        assert len({run.run_id for run in told}) == 1
        assert {run.run_id for run in told} == {(config.folder / "trials" / trial.id / "run.id").read_text().strip()}
        summary = {
            item.key: item.value_json
            for record in records(files[-1])
            if record.HasField("summary")
            for item in record.summary.update
        }
        assert summary["state"] == f'"{state}"' and summary["epochs"] == str(trial.epoch)
    assert not list((config.folder / "trials").glob("*/wandb/**/*.png"))


def test_disabled_means_that_nothing_is_written(tmp_path: Path) -> None:
    config = load(tmp_path, "budget.trials=1")
    play = Play(config)
    trial = play.course.next()
    assert trial is not None
    runs = runs_of(config, play)
    play.trial(trial)
    runs.told(trial.id)
    runs.catch_up()
    runs.close()
    assert not (config.folder / "trials").exists()
