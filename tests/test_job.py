"""Jobs and the records of them."""

from pathlib import Path

import pytest
from jobs import request_for

from launch.job import Job, Records, State, Status, handle_of, read_request, result_of, write_request, write_result
from xinv.errors import InputError


def record(tmp_path: Path, handle: str, created: float = 0) -> Job:
    request = request_for(tmp_path / "runs").model_copy(update={"handle": handle})
    return Job(request=request, on="toy", created=created)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits", "digits-0123ab"),
        ("LFW_emotion.v2", "lfw-emotion-v2-0123ab"),
        ("7-of-9", "x7-of-9-0123ab"),
        ("...", "job-0123ab"),
        ("a" * 60, f"{'a' * 32}-0123ab"),
    ],
)
def test_a_handle_is_fit_for_every_place(name: str, expected: str) -> None:
    assert handle_of(name, "0123abcdef") == expected


def test_a_request_survives_its_file(tmp_path: Path) -> None:
    request = request_for(tmp_path / "runs", "seed=3", nodes=2, time="12:00:00")
    assert read_request(write_request(request)) == request
    assert request.seconds == 43200
    assert request.folder.stat().st_mode & 0o777 == 0o700


def test_a_file_that_is_no_request_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text('{"handle": "x"}')
    with pytest.raises(InputError, match="is no request of a job"):
        read_request(path)


@pytest.mark.parametrize(
    ("code", "cancelled", "state"),
    [(0, False, State.succeeded), (1, False, State.failed), (2, False, State.failed), (130, True, State.cancelled)],
)
def test_a_result_is_what_the_job_said(tmp_path: Path, code: int, cancelled: bool, state: State) -> None:
    assert result_of(tmp_path) is None
    write_result(tmp_path, code, "why", cancelled)
    assert result_of(tmp_path) == Status(state=state, exit_code=code, detail="why")


def test_records_are_read_back_the_youngest_first(tmp_path: Path) -> None:
    records = Records(tmp_path / "jobs")
    for number, handle in enumerate(("a-000001", "b-000002")):
        records.write(record(tmp_path, handle, created=number))
    assert [job.handle for job in records.all()] == ["b-000002", "a-000001"]
    assert records.read("a-").handle == "a-000001", "the beginning of a handle will do"
    assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("handle", ["nobody", "../../etc/passwd", "c"])
def test_a_handle_that_no_job_has_is_refused(tmp_path: Path, handle: str) -> None:
    records = Records(tmp_path / "jobs")
    for name in ("cat-000001", "cow-000002"):
        records.write(record(tmp_path, name))
    with pytest.raises(InputError, match=r"handle|No job is called"):
        records.read(handle)


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    records = Records(tmp_path / "jobs")
    records.write(record(tmp_path, "cat-000001"))
    path = tmp_path / "jobs" / "cat-000001.json"
    path.write_text('{"schema": 1}')
    with pytest.raises(InputError, match=rf"{path} is no record of a job"):
        records.read("cat-000001")
