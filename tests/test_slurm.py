"""Slurm as the product sees it: the batch script, what is asked of Slurm's commands, and what their answers mean. The
commands are stand-ins here; tests/cluster runs real ones."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from golden import check_golden
from jobs import request_for

from launch import slurm
from launch.job import Job, Request, State, write_result
from launch.slurm import Slurm, SlurmSite
from xinv.errors import InputError, WorkError

SITE = SlurmSite(
    account="vision",
    partition="gpu",
    qos="normal",
    constraint="a100&ib",
    time="12:00:00",
    gpu_type="a100",
    header=("#SBATCH --mail-type=END", "--exclude=g7"),
    srun=("--cpu-bind=none",),
    prelude=("module purge", "module load cuda/12.4"),
    container="apptainer exec --nv --bind /data xinv.sif",
    python="/opt/xinv/bin/python",
    tmp=Path("/local"),
)


def plain(**asked: Any) -> Request:
    """A request that says nothing of this machine."""
    request = request_for(Path("/data/runs"), on="slurm", **asked)
    folder = Path("/data/runs/demo/jobs/demo-123abc")
    return request.model_copy(
        update={
            "handle": "demo-123abc",
            "folder": folder,
            "cwd": Path("/home/ada/my audit"),
            "python": "/venv/bin/python",
        }
    )


def test_batch_script_of_one_node() -> None:
    check_golden("slurm_1_node.sbatch", Slurm(SlurmSite()).render(plain()))


def test_batch_script_of_two_nodes_with_eight_gpus_at_a_site() -> None:
    request = plain(nodes=2, gpus_per_node=8, memory_per_node=400, time="2-00:00:00", partition="big")
    check_golden("slurm_2_nodes_8_gpus.sbatch", Slurm(SITE).render(request))


@pytest.mark.parametrize("site", [SlurmSite(), SITE])
def test_batch_script_is_one_that_bash_can_read(site: SlurmSite) -> None:
    folder = Path("/data/it's 100% $HOME/jobs/demo-1")
    script = Slurm(site).render(plain().model_copy(update={"folder": folder}))
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False).stderr == ""
    assert "--output='/data/it'\"'\"'s 100%% $HOME/jobs/demo-1/log.txt'" in script


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"header": ["mail me"]}, "expected an option of sbatch"),
        ({"time": "soon"}, "no time limit"),
        ({"acount": 1}, "acount"),
    ],
)
def test_site_file_is_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SlurmSite.model_validate(settings)


# ------------------------------------------------------------------------------------------------ Slurm's own commands


class Commands:
    """Stand-ins for Slurm's commands, first on the path; each notes how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, name: str, prints: str = "", code: int = 0, error: str = "", sleeps: int = 0) -> None:
        path = self.folder / name
        (self.folder / f"{name}.out").write_text(prints)
        (self.folder / f"{name}.err").write_text(error)
        lines = ["#!/bin/sh", f'echo "$@" >> "{path}.calls"', f"sleep {sleeps}" if sleeps else "", f'cat "{path}.out"']
        path.write_text("\n".join([*lines, f'cat "{path}.err" >&2', f"exit {code}", ""]))
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    real = slurm.shutil.which
    # Slurm may be installed where the tests run: it is not asked.
    monkeypatch.setattr(slurm.shutil, "which", lambda name: real(name, path=str(folder)))
    return Commands(folder)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(request=request_for(tmp_path / "runs", on="slurm"), on="slurm", created=0.0, ident="7")  # type: ignore[call-arg]


HERE = Slurm(SlurmSite())
GONE = "slurm_load_jobs error: Invalid job id specified"


def shown(job: Job, state: str, **more: str) -> str:
    """A job as scontrol shows it."""
    rest = {"ExitCode": "0:0", "Reason": "None", "Restarts": "0", "NodeList": "g[1-2]", **more}
    fields = " ".join(f"{key}={value}" for key, value in rest.items())
    return f"JobId=7 JobName={job.handle} UserId=ada(1000) JobState={state} {fields} Command=/a b/job.sbatch\n"


def test_no_slurm_here_is_said(commands: Commands) -> None:
    with pytest.raises(InputError, match="`scontrol` is not on the path: is this a login node"):
        HERE.check(plain())


def test_a_controller_that_is_gone_is_said_in_time(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, job: Job
) -> None:
    monkeypatch.setattr(slurm, "ANSWER", 0.2)
    commands.set("scontrol", sleeps=20)
    commands.set("sbatch", sleeps=20)
    with pytest.raises(InputError, match=r"Slurm does not answer.*scontrol ping"):
        HERE.check(plain())
    # No InputError, after which the record would say that it was not sent.
    with pytest.raises(WorkError, match="may have been sent"):
        HERE.send(job.request)


def test_a_refusal_is_passed_on_in_slurms_own_words(commands: Commands, job: Job) -> None:
    commands.set("sbatch", code=1, error="sbatch: error: Batch job submission failed: Invalid account")
    with pytest.raises(InputError, match="Batch job submission failed: Invalid account"):
        HERE.send(job.request)


