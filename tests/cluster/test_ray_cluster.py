"""Jobs on a Ray cluster of two nodes that somebody started by hand (bed.py): sent from outside, and a node is lost."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bed
import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from audits import DEMO, SMALL  # noqa: E402

from launch.ray_client import RaySite, asked, client  # noqa: E402
from launch.ray_jobs import RayJobs  # noqa: E402
from launch.site import Site  # noqa: E402
from launch.submit import Asked, request_of  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

LONG = ("target.training.epochs=120",)
"""So many that a node can be lost in mid-training."""

NODE_OF = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

def found():
    import xinv, launch
    return ray.util.get_node_ip_address(), xinv.__file__, launch.__file__

for node in ray.nodes():
    task = ray.remote(num_cpus=0)(found).options(scheduling_strategy=On(node["NodeID"], soft=False))
    print("found", node["NodeManagerAddress"], *ray.get(task.remote())[1:])
"""
"""Says which file each node of a cluster imports xinv from."""


class Cluster:
    """The cluster, and a user outside of it, at work in the checkout."""

    def __init__(self, ray: bed.RayCluster, folder: Path) -> None:
        self.ray, self.folder = ray, folder
        token = folder / "token"
        token.write_text(ray.token)
        # An empty name counts as none: the ranks find the interface by themselves.
        site = {"ray": {"token": str(token)}, "environment": {"GLOO_SOCKET_IFNAME": "", "NCCL_SOCKET_IFNAME": ""}}
        (folder / "site.yaml").write_text(json.dumps(site))
        self.site = Site.model_validate(site)
        self.client = client(ray.dashboard, RaySite(token=token))

    def xinv(self, *arguments: str, limit: float = 1000) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = {"XINV_JOBS": str(self.folder / "jobs"), "XINV_SITE": str(self.folder / "site.yaml"), "COLUMNS": "160"}
        return subprocess.run(
            [sys.executable, "-m", "xinv.cli", *arguments],
            capture_output=True, text=True, timeout=limit, cwd=ROOT, env={**kept, **own, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def submit(self, runs: Path, *overrides: str) -> dict[str, Any]:
        asked = ("--on", self.ray.dashboard, "--nodes", "2", "--cpus-per-node", "1", "--json")
        done = self.xinv("submit", str(DEMO), f"runs={runs}", *SMALL, *overrides, *asked)
        assert done.returncode == 0, done.stderr
        job: dict[str, Any] = json.loads(done.stdout)
        return job

    def ended(self, job: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        done = self.xinv("jobs", "status", job["handle"], "--wait", "--json")
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def nodes_of_ranks(self) -> set[str]:
        """The nodes on which training processes run or ran, as the cluster remembers."""
        actors = asked(self.client, "/api/v0/actors?detail=true&limit=1000")["data"]["result"]["result"]
        return {actor["node_id"] for actor in actors if "RayTrainWorker" in actor["class_name"]}

    @contextlib.contextmanager
    def taken(self, address: str) -> Iterator[None]:
        """Another job, which has a CPU of one node."""
        at = {f"node:{address}": 0.001}
        name = self.client.submit_job(entrypoint="sleep 3600", entrypoint_num_cpus=1, entrypoint_resources=at)
        until(lambda: str(self.client.get_job_status(name)) == "RUNNING", 120)
        yield
        self.client.stop_job(name)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := bed.unfit():
        pytest.skip(reason)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with bed.ray_cluster(cpus=2, environment={"PATH": path, "PYTHONPATH": ""}) as ray:
        yield Cluster(ray, tmp_path_factory.mktemp("ray"))


def until(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def trained(job: dict[str, Any]) -> int:
    """Validations of trainings so far."""
    events = Path(job["run"]) / "events.jsonl"
    return events.read_text().count('"metrics"') if events.exists() else 0


def finished(job: dict[str, Any]) -> int:
    """Stages that are complete."""
    return (Path(job["run"]) / "events.jsonl").read_text().count('"kind": "end"')


def scores(job: dict[str, Any]) -> Any:
    found = json.loads((Path(job["run"]) / "scores.json").read_text())
    return found["rows"], found["leaks"]


def test_every_node_imports_the_code_that_was_sent(cluster: Cluster) -> None:
    on = cluster.ray.dashboard
    overrides = (f"runs={cluster.folder / 'none'}",)
    where = Path.cwd()
    os.chdir(ROOT)
    try:
        request = request_of(None, DEMO, overrides, on, Asked(), cluster.site)
    finally:
        os.chdir(where)
    backend = RayJobs(cluster.site.ray, on)
    program = f"exec python -c '{NODE_OF.strip()}' \"$RAY_ADDRESS\""
    original = backend._body
    backend._body = lambda given: {**original(given), "entrypoint": program}  # type: ignore[method-assign]
    name = backend.send(request)
    until(lambda: str(cluster.client.get_job_status(name)) in ("SUCCEEDED", "FAILED"), 180)
    said = cluster.client.get_job_logs(name)
    found = dict(line.split()[1:3] for line in said.splitlines() if line.startswith("found "))
    assert set(found) == set(bed.NODES.values()), said
    assert all("/working_dir_files/" in path for path in found.values()), found


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """An audit whose two ranks are on two nodes, to its end."""
    with cluster.taken(bed.NODES["n1"]), cluster.taken(bed.NODES["n2"]):
        job = cluster.submit(cluster.folder / "undisturbed", *LONG)
        return job, *cluster.ended(job)


def test_an_audit_on_two_nodes(cluster: Cluster, undisturbed: tuple[dict[str, Any], int, dict[str, Any]]) -> None:
    job, code, status = undisturbed
    assert (code, status["state"]) == (0, "succeeded"), status
    assert len(cluster.nodes_of_ranks()) == 2
    assert "Report: " in cluster.xinv("jobs", "logs", job["handle"]).stdout


def test_a_node_is_lost_in_mid_training_and_the_job_finishes(
    cluster: Cluster, undisturbed: tuple[dict[str, Any], int, dict[str, Any]]
) -> None:
    """Its ranks start again on the node that is left, and the scores are those of the undisturbed audit."""
    with cluster.taken(bed.NODES["n1"]), cluster.taken(bed.NODES["n2"]):
        job = cluster.submit(cluster.folder / "disturbed", *LONG)
        until(lambda: trained(job) >= 2, 400)
        cluster.ray.kill("n2")
        assert finished(job) == 1, "of its stages, the images alone are there"
    code, status = cluster.ended(job)
    assert (code, status["state"]) == (0, "succeeded"), (status, cluster.xinv("jobs", "logs", job["handle"]).stdout)
    assert scores(job) == scores(undisturbed[0])
