"""The files of cluster/ that other programs read: what of them can be tested without a cluster and without Docker."""

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
RAY_UP = (CLUSTER / "ray_up.yaml").read_text()
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def ray_up(variant: str | None = None) -> dict[str, Any]:
    """The cluster, with the lines of a variant in place of those that they replace."""
    lines = RAY_UP.splitlines()
    found: dict[str, Any] = yaml.safe_load("\n".join(line for line in lines if not line.startswith("#")))
    if variant:
        marked = [line.removeprefix(f"#{variant} ") for line in lines if line.startswith(f"#{variant} ")]
        assert marked
        found |= yaml.safe_load("\n".join(marked))
    return found


VALIDATE = """
import json, sys
from ray.autoscaler._private.util import prepare_config, validate_config
prepared = prepare_config(json.load(sys.stdin))
validate_config(prepared)
print("workers:", prepared["max_workers"])
"""


def by_ray(cluster: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """What `ray up` itself says of a cluster; in a process of its own: Ray reads its token as it is imported."""
    program = [sys.executable, "-c", VALIDATE]
    return subprocess.run(program, input=json.dumps(cluster), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("variant", [None, "docker", "aws"])
def test_ray_takes_the_cluster(variant: str | None) -> None:
    done = by_ray(ray_up(variant))
    assert done.returncode == 0 and "workers: 2" in done.stdout, done.stderr[-2000:]


def test_ray_refuses_what_it_does_not_know() -> None:
    done = by_ray({**ray_up(), "headd_start_ray_commands": []})
    assert done.returncode != 0 and "headd_start_ray_commands" in done.stderr


@pytest.mark.parametrize("variant", [None, "docker"])
def test_the_commands_are_shell_and_ask_for_the_token(variant: str | None) -> None:
    found = ray_up(variant)
    starts = {name: found[name] for name in ("head_start_ray_commands", "worker_start_ray_commands")}
    for command in [*found["setup_commands"], *(command for commands in starts.values() for command in commands)]:
        subprocess.run(["bash", "-n", "-c", command], check=True, timeout=10)
    for commands in starts.values():
        assert "RAY_AUTH_MODE=token" in commands[-1] and "ray start" in commands[-1]
    assert "--dashboard-host=127.0.0.1" in starts["head_start_ray_commands"][-1]


def test_what_is_sent_is_there_and_enough_to_install() -> None:
    mounts = ray_up()["file_mounts"]
    own = {target: source for target, source in mounts.items() if not source.startswith("~")}
    assert {source for target, source in mounts.items() if source.startswith("~")} == {"~/.ray/auth_token"}
    assert all((ROOT / source).exists() for source in own.values())
    assert set(own.values()) >= {
        "xinv",
        "launch",
        "cluster",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "constraints.txt",
    }
    docker = ray_up("docker")["docker"]
    assert any(option.startswith("--shm-size") for option in docker["run_options"])


# ---- the image


def instructions(kind: str) -> list[str]:
    joined = re.sub(r"\\\n", " ", DOCKERFILE)
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(f"{kind} ")]


def copied() -> list[str]:
    return [source for line in instructions("COPY") for source in line.split()[:-1]]


def test_what_is_copied_is_there_and_let_in() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert let_in == {source.rstrip("/") for source in copied()} | {"cluster"}
    assert all((ROOT / source).exists() for source in copied())
    assert not any(
        fnmatch.fnmatch(name, pattern) for name in ("runs", "data", ".git", ".venv", ".env") for pattern in let_in
    )


def test_what_the_package_needs_is_copied_before_it_is_installed() -> None:
    before = DOCKERFILE[: DOCKERFILE.index('".[${EXTRAS}]"')]
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed = {f"{name}/" for name in packages} | {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    for name in needed:
        assert re.search(rf"^COPY .*\b{re.escape(name)}", before, re.MULTILINE), name


def test_what_is_installed_is_pinned_and_in_the_range_of_the_project() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    commands = [words for line in instructions("RUN") if (words := line).startswith("pip install")]
    assert len(commands) == 2 and all("-c constraints.txt" in command for command in commands)
    (extras,) = re.findall(r'^ARG EXTRAS="(.*)"', DOCKERFILE, re.MULTILINE)
    optional = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *(line for extra in extras.split(",") for line in optional[extra])]
    pinned = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for line in wanted:
        requirement = Requirement(line)
        assert pinned[requirement.name.lower()] in requirement.specifier, line
    (base,) = re.findall(r"^ARG BASE=python:([\d.]+)-slim", DOCKERFILE, re.MULTILINE)
    assert base in PROJECT["project"]["requires-python"]


def test_the_image_runs_as_a_user_that_kubernetes_can_tell_from_root() -> None:
    assert instructions("USER") == ["1000:0"]
    assert "useradd --uid 1000 --gid 0" in DOCKERFILE
    last = DOCKERFILE[DOCKERFILE.index("\nUSER ") :]
    assert "xinv doctor --prepare" in last and "chmod -R g=u /home/xinv" in last


def test_the_shell_of_the_image_is_shell() -> None:
    for line in instructions("RUN"):
        subprocess.run(["sh", "-n", "-c", line], check=True, timeout=10)
    for line in instructions("CMD"):
        assert yaml.safe_load(line)[0] == "xinv"


def test_an_empty_index_of_torch_adds_no_argument() -> None:
    (line,) = [line for line in instructions("RUN") if line.endswith(" torch")]
    said = line.replace("pip install", "printf '%s|'")
    for index, expected in (
        ("", ["-c", "constraints.txt", "torch"]),
        ("I", ["-c", "constraints.txt", "--extra-index-url", "I", "torch"]),
    ):
        done = subprocess.run(
            ["sh", "-c", said], env={"TORCH_INDEX": index}, capture_output=True, text=True, timeout=10
        )
        assert done.stdout.split("|")[:-1] == expected


# ---- the pages


@pytest.mark.parametrize("page", sorted(CLUSTER.glob("*.md")), ids=lambda page: page.name)
def test_pages_are_true(page: Path) -> None:
    """Links lead somewhere; `xinv` commands exist; YAML in them is a site file that validates."""
    from launch.site import Site
    from xinv import cli

    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (CLUSTER / link).exists(), link
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        Site.model_validate(yaml.safe_load(block))
    for line in re.findall(r"^ {4}(xinv [^#\n]+)", text, re.MULTILINE):
        words = shlex.split(line)[1:]
        verbs = words[: 2 if words[0] == "jobs" and len(words) > 1 else 1]
        assert cli.run([*verbs, "--help"]) == 0, line
