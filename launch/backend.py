"""What a place where jobs run must offer. `submit.py` does the rest: records, repeats, checks that all places share."""

from collections.abc import Iterator
from typing import Protocol

from launch.job import Job, Request, Status


class Backend(Protocol):
    """One place. InputError everywhere for what the user can mend: a program that is missing, nobody who answers."""

    def check(self, request: Request) -> list[str]:
        """Compare what the job asks for with what the place offers, before anything is written or sent.

        Returns:
            Lines for the user: what was compared with what.

        Raises:
            InputError: the job could never start; with the arithmetic, and what would fit.
        """

    def render(self, request: Request) -> str:
        """Exactly what `send` sends, as `--dry-run` prints it. A pure function of the request and the site."""

    def send(self, request: Request) -> str:
        """Send the job, its request (REQUEST) with it; returns the name that the place gives it."""

    def find(self, job: Job) -> str | None:
        """The name of a job whose record does not say whether it was sent: a submission was interrupted."""

    def status(self, job: Job) -> Status:
        """What the place says of it now, and where it has forgotten the job, what the job said of itself."""

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        """What it printed, in pieces as they come; `follow`: until it is over."""

    def cancel(self, job: Job) -> None:
        """End it and whatever it started. Returns when the place has taken note; nothing for a job that is over."""
