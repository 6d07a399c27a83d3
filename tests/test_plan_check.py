"""A launch that cannot fit is refused before anything is trained, and what fits never is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from audits import DEMO

from xinv import cli
from xinv import config as configs
from xinv.errors import InputError
from xinv.plan import check
from xinv.plan.advice import Ranks, Trial, ladder
from xinv.plan.check import SURE, check_fits
from xinv.plan.rehearsal import rehearse
from xinv.plan.room import Room, _cgroup_limits, bytes_of, gpu_room, machine_memory, share_of
from xinv.plan.table import show

ONE = ["release.methods=[gradient]", "attack.training.zero_stage=0"]


def test_what_fits_is_not_refused() -> None:
    check_fits(configs.load(DEMO, ONE), 2, share_of(machine_memory(), 2))


def test_a_refusal_names_training_need_room_and_what_fits() -> None:
    config = configs.load(DEMO, [*ONE, "attack.training.batch_size=2000", "attack.training.precision=fp32"])
    with pytest.raises(InputError) as refused:
        check_fits(config, 1, gpu_room(1 << 30))
    words = str(refused.value)
    assert "flatten_unet + gradient" in words and "a GPU of 1 GiB" in words and "2000 images at once" in words
    assert "attack.training.zero_stage=0 attack.training.micro_batch=" in words, words
    advice = words.split("This fits: ")[1].split(" `xinv")[0].rstrip(".").split()
    check_fits(configs.load(DEMO, [*ONE, "attack.training.batch_size=2000", *advice]), 1, gpu_room(1 << 30))


def test_what_nothing_mends_names_ranks_or_designs() -> None:
    singly = [f"{part}.training.micro_batch=1" for part in ("target", "evaluators.residual", "attack")]
    paper = ["release.methods=[gradient]", "data.size=512", "attack.inverters=[flatten]", *singly]
    with pytest.raises(InputError, match="what would: ") as refused:
        check_fits(configs.load(DEMO, paper), 1, gpu_room(1100 << 20))
    assert "flatten + gradient" in str(refused.value)
    assert "the design cnn" in str(refused.value), refused.value


def test_the_limit_is_where_it_is_said_to_be() -> None:
    config = configs.load(DEMO, [*ONE, "attack.training.precision=fp32", "target.training.zero_stage=0"])
    config = config.model_copy(update={"evaluators": {}})
    needs = [Trial(one, Ranks(1, "cuda", "fp32")).configured().memory.total for one in rehearse(config).trainings]
    check_fits(config, 1, Room(int(SURE * max(needs)) + 1, "cuda", "enough"))
    with pytest.raises(InputError):
        check_fits(config, 1, Room(int(SURE * max(needs)) - 1, "cuda", "too little"))


def test_an_audit_is_refused_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "room_here", lambda workers: Room(8 << 20, "cpu", "8 MiB of memory"))
    assert cli.run(["audit", str(DEMO), f"runs={tmp_path}", *ONE]) == 2
    said = capsys.readouterr().err
    assert "8 MiB of memory" in said and "Traceback" not in said
    assert not (tmp_path / "stages").exists()


def test_a_plan_is_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(DEMO), *ONE, "--gpus", "2", "--gpu-memory", "80GiB", "--rate", "100tflops"]
    assert cli.run(arguments) == 0
    text = capsys.readouterr().out
    assert "Recommended: target.training.zero_stage=0" in text and "GPU-hours" in text
    assert max(len(line) for line in text.splitlines() if line.startswith(("0 ", "1 ", "2 ", "3 ", "ZeRO"))) <= 100
    assert cli.run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["outlook"]
    assert found["ranks"]["count"] == 2 and found["seconds"] > 0
    target = found["trainings"][0]
    assert {option["zero_stage"] for option in target["options"]} == {0, 1, 2, 3}
    assert {option["micro_batch"] for option in target["options"]} == {1, 2, 4, 8, 16, 32}
    parts = ("weights", "gradients", "optimizer", "activations", "buffers")
    for option in target["options"]:
        assert sum(option["memory"][part] for part in parts) == option["memory"]["total"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "1", "--gpu-memory", "a lot"], "no amount of memory"),
        (["--gpus", "1", "--gpu-memory", "1GiB", "--rate", "fast"], "no rate"),
        (["--gpus", "1", "--gpu-memory", "1GiB", "--rate", "1tflops", "--measure"], "give one of them"),
    ],
)
def test_bad_input_of_a_plan(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", str(DEMO), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_amounts_and_limits_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bytes_of("80GiB") == bytes_of("80") == 80 << 30 and bytes_of("24000 MiB") == 24000 << 20
    (tmp_path / "job").mkdir()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "job" / "memory.max").write_text(f"{3 << 30}\n")
    (tmp_path / "own").write_text("0::/job\n")
    assert 3 << 30 in _cgroup_limits(tmp_path, tmp_path / "own")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "512")
    assert machine_memory() == 512 << 20


def test_a_ladder_ends_with_the_whole_share() -> None:
    assert ladder(1) == [1] and ladder(8) == [1, 2, 4, 8] and ladder(12) == [1, 2, 4, 8, 12]


def test_savings_are_taken_in_order() -> None:
    (target, *_) = rehearse(configs.load(DEMO, [*ONE, "target.training.precision=fp32"])).trainings
    job = target.job.model_copy(update={"settings": target.job.settings.model_copy(update={"batch_size": 256})})
    trial = Trial(replace(target, job=job), Ranks(4, "cuda", "fp32"))
    whole = trial.option(0, 64).memory.total
    best = trial.recommended(whole)
    assert best is not None and (best.zero_stage, best.micro_batch, best.recompute) == (0, 64, False)
    less = trial.recommended(whole - 1)
    assert less is not None and less.memory.total < whole and less.micro_batch >= 8
    assert trial.recommended(1) is None


def test_a_table_is_shown_without_a_rate(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from xinv.plan.outlook import outlook, ranks_for

    room = gpu_room(1 << 34)
    found = outlook(configs.load(DEMO, ONE), ranks_for(1, room, True), room)
    show(Console(width=100), found)
    assert "--rate" in capsys.readouterr().out
