"""A small API server of Kubernetes on a real port: the few paths that jobs need, and a cluster that tests set as they
like. It runs nothing."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from rayjobs import site

from launch.kubernetes import Kubernetes

TOKEN = "open sesame"
RAYJOBS = "/apis/ray.io/v1/namespaces/default/rayjobs"
METADATA = "as=PartialObjectMetadata"


class Refusal(Exception):  # noqa: N818
    """An answer that is an error."""

    def __init__(self, code: int, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


class Cluster:
    """What the server knows; `asked` holds every request, as (method, path, query, headers)."""

    def __init__(self) -> None:
        self.rayjobs: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[str, list[list[str]]] = {}  # pod -> for each connection, the lines before it breaks or ends
        self.claims: dict[str, dict[str, Any]] = {"home": claim("ReadWriteMany")}
        self.secrets: set[str] = set()
        self.queues: set[str] = set()
        self.nodes = [node("a", cpu="8", memory="32Gi")]
        self.groups = {"ray.io": "v1", "kueue.x-k8s.io": "v1beta1"}
        self.denied: set[tuple[str, str]] = set()  # (verb, resource)
        self.unknown_fields: set[str] = set()
        self.broken = False
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: Any) -> Any:
        self.asked.append((method, path, query, headers))
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized")
        if self.broken:
            raise Refusal(500, "etcd is away")
        for pattern, act in self._routes().items():
            if found := re.fullmatch(pattern, f"{method} {path}"):
                return act(*found.groups(), query=query, body=body, headers=headers)
        raise Refusal(404, "the server could not find the requested resource")

    def _routes(self) -> dict[str, Callable[..., Any]]:
        spaced = "/namespaces/default"
        return {
            "GET /version/?": lambda **_: {"gitVersion": "v1.33.1", "major": "1", "minor": "33"},
            "GET /apis/?": lambda **_: {"groups": [_group(*pair) for pair in self.groups.items()]},
            "GET /apis/ray.io/v1/?": self._kinds,
            "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews": self._review,
            f"GET {RAYJOBS}/([^/]+)": self._read,
            f"POST {RAYJOBS}": self._create,
            f"DELETE {RAYJOBS}/([^/]+)": self._delete,
            f"GET /api/v1{spaced}/pods": self._list_pods,
            f"GET /api/v1{spaced}/persistentvolumeclaims/([^/]+)": self._claim,
            f"GET /api/v1{spaced}/secrets/([^/]+)": self._secret,
            f"GET /apis/kueue.x-k8s.io/v1beta1{spaced}/localqueues/([^/]+)": self._queue,
            "GET /api/v1/nodes": self._list_nodes,
        }

    def _allow(self, verb: str, resource: str) -> None:
        if (verb, resource) in self.denied:
            raise Refusal(403, f'{resource} is forbidden: User "me" cannot {verb} resource "{resource}"')

    def _kinds(self, **_: Any) -> dict[str, Any]:
        if "ray.io" not in self.groups:
            raise Refusal(404, "the server could not find the requested resource")
        return {"groupVersion": "ray.io/v1", "resources": [{"name": "rayclusters"}, {"name": "rayjobs"}]}

    def _review(self, body: Any, **_: Any) -> dict[str, Any]:
        what = body["spec"]["resourceAttributes"]
        assert what["namespace"] == "default"
        resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
        return {"status": {"allowed": (what["verb"], resource) not in self.denied}}

    def _read(self, name: str, **_: Any) -> dict[str, Any]:
        self._allow("get", "rayjobs")
        return _known(self.rayjobs, name, "rayjobs.ray.io")

    def _create(self, query: dict[str, str], body: Any, **_: Any) -> dict[str, Any]:
        self._allow("create", "rayjobs")
        assert query["fieldValidation"] == "Strict"
        for field in self.unknown_fields:
            raise Refusal(400, f'strict decoding error: unknown field "{field}"')
        name = body["metadata"]["name"]
        if name in self.rayjobs:
            raise Refusal(409, f'rayjobs.ray.io "{name}" already exists')
        if query.get("dryRun") != "All":
            self.rayjobs[name] = body
        return dict(body)

    def _delete(self, name: str, query: dict[str, str], **_: Any) -> dict[str, Any]:
        self._allow("delete", "rayjobs")
        assert query["propagationPolicy"] == "Background"
        _known(self.rayjobs, name, "rayjobs.ray.io")
        del self.rayjobs[name]
        return {"status": "Success"}

    def _list_pods(self, query: dict[str, str], **_: Any) -> dict[str, Any]:
        self._allow("list", "pods")
        wanted = dict(part.split("=", 1) for part in query["labelSelector"].split(","))
        return {"items": [pod for pod in self.pods if wanted.items() <= pod["metadata"]["labels"].items()]}

    def _claim(self, name: str, **_: Any) -> dict[str, Any]:
        self._allow("get", "persistentvolumeclaims")
        return _known(self.claims, name, "persistentvolumeclaims")

    def _secret(self, name: str, headers: Any, **_: Any) -> dict[str, Any]:
        self._allow("get", "secrets")
        assert METADATA in headers["Accept"], "a Secret's content was asked for"
        return _known({secret: {"metadata": {"name": secret}} for secret in self.secrets}, name, "secrets")

    def _queue(self, name: str, **_: Any) -> dict[str, Any]:
        return _known({queue: {"metadata": {"name": queue}} for queue in self.queues}, name, "localqueues")

    def _list_nodes(self, **_: Any) -> dict[str, Any]:
        self._allow("list", "nodes")
        return {"items": self.nodes}


def node(name: str, labels: dict[str, str] | None = None, taints: tuple[Any, ...] = (), **room: str) -> dict[str, Any]:
    """A node that is ready."""
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def claim(*modes: str) -> dict[str, Any]:
    return {"spec": {"accessModes": list(modes)}, "status": {"phase": "Bound"}}


def pod(name: str, container: str, created: str, status: dict[str, Any], **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": created},
        "spec": {"containers": [{"name": container}]},
        "status": status,
    }


def _group(name: str, version: str) -> dict[str, Any]:
    return {"name": name, "preferredVersion": {"groupVersion": f"{name}/{version}", "version": version}}


def _known(things: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    if name not in things:
        raise Refusal(404, f'{kind} "{name}" not found')
    return dict(things[name])


class Server:
    """The server, on a port of its own."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.cluster))
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def serving() -> Iterator[Server]:
    """A server, while a test runs."""
    found = Server()
    try:
        yield found
    finally:
        found.close()


