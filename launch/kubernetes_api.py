"""The API server of a Kubernetes cluster, through the official client, with this project's errors and time limits.

The only file that imports `kubernetes`, and only once it is asked something: the rest works without the package.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

from launch.rayjob import KubernetesSite
from xinv.errors import InputError, WorkError

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
LIMITS = (5, 30)
"""Seconds to connect, and to wait for an answer."""

SILENCE = 300
"""Seconds without a word after which the connection of a log is taken for dead, and made anew."""

RECONNECT = 1.0
"""Seconds before a log is asked for again whose connection broke."""

MISSING = "The client for Kubernetes is not installed: pip install 'xinv[kubernetes]' (or: pip install kubernetes)."
Found = dict[str, Any] | Literal["forbidden"] | None
"""An object, or that this user may not look, or that there is none."""

METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class ConflictError(InputError):
    """Something of this name is there already."""


class Api:
    """One cluster and one namespace of it, as one user sees them."""

    def __init__(self, site: KubernetesSite) -> None:
        try:
            from kubernetes import client
        except ImportError:
            raise InputError(MISSING) from None
        self.namespace = site.namespace
        self._sdk = client
        self._client = _connect(site)
        self.server = str(self._client.configuration.host)
        self._objects = client.CustomObjectsApi(self._client)
        self._core = client.CoreV1Api(self._client)
        self._jobs = (GROUP, VERSION, self.namespace, PLURAL)

    # ---------------------------------------------------------------------------------------------------- RayJobs

    def create(self, body: dict[str, Any], dry_run: bool = False) -> None:
        """Create a RayJob; with `dry_run` the server does all but keep it. Unknown fields are refused, not dropped.

        Raises:
            ConflictError: there is one of this name.
        """
        options = {"dry_run": "All"} if dry_run else {}
        call = self._objects.create_namespaced_custom_object
        with self._asked("create a RayJob"):
            _json(call, *self._jobs, body, field_validation="Strict", field_manager="xinv", **options)

    def job(self, name: str) -> dict[str, Any] | None:
        """A RayJob; None where there is none of this name."""
        with self._asked("read RayJobs", absent=True):
            return _json(self._objects.get_namespaced_custom_object, *self._jobs, name)
        return None

    def delete(self, name: str) -> None:
        """Delete a RayJob and, behind it, its cluster and pods; nothing where there is none."""
        call = self._objects.delete_namespaced_custom_object
        with self._asked("delete RayJobs", absent=True):
            _json(call, *self._jobs, name, propagation_policy="Background")

    # --------------------------------------------------------------------------------------------- pods and their logs

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Pods with these labels, the youngest last."""
        with self._asked("list pods"):
            found = _json(self._core.list_namespaced_pod, self.namespace, label_selector=selector)
        return sorted(found.get("items") or (), key=lambda pod: str(pod["metadata"].get("creationTimestamp")))

    def log(self, pod: str, container: str, follow: bool) -> Iterator[str]:
        """What a container has printed, in lines; `follow`: until it ends, also over a connection that breaks."""
        last, heard = "", None
        while True:
            since = None if heard is None else int(time.monotonic() - heard) + 5
            try:
                for stamp, line in self._lines(pod, container, follow, since):
                    if stamp > last:  # what came before the connection broke comes again
                        last, heard = stamp, time.monotonic()
                        yield line
                return
            except _BrokenError:
                if not follow:
                    raise WorkError(f"The connection to {self.server} broke while it sent the log of {pod}.") from None
                time.sleep(RECONNECT)

    def _lines(self, pod: str, container: str, follow: bool, since: int | None) -> Iterator[tuple[str, str]]:
        import urllib3

        with self._asked(f"read the log of {pod}"):
            answer = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=container,
                follow=follow,
                timestamps=True,
                since_seconds=since,
                _preload_content=False,
                _request_timeout=(LIMITS[0], SILENCE),
            )
        rest = b""
        try:
            for piece in answer.stream(decode_content=True):
                *whole, rest = (rest + piece).split(b"\n")
                yield from map(_stamped, whole)
        except urllib3.exceptions.HTTPError:
            raise _BrokenError from None
        finally:
            answer.close()
        if rest:
            yield _stamped(rest)

    # ------------------------------------------------------------------------------------------------------ the cluster

    def version(self) -> str:
        """Of Kubernetes. The first question: InputError where nobody answers."""
        with self._asked("say its version"):
            return str(_json(self._sdk.VersionApi(self._client).get_code)["gitVersion"])

    def group(self, name: str) -> str | None:
        """The version that the server prefers of a group of its API; None where nobody has installed the group."""
        with self._asked("list its APIs"):
            groups = _json(self._sdk.ApisApi(self._client).get_api_versions)["groups"]
        return next((str(one["preferredVersion"]["version"]) for one in groups if one["name"] == name), None)

    def serves(self, group: str, version: str, plural: str) -> bool:
        """Whether the server knows a kind of objects: its definition (CRD) is installed."""
        with self._asked("list its APIs", absent=True):
            found = _json(self._objects.get_api_resources, group, version)
            return any(resource["name"] == plural for resource in found.get("resources") or ())
        return False

    def object(self, group: str, version: str, plural: str, name: str) -> Found:
        """An object of another group in the namespace."""
        return self._found(self._objects.get_namespaced_custom_object, group, version, self.namespace, plural, name)

    def claim(self, name: str) -> Found:
        """A PersistentVolumeClaim."""
        return self._found(self._core.read_namespaced_persistent_volume_claim, name, self.namespace)

    def secret(self, name: str) -> Found:
        """A Secret's metadata: what it holds is not fetched."""
        accept = {"Accept": METADATA_ONLY}
        return self._found(self._core.read_namespaced_secret, name, self.namespace, _headers=accept)

    def _found(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Found:
        try:
            with self._asked("look", absent=True):
                return _json(call, *arguments, **options)
        except _ForbiddenError:
            return "forbidden"
        return None

    def nodes(self) -> list[dict[str, Any]] | None:
        """All nodes; None where this user may not ask."""
        try:
            with self._asked("list nodes"):
                return list(_json(self._core.list_node)["items"])
        except _ForbiddenError:
            return None

    def may(self, verb: str, group: str, resource: str, subresource: str | None = None) -> bool:
        """Whether the server would let this user do something in the namespace."""
        what = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource}
        if subresource:
            what["subresource"] = subresource
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": what},
        }
        call = self._sdk.AuthorizationV1Api(self._client).create_self_subject_access_review
        with self._asked("say what this user may do"):
            return bool(_json(call, body)["status"]["allowed"])

    @contextmanager
    def _asked(self, what: str, absent: bool = False) -> Iterator[None]:
        """Turns what the client raises into this project's errors; `absent`: that nothing is there is an answer."""
        import urllib3
        from kubernetes.client.exceptions import ApiException

        try:
            yield
        except ApiException as error:
            if absent and error.status == 404:
                return
            raise self._error(error, what) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise InputError(
                f"The API server {self.server} does not answer ({_reason(error)}). Is it the right context "
                "(kubernetes.context), and can this machine reach it? `kubectl cluster-info` asks the same."
            ) from None

    def _error(self, error: Any, what: str) -> Exception:
        said = _said(error)
        if error.status == 409:
            return ConflictError(f"The API server {self.server} refuses to {what}: {said}")
        if error.status == 401:
            return InputError(
                f"The API server {self.server} does not know who you are ({said}). Log in again: the credentials of "
                "the kubeconfig are wrong or too old."
            )
        if error.status == 403:
            return _ForbiddenError(
                f"You may not {what} in the namespace {self.namespace} ({said}). Ask who runs the cluster, or name "
                "another namespace (kubernetes.namespace)."
            )
        if error.status < 500:
            return InputError(f"The API server {self.server} refuses to {what}: {said}")
        return WorkError(f"The API server {self.server} could not {what} ({error.status}: {said}).")


