"""A Kubernetes cluster with KubeRay: the job is a RayJob, an object of the cluster which KubeRay turns into pods."""

import re
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from launch.job import Job, Request, State, Status, result_of, write_result
from launch.kubernetes_api import PLURAL, Api, ConflictError
from launch.kubernetes_offer import compare
from launch.rayjob import ANNOTATION, KubernetesSite, fingerprint, manifest, parsed
from xinv.errors import InputError
from xinv.files import make_private

PAUSE = 2.0
"""Seconds between two looks at a job whose log is followed."""

SUBMITTER, HEAD = "ray-job-submitter", "ray-head"
"""Containers: the first prints what the work prints."""


class Kubernetes:
    """The backend."""

    def __init__(self, site: KubernetesSite) -> None:
        self.site = site

    @cached_property
    def api(self) -> Api:
        return Api(self.site)

    def check(self, request: Request) -> list[str]:
        body = parsed(manifest(request, self.site))
        body["metadata"]["name"] += "-try"  # a job of this name may be there from before; this one then gets a number
        lines = compare(request, self.site, self.api)
        try:
            self.api.create(body, dry_run=True)
        except InputError as error:
            if "authOptions" not in str(error):
                raise
            raise InputError(
                f"The KubeRay of {self.api.server} is too old ({error}). It cannot give a cluster a token, and "
                "without one whoever reaches its ports can run code as you. It takes KubeRay 1.5.1 or newer (1.6 for "
                "kubernetes.token_secret)."
            ) from None
        return [*lines, "the API server accepts the job (tried without keeping it)"]

    def render(self, request: Request) -> str:
        """The manifest, which `kubectl create -f -` takes too."""
        return manifest(request, self.site)

    def send(self, request: Request) -> str:
        try:
            self.api.create(parsed(manifest(request, self.site)))
        except ConflictError:
            # Sent before, and the answer was lost: then it is this very request.
            if not _is_of(self.api.job(request.handle), request):
                raise InputError(
                    f"The namespace {self.site.namespace} has another RayJob called {request.handle}. Give this run "
                    f"another name (name=...), or remove that one: kubectl -n {self.site.namespace} delete rayjob "
                    f"{request.handle}"
                ) from None
        return f"{self.site.namespace}/{request.handle}"

    def find(self, job: Job) -> str | None:
        there = _is_of(self.api.job(job.handle), job.request)
        return f"{self.site.namespace}/{job.handle}" if there else None

    def status(self, job: Job) -> Status:
        found = self._found(job)
        if found is None:
            return result_of(job.request.folder) or Status(
                state=State.lost, detail="the cluster has no such RayJob any more, and it has left no result seen here"
            )
        status = status_of(found)
        if status.state.over:
            own = result_of(job.request.folder)
            return own if own is not None and own.state == status.state else status
        if status.state == State.pending:
            reasons = self._reasons(found)
            return status.model_copy(update={"detail": "; ".join([status.detail, *reasons])})
        return status

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        shown: set[str] = set()  # a job that is tried again has a new submitter, whose log begins anew
        while True:
            found = self._found(job)  # looked at first: a pod may come between the two
            over = found is None or status_of(found).state.over
            pods = self._submitters(job)
            if not pods and over:
                pods = self._heads(found)
            for pod in pods:
                name = pod["metadata"]["name"]
                if name not in shown and _has_started(pod):
                    shown.add(name)
                    yield from self.api.log(name, _container(pod), follow and not over)
            if over or not follow:
                break
            time.sleep(PAUSE)
        if not shown:
            raise InputError(
                f"{job.handle} has no log (yet): none of its pods has started, or they are gone. "
                f"`xinv jobs status {job.handle}` says how it is."
            )

    def cancel(self, job: Job) -> None:
        """Deletes the RayJob: KubeRay then stops the work and removes the pods. Suspending it instead would keep it for
        somebody, such as Kueue, to start again."""
        found = self._found(job)
        if found is None or status_of(found).state.over:
            return
        self.api.delete(job.handle)
        # With the object its state is gone too: where the job cannot say itself that it was ended, this says it. (A
        # failure that is there already is of an earlier attempt.)
        own = result_of(job.request.folder)
        if own is None or own.state == State.failed:
            write_result(make_private(job.request.folder), 130, "cancelled", cancelled=True)

    def _found(self, job: Job) -> dict[str, Any] | None:
        namespace = (job.ident or "").partition("/")[0]
        if namespace and namespace != self.api.namespace:
            raise InputError(
                f"{job.handle} was sent to the namespace {namespace}, and the site file names {self.api.namespace}. "
                "Name that one (kubernetes.namespace; XINV_SITE names another site file)."
            )
        return self.api.job(job.handle)

    def _submitters(self, job: Job) -> list[dict[str, Any]]:
        return self.api.pods(f"job-name={job.handle}")

    def _heads(self, found: dict[str, Any] | None) -> list[dict[str, Any]]:
        cluster = ((found or {}).get("status") or {}).get("rayClusterName")
        return self.api.pods(f"ray.io/cluster={cluster},ray.io/node-type=head") if cluster else []

    def _reasons(self, found: dict[str, Any]) -> list[str]:
        """Why pods of the job do not run."""
        cluster = (found.get("status") or {}).get("rayClusterName")
        pods = self.api.pods(f"ray.io/cluster={cluster}") if cluster else []
        said = {pod["metadata"]["name"]: reason for pod in pods if (reason := _waits_for(pod))}
        running = sum((pod.get("status") or {}).get("phase") == "Running" for pod in pods)
        return [f"{running} of {len(pods)} pods run"] * bool(pods) + [f"{pod}: {why}" for pod, why in said.items()]


