"""Slurm: one batch script a job, which starts a supervisor (`launch.node`) on each of its nodes.

Needs no accounting database: a job is asked for by `scontrol`, by `sacct` where that answers, and in the end by the
result that it has left.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, field_validator

from launch import slurm_offer as offer
from launch.execute import AGAIN
from launch.job import LOG, Job, Request, State, Status, result_of, write_request
from launch.limit import seconds_of
from launch.log import tail
from launch.ray_node import Seat, room_for_sockets
from xinv.errors import InputError, WorkError
from xinv.files import make_private, write_atomic

SCRIPT, NUMBER = "job.sbatch", "slurm-job"
"""In the job's folder: what was sent, and the number that Slurm has given it, written by the job itself."""

ANSWER = 30.0
"""Seconds that Slurm's commands have for an answer: one whose controller is gone would try for minutes."""

FORGOTTEN = "Invalid job id"

STATES = {
    "PENDING": State.pending,
    "CONFIGURING": State.pending,
    "REQUEUED": State.pending,
    "REQUEUE_HOLD": State.pending,
    "REQUEUE_FED": State.pending,
    "RESV_DEL_HOLD": State.pending,
    "SPECIAL_EXIT": State.pending,
    "RUNNING": State.running,
    "COMPLETING": State.running,
    "RESIZING": State.running,
    "SIGNALING": State.running,
    "STAGE_OUT": State.running,
    "STOPPED": State.running,
    "SUSPENDED": State.running,
    "COMPLETED": State.succeeded,
    "CANCELLED": State.cancelled,
    "REVOKED": State.cancelled,
    "BOOT_FAIL": State.failed,
    "DEADLINE": State.failed,
    "FAILED": State.failed,
    "LAUNCH_FAILED": State.failed,
    "NODE_FAIL": State.failed,
    "OUT_OF_MEMORY": State.failed,
    "PREEMPTED": State.failed,
    "RECONFIG_FAIL": State.failed,
    "TIMEOUT": State.failed,
}
"""Slurm's states of a job."""

WORDS = {
    "BeginTime": "its time has not come yet; after being put back, that takes Slurm some minutes",
    "Dependency": "it waits for another job",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "you hold it: `scontrol release` lets it go",
    "Priority": "others are before it",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "Resources": "the nodes are busy",
}
"""Slurm's reasons for a job to wait."""


