"""What the README shows is true: its commands parse, its settings exist, its Python example runs."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from audits import DEMO, ROOT

from xinv import cli
from xinv import config as configs
from xinv.factors import settings as factors
from xinv.search import settings as searches

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^ {4}(xinv [^#\n]+)", README, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    targets = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("line", [line for line in COMMANDS if " configs/" in line])
def test_settings_of_the_commands_exist(line: str) -> None:
    words = shlex.split(line.split(">")[0])
    path = next(word for word in words if word.startswith("configs/"))
    changes = [word for word in words if re.match(r"[a-z_.]+=", word)]
    if words[1] == "search":
        searches.base_audit(searches.load(ROOT / path, changes))
        return
    load = factors.load if words[1] == "factors" else configs.load
    load(ROOT / path, changes)


@pytest.mark.parametrize("line", COMMANDS)
def test_verbs_of_the_commands_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line.split(">")[0])[1:]
    verbs = words[: 2 if words[0] in ("config", "shards", "data") else 1]
    assert cli.run([*verbs, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in shown


def test_the_python_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """The example as it stands; only how large the audit is differs, and where it lies."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    loaded: list[Any] = []
    original = configs.load

    def smaller(path: Path, overrides: Any = ()) -> configs.AuditConfig:
        from audits import SMALL

        loaded.append(path)
        one = ("release.methods=[gradient]", "attack.controls=[mean_image]")
        return original(DEMO, [*overrides, *SMALL, *one, f"runs={tmp_path / 'runs'}"])

    monkeypatch.setattr(configs, "load", smaller)
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
    assert loaded == [Path("configs/demo.yaml")]
    said = capsys.readouterr().out
    assert "flatten_unet:gradient" in said and "difference" in said
    shutil.rmtree(tmp_path / "runs")
