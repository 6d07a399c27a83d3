"""A Ray cluster that is there already: jobs go to its dashboard (Ray's Jobs API), with the working tree packed.

The job's driver runs on the head node and takes no CPU. The processes that train join it from all nodes.
"""

import asyncio
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from launch.execute import REQUEST_VARIABLE
from launch.job import Job, Request, State, Status, result_of
from launch.pack import MIB, Tree, tree_of, write_zip
from launch.ray_client import RaySite, SilentError, asked, checked_address, client
from launch.ray_offer import check_room, check_versions, free_words, nodes_of
from xinv.errors import InputError, WorkError
from xinv.files import digest
from xinv.parallel import IN_WORKERS

STOP = 60
"""Seconds that a cancelled job has to end by itself; Ray's own choice, 3, is too short for that."""

LONGEST = 120_000
"""Characters of a job's environment: Linux takes 128 KiB of one variable, and Ray puts all of it into one."""

SILENCE = 30.0
"""Seconds without a word of a log, after which its job is looked at."""

TRIES, PAUSE = 3, 3.0
"""How often a cluster that is silent is asked how a job is, and the seconds between."""

STATES = {
    "PENDING": State.pending,
    "RUNNING": State.running,
    "STOPPED": State.cancelled,
    "SUCCEEDED": State.succeeded,
    "FAILED": State.failed,
}
"""Ray's states of a job."""

INTERRUPTED = 130


class RayJobs:
    """The backend for one cluster."""

    def __init__(self, site: RaySite, on: str) -> None:
        self.site, self.on = site, checked_address(on)

    @cached_property
    def _client(self) -> Any:
        return client(self.on, self.site)

    def check(self, request: Request) -> list[str]:
        for option, value in (("--time", request.seconds), ("--partition", request.partition)):
            if value is not None:
                raise InputError(f"{option} means nothing on a Ray cluster, which has no queue. Leave it out.")
        tree = self._tree(request)
        self._body(request)
        lines = [check_versions(request.versions, self._client, self.on)]
        nodes = nodes_of(asked(self._client, "/api/v0/nodes?detail=true&limit=10000"))
        lines.append(check_room(request, nodes, self.on))
        if used := free_words(asked(self._client, "/api/cluster_status"), nodes):
            lines.append(used)
        if asked(self._client, "/api/authentication_mode").get("authentication_mode") != "token":
            lines.append(f"note: {self.on} has no token: whoever reaches it can run programs there")
        return [*lines, *_told(tree)]

    def render(self, request: Request) -> str:
        """The request that Ray's dashboard gets, and what is packed with it."""
        tree = self._tree(request)
        body = self._body(request)
        package = f"zip of {tree.words()}" if tree.files else "none"
        environment = body["runtime_env"]["env_vars"]
        lines = [
            f"POST {self.on}/api/jobs/",
            f"submission_id: {body['submission_id']}",
            f"entrypoint: {body['entrypoint']}",
            f"entrypoint_num_cpus: {body['entrypoint_num_cpus']}",
            "metadata:",
            *(f"  {name}: {value}" for name, value in body["metadata"].items()),
            "runtime_env:",
            f"  working_dir: {package}",
            "  env_vars:",
            *(f"    {name}: {value}" for name, value in environment.items() if name != REQUEST_VARIABLE),
            f"    {REQUEST_VARIABLE}:",
            *(f"      {line}" for line in environment[REQUEST_VARIABLE].splitlines()),
            *(f"# {line}" for line in _told(tree)),
        ]
        return "\n".join(lines)

    def _tree(self, request: Request) -> Tree:
        apart = (request.work.runs, *request.work.inputs)
        return tree_of(request.cwd, apart, self.site.exclude, self.site.package * MIB)

    def _body(self, request: Request) -> dict[str, Any]:
        """What `submit_job` of Ray's client takes, but for the package."""
        environment = {
            **request.environment,
            **IN_WORKERS,
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP),
            REQUEST_VARIABLE: json.dumps(request.model_dump(mode="json"), indent=1),
        }
        if (length := len(json.dumps(environment))) > LONGEST:
            raise InputError(
                f"The resolved configuration of {request.work.config} and its environment take {length:,} characters; "
                f"a job of Ray's can carry {LONGEST:,}. Split it: fewer factors, a smaller base."
            )
        return {
            # The address that Ray itself gives the driver: `auto` would look for any cluster on the machine.
            "entrypoint": f'exec {shlex.quote(self.site.python)} -m launch.execute --address "$RAY_ADDRESS"',
            "submission_id": request.handle,
            "entrypoint_num_cpus": 0,  # left out, Ray waits for a free CPU, which trainings may hold for days
            "metadata": {
                "xinv": f"{request.work.verb} {request.work.name}",
                "request": digest(request.model_dump(mode="json")),
            },
            "runtime_env": {"env_vars": environment},
        }

    def send(self, request: Request) -> str:
        tree = self._tree(request)
        body = self._body(request)
        with tempfile.TemporaryDirectory(prefix="xinv-") as scratch:
            if tree.files:
                package = Path(scratch) / "tree.zip"
                write_zip(tree, package)
                body["runtime_env"]["working_dir"] = str(package)
            try:
                self._client.submit_job(**body)
            except (InputError, RuntimeError) as error:
                self._is_sent(body, error)
        return request.handle

    def _is_sent(self, body: dict[str, Any], error: Exception) -> None:
        """InputError unless the cluster has this very job: sent before, or by a request whose answer was lost."""
        handle = body["submission_id"]
        found = self._info(handle)
        if found is None:
            raise InputError(f"{self.on} does not take the job: {_last_line(str(error))}") from None
        if (found.metadata or {}).get("request") != body["metadata"]["request"]:
            raise InputError(
                f"{self.on} has another job called {handle}, which is {STATES[str(found.status)]}. Give this run "
                f"another name (name=...), or have Ray forget that one once it is over: ray job delete {handle}"
            ) from None

    def find(self, job: Job) -> str | None:
        found = self._info(job.handle)
        expected = digest(job.request.model_dump(mode="json"))
        return job.handle if found is not None and (found.metadata or {}).get("request") == expected else None

    def status(self, job: Job) -> Status:
        own = result_of(job.request.folder)
        try:
            found = self._patiently(job.handle)
        except SilentError:
            if own is not None:
                return own
            raise
        if found is None:
            return own or Status(
                state=State.lost,
                detail=f"{self.on} does not know it: the cluster was started anew, or has forgotten it; the job has "
                "left no result that is seen here",
            )
        status = status_of(found)
        # The job's own words say why; they are an earlier run's where Ray says another end.
        return own if status.state.over and own is not None and own.state == status.state else status

    def _patiently(self, handle: str) -> Any:
        """As `_info`, and a network that fails for a moment is no answer: who waits for a job for days asks often."""
        for _ in range(TRIES - 1):
            try:
                return self._info(handle)
            except SilentError:
                time.sleep(PAUSE)
        return self._info(handle)

    def _info(self, handle: str) -> Any:
        """Ray's record of a job, or None where it has none."""
        try:
            return self._client.get_job_info(handle)
        except RuntimeError as error:
            if "status code 404" in str(error):
                return None
            raise WorkError(f"{self.on} does not say how {handle} is: {_last_line(str(error))}") from None

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        if self._info(job.handle) is None:
            raise InputError(
                f"{self.on} does not know {job.handle} any more, and its log is gone with it. The run's own is "
                f"{job.request.work.folder / 'log.txt'}."
            )
        seen = 0
        while follow:
            for piece in _tail(self._client, job.handle, seen):
                seen += len(piece)
                yield piece
            # The end of the job, or of the connection alone.
            follow = not self.status(job).state.over
            if follow:
                time.sleep(1)
        rest = self._client.get_job_logs(job.handle)[seen:]
        if rest:
            yield rest

    def cancel(self, job: Job) -> None:
        try:
            self._client.stop_job(job.handle)
        except RuntimeError as error:
            raise WorkError(f"{self.on} does not end {job.handle}: {_last_line(str(error))}") from None
        deadline = time.monotonic() + STOP + 15
        while not self.status(job).state.over:
            if time.monotonic() > deadline:
                raise WorkError(f"{job.handle} does not end. `ray job stop {job.handle}` asks again.")
            time.sleep(0.5)


