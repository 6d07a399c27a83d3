"""From a configuration to a job that was sent once."""

from pathlib import Path

import pytest
from jobs import Toy, request_for

from launch.job import Records, State, Status
from launch.submit import again_from, refreshed, seconds_of, submit
from xinv.errors import InputError


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "jobs")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("90m", 5400), ("12:00:00", 43200), ("2-12:30:00", 217800), ("2d", 172800), ("1h", 3600)],
)
def test_time_limits_are_written_as_slurm_has_them(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "12:00", "1:2:3", "30s", "0", "-5"])
def test_what_is_no_time_limit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="time limit"):
        seconds_of(text)


def test_room_is_what_is_asked_for_and_else_what_the_configuration_needs(tmp_path: Path) -> None:
    assert request_for(tmp_path).shape.words() == "1 node of 2 CPUs"
    assert request_for(tmp_path, nodes=2).shape.words() == "2 nodes of 1 CPUs"
    shape = request_for(tmp_path, nodes=2, cpus_per_node=16, gpus_per_node=8, memory_per_node=64).shape
    assert shape.words() == "2 nodes of 16 CPUs, 8 GPUs, 64 GiB"
    assert request_for(tmp_path, "workers.gpus=1", "workers.count=8", nodes=2).shape.gpus == 4


def test_a_job_is_recorded_before_it_is_sent(tmp_path: Path, records: Records) -> None:
    class Watching(Toy):
        def send(self, request: object) -> str:
            assert [job.status.state for job in records.all()] == [State.created]
            return super().send(request)  # type: ignore[arg-type]

    job = submit(request_for(tmp_path), "toy", lambda on: Watching(), records)
    assert (job.ident, job.status.state) == ("toy-1", State.pending)
    assert records.read(job.handle) == job


def test_a_job_that_could_not_be_sent_is_remembered_as_that(tmp_path: Path, records: Records) -> None:
    toy = Toy()
    toy.broken = True
    with pytest.raises(InputError, match="broken"):
        submit(request_for(tmp_path), "toy", lambda on: toy, records)
    (job,) = records.all()
    assert job.status == Status(state=State.failed, detail="was not sent: the toy is broken")


def test_submitting_twice_by_mistake_is_noticed(tmp_path: Path, records: Records) -> None:
    toy = Toy()
    first = submit(request_for(tmp_path), "toy", lambda on: toy, records)
    with pytest.raises(InputError, match=rf"has a job already: {first.handle}.*is running.*--again"):
        submit(request_for(tmp_path), "toy", lambda on: toy, records)
    with pytest.raises(InputError, match="has a job already"):  # other settings, the same run folder
        submit(request_for(tmp_path, "seed=9"), "toy", lambda on: toy, records)
    assert len(toy.sent) == 1
    second = submit(request_for(tmp_path), "toy", lambda on: toy, records, again=True)
    assert second.handle == f"{first.handle}-2"
    assert second.request.folder.name == second.handle


def test_after_the_end_the_same_job_may_be_sent_again_under_another_handle(tmp_path: Path, records: Records) -> None:
    toy = Toy()
    handles = []
    for _ in range(3):
        job = submit(request_for(tmp_path), "toy", lambda on: toy, records)
        handles.append(job.handle)
        toy.states[job.handle] = Status(state=State.failed, exit_code=1)
    assert handles == [handles[0], f"{handles[0]}-2", f"{handles[0]}-3"]
    assert again_from(records.read(handles[2]).request).handle == handles[0]


def test_a_submission_that_was_interrupted_is_looked_up_where_it_went(tmp_path: Path, records: Records) -> None:
    toy = Toy()
    job = submit(request_for(tmp_path), "toy", lambda on: toy, records)
    unsent = records.write(job.model_copy(update={"ident": None, "status": Status(state=State.created)}))
    assert refreshed(unsent, lambda on: toy, records).ident == "toy-found"
    toy.states.clear()
    assert refreshed(unsent, lambda on: toy, records).status.state is State.lost


def test_a_job_that_is_over_is_not_asked_about_again(tmp_path: Path, records: Records) -> None:
    toy = Toy()
    job = submit(request_for(tmp_path), "toy", lambda on: toy, records)
    over = records.write(job.seen(Status(state=State.succeeded, exit_code=0)))

    def nobody(on: str) -> Toy:
        raise AssertionError("asked")

    assert refreshed(over, nobody, records) == over