def test_what_is_sent_is_what_is_rendered(commands: Commands, job: Job) -> None:
    commands.set("sbatch", prints="4711;cluster\n")
    assert HERE.send(job.request) == "4711"
    script = job.request.folder / "job.sbatch"
    assert script.read_text() == HERE.render(job.request)
    assert commands.calls("sbatch") == [f"--parsable {script}"]
    assert (job.request.folder / "request.json").exists()


def test_a_temporary_folder_too_long_for_sockets_is_refused(commands: Commands) -> None:
    site = SlurmSite(tmp=Path("/scratch/users/ada/temporary/files"))
    with pytest.raises(InputError, match=r"slurm.tmp of the site file: .* unix allows 107"):
        Slurm(site).check(plain())


def test_an_interrupted_submission_is_found(commands: Commands, job: Job) -> None:
    commands.set("squeue", prints="12\n")
    assert HERE.find(job) == "12"
    assert f"--name={job.handle}" in commands.calls("squeue")[0]
    commands.set("squeue")
    assert HERE.find(job) is None
    job.request.folder.mkdir(parents=True)
    (job.request.folder / "slurm-job").write_text("13\n")
    assert HERE.find(job) == "13", "it has begun, ended, and been forgotten"


@pytest.mark.parametrize(
    ("state", "more", "expected", "words"),
    [
        ("PENDING", {"Reason": "Resources"}, State.pending, "the nodes are busy (Slurm: Resources)"),
        ("PENDING", {"Reason": "BeginTime", "Restarts": "1"}, State.pending, "its time has not come"),
        ("PENDING", {"Reason": "QOSMaxGRESPerUser"}, State.pending, "it waits (Slurm: QOSMaxGRESPerUser)"),
        ("RUNNING", {}, State.running, "on g[1-2]"),
        ("RUNNING", {"Restarts": "2"}, State.running, "started again 2 times"),
        ("COMPLETING", {}, State.running, ""),
        ("NEWSTATE", {}, State.running, ""),
        ("COMPLETED", {}, State.succeeded, ""),
        ("FAILED", {"ExitCode": "3:0"}, State.failed, "Slurm: FAILED"),
        ("CANCELLED", {"ExitCode": "0:15"}, State.cancelled, ""),
        ("TIMEOUT", {"ExitCode": "0:0"}, State.failed, "raise slurm.signal_before"),
        ("OUT_OF_MEMORY", {"ExitCode": "0:125"}, State.failed, "--memory-per-node"),
    ],
)
def test_states(commands: Commands, job: Job, state: str, more: dict[str, str], expected: State, words: str) -> None:
    commands.set("scontrol", prints=shown(job, state, **more))
    status = HERE.status(job)
    assert status.state == expected and words in status.detail


def test_exit_codes(commands: Commands, job: Job) -> None:
    for text, expected in (("3:0", 3), ("0:9", 137), ("1:0", 1)):
        commands.set("scontrol", prints=shown(job, "FAILED", ExitCode=text))
        assert HERE.status(job).exit_code == expected


def test_the_job_says_more_of_its_end_than_slurm(commands: Commands, job: Job) -> None:
    job.request.folder.mkdir(parents=True)
    write_result(job.request.folder, 1, "n2 did not join")
    commands.set("scontrol", prints=shown(job, "FAILED", ExitCode="1:0"))
    assert HERE.status(job).detail == "n2 did not join"
    # A node that is cut off keeps a job completing for long after it has ended.
    commands.set("scontrol", prints=shown(job, "COMPLETING", ExitCode="1:0"))
    assert HERE.status(job).state == State.failed
    # What Slurm did to it afterwards is Slurm's to say.
    commands.set("scontrol", prints=shown(job, "CANCELLED", ExitCode="0:15"))
    assert HERE.status(job).state == State.cancelled


def test_a_job_that_slurm_has_forgotten(commands: Commands, job: Job) -> None:
    commands.set("scontrol", code=1, error=GONE)
    assert HERE.status(job).state == State.lost
    commands.set("sacct", code=1, error="Slurm accounting storage is disabled")
    assert HERE.status(job).state == State.lost
    commands.set("sacct", prints=f"CANCELLED by 1000|0:15|{job.handle}\n")
    assert (HERE.status(job).state, HERE.status(job).exit_code) == (State.cancelled, 143)
    job.request.folder.mkdir(parents=True)
    write_result(job.request.folder, 0)
    assert HERE.status(job).state == State.succeeded


def test_the_number_of_a_forgotten_job_may_be_another_ones(commands: Commands, job: Job) -> None:
    commands.set("scontrol", prints=shown(job, "RUNNING").replace(job.handle, "somebody-else"))
    assert HERE.status(job).state == State.lost


def test_silence_is_no_end_of_a_job(commands: Commands, job: Job) -> None:
    commands.set("scontrol", code=1, error="Unable to contact slurm controller (connect failure)")
    with pytest.raises(InputError, match="Unable to contact slurm controller"):
        HERE.status(job)


def test_cancel(commands: Commands, job: Job) -> None:
    commands.set("scancel")
    HERE.cancel(job)
    assert commands.calls("scancel") == ["7"]
    commands.set("scancel", code=1, error="scancel: error: Kill job error on job id 7: Invalid job id specified")
    HERE.cancel(job)
    commands.set("scancel", code=1, error="scancel: error: Kill job error on job id 7: Access/permission denied")
    with pytest.raises(InputError, match="permission denied"):
        HERE.cancel(job)
