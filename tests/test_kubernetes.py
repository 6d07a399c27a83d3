"""The Kubernetes place against a real server on a real port, through the official client."""

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube_server import Cluster, Server, kubeconfig, place, pod, serving
from rayjobs import request, site

pytest.importorskip("kubernetes", reason="the client for Kubernetes is not installed (pip install 'xinv[dev]')")

from launch import kubernetes, kubernetes_api
from launch.job import Job, Request, State, Status, result_of, write_result
from launch.kubernetes import Kubernetes, status_of
from launch.rayjob import manifest, parsed
from xinv.errors import InputError, WorkError
from xinv.files import make_private

NAME = "demo-012345"
CLUSTER = f"{NAME}-x7k2p"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(kubernetes, "PAUSE", 0.02)
    with serving() as found:
        yield found


@pytest.fixture
def cluster(server: Server) -> Cluster:
    return server.cluster


def sent(server: Server, folder: Path, status: dict[str, Any], **meta: Any) -> tuple[Kubernetes, Job]:
    """A job that was sent, with the status that KubeRay gives it."""
    backend = place(server, folder)
    asked = request(home=folder)
    job = Job(request=asked, on="kubernetes", created=0.0, ident=backend.send(asked))
    found = server.cluster.rayjobs[NAME]
    found["status"] = {"rayClusterName": CLUSTER, **status}
    found["metadata"] |= meta
    return backend, job


# ---- sent ------------------------------------------------------------------------------------------------------------