class SlurmSite(BaseModel):
    """Section `slurm` of the site file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    account: str | None = Field(None, description="account that is charged; null: the user's default")
    partition: str | None = Field(None, description="where --partition names none; null: Slurm's default")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features that nodes must have, as sbatch takes them: a100&ib")
    time: str | None = Field(None, description="limit where --time names none, such as 12:00:00; null: the partition's")
    gpu_type: str | None = Field(None, description="type of GPU to ask for, such as a100; null: any")
    gpu_memory: str | None = Field(
        None, description="memory of a GPU there, such as 80GiB: a job whose trainings cannot fit is not sent"
    )
    header: tuple[str, ...] = Field((), description="more options of sbatch, such as --mail-type=END, a line each")
    srun: tuple[str, ...] = Field((), description="more options of srun, such as --container-image=... (pyxis)")
    prelude: tuple[str, ...] = Field((), description="shell lines before the job starts, such as module load cuda/12")
    container: str | None = Field(
        None, description="put before the command on every node: apptainer exec --nv --bind /data xinv.sif"
    )
    python: str | None = Field(None, description="interpreter on the nodes; null: the one that submits")
    tmp: Path = Field(Path("/tmp"), description="folder on each node's own disk, with a short path, for Ray's sockets")
    start_limit: int = Field(300, ge=10, description="seconds within which all nodes must be in the Ray cluster")
    signal_before: int = Field(
        120, ge=20, le=65535, description="seconds from the save to the time limit; Slurm may be a minute early"
    )
    restarts: int = Field(50, ge=0, description="how often a job that met its time limit queues itself again")

    @field_validator("header")
    @classmethod
    def _options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        plain = tuple(line.removeprefix("#SBATCH").strip() for line in value)
        for line in plain:
            if not line.startswith("-") or "\n" in line:
                raise ValueError(f"expected an option of sbatch such as --mail-type=END, got {line!r}")
        return plain

    @field_validator("time")
    @classmethod
    def _limit(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_of(value)
        return value


class Slurm:
    """The backend."""

    def __init__(self, site: SlurmSite) -> None:
        self._site = site

    def check(self, request: Request) -> list[str]:
        site = self._site
        if problem := room_for_sockets(Seat(10**8, 10, 1000, "", {}).temporary(site.tmp)):
            raise InputError(f"slurm.tmp of the site file: {problem}")
        partitions = offer.partitions_of(_ask("scontrol", "--oneliner", "show", "partition"))
        nodes = offer.nodes_of(_ask("scontrol", "--oneliner", "show", "node"))
        partition = offer.chosen(partitions, request.partition or site.partition)
        wanted = offer.Wanted(request.shape, self._seconds(request), site.gpu_type, site.constraint)
        return offer.compare(wanted, partition, nodes)

    def render(self, request: Request) -> str:
        """The batch script."""
        environment = Environment(
            undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False
        )
        text = resources.files("cluster").joinpath("slurm.sbatch.j2").read_text(encoding="utf-8")
        site = self._site
        node = [site.python or request.python, "-u", "-m", "launch.node", request.folder]
        node += ["--limit", site.start_limit, "--tmp", site.tmp]
        return environment.from_string(text).render(
            title=f"xinv {request.work.verb} of {request.work.name}: {request.shape.words()}",
            options=self._options(request),
            folder=shlex.quote(str(request.folder)),
            prelude=site.prelude,
            srun=" ".join(["--ntasks-per-node=1", f"--cpus-per-task={request.shape.cpus}", "--mpi=none",
                           "--kill-on-bad-exit=0", *site.srun]),
            command=" ".join([*([site.container] if site.container else []), shlex.join(map(str, node))]),
            temporary=f'{shlex.quote(str(site.tmp))}/"xr-$UID-$SLURM_JOB_ID-$start-0"',
            again=AGAIN,
            restarts=site.restarts,
            handle=request.handle,
        )  # fmt: skip

    def _options(self, request: Request) -> list[str]:
        site, shape, seconds = self._site, request.shape, self._seconds(request)
        given = {
            "job-name": request.handle,
            "comment": f"xinv {request.handle}",
            "account": site.account,
            "partition": request.partition or site.partition,
            "qos": site.qos,
            "constraint": site.constraint,
            "nodes": shape.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": shape.cpus,
            "gres": f"gpu:{site.gpu_type}:{shape.gpus}" if site.gpu_type else f"gpu:{shape.gpus}",
            "mem": None if shape.memory is None else f"{-(-shape.memory // 2**20)}M",
            "time": None if seconds is None else _time(seconds),
            # In the paths of its own files sbatch replaces what follows a %.
            "output": str(request.folder / LOG).replace("%", "%%"),
            "open-mode": "append",
            "chdir": str(request.cwd),
            "signal": f"B:USR1@{site.signal_before}",
        }
        if not shape.gpus:
            del given["gres"]
        chosen = [f"--{name}={shlex.quote(str(value))}" for name, value in given.items() if value is not None]
        return [*chosen, "--requeue", *site.header]

    def _seconds(self, request: Request) -> int | None:
        if request.seconds is not None:
            return request.seconds
        return None if self._site.time is None else seconds_of(self._site.time)

    def send(self, request: Request) -> str:
        script = make_private(request.folder) / SCRIPT
        write_request(request)
        write_atomic(script, self.render(request))
        answer = _ask("sbatch", "--parsable", str(script))
        return answer.strip().splitlines()[-1].split(";")[0]

    def find(self, job: Job) -> str | None:
        found = _ask("squeue", "--me", "--noheader", "--states=all", f"--name={job.handle}", "--format=%i").split()
        if found:
            return found[-1]
        number = job.request.folder / NUMBER
        return number.read_text().strip() if number.exists() else None

    def status(self, job: Job) -> Status:
        """InputError where Slurm does not answer."""
        assert job.ident is not None, "asked for after `find`"
        found = offer.fields(_ask("scontrol", "--oneliner", "show", "job", job.ident, may_fail=FORGOTTEN))
        if found.get("JobName") == job.handle:
            return _known(found, job)
        ended = result_of(job.request.folder)
        if ended is not None:
            return ended
        return _accounted(job) or Status(
            state=State.lost, detail=f"Slurm knows job {job.ident} no more, and it has left no result"
        )

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        return tail(job.request.folder / LOG, lambda: follow and not self.status(job).state.over)

    def cancel(self, job: Job) -> None:
        assert job.ident is not None, "asked for after `find`"
        _ask("scancel", job.ident, may_fail=FORGOTTEN)


def _time(seconds: int) -> str:
    """As sbatch takes it; Slurm counts in minutes, and rounds up."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02d}:{minutes:02d}:{rest:02d}"