def place(server: Server, folder: Path, **settings: Any) -> Kubernetes:
    """The place, as a user sees it whose working directory is `folder`, on the claim `home`."""
    volumes = [{"claim": "home", "path": str(folder)}]
    found = {"kubeconfig": str(kubeconfig(folder, server.port)), "volumes": volumes, **settings}
    return Kubernetes(site(**found))


def kubeconfig(folder: Path, port: int, token: str = TOKEN) -> Path:
    """A user's file that leads to a server."""
    path = folder / "kubeconfig"
    cluster = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "test", "context": {"cluster": "here", "user": "me"}}
    user = {"name": "me", "user": {"token": token}}
    tree = {"apiVersion": "v1", "kind": "Config", "current-context": "test"}
    path.write_text(yaml.safe_dump({**tree, "clusters": [cluster], "contexts": [context], "users": [user]}))
    return path


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _act(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if found := re.fullmatch(r"/api/v1/namespaces/default/pods/([^/]+)/log", parts.path):
                return self._log(found[1], query)
            try:
                code, answer = 200, cluster.answer(self.command, parts.path, query, self.headers, body)
            except Refusal as refusal:
                code = refusal.code
                answer = {"kind": "Status", "status": "Failure", "message": refusal.message, "code": code}
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _log(self, name: str, query: dict[str, str]) -> None:
            """A log in chunks. All but the last connection to it break off."""
            assert query["timestamps"].lower() == "true"
            cluster.asked.append(("LOG", name, query, self.headers))
            connections = cluster.logs[name]
            lines = connections.pop(0) if len(connections) > 1 else connections[0]
            broken = len(connections) > 0 and lines is not connections[0]
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in lines:
                content = f"{line}\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
            if broken:
                self.close_connection = True
                return
            self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_DELETE = _act

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