def test_what_is_sent_is_what_is_shown(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    backend, asked = place(server, tmp_path), request(home=tmp_path)
    assert backend.send(asked) == f"default/{NAME}"
    assert cluster.rayjobs == {NAME: parsed(backend.render(asked))}


def test_a_job_that_ran_before_is_no_reason_to_refuse(server: Server, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    assert "tried" in backend.check(job.request)[-1]


def test_sending_twice_makes_one_job(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    backend, asked = place(server, tmp_path), request(home=tmp_path)
    assert backend.send(asked) == backend.send(asked) and len(cluster.rayjobs) == 1


def test_a_job_of_somebody_else_is_not_taken_for_ours(server: Server, tmp_path: Path) -> None:
    backend = place(server, tmp_path)
    backend.send(request(home=tmp_path, cpus=1))
    with pytest.raises(InputError, match="another RayJob"):
        backend.send(request(home=tmp_path))
    assert backend.find(Job(request=request(home=tmp_path), on="kubernetes", created=0.0)) is None


def test_a_submission_that_was_interrupted_is_found(server: Server, tmp_path: Path) -> None:
    backend, job = place(server, tmp_path), Job(request=request(home=tmp_path), on="kubernetes", created=0.0)
    assert backend.find(job) is None
    backend.send(job.request)
    assert backend.find(job) == f"default/{NAME}"


# ---- status ----------------------------------------------------------------------------------------------------------


FAILED = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nerror: ..."


@pytest.mark.parametrize(
    ("seen", "state", "code", "said"),
    [
        ({}, State.pending, None, "has not looked at it"),
        ({"jobDeploymentStatus": "Initializing"}, State.pending, None, "Initializing"),
        ({"jobDeploymentStatus": "Running"}, State.pending, None, "Running"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, State.pending, None, "Running, PENDING"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, State.running, None, "Running, RUNNING"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "SUCCEEDED"}, State.running, None, "SUCCEEDED"),
        ({"jobDeploymentStatus": "Waiting"}, State.pending, None, "Waiting"),
        ({"jobDeploymentStatus": "Suspending"}, State.pending, None, "Suspending"),
        ({"jobDeploymentStatus": "Suspended"}, State.pending, None, "until somebody resumes"),
        ({"jobDeploymentStatus": "Retrying", "failed": 1}, State.pending, None, "Retrying; 1 failed attempt"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, State.succeeded, 0, "SUCCEEDED"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, State.cancelled, 130, "STOPPED"),
        (
            {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": FAILED},
            State.failed, 2, "Failed, FAILED, AppFailed; Job entrypoint command failed with exit code 2",
        ),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, State.failed, None, "time limit"),
        ({"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed"}, State.failed, None, "submitter"),
        (
            {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "name too long"},
            State.failed, None, "name too long",
        ),
        ({"jobDeploymentStatus": "SomethingNew"}, State.pending, None, "SomethingNew"),
    ],
)  # fmt: skip
def test_what_kuberay_says_becomes_our_state_and_is_shown(
    server: Server, tmp_path: Path, seen: dict[str, Any], state: State, code: int | None, said: str
) -> None:
    backend, job = sent(server, tmp_path, seen)
    found = backend.status(job)
    assert (found.state, found.exit_code) == (state, code) and said in found.detail
    assert "error: ..." not in found.detail  # the log is for `xinv jobs logs`


def test_a_job_in_a_queue_says_so(server: Server, tmp_path: Path) -> None:
    backend, job = sent(
        server, tmp_path, {"jobDeploymentStatus": "Suspended"}, labels={"kueue.x-k8s.io/queue-name": "team"}
    )
    assert "waits in the queue team" in backend.status(job).detail


def test_a_job_that_is_being_deleted_is_cancelled() -> None:
    found = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"jobDeploymentStatus": "Running"}}
    assert status_of(found).state == State.cancelled
    found["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    assert status_of(found).state == State.succeeded


def test_why_pods_do_not_run_is_said(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Initializing"})
    label = {"ray.io/cluster": CLUSTER}
    full = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: 3 Insufficient nvidia.com/gpu"}
    pull = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no image"}}}
    fine = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    cluster.pods = [
        pod("head", "ray-head", "1", {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}, **label),
        pod("w1", "ray-worker", "2", {"phase": "Pending", "conditions": [full]}, **label),
        pod("w2", "ray-worker", "3", {"phase": "Pending", "containerStatuses": [pull]}, **label),
        pod("w3", "ray-worker", "4", {"phase": "Pending", "containerStatuses": [fine]}, **label),
        pod("other", "ray-head", "5", {"phase": "Pending", "conditions": [full]}, **{"ray.io/cluster": "other"}),
    ]
    assert backend.status(job).detail == (
        "Initializing; 1 of 4 pods run; w1: 0/3 nodes: 3 Insufficient nvidia.com/gpu; w2: ImagePullBackOff: no image"
    )


def test_what_the_job_said_of_its_end_counts_where_it_is_seen(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    ended = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}
    backend, job = sent(server, tmp_path, ended)
    write_result(make_private(job.request.folder), 2, "seed is no number")
    assert backend.status(job) == Status(state=State.failed, exit_code=2, detail="seed is no number")
    cluster.rayjobs.clear()  # removed since
    assert backend.status(job).exit_code == 2


def test_a_result_of_an_earlier_attempt_is_not_believed(server: Server, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    write_result(make_private(job.request.folder), 1, "node lost")
    assert backend.status(job).state == State.running


def test_a_job_that_is_gone_without_a_word_is_lost(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {})
    cluster.rayjobs.clear()
    assert backend.status(job).state == State.lost


def test_a_job_of_another_namespace_is_not_looked_for_in_this_one(server: Server, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {})
    with pytest.raises(InputError, match="namespace vision"):
        backend.status(job.model_copy(update={"ident": f"vision/{NAME}"}))


# ---- logs ------------------------------------------------------------------------------------------------------------


RUNS = {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}
ENDED = {"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0}}}]}


def submitter(name: str, status: dict[str, Any], created: str = "1") -> dict[str, Any]:
    return pod(name, "ray-job-submitter", created, status, **{"job-name": NAME})


def test_a_log_is_what_the_submitter_printed(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    cluster.pods = [submitter("s1", ENDED)]
    cluster.logs = {"s1": [["2026-01-01T00:00:00.1Z one é", "2026-01-01T00:00:00.12Z ", "2026-01-01T00:00:01Z two"]]}
    assert list(backend.logs(job, follow=False)) == ["one é\n", "\n", "two\n"]


def test_a_log_is_followed_over_a_broken_connection_and_a_new_attempt(
    server: Server, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_api, "RECONNECT", 0.01)
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    day = "2026-01-01T00:00:0"
    cluster.logs = {
        "s1": [[f"{day}1.5Z one", f"{day}2Z two"], [f"{day}2Z two", f"{day}2.000000001Z three"]],
        "s2": [[f"{day}9Z continued"]],
    }
    cluster.pods = [submitter("s1", RUNS)]
    lines = []
    for line in backend.logs(job, follow=True):
        lines.append(line)
        if line == "three\n":  # the first cluster is lost; KubeRay makes another one
            cluster.pods = [submitter("s2", RUNS, "2")]
        if line == "continued\n":
            cluster.rayjobs[NAME]["status"] |= {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    assert lines == ["one\n", "two\n", "three\n", "continued\n"]
    followed = [query for method, _, query, _ in cluster.asked if method == "LOG"]
    assert "sinceSeconds" not in followed[0] and int(followed[1]["sinceSeconds"]) >= 5


def test_following_waits_for_the_first_pod(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Initializing"})
    cluster.logs = {"s1": [["2026-01-01T00:00:00Z at last"]]}
    cluster.pods = [submitter("s1", {"phase": "Pending"})]

    def start() -> None:
        cluster.rayjobs[NAME]["status"] |= {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
        cluster.pods = [submitter("s1", ENDED)]

    threading.Timer(0.2, start).start()
    assert list(backend.logs(job, follow=True)) == ["at last\n"]


def test_the_head_speaks_where_nothing_was_submitted(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed"})
    labels = {"ray.io/cluster": CLUSTER, "ray.io/node-type": "head"}
    cluster.pods = [pod("head", "ray-head", "1", RUNS, **labels)]
    cluster.logs = {"head": [["2026-01-01T00:00:00Z Ray did not start"]]}
    assert list(backend.logs(job, follow=False)) == ["Ray did not start\n"]


def test_no_log_is_said(server: Server, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Initializing"})
    with pytest.raises(InputError, match="no log"):
        list(backend.logs(job, follow=False))


# ---- cancel ----------------------------------------------------------------------------------------------------------


def test_cancelling_deletes_the_job_and_says_so_ever_after(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    backend.cancel(job)
    assert cluster.rayjobs == {}
    assert backend.status(job).state == State.cancelled
    backend.cancel(job)  # nothing is there any more


def test_an_attempt_that_failed_before_does_not_hide_that_a_job_was_cancelled(server: Server, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Retrying", "failed": 1})
    write_result(make_private(job.request.folder), 1, "node lost")
    backend.cancel(job)
    assert backend.status(job).state == State.cancelled


def test_cancelling_leaves_alone_what_is_over(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    backend, job = sent(server, tmp_path, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    backend.cancel(job)
    assert NAME in cluster.rayjobs and result_of(job.request.folder) is None


# ---- nobody, or not to you -------------------------------------------------------------------------------------------


def jobs(backend: Kubernetes, asked: Request) -> Any:
    return backend.status(Job(request=asked, on="kubernetes", created=0.0, ident=f"default/{NAME}"))


def test_a_wrong_token_is_said(server: Server, tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, server.port, token="guess")
    with pytest.raises(InputError, match="does not know who you are"):
        Kubernetes(site(kubeconfig=str(path))).check(request())


def test_what_one_may_not_do_is_said(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    cluster.denied = {("create", "rayjobs")}
    with pytest.raises(InputError, match=r"may not create a RayJob in the namespace default.*cannot create"):
        place(server, tmp_path).send(request(home=tmp_path))


def test_a_server_that_fails_is_no_mistake_of_the_user(server: Server, cluster: Cluster, tmp_path: Path) -> None:
    cluster.broken = True
    with pytest.raises(WorkError, match="etcd is away"):
        jobs(place(server, tmp_path), request(home=tmp_path))


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        path = kubeconfig(tmp_path, taken.getsockname()[1])
        with pytest.raises(InputError, match=r"does not answer.*refused"):
            Kubernetes(site(kubeconfig=str(path))).check(request())


def test_a_server_that_is_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "LIMITS", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        path = kubeconfig(tmp_path, silent.getsockname()[1])
        with pytest.raises(InputError, match=r"does not answer.*timed out"):
            Kubernetes(site(kubeconfig=str(path))).check(request())


@pytest.mark.parametrize(("context", "content"), [("elsewhere", None), (None, "no: [yaml"), (None, "")])
def test_a_kubeconfig_that_leads_nowhere_is_said(tmp_path: Path, context: str | None, content: str | None) -> None:
    path = kubeconfig(tmp_path, 1)
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="No way to a Kubernetes cluster"):
        Kubernetes(site(kubeconfig=str(path), context=context)).check(request())


def test_without_a_kubeconfig_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InputError, match="No way to a Kubernetes cluster"):
        Kubernetes(site()).check(request())


def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(InputError, match="pip install"):
        Kubernetes(site()).check(request())
    assert manifest(request(), site()) == Kubernetes(site()).render(request())  # which needs none


def test_the_client_is_not_imported_before_it_is_needed() -> None:
    import subprocess

    code = "import sys, launch.kubernetes, launch.kubernetes_offer; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