def _known(found: dict[str, str], job: Job) -> Status:
    """The status of a job that Slurm has on its books."""
    name = found.get("JobState", "")
    state = STATES.get(name, State.running)
    ended = result_of(job.request.folder)
    if state.over or name == "COMPLETING":
        if ended is not None and (name == "COMPLETING" or ended.state == state):
            return ended
        if state.over:
            return Status(state=state, exit_code=_exit_code(found.get("ExitCode", "")), detail=_end(name, ended))
    if state is State.pending:
        reason = found.get("Reason", "")
        return Status(state=state, detail=f"{WORDS.get(reason, 'it waits')} (Slurm: {reason})")
    restarts = found.get("Restarts", "0")
    again = "" if restarts == "0" else f", started again {restarts} times"
    return Status(state=state, detail=f"on {found.get('NodeList', '?')}{again}")


def _end(name: str, ended: Status | None) -> str:
    said = ended.detail if ended else ""
    words = {
        "TIMEOUT": "it met its time limit before it could save: raise slurm.signal_before",
        "NODE_FAIL": "a node went down",
        "OUT_OF_MEMORY": "it took more memory than it asked for (--memory-per-node)",
    }.get(name, "")
    return "; ".join(part for part in (words, said) if part) or f"Slurm: {name}; its log says more"


def _exit_code(text: str) -> int | None:
    """Of the work, in Slurm's form CODE:SIGNAL."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        return None
    code, signal = int(found[1]), int(found[2])
    return 128 + signal if signal else code


def _accounted(job: Job) -> Status | None:
    """What Slurm's accounting says, where there is any."""
    assert job.ident is not None
    options = ["--noheader", "--parsable2", "--allocations", f"--jobs={job.ident}"]
    text = _ask("sacct", *options, "--format=State,ExitCode,JobName", may_fail="")
    for line in reversed(text.splitlines()):
        parts = line.split("|")
        if len(parts) == 3 and parts[2] == job.handle and parts[0]:
            name = parts[0].split()[0]  # CANCELLED by 1000
            return Status(
                state=STATES.get(name, State.lost), exit_code=_exit_code(parts[1]), detail=f"Slurm's accounting: {name}"
            )
    return None


def _ask(*command: str, may_fail: str | None = None) -> str:
    """What one of Slurm's commands prints.

    Args:
        command: the program and its arguments.
        may_fail: a part of the error with which it may fail; the answer is then empty.

    Raises:
        InputError: the program is not there, or refuses.
        WorkError: it was to send a job, and nobody knows whether it has.
    """
    program = shutil.which(command[0])
    if program is None:
        if may_fail == "":
            return ""
        raise InputError(
            f"`{command[0]}` is not on the path: is this a login node of the Slurm cluster? Log in to one, load its "
            "module, or choose another place (--on)."
        )
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=ANSWER, check=False)
    except subprocess.TimeoutExpired:
        if may_fail == "":
            return ""
        silent = f"Slurm does not answer: `{shlex.join(command)}` took more than {ANSWER:.0f} s. Is its controller up?"
        if command[0] == "sbatch":
            raise WorkError(f"{silent} The job may have been sent: `xinv jobs status` looks for it.") from None
        raise InputError(f"{silent} `scontrol ping` says so.") from None
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr.strip() or done.stdout.strip()).removeprefix(f"{command[0]}: error: ")
    if may_fail is not None and may_fail in said:
        return ""
    raise InputError(f"Slurm refuses `{shlex.join(command)}`: {said}")
