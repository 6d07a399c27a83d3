"""A job as Kubernetes takes it: the manifest of a KubeRay RayJob, and the settings of the site that shape it.

Field names are those of ray.io/v1, KubeRay 1.5.1 and newer; the template is cluster/rayjob.yaml.j2. Pure functions of
the request and the site: nothing here talks to a cluster.
"""

import json
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from launch.job import Request
from launch.work import GIB
from xinv.bucket import check_nodes
from xinv.errors import InputError
from xinv.files import digest

ANNOTATION = "xinv/request"
"""Says which request a RayJob was made from: a second submission of the same one is recognised by it."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
VARIABLE_LIMIT = 128 * 1024 - 64
"""Characters of an environment variable's value that Linux takes (MAX_ARG_STRLEN, less the name)."""


class Volume(BaseModel):
    """Storage that the pods see."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    claim: str = Field(description="name of a PersistentVolumeClaim in the namespace; ReadWriteMany for several nodes")
    path: Path | None = Field(
        None, description="absolute path where the pods see it, the same as where you see it; null: where you submit"
    )
    sub_path: str | None = Field(None, description="folder of the volume that is mounted there; null: the whole")
    read_only: bool = Field(False, description="for data that jobs only read")

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_absolute():
            raise ValueError("write an absolute path, such as /shared")
        return path


class Toleration(BaseModel):
    """A taint of nodes that the pods accept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str | None = Field(None, description="null: every taint")
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = Field(None, description="for operator Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="null: every one")


class KubernetesSite(BaseModel):
    """Section `kubernetes` of the site file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kubeconfig: Path | None = Field(None, description="null: KUBECONFIG, then ~/.kube/config, then the pod's own")
    context: str | None = Field(None, description="context of the kubeconfig; null: its current one")
    namespace: str = Field("default", description="where jobs are created")
    image: str | None = Field(None, description="image with xinv in it (cluster/Dockerfile), by tag or digest")
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    pull_secrets: tuple[str, ...] = Field((), description="Secrets with the credentials of the image's registry")
    volumes: tuple[Volume, ...] = Field((), description="storage that holds the working directory, the runs, the data")
    in_image: tuple[Path, ...] = Field((), description="folders that the image holds already, such as data")
    queue: str | None = Field(None, description="LocalQueue of Kueue that jobs wait in; --partition names another one")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels of the nodes that jobs may run on")
    tolerations: tuple[Toleration, ...] = ()
    scales: bool = Field(False, description="nodes come on demand: a job may ask for more than the present ones offer")
    gpu_resource: str = Field("nvidia.com/gpu", description="what the device plugin calls a GPU")
    gpu_memory: str | None = Field(
        None, description="memory of a GPU there, such as 80GiB: a job whose trainings cannot fit is not sent"
    )
    memory: int | None = Field(None, ge=1, description="GiB of each node where --memory-per-node says nothing")
    shared_memory: int = Field(4, ge=1, description="GiB of /dev/shm; counts towards the memory of the pod")
    head_apart: bool = Field(False, description="the head runs no training: one small pod more, and it takes no GPU")
    head_cpus: int = Field(2, ge=1, description="CPU cores of a head apart")
    head_memory: int = Field(8, ge=1, description="GiB of a head apart")
    token_secret: str | None = Field(
        None, description="Secret with Ray's token (key auth_token; KubeRay 1.6); null: KubeRay makes one a cluster"
    )
    secrets: tuple[str, ...] = Field(
        (), description="Secrets that become environment: WANDB_API_KEY, cloud credentials"
    )
    storage_key: str | None = Field(
        None, description="Secret (key storage.key) with the key that signs what `storage` keeps; docs/storage.md"
    )
    user: int | None = Field(None, ge=1, description="user id in the pods, where storage wants one; null: the image's")
    groups: tuple[int, ...] = Field((), description="group ids beside the image's own")
    fs_group: int | None = Field(None, description="group that owns mounted volumes; null: left as they are")
    capabilities: tuple[str, ...] = Field((), description="Linux capabilities, such as IPC_LOCK for InfiniBand")
    labels: dict[str, str] = Field(default_factory=dict, description="of the RayJob, beside its own")
    annotations: dict[str, str] = Field(default_factory=dict, description="of the RayJob, beside its own")
    pod_labels: dict[str, str] = Field(default_factory=dict, description="of its pods")
    pod_annotations: dict[str, str] = Field(default_factory=dict, description="of its pods")
    retries: int = Field(
        1, ge=0, description="new clusters for a job that failed; each continues where the last stopped"
    )
    start_seconds: int | None = Field(
        None, ge=1, description="limit for the start, from admission on (KubeRay 1.6); null: none"
    )
    keep_seconds: int = Field(60, ge=0, description="how long the pods of a finished job stay")
    remove_seconds: int | None = Field(
        None,
        ge=0,
        description="when a finished job is removed altogether, its log with it (KubeRay 1.6, no queue); null: never",
    )


def manifest(request: Request, site: KubernetesSite) -> str:
    """The RayJob in YAML, exactly as it is sent.

    Raises:
        InputError: the site names no image; something the job reads or writes lies on no volume; sizes that cannot be.
    """
    if site.image is None:
        raise InputError(
            "Which image? Build cluster/Dockerfile, push it, and name it in the site file (kubernetes: {image: ...})."
        )
    queue = request.partition or site.queue
    if queue and site.remove_seconds is not None:
        raise InputError(
            "kubernetes.remove_seconds does not go with a queue: Kueue wants jobs that KubeRay shuts down by itself. "
            "Leave one of them out."
        )
    head, workers = _groups(request, site)
    mounts = _storage(request, site)
    text = _template().render(
        request=request,
        site=site,
        queue=queue,
        annotation=ANNOTATION,
        fingerprint=fingerprint(request),
        head=head,
        workers=workers,
        volumes={mount.name: mount.claim for mount in mounts},
        mounts=mounts,
        environment={name: _unexpanded(value) for name, value in request.environment.items()},
        payload=_payload(request),
        rules=_rules(site),
        labels={
            **site.labels,
            "app.kubernetes.io/name": "xinv",
            "app.kubernetes.io/instance": request.handle,
            **({QUEUE_LABEL: queue} if queue else {}),
        },
    )
    return "\n".join(line for line in text.split("\n") if line.strip()) + "\n"


def fingerprint(request: Request) -> str:
    """Stands for the request: equal for the same submission sent twice."""
    return digest(request.model_dump(mode="json"))


def parsed(text: str) -> dict[str, Any]:
    """The object that a manifest describes."""
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def nodes_of(request: Request, site: KubernetesSite) -> dict[str, str]:
    """What each pod that runs training asks for, in the quantities of Kubernetes."""
    head, workers = _groups(request, site)
    room: dict[str, str] = (workers or head)["room"]
    return room


def _groups(request: Request, site: KubernetesSite) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The pod of the head, and the equal pods of the workers; the head is one of the job's nodes, or one more."""
    shape = request.shape
    memory = shape.memory or (site.memory * GIB if site.memory else None)
    node = _group("worker", shape.cpus, shape.gpus, memory, shape.nodes - 1, site)
    if not site.head_apart:
        return {**node, "name": "head"}, node if shape.nodes > 1 else None
    head = _group("head", site.head_cpus, 0, site.head_memory * GIB, 1, site)
    head["start"]["num-cpus"] = "0"  # Ray places nothing there
    return head, {**node, "count": shape.nodes}


def _group(name: str, cpus: int, gpus: int, memory: int | None, count: int, site: KubernetesSite) -> dict[str, Any]:
    shared = site.shared_memory * GIB
    if memory is not None and memory < 2 * shared:
        raise InputError(
            f"A {name} pod of {memory / GIB:g} GiB with {site.shared_memory} GiB of /dev/shm, which counts towards it, "
            f"leaves too little to work with. Ask for {2 * site.shared_memory} GiB or more (--memory-per-node), or "
            "lower kubernetes.shared_memory."
        )
    room = {"cpu": str(cpus)}
    if memory is not None:
        room["memory"] = f"{memory // GIB}Gi" if memory % GIB == 0 else str(memory)
    start = {"num-cpus": str(cpus)}
    if gpus:
        room[site.gpu_resource] = str(gpus)
        start["num-gpus"] = str(gpus)
    # Half of /dev/shm is for Ray's objects, the rest for gloo, NCCL and data loaders, which use it beside Ray. Ray's
    # own choice, a share of all memory, would not fit and fall back to the disk.
    start["object-store-memory"] = str(shared // 2)
    return {"name": name, "count": count, "room": room, "start": start}


class Mount(NamedTuple):
    """A folder that every pod sees."""

    name: str  # of the volume, in the manifest
    claim: str | None  # None: a folder that is empty at first and goes with the pod
    path: Path
    sub_path: str | None = None
    read_only: bool = False


def _storage(request: Request, site: KubernetesSite) -> list[Mount]:
    """Mounts such that the pods see what the job reads and writes.

    InputError where something lies on none of them; runs need none where an object store keeps them and there is one
    pod.
    """
    claims = list(dict.fromkeys(volume.claim for volume in site.volumes))
    mounts = [
        Mount(f"claim-{claims.index(one.claim)}", one.claim, one.path or request.cwd, one.sub_path, one.read_only)
        for one in site.volumes
    ]
    if request.work.storage is not None:
        # The object store is what lasts; in the pod these only need to be there.
        for path in (request.cwd, request.work.runs):
            if not _within(path, [mount.path for mount in mounts]):
                mounts.append(Mount(f"scratch-{len(mounts)}", None, path))
                check_nodes(request.work.storage, path, request.shape.nodes + site.head_apart, shared=False)
    seen = [*(mount.path for mount in mounts), *site.in_image]
    unseen = [path for path in (request.cwd, *request.work.inputs) if not _within(path, seen)]
    if not _within(request.work.runs, [mount.path for mount in mounts if not mount.read_only]):
        unseen.append(request.work.runs)
    if unseen:
        raise InputError(
            f"No pod would see {', '.join(map(str, dict.fromkeys(unseen)))}, or could not write there. Name the claim "
            "of the storage that holds it in the site file (kubernetes: {volumes: [{claim: NAME, path: "
            "/WHERE/YOU/SEE/IT}]}), or list folders that the image holds in kubernetes.in_image."
        )
    return mounts


def _within(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _rules(site: KubernetesSite) -> list[dict[str, Any]]:
    """Deletion in stages, as KubeRay's deletionRules: workers at once, the head later, the job itself last. Empty: the
    plain way that every KubeRay knows (shutdownAfterJobFinishes)."""
    if site.remove_seconds is None:
        return []
    stages = {
        "DeleteWorkers": 0,
        "DeleteCluster": min(site.keep_seconds, site.remove_seconds),
        "DeleteSelf": site.remove_seconds,
    }
    # A job that never reached Ray has no jobStatus: the deployment's own failure must clean up too.
    ends = ({"jobStatus": "SUCCEEDED"}, {"jobStatus": "FAILED"}, {"jobDeploymentStatus": "Failed"})
    return [{"policy": policy, "seconds": seconds, **end} for end in ends for policy, seconds in stages.items()]


def _payload(request: Request) -> str:
    """The request for an environment variable: ASCII without a dollar sign, so that neither YAML nor the kubelet, which
    expands $(NAME), reads anything into it. InputError where it is longer than Linux lets a variable be."""
    text = json.dumps(request.model_dump(mode="json"), indent=1).replace("$", "\\u0024")
    if len(text) > VARIABLE_LIMIT:
        raise InputError(
            f"The resolved configuration of {request.work.config} takes {len(text):,} characters; a job on Kubernetes "
            f"can carry {VARIABLE_LIMIT:,}. Split it: fewer factors, a smaller base."
        )
    return text


def _unexpanded(value: str) -> str:
    """A value that the kubelet leaves as it is: in values of environment variables it expands $(NAME)."""
    return value.replace("$", "$$")


class _Yaml(str):
    """Text that is YAML already."""


def _scalar(value: Any) -> str:
    """A plain value as a JSON literal, which every reader of YAML takes for the same."""
    if isinstance(value, _Yaml):
        return value
    text = json.dumps(value, ensure_ascii=False)
    # JSON leaves these as they are; YAML takes some for line ends and forbids others.
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text
    )


def _block(text: str, indent: int) -> _Yaml:
    """Lines of YAML, moved to the right."""
    return _Yaml("\n".join(" " * indent + line if line else line for line in text.strip("\n").split("\n")))


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    # Whatever the template puts out goes through _scalar: no value can become a key, a tag or a line of its own.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=_scalar
    )
    environment.filters["block"] = _block
    text = resources.files("cluster").joinpath("rayjob.yaml.j2").read_text(encoding="utf-8")
    return environment.from_string(text)
