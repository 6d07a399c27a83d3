"""The DeepSpeed section: verbatim for what we do not name, refused where it would contradict us."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from torch import nn

from xinv.errors import InputError
from xinv.train import engine as engine_file
from xinv.train.engine import Engine, process_group
from xinv.train.section import OWNED, OWNED_CHECKPOINT, OWNED_ZERO, deepspeed_section
from xinv.train.settings import TrainingSettings


@pytest.mark.parametrize(("key", "ours"), OWNED.items())
def test_a_key_that_we_decide_is_refused_and_ours_named(key: str, ours: str) -> None:
    with pytest.raises(ValidationError, match=rf"deepspeed\.{key} would contradict a setting of ours; use {ours}"):
        TrainingSettings(deepspeed={key: {"enabled": True}})
    if " " not in ours:
        assert ours in TrainingSettings.model_fields, "a message names a setting that there is"


@pytest.mark.parametrize(
    ("section", "told"),
    [
        *(
            ({"zero_optimization": {key: 1}}, rf"zero_optimization\.{key} .* use {ours}")
            for key, ours in OWNED_ZERO.items()
        ),
        *(({"checkpoint": {key: True}}, rf"checkpoint\.{key} .* use {ours}") for key, ours in OWNED_CHECKPOINT.items()),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "set offload_weights"),
        ({"zero_optimization": {"offload_optimizer": {"nvme_path": "x"}}}, "set offload_optimizer"),
        ({"zero_optimization": {"offload_optimizer": None}}, "set offload_optimizer"),
        (
            {"zero_optimization": {"offload_optimizer": {"pin_memory": True}}},
            "of no use while offload_optimizer is none",
        ),
        ({"zero_optimization": True}, "zero_optimization is True; expected a section"),
        ({"checkpoint": []}, r"checkpoint is \[\]; expected a section"),
    ],
)
def test_inside_its_parts_as_well(section: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TrainingSettings(deepspeed=section)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"offload_optimizer": "cpu"}, "set zero_stage to 1, 2 or 3"),
        ({"offload_weights": "cpu", "zero_stage": 2}, "set zero_stage to 3"),
        ({"offload_weights": "nvme", "zero_stage": 3}, "nvme names no folder"),
        ({"offload_weights": "cpu", "zero_stage": 3, "nvme": "x"}, "set offload_weights to nvme"),
        ({"offload_optimizer": "nvme", "zero_stage": 3, "nvme": "x"}, "expected cpu or none"),
    ],
)
def test_an_offload_that_the_stage_does_not_have_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TrainingSettings.model_validate(settings)


def test_what_deepspeed_is_told(tmp_path: Path) -> None:
    settings = TrainingSettings(
        zero_stage=3,
        offload_optimizer="cpu",
        offload_weights="nvme",
        nvme=tmp_path,
        clip=0.5,
        deepspeed={
            "wall_clock_breakdown": True,
            "checkpoint": {"parallel_write": {"pipeline_stage": True}},
            "zero_optimization": {"reduce_bucket_size": 7, "offload_optimizer": {"pin_memory": False}},
        },
    )
    told = deepspeed_section(settings, 4, 2, [10, 1000, 200])
    assert told["wall_clock_breakdown"] is True and told["checkpoint"] == {"parallel_write": {"pipeline_stage": True}}
    assert (told["train_micro_batch_size_per_gpu"], told["gradient_accumulation_steps"]) == (4, 2)
    assert told["gradient_clipping"] == 0.5
    zero = told["zero_optimization"]
    assert (zero["stage"], zero["reduce_bucket_size"]) == (3, 7)
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert deepspeed_section(TrainingSettings(), 4, 2, [10, 200])["zero_optimization"]["reduce_bucket_size"] == 210
    assert zero["offload_param"] == {"device": "nvme", "nvme_path": str(tmp_path), "buffer_size": 1000}


@pytest.mark.parametrize(
    "section", [{"zero_optimization": {"reduce_buckets": 5}}, {"zero_optimization": {"reduce_bucket_size": "many"}}]
)
def test_what_deepspeed_does_not_know_is_the_users_mistake(section: dict[str, Any]) -> None:
    settings = TrainingSettings(zero_stage=1, deepspeed=section)
    _, world = process_group()
    with pytest.raises(InputError, match=r"(?s)DeepSpeed refuses the training settings.*reduce_bucket"):
        Engine(nn.Linear(2, 2), settings, world)


def test_without_libaio_no_weights_go_to_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainingSettings(zero_stage=3, offload_weights="nvme", nvme=tmp_path)
    _, world = process_group()
    monkeypatch.setattr(engine_file, "aio_possible", lambda: False)
    with pytest.raises(InputError, match="apt-get install libaio-dev"):
        Engine(nn.Linear(2, 2), settings, world)
    (tmp_path / "file").touch()
    monkeypatch.setattr(engine_file, "aio_possible", lambda: True)
    wrong = settings.model_copy(update={"nvme": tmp_path / "file" / "folder"})
    with pytest.raises(InputError, match="cannot be written to"):
        Engine(nn.Linear(2, 2), wrong, world)


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    _, world = process_group()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"compile is on.*no-such-compiler"):
        Engine(nn.Linear(2, 2), TrainingSettings(compile=True), world)
