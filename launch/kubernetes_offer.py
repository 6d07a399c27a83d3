"""What a job asks of a Kubernetes cluster, compared with what is there: rights, claims, secrets, queue, nodes."""

from typing import Any

from launch.job import Request
from launch.kubernetes_api import GROUP, PLURAL, VERSION, Api, quantity
from launch.rayjob import KubernetesSite, nodes_of
from xinv.errors import InputError

RIGHTS = (
    ("create", GROUP, PLURAL, None, "send jobs"),
    ("get", GROUP, PLURAL, None, "see how they are"),
    ("delete", GROUP, PLURAL, None, "cancel them"),
    ("list", "", "pods", None, "see why they wait"),
    ("get", "", "pods", "log", "read their logs"),
)


def compare(request: Request, site: KubernetesSite, api: Api) -> list[str]:
    """Lines for the user.

    Raises:
        InputError: nobody answers; KubeRay, a right, a claim, a Secret, a queue or a large enough node is missing.
    """
    lines = [f"{api.server} answers: Kubernetes {api.version()}"]
    if not api.serves(GROUP, VERSION, PLURAL):
        raise InputError(
            f"The cluster at {api.server} has no KubeRay: it does not know RayJobs ({GROUP}/{VERSION}). Whoever runs "
            "the cluster installs the operator once; see cluster/KUBERNETES.md."
        )
    _check_rights(api)
    lines.append(f"KubeRay is there, and you may use it in the namespace {site.namespace}")
    return [*lines, *_claims(request, site, api), *_secrets(site, api), *_queue(request, site, api),
            *_nodes(request, site, api)]  # fmt: skip


def _check_rights(api: Api) -> None:
    lacking = [
        f"{verb} {'/'.join(filter(None, (resource, sub)))} (to {why})"
        for verb, group, resource, sub, why in RIGHTS
        if not api.may(verb, group, resource, sub)
    ]
    if lacking:
        raise InputError(
            f"In the namespace {api.namespace} you may not {', '.join(lacking)}. Ask who runs the cluster for these "
            "rights, or name another namespace (kubernetes.namespace)."
        )


def _claims(request: Request, site: KubernetesSite, api: Api) -> list[str]:
    lines = []
    pods = request.shape.nodes + site.head_apart
    for name in dict.fromkeys(volume.claim for volume in site.volumes):
        found = api.claim(name)
        if found == "forbidden":
            lines.append(f"claim {name}: not looked at, you may not read claims")
            continue
        if found is None:
            raise InputError(
                f"The namespace {site.namespace} has no claim {name} (kubernetes.volumes). `kubectl -n "
                f"{site.namespace} get pvc` lists those that there are."
            )
        modes = set(found["spec"].get("accessModes") or ())
        used_read_only = all(volume.read_only for volume in site.volumes if volume.claim == name)
        enough = {"ReadWriteMany", *(["ReadOnlyMany"] if used_read_only else [])}
        if pods > 1 and not modes & enough:
            raise InputError(
                f"The claim {name} is {', '.join(sorted(modes))}, and the job has {pods} pods on as many nodes. Use a "
                "claim that is ReadWriteMany, or one node."
            )
        lines.append(f"claim {name}: {(found.get('status') or {}).get('phase', 'there')}, {', '.join(sorted(modes))}")
    return lines


def _secrets(site: KubernetesSite, api: Api) -> list[str]:
    lines = []
    single = [name for name in (site.token_secret, site.storage_key) if name]
    for name in dict.fromkeys([*site.pull_secrets, *site.secrets, *single]):
        found = api.secret(name)
        if found is None:
            raise InputError(
                f"The namespace {site.namespace} has no Secret {name}, which the site file names. `kubectl -n "
                f"{site.namespace} get secrets` lists those that there are."
            )
        lines.append(f"Secret {name}: {'not looked at, you may not' if found == 'forbidden' else 'there'}")
    return lines


def _queue(request: Request, site: KubernetesSite, api: Api) -> list[str]:
    queue = request.partition or site.queue
    if queue is None:
        return []
    version = api.group("kueue.x-k8s.io")
    if version is None:
        raise InputError(
            f"The cluster has no Kueue, and the job is to wait in its queue {queue}. Leave kubernetes.queue and "
            "--partition out."
        )
    found = api.object("kueue.x-k8s.io", version, "localqueues", queue)
    if found is None:
        raise InputError(
            f"The namespace {site.namespace} has no LocalQueue {queue}. `kubectl -n {site.namespace} get localqueues` "
            "lists those that there are."
        )
    return [f"queue {queue}: {'not looked at, you may not' if found == 'forbidden' else 'there'}"]


def _nodes(request: Request, site: KubernetesSite, api: Api) -> list[str]:
    """How many pods of the job the present nodes hold when they are empty."""
    nodes = api.nodes()
    if nodes is None:
        return ["nodes: not compared, you may not list them"]
    need = {name: quantity(amount) for name, amount in nodes_of(request, site).items()}
    offers = [
        {name: quantity((node["status"].get("allocatable") or {}).get(name, "0")) for name in need}
        for node in nodes
        if _takes(node, site)
    ]
    room = sum(int(min(offer[name] // amount for name, amount in need.items())) for offer in offers)
    wanted = request.shape.nodes
    asked = f"{wanted} pods of {_words(need)}" if wanted > 1 else f"a pod of {_words(need)}"
    if room >= wanted:
        return [
            f"nodes: the {len(offers)} that the job may run on hold {room} such pods when empty; it asks for {asked}"
        ]
    if site.scales:
        return [f"nodes: the present ones hold {room} of {asked}; more come on demand (kubernetes.scales)"]
    largest = {name: max((offer[name] for offer in offers), default=0) for name in need}
    raise InputError(
        f"The job asks for {asked}, and the {len(offers)} of {len(nodes)} nodes that it may run on "
        f"(kubernetes.node_selector, tolerations) hold {room}; at most a node offers {_words(largest)}. Ask for less "
        "(--nodes, --cpus-per-node, --gpus-per-node, --memory-per-node), or set kubernetes.scales where nodes come on "
        "demand."
    )


def _takes(node: dict[str, Any], site: KubernetesSite) -> bool:
    """Whether the job's pods may be placed on a node."""
    labels, spec = node["metadata"].get("labels") or {}, node.get("spec") or {}
    if spec.get("unschedulable") or any(labels.get(key) != value for key, value in site.node_selector.items()):
        return False
    ready = [one["status"] for one in node["status"].get("conditions") or () if one["type"] == "Ready"]
    if ready and ready[0] != "True":
        return False
    hard = [taint for taint in spec.get("taints") or () if taint["effect"] in ("NoSchedule", "NoExecute")]
    return all(any(_tolerates(one, taint) for one in site.tolerations) for taint in hard)


def _tolerates(toleration: Any, taint: dict[str, Any]) -> bool:
    return (
        toleration.key in (None, taint["key"])
        and toleration.effect in (None, taint["effect"])
        and (toleration.operator == "Exists" or toleration.value == taint.get("value"))
    )


def _words(room: dict[str, float]) -> str:
    shown = [f"{room['cpu']:g} CPUs"]
    shown += [f"{room['memory'] / 2**30:.4g} GiB"] if "memory" in room else []
    return ", ".join(
        [*shown, *(f"{amount:g} {name}" for name, amount in room.items() if name not in ("cpu", "memory"))]
    )
