"""Jobs and sites for the tests of Kubernetes."""

from pathlib import Path
from typing import Any

from launch.job import Request
from launch.rayjob import KubernetesSite
from launch.work import Shape, Work


def request(
    nodes: int = 1,
    cpus: int = 2,
    gpus: int = 0,
    memory: int | None = None,
    tree: dict[str, Any] | None = None,
    inputs: tuple[str, ...] = (),
    home: Path = Path("/shared/me"),
    storage: str | None = None,
    **more: Any,
) -> Request:
    """The demo, submitted from a shared home."""
    work = Work(
        verb="audit",
        config=Path("configs/demo.yaml"),
        tree=tree or {"name": "demo", "seed": 0},
        name="demo",
        runs=home / "runs",
        identity="0123456789ab",
        processes=2,
        cpus=1,
        gpus=1 if gpus else 0,
        inputs=tuple(map(Path, inputs)),
        storage=storage,
    )
    return Request(
        handle="demo-012345",
        work=work,
        shape=Shape(nodes=nodes, cpus=cpus, gpus=gpus, memory=memory),
        cwd=home,
        folder=home / "runs" / "demo" / "jobs" / "demo-012345",
        versions={"xinv": "0.1.0", "ray": "2.60.0"},
        python="/usr/bin/python3.11",
        **more,
    )


def site(**settings: Any) -> KubernetesSite:
    """A site with an image and a shared home."""
    home = {"claim": "home", "path": "/shared"}
    return KubernetesSite.model_validate({"image": "xinv:0.1.0", "volumes": [home], **settings})