class _ForbiddenError(InputError):
    """The server knows the user and does not let them."""


class _BrokenError(Exception):
    """A connection broke in the middle of an answer."""


def _json(call: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
    """The answer as it came. The client's own classes are not used: they reject what a newer server adds."""
    answer = call(*arguments, _preload_content=False, _request_timeout=LIMITS, **options)
    found: dict[str, Any] = json.loads(answer.data)
    return found


def quantity(text: str) -> float:
    """An amount as Kubernetes writes it: 500m, 64Gi, 8."""
    from kubernetes.utils import parse_quantity

    return float(parse_quantity(text))


def _connect(site: KubernetesSite) -> Any:
    from kubernetes import client, config
    from urllib3.util import Retry

    where = type.__call__(client.Configuration)  # a fresh one: the client's own default is shared by the process
    named = site.kubeconfig.expanduser() if site.kubeconfig else None
    default = any(Path(path).expanduser().exists() for path in _default_files())
    try:
        if named is None and not default and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=where)
        else:
            files = str(named) if named else os.pathsep.join(_default_files())
            config.load_kube_config(files, context=site.context, client_configuration=where)
    except (config.ConfigException, yaml.YAMLError, OSError) as error:
        raise InputError(
            f"No way to a Kubernetes cluster: {_reason(error)} Name the file and the context in the site file "
            "(kubernetes: {kubeconfig: ..., context: ...}); `kubectl config get-contexts` lists them."
        ) from None
    where.retries = Retry(total=2, connect=1, backoff_factor=0.2)
    return client.ApiClient(where)


def _default_files() -> list[str]:
    return (os.environ.get("KUBECONFIG") or "~/.kube/config").split(os.pathsep)


def _stamped(line: bytes) -> tuple[str, str]:
    """A line of a log in its time, which sorts as text, and what was printed."""
    stamp, _, text = line.decode(errors="replace").partition(" ")
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return f"{whole}.{fraction:0<9}", text + "\n"


def _said(error: Any) -> str:
    """The server's own words."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason or "no reason given")


def _reason(error: BaseException) -> str:
    """The innermost reason of an error of the network, in one line."""
    while (inner := getattr(error, "reason", None)) is not None and isinstance(inner, BaseException):
        error = inner
    return " ".join(str(error).split()) or type(error).__name__
