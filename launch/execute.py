"""What runs where a job was sent: `python -m launch.execute [FOLDER] [--address HOST:PORT]`.

Reads the job's request from its folder, or from the environment where the folder is not there yet; looks at what the
work needs, on every machine of the job; then runs the verb in this very process.

    SIGTERM, SIGINT   ends, as Ctrl-C does: exit code 130
    SIGUSR1           the machine is wanted back: saves a checkpoint and ends with exit code 75, "put me back in the
                      queue"; started again, the same job continues
"""

import argparse
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from launch.job import CONFIG, REQUEST, RESULT, Request, read_request, write_result
from launch.machines import check_every_machine, check_this_machine, enter
from xinv.errors import InputError, Preempted
from xinv.files import write_atomic
from xinv.overrides import dump_yaml
from xinv.provenance import versions

REQUEST_VARIABLE = "XINV_REQUEST"
"""Holds the request (JSON) of a job whose folder the submitting machine does not see."""

AGAIN = 75
"""Exit code of a job that was asked to make room, and continues when it is started again (EX_TEMPFAIL)."""


def main(arguments: list[str] | None = None) -> int:
    """Run one job and return its exit code: the verb's own, or `AGAIN`."""
    parser = argparse.ArgumentParser(prog="python -m launch.execute", description="Run a job that was submitted.")
    parser.add_argument("folder", type=Path, nargs="?", help=f"the job's folder, which holds {REQUEST}")
    parser.add_argument("--address", help="of the Ray cluster to run on; without it, one is started on this machine")
    asked = parser.parse_args(arguments)
    try:
        request = _request(asked.folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    signals = _Signals()
    try:
        code, reason = _run(request, asked.address)
    except KeyboardInterrupt:  # outside of the verb, which has an exit code for it
        code, reason = 130, "interrupted"
    except Exception as error:  # a bug: its traceback is for the log, its end for whoever asks
        traceback.print_exc()
        code, reason = 1, f"{type(error).__name__}: {error}"
    signals.ignore()
    if signals.preempted and code == 130:
        print("The machine is wanted back. The job continues when it is started again.", flush=True)
        return AGAIN
    try:
        write_result(request.folder, code, reason, cancelled=code == 130)
    except OSError as error:
        print(f"error: the end of the job could not be written down: {error}", file=sys.stderr, flush=True)
    return code


def _request(folder: Path | None) -> Request:
    if folder is not None:
        return read_request(folder / REQUEST)
    text = os.environ.get(REQUEST_VARIABLE)
    if text is None:
        raise InputError(f"Which job? Name its folder, or put its request into {REQUEST_VARIABLE}.")
    try:
        return Request.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"{REQUEST_VARIABLE} holds no request of a job ({error.errors()[0]['msg']}).") from None


def _run(request: Request, address: str | None) -> tuple[int, str]:
    from xinv.cli import outcome

    def prepared() -> list[str]:
        enter(request)
        (request.folder / RESULT).unlink(missing_ok=True)
        check_this_machine(request)
        write_atomic(request.folder / CONFIG, dump_yaml(request.work.tree))
        for name, version in versions().items():
            if request.versions.get(name, version) != version:
                print(f"note: {name} is {version} here and {request.versions[name]} where the job was submitted")
        if address is not None:
            check_every_machine(request, address)
        return request.arguments(address)

    sys.stdout.flush()
    ended = outcome(prepared)
    if ended.message:
        print(f"{ended.kind}: {ended.message}", file=sys.stderr, flush=True)
    return ended.code, ended.message


class _Signals:
    """The signals that a scheduler sends become the two interruptions that the work knows.

    An exception that is raised from a signal can be lost: code written in C (an extension that is being imported, a
    destructor) prints it as ignored and goes on. So it is raised again until it is seen to be on its way.
    """

    AGAIN_AFTER = 1.0
    """Seconds."""

    def __init__(self) -> None:
        self.asked: type[KeyboardInterrupt] | None = None
        self.preempted = False
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGUSR1, self._save)
        signal.signal(signal.SIGALRM, self._again)

    def ignore(self) -> None:
        """The work is over, and its end is being written down."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)

    def _end(self, number: int, frame: FrameType | None) -> Any:
        if self.asked is not KeyboardInterrupt:  # schedulers send more than one; cleaning up is under way
            self._interrupt(KeyboardInterrupt)

    def _save(self, number: int, frame: FrameType | None) -> Any:
        if self.asked is None:
            self.preempted = True
            self._interrupt(Preempted)

    def _interrupt(self, kind: type[KeyboardInterrupt]) -> None:
        self.asked = kind
        signal.setitimer(signal.ITIMER_REAL, self.AGAIN_AFTER, self.AGAIN_AFTER)
        raise kind

    def _again(self, number: int, frame: FrameType | None) -> Any:
        error = sys.exception()
        while error is not None:
            if isinstance(error, KeyboardInterrupt):
                return  # it is being handled: this code runs within its `finally` and `except` blocks
            error = error.__context__
        assert self.asked is not None
        raise self.asked


if __name__ == "__main__":
    sys.exit(main())