def status_of(found: dict[str, Any]) -> Status:
    """What KubeRay says of a RayJob: `jobDeploymentStatus` is about pods and submission, `jobStatus` about the work in
    Ray, `reason` about a failure. The detail shows all of them."""
    status = found.get("status") or {}
    deployment, job = str(status.get("jobDeploymentStatus") or ""), str(status.get("jobStatus") or "")
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    state = _state(deployment, job)
    if not state.over and "deletionTimestamp" in found["metadata"]:
        return Status(state=State.cancelled, exit_code=130, detail="deleted; KubeRay is removing its pods")
    code = 0 if state == State.succeeded else 130 if state == State.cancelled else None
    if state == State.failed and (exited := re.search(r"exit code (\d+)", message)):
        code = int(exited[1])
    words = [", ".join(word for word in (deployment, job, reason) if word) or _UNSEEN]
    if deployment == "Suspended":
        queue = found["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        words.append(f"waits in the queue {queue}" if queue else "waits until somebody resumes it")
    words += [_HINTS[reason]] if reason in _HINTS else []
    # Ray puts the end of the log behind the first line of its message.
    words += [message.strip().splitlines()[0][:300]] if message.strip() else []
    if attempts := int(status.get("failed") or 0):
        words.append(f"{attempts} failed attempt{'s' if attempts > 1 else ''}")
    return Status(state=state, exit_code=code, detail="; ".join(words))


_UNSEEN = f"KubeRay has not looked at it yet; does its operator run? (kubectl get {PLURAL})"

_HINTS = {
    "DeadlineExceeded": "the time limit was reached (--time); submit it again, and it continues",
    "PreRunningDeadlineExceeded": "it did not start in time (kubernetes.start_seconds)",
    "SubmissionFailed": "the submitter pod could not hand the work to Ray; its log says why (xinv jobs logs)",
    "ValidationFailed": "KubeRay refuses the job",
}


def _state(deployment: str, job: str) -> State:
    if deployment in ("Failed", "ValidationFailed"):
        return State.failed
    if deployment == "Complete":
        return {"SUCCEEDED": State.succeeded, "STOPPED": State.cancelled}.get(job, State.failed)
    # SUCCEEDED or FAILED in Ray is not the end: KubeRay may be about to try again, or to wait for the submitter.
    if deployment == "Running" and job not in ("", "PENDING"):
        return State.running
    return State.pending


def _is_of(found: dict[str, Any] | None, request: Request) -> bool:
    """Whether a RayJob was made from this request."""
    return found is not None and (found["metadata"].get("annotations") or {}).get(ANNOTATION) == fingerprint(request)


def _has_started(pod: dict[str, Any]) -> bool:
    states = [one.get("state") or {} for one in (pod.get("status") or {}).get("containerStatuses") or ()]
    return any("running" in state or "terminated" in state for state in states)


def _container(pod: dict[str, Any]) -> str:
    names = [container["name"] for container in pod["spec"]["containers"]]
    return next((name for name in (SUBMITTER, HEAD) if name in names), names[0])


def _waits_for(pod: dict[str, Any]) -> str | None:
    """Why a pod does not run, in the cluster's own words; None where nothing is wrong with it."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason"))
    for one in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = (one.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return ": ".join(filter(None, (waiting["reason"], waiting.get("message"))))
    return None
