"""The command line: help, exit codes, messages. Every way to be wrong is one clear message, never a traceback."""

import errno
import json
from pathlib import Path

import pytest
import typer.main
from audits import DEMO, ROOT

from xinv import cli
from xinv.data.index import shard_path

FACTORS = ROOT / "configs" / "factors.yaml"


def test_every_verb_has_a_line_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    def verbs(group: object, path: list[str]) -> list[list[str]]:
        found = []
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            found += verbs(command, [*path, name]) if hasattr(command, "commands") else [[*path, name]]
        return found

    for path in verbs(typer.main.get_command(cli.app), []):
        assert cli.run([*path, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"Example: xinv {' '.join(path)}" in " ".join(text.split()), path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["audit", "nowhere.yaml"], ["nowhere.yaml"]),
        (["audit", str(DEMO), "sed=1"], ["sed", "seed"]),
        (["audit", str(DEMO), "data.size=big"], ["data.size", "big"]),
        (["audit", str(DEMO), "workers.counts=2"], ["workers.counts", "count"]),
        (["config", "show", str(DEMO), "justakey"], ["justakey", "="]),
        (["shards", "verify", "nowhere"], ["nowhere"]),
        (["factors", "nowhere.yaml"], ["nowhere.yaml"]),
        (["factors", str(FACTORS), "overides.seed=1"], ["overides", "overrides"]),
        (["factors", str(FACTORS), "overrides.sed=1"], ["base", "sed", "seed"]),
        (["audit"], ["CONFIG"]),
        (["adit"], ["adit"]),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    said = capsys.readouterr()
    assert all(word in said.err for word in words), said.err
    assert "Traceback" not in said.err
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_config_show_prints_what_loads_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["config", "show", str(DEMO), "seed=3"]) == 0
    shown = capsys.readouterr().out
    (tmp_path / "shown.yaml").write_text(shown)
    assert cli.run(["config", "show", str(tmp_path / "shown.yaml")]) == 0
    assert capsys.readouterr().out == shown
    assert "seed: 3" in shown and "zero_stage: 1" in shown


def test_shards_verify_names_the_broken_shard(
    tiny_images: Path, own_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["shards", "verify", str(tiny_images)]) == 0
    assert "all as the index says" in capsys.readouterr().out
    path = shard_path(own_images, "attack", 1)
    path.write_bytes(path.read_bytes()[:-1024])
    assert cli.run(["shards", "verify", str(own_images)]) == 2
    assert "attack/000001.tar" in capsys.readouterr().err


def test_shards_show_draws_a_contact_sheet(
    tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert cli.run(["shards", "show", str(tiny_images), "--sheet", str(sheet), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["partitions"]["victim"]["samples"] == 11
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_a_full_disk_is_said_as_such(
    tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "sheet.png")

    monkeypatch.setattr("xinv.data.sheet.contact_sheet", full)
    assert cli.run(["shards", "show", str(tiny_images), "--sheet", str(tmp_path / "sheet.png")]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xinv.config.load", interrupt)
    assert cli.run(["config", "show", str(DEMO)]) == 130
    assert "the same command continues" in capsys.readouterr().err
