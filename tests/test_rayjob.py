"""The manifest of a job on Kubernetes: to the letter, by KubeRay's own schema, and what it must hold."""

import json
from pathlib import Path
from typing import Any

import pytest
from crd import definition, problems
from golden import check_golden
from pydantic import ValidationError
from rayjobs import request, site

from launch.rayjob import KubernetesSite, fingerprint, manifest, parsed
from launch.work import GIB
from xinv.errors import InputError

EVERYTHING: dict[str, Any] = {
    "namespace": "vision",
    "image": "images.example/xinv@sha256:0123",
    "pull_policy": "Always",
    "pull_secrets": ["images"],
    "volumes": [
        {"claim": "home", "path": "/shared"},
        {"claim": "data", "path": "/data", "sub_path": "faces", "read_only": True},
    ],
    "queue": "team",
    "node_selector": {"gpu": "h100", "on": "yes"},
    "tolerations": [
        {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
        {"key": "team", "operator": "Equal", "value": "a"},
    ],
    "memory": 512,
    "shared_memory": 64,
    "token_secret": "ray-token",
    "secrets": ["wandb", "bucket"],
    "user": 4711,
    "groups": [100, 200],
    "fs_group": 100,
    "capabilities": ["IPC_LOCK"],
    "labels": {"team": "a"},
    "annotations": {"cost-centre": "0042"},
    "pod_labels": {"network": "fast"},
    "pod_annotations": {"k8s.v1.cni.cncf.io/networks": "ib0"},
    "retries": 3,
    "start_seconds": 1800,
    "keep_seconds": 0,
}
GPU = request(
    nodes=2, cpus=64, gpus=8, seconds=43200, environment={"NCCL_SOCKET_IFNAME": "net1"}, inputs=("/data/celeba",)
)
STAGED = {**EVERYTHING, "queue": None, "remove_seconds": 86400, "keep_seconds": 600}
CASES = {
    "cpu": (request(), site()),
    "gpu": (GPU, site(**EVERYTHING)),
    "apart": (request(nodes=3, cpus=4, memory=32 * GIB), site(head_apart=True, user=1000)),
    "staged": (GPU, site(**STAGED)),
    "partition": (request(partition="other"), site(queue="team")),
    "mirrored": (request(storage="s3://bucket/runs"), site(volumes=(), storage_key="xinv-key")),
}


def pods(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specs of the Ray nodes, the head's first."""
    cluster = found["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]
    return [group["template"]["spec"] for group in groups]


def variables(pod: dict[str, Any]) -> dict[str, str]:
    (container,) = pod["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_rendered_to_the_letter(name: str) -> None:
    check_golden(f"rayjob_{name}.yaml", manifest(*CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_kuberay_knows_every_field(name: str) -> None:
    assert problems(definition(), parsed(manifest(*CASES[name]))) == []


def test_the_schema_is_read_strictly() -> None:
    found = parsed(manifest(*CASES["gpu"]))
    spec = found["spec"]
    spec["backofLimit"] = 3
    spec["rayClusterSpec"]["authOptions"]["mode"] = "tokn"
    spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["nodeSelektor"] = {}
    spec["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "two"
    assert len(problems(definition(), found)) == 4


@pytest.mark.parametrize("name", CASES)
def test_kubernetes_knows_every_field_of_the_pods(name: str) -> None:
    """Without the definition at hand: the official client's own pod loses nothing of ours."""
    client = pytest.importorskip("kubernetes.client")
    api = client.ApiClient()
    found = parsed(manifest(*CASES[name]))
    submitter = found["spec"]["submitterPodTemplate"]["spec"]
    for pod in [*pods(found), submitter]:
        assert api.sanitize_for_serialization(client.V1PodSpec.from_dict(pod)) == pod


@pytest.mark.parametrize("name", CASES)
def test_every_pod_has_its_limits_its_memory_and_no_more_rights_than_it_needs(name: str) -> None:
    asked, settings = CASES[name]
    found = parsed(manifest(asked, settings))
    for pod in pods(found):
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["shared-memory"] == "/dev/shm"
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        (shared,) = [volume for volume in pod["volumes"] if volume["name"] == "shared-memory"]
        assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": f"{settings.shared_memory}Gi"}
    for pod in [*pods(found), found["spec"]["submitterPodTemplate"]["spec"]]:
        assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert found["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert found["spec"]["rayClusterSpec"]["rayVersion"] == asked.versions["ray"]


@pytest.mark.parametrize("name", CASES)
def test_the_head_carries_the_whole_request(name: str) -> None:
    asked, settings = CASES[name]
    head, *workers = pods(parsed(manifest(asked, settings)))
    assert json.loads(variables(head)["XINV_REQUEST"]) == asked.model_dump(mode="json")
    assert all("XINV_REQUEST" not in variables(pod) for pod in workers)


def test_the_head_is_one_of_the_nodes_or_one_more() -> None:
    cluster = parsed(manifest(*CASES["cpu"]))["spec"]["rayClusterSpec"]
    assert "workerGroupSpecs" not in cluster and cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "2"
    cluster = parsed(manifest(*CASES["gpu"]))["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (1, 1, 1)
    assert cluster["headGroupSpec"]["rayStartParams"] == workers["rayStartParams"]
    assert workers["rayStartParams"]["num-gpus"] == "8"
    cluster = parsed(manifest(*CASES["apart"]))["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == 3 and cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", CASES)
def test_kuberay_takes_how_it_is_suspended_and_removed(name: str) -> None:
    """The rules of KubeRay's validation.go and of its CEL that no schema holds."""
    spec = parsed(manifest(*CASES[name]))["spec"]
    assert spec.get("shutdownAfterJobFinishes", False) != ("deletionStrategy" in spec)
    assert not spec.get("suspend") or spec["shutdownAfterJobFinishes"]
    assert not spec.get("ttlSecondsAfterFinished") or spec["shutdownAfterJobFinishes"]
    stages: dict[tuple[str, str], list[int]] = {}
    for rule in spec.get("deletionStrategy", {}).get("deletionRules", ()):
        ((kind, end),) = [(key, value) for key, value in rule["condition"].items() if key != "ttlSeconds"]
        stages.setdefault((kind, end), []).append(rule["condition"]["ttlSeconds"])
    assert all(seconds == sorted(seconds) and len(seconds) == 3 for seconds in stages.values())
    if name == "staged":
        ends = {("jobStatus", "SUCCEEDED"), ("jobStatus", "FAILED"), ("jobDeploymentStatus", "Failed")}
        assert set(stages) == ends


def test_a_queue_suspends_the_job_and_the_partition_names_another() -> None:
    found = parsed(manifest(*CASES["partition"]))
    assert found["spec"]["suspend"] is True
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "other"
    assert "suspend" not in parsed(manifest(*CASES["cpu"]))["spec"]


def test_no_value_becomes_yaml() -> None:
    nasty = "a: b\n- c # d {{ e }} 'f\" \x85\u2028\x7f \U0001f600 $(HOME) ${HOME} yes\t"
    asked = request(environment={"NASTY": nasty, "NUMBER": "010", "TRUTH": "no"}, tree={"name": nasty})
    found = parsed(manifest(asked, site(labels={"on": "no"}, node_selector={"a: b\nc": nasty})))
    (head,) = pods(found)
    assert head["nodeSelector"] == {"a: b\nc": nasty}
    assert found["metadata"]["labels"]["on"] == "no"
    seen = variables(head)
    assert seen["NASTY"] == nasty.replace("$", "$$")  # the kubelet makes one dollar sign of two
    assert (seen["NUMBER"], seen["TRUTH"]) == ("010", "no")
    assert "$" not in seen["XINV_REQUEST"]
    assert json.loads(seen["XINV_REQUEST"])["work"]["tree"]["name"] == nasty


def test_the_fingerprint_changes_with_the_request_alone() -> None:
    assert fingerprint(request()) == fingerprint(request())
    assert fingerprint(request()) != fingerprint(request(nodes=2))
    notes = parsed(manifest(request(), site(retries=5)))["metadata"]["annotations"]
    assert notes["xinv/request"] == fingerprint(request())


@pytest.mark.parametrize(
    ("asked", "settings", "said"),
    [
        (request(), site(image=None), "Which image"),
        (request(), site(volumes=()), "No pod would see /shared/me, /shared/me/runs"),
        (request(inputs=("/data/faces",)), site(), "/data/faces"),
        (request(), site(volumes=[{"claim": "home", "path": "/shared", "read_only": True}]), "write"),
        (request(memory=6 * GIB), site(shared_memory=4), "8 GiB or more"),
        (request(storage="s3://b/r", inputs=("/data/faces",)), site(volumes=()), "/data/faces"),
        (request(nodes=2, storage="s3://b/r"), site(volumes=()), "do not see one /shared/me"),
        (request(storage="s3://b/r"), site(volumes=(), head_apart=True), "The 2 machines of this job"),
        (request(partition="q"), site(remove_seconds=60), "remove_seconds"),
        (request(tree={"name": "x" * 140_000}), site(), "characters"),
    ],
)
def test_what_cannot_be_is_refused_in_words(asked: Any, settings: KubernetesSite, said: str) -> None:
    with pytest.raises(InputError, match=said):
        manifest(asked, settings)


def test_data_may_lie_in_the_image() -> None:
    manifest(request(inputs=("/opt/data/faces",)), site(in_image=["/opt/data"]))


def test_a_volume_is_where_the_job_is_submitted_unless_it_says_where() -> None:
    (head,) = pods(parsed(manifest(request(), site(volumes=[{"claim": "home"}]))))
    assert {mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]} == {"/dev/shm", "/shared/me"}
    with pytest.raises(ValidationError, match="absolute"):
        KubernetesSite.model_validate({"volumes": [{"claim": "home", "path": "shared"}]})


def test_runs_that_are_mirrored_need_no_claim() -> None:
    (head,) = pods(parsed(manifest(*CASES["mirrored"])))
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert volumes["scratch-0"]["emptyDir"] == {}
    assert [mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]] == [
        "/dev/shm",
        "/etc/xinv",
        "/shared/me",
    ]
    assert volumes["storage-key"]["secret"] == {"secretName": "xinv-key", "defaultMode": 0o440}


def test_the_template_is_package_data() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "cluster*" in project["packages"]["find"]["include"] and "*.j2" in project["package-data"]["cluster"]
