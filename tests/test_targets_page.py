"""What docs/targets.md shows works: its files, run by its own commands in a folder of their own, on fewer images."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from audits import ROOT, SMALL, scores_of
from safetensors.torch import load_file

from xinv.data.loader import Reader
from xinv.files import read_json

PAGE = (ROOT / "docs" / "targets.md").read_text()
MODULE, TRAIN = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
(CONFIG,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [shlex.split(line) for line in re.findall(r"^ {4}((?:python|xinv) .*)", PAGE, re.MULTILINE)]
TINY = [setting for setting in SMALL if not setting.startswith(("target.", "release.", "data.split"))]
TINY += [
    "data.split={target: 2, attack: 100, victim: 24, gallery: 80}",
    "attack.surrogate={network: {width: 4}, training: {epochs: 2}, methods: [gradient], modes: [two_stage]}",
    "attack.controls=[mean_image]",
    "attack.releases=[[grad_cam]]",
]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """As in a user's shell: neither `xinv` nor its workers find the folder's modules by themselves."""
    environment = {**os.environ, "COLUMNS": "160", "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, after its commands."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in {"digit_net.py": MODULE, "train.py": TRAIN, "mine.yaml": CONFIG}.items():
        assert f"`{name}`" in PAGE
        (folder / name).write_text(text)
    (python, *script), (xinv, *verb) = COMMANDS
    assert (python, xinv) == ("python", "xinv")
    trained = subprocess.run([sys.executable, *script], capture_output=True, text=True, timeout=120, cwd=folder)
    assert trained.returncode == 0, trained.stderr
    audited = run(folder, sys.executable, "-m", "xinv.cli", *verb, *TINY)
    log = folder / "runs" / "mine" / "log.txt"
    assert audited.returncode == 0, audited.stderr + (log.read_text()[-3000:] if log.exists() else "")
    assert "Target: digit_net:build" in audited.stdout
    return folder


def test_the_example_is_audited_in_its_worker_processes(folder: Path) -> None:
    scores = scores_of(folder / "runs", "mine")
    attacks = ["prediction_only", "flatten_unet:grad_cam", "surrogate_two_stage:gradient"]
    assert [row["attack"] for row in scores["rows"] if row["kind"] == "attack"] == attacks
    assert scores["target"]["accuracy"]["mean"] > 0.5, "the page's network has learnt digits"


def test_what_was_released_is_the_users_networks_own(folder: Path) -> None:
    """Its logits, and Grad-CAM at the layer that the page names."""
    (images,), (releases,), (stage,) = (
        list((folder / "runs" / "stages").glob(f"{kind}-*")) for kind in ("images", "releases", "target")
    )
    network = read_json(stage / "network.json")
    assert (network["kind"], network["layer"], network["arguments"]) == ("imported", "5", {"width": 8})
    scope: dict[str, object] = {}
    exec(compile(MODULE, "digit_net.py", "exec"), scope)
    model = scope["build"](width=8).eval()  # type: ignore[operator]
    model.load_state_dict(load_file(folder / "digit_net.safetensors"))
    for batch in Reader(images, "attack_validation", releases, ("grad_cam",)).once(64):
        with torch.no_grad():
            torch.testing.assert_close(batch.prediction_BK, model(batch.image_BCHW), rtol=1e-4, atol=1e-5)
        assert batch.maps["grad_cam"].shape[1:] == (1, 16, 16)


def test_a_second_run_keeps_everything_until_the_function_changes(folder: Path) -> None:
    command = [sys.executable, "-m", "xinv.cli", *COMMANDS[1][1:], *TINY, "--until", "target"]
    again = run(folder, *command)
    assert again.returncode == 0 and all("(kept)" in line for line in again.stdout.splitlines() if "✓" in line)
    (folder / "digit_net.py").write_text(MODULE.replace("nn.ReLU()", "nn.ELU()"))
    try:
        changed = run(folder, *command, "release.methods=[gradient]", "attack.releases=null", "name=elu")
    finally:
        (folder / "digit_net.py").write_text(MODULE)
    assert changed.returncode == 0, changed.stderr
    assert [line for line in changed.stdout.splitlines() if "Target" in line and "(kept)" not in line]


def test_a_mistake_ends_the_command_before_work(folder: Path) -> None:
    wrong = run(
        folder, sys.executable, "-m", "xinv.cli", "audit", "mine.yaml", "name=wrong", "target.import=digits:build"
    )
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert "digits cannot be imported" in wrong.stderr and "✓" not in wrong.stdout