def status_of(found: Any) -> Status:
    """From Ray's record of a job."""
    state, code = STATES[str(found.status)], found.driver_exit_code
    if code is not None and code < 0:  # ended by a signal: as a shell counts
        code = 128 - code
    if state is State.failed and code == INTERRUPTED:
        state = State.cancelled
    told = found.message if state in (State.failed, State.lost) else None
    if state is State.pending:
        told = "Ray prepares its environment on the head node"
    return Status(state=state, exit_code=code, detail=_reason(told or ""))


def _reason(text: str) -> str:
    """What a job said of its end, in the last lines of its log: its first `error:`, else its last words."""
    errors = [line.strip() for line in text.splitlines() if line.startswith("error: ")]
    return errors[0].removeprefix("error: ") if errors else _last_line(text)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _told(tree: Tree) -> list[str]:
    """What is packed and what is not, for the user."""
    lines = [f"packed: {tree.words()}" if tree.files else f"packed: nothing; {tree.root} holds no Python"]
    if tree.secrets:
        lines.append(f"not packed, it looks like a secret: {', '.join(tree.secrets)}")
    if "xinv/__init__.py" not in tree:
        lines.append("xinv itself is not packed: the cluster runs the version that is installed there")
    return lines


def _tail(connection: Any, handle: str, seen: int) -> Iterator[str]:
    """What a job prints as it comes, but for the first `seen` characters; ends with the job, or with the connection."""
    import aiohttp

    loop = asyncio.new_event_loop()
    stream = connection.tail_job_logs(handle)
    skip, pending = seen, None
    try:
        while True:
            pending = pending or loop.create_task(_next(stream))
            loop.run_until_complete(asyncio.wait({pending}, timeout=SILENCE))
            if not pending.done():
                # Silent, or a connection that died unnoticed: whoever answers no question writes no log.
                if STATES[str(connection.get_job_status(handle))].over:
                    return
                continue
            piece, pending = pending.result(), None
            if piece is None:
                return
            if fresh := piece[skip:]:
                yield fresh
            skip = max(0, skip - len(piece))
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        print(f"note: the log's connection broke ({_last_line(str(error))})", file=sys.stderr)
    finally:
        if pending is not None:
            pending.cancel()
            loop.run_until_complete(asyncio.wait({pending}))
        loop.run_until_complete(stream.aclose())
        loop.close()


async def _next(stream: Any) -> str | None:
    async for piece in stream:
        return str(piece)
    return None
