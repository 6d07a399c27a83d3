"""What a job asks of a Kubernetes cluster against what is there, on a real server, through the official client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube_server import Cluster, Server, claim, node, place, serving
from rayjobs import request

pytest.importorskip("kubernetes", reason="the client for Kubernetes is not installed (pip install 'xinv[dev]')")

from launch.work import GIB
from xinv.errors import InputError


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def cluster(server: Server) -> Cluster:
    return server.cluster


def test_what_is_asked_is_compared_with_what_is_there(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    cluster.secrets, cluster.queues = {"wandb", "images"}, {"team"}
    backend = place(server, tmp_path, secrets=["wandb"], pull_secrets=["images"], queue="team")
    lines = backend.check(request(home=tmp_path))
    said = "\n".join(lines)
    for part in (
        "v1.33.1",
        "KubeRay is there",
        "claim home: Bound",
        "Secret wandb: there",
        "queue team",
        "hold 4",
        "tried",
    ):
        assert part in said
    assert cluster.rayjobs == {}  # tried, not kept


def test_what_one_may_not_look_at_is_said(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    cluster.denied = {("list", "nodes"), ("get", "secrets"), ("get", "persistentvolumeclaims")}
    lines = place(server, tmp_path, secrets=["wandb"]).check(request(home=tmp_path))
    assert sum("you may not" in line for line in lines) == 3


@pytest.mark.parametrize(
    ("change", "settings", "asked", "said"),
    [
        ({"groups": {}}, {}, {}, "no KubeRay"),
        ({"denied": {("create", "rayjobs")}}, {}, {}, "may not create rayjobs"),
        ({"denied": {("get", "pods/log")}}, {}, {}, "read their logs"),
        ({"claims": {}}, {}, {}, "no claim home"),
        ({"claims": {"home": claim("ReadWriteOnce")}}, {}, {"nodes": 2}, "ReadWriteOnce, and the job has 2 pods"),
        ({"claims": {"home": claim("ReadOnlyMany")}}, {}, {"nodes": 2}, "ReadOnlyMany"),
        ({}, {"secrets": ["wandb"]}, {}, "no Secret wandb"),
        ({}, {"token_secret": "ray-token"}, {}, "no Secret ray-token"),
        ({}, {"queue": "team"}, {}, "no LocalQueue team"),
        ({"groups": {"ray.io": "v1"}}, {"queue": "team"}, {}, "no Kueue"),
        ({}, {}, {"gpus": 1}, r"a pod of 2 CPUs, 1 nvidia.com/gpu.*at most a node offers 8 CPUs, 0 nvidia.com/gpu"),
        ({}, {}, {"nodes": 5}, "5 pods of 2 CPUs.*hold 4"),
        ({}, {}, {"memory": 64 * GIB}, "64 GiB.*at most a node offers 8 CPUs, 32 GiB"),
        ({}, {"node_selector": {"gpu": "h100"}}, {}, "the 0 of 1 nodes"),
        ({"nodes": [{**node("a", cpu="8"), "spec": {"unschedulable": True}}]}, {}, {}, "the 0 of 1 nodes"),
        ({"unknown_fields": {"spec.rayClusterSpec.authOptions"}}, {}, {}, "KubeRay.*too old.*1.5.1"),
        ({"unknown_fields": {"spec.preRunningDeadlineSeconds"}}, {}, {}, 'unknown field "spec.preRunning'),
    ],
)
def test_what_could_never_start_is_refused_in_words(
    server: Server, cluster: Cluster, tmp_path: Path, change: Any, settings: Any, asked: Any, said: str
) -> None:
    for name, value in change.items():
        setattr(cluster, name, value)
    with pytest.raises(InputError, match=f"(?s){said}"):
        place(server, tmp_path, **settings).check(request(home=tmp_path, **asked))
    assert cluster.rayjobs == {}


@pytest.mark.parametrize(
    ("tolerations", "fits"),
    [
        ([], False),
        ([{"key": "gpu"}], True),
        ([{}], True),
        ([{"key": "gpu", "operator": "Equal", "value": "a"}], True),
        ([{"key": "gpu", "operator": "Equal", "value": "b"}], False),
        ([{"key": "gpu", "effect": "NoExecute"}], False),
    ],
)
def test_tainted_nodes_count_where_their_taint_is_tolerated(
    server: Server, cluster: Cluster, tmp_path: Path, tolerations: list[Any], fits: bool
) -> None:
    taint = {"key": "gpu", "value": "a", "effect": "NoSchedule"}
    cluster.nodes = [node("a", taints=(taint,), **{"cpu": "64", "nvidia.com/gpu": "8"})]
    backend = place(server, tmp_path, tolerations=tolerations)
    if fits:
        assert any("hold 2" in line for line in backend.check(request(home=tmp_path, gpus=4)))
    else:
        with pytest.raises(InputError, match="the 0 of 1 nodes"):
            backend.check(request(home=tmp_path, gpus=4))


def test_nodes_that_come_on_demand_are_no_reason_to_refuse(server: Server, tmp_path: Path) -> None:
    lines = place(server, tmp_path, scales=True).check(request(home=tmp_path, gpus=8))
    assert any("on demand" in line for line in lines)
