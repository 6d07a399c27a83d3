"""Jobs for the tests of launch/: requests, and a place that remembers what it was asked."""

from collections.abc import Iterator
from pathlib import Path

from launch.job import Job, Request, State, Status
from launch.site import Site
from launch.submit import Asked, request_of
from xinv.errors import InputError

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "configs" / "demo.yaml"


def request_for(runs: Path, *overrides: str, on: str = "toy", **asked: int | str) -> Request:
    """The request of the demo's audit with its runs in `runs`."""
    return request_of(None, DEMO, (f"runs={runs}", *overrides), on, Asked(**asked), Site())  # type: ignore[arg-type]


class Toy:
    """A place whose jobs are whatever the test says."""

    def __init__(self) -> None:
        self.sent: list[Request] = []
        self.states: dict[str, Status] = {}
        self.broken = False

    def check(self, request: Request) -> list[str]:
        return []

    def render(self, request: Request) -> str:
        return request.handle

    def send(self, request: Request) -> str:
        if self.broken:
            raise InputError("the toy is broken")
        self.sent.append(request)
        self.states[request.handle] = Status(state=State.running)
        return f"toy-{len(self.sent)}"

    def find(self, job: Job) -> str | None:
        return "toy-found" if job.handle in self.states else None

    def status(self, job: Job) -> Status:
        return self.states[job.handle]

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        yield f"log of {job.handle}"

    def cancel(self, job: Job) -> None:
        self.states[job.handle] = Status(state=State.cancelled, exit_code=130)
