"""What the ranks of a training group agree on by way of their desk; and a real group, which outlives a failed job."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from audits import ROOT, environment
from test_trial import job

from xinv.errors import WorkError
from xinv.parallel import WorkerSettings, disconnect
from xinv.train.desk import Desk
from xinv.train.run import TrainingGroup, desk_for, reason_of


def test_all_ranks_of_a_start_get_the_same_job_and_a_later_start_the_one_without_outcome() -> None:
    async def talk() -> list[Any]:
        desk = Desk()
        for name in ("a", "b"):
            await desk.post(name, paced=False)
        found = [await desk.next_job("one", 0, 0)]
        await desk.settle(0, {})
        found.append(await desk.next_job("one", 0, 1))  # late, and still the job of the other rank
        found += [await desk.next_job("one", 1, rank) for rank in (0, 1)]
        found += [await desk.next_job("two", 0, rank) for rank in (0, 1)]  # after a kill in mid-job
        again = asyncio.create_task(desk.next_job("two", 1, 0))
        await asyncio.sleep(0.12)
        assert not again.done(), "it waits for the job's outcome"
        await desk.close()
        return [*found, await again, await desk.next_job("two", 1, 1), (await desk.look(1, 0, 0))["starts"]]

    first, second = (0, "a", False), (1, "b", False)
    assert asyncio.run(talk()) == [first, first, second, second, second, second, None, None, 2]


def test_no_rank_stops_where_another_went_on() -> None:
    async def talk() -> list[bool]:
        desk = Desk()
        number = await desk.post("a", paced=True)
        await desk.allow(number, 10)
        early = await desk.may_pass(number, 10)
        waiting = asyncio.create_task(desk.may_pass(number, 20))
        await desk.stop(number)
        return [early, await desk.may_pass(number, 10), await waiting, await desk.may_pass(number, 20)]

    assert asyncio.run(talk()) == [True, True, False, False]


def test_a_rank_that_tells_how_far_it_is_hears_that_it_is_to_halt_and_gets_no_other_job() -> None:
    async def talk() -> list[Any]:
        desk = Desk()
        for name in ("a", "b"):
            await desk.post(name, paced=False)
        await desk.next_job("one", 0, 0)
        before = await desk.tell(1, 10, "")
        await desk.halt()
        after = await desk.tell(2, 10, "")
        await desk.settle(0, {"stopped": True})
        return [before, after, await desk.next_job("one", 1, 0)]

    assert asyncio.run(talk()) == [False, True, None]


def test_who_looks_hears_of_an_event_and_of_the_end_as_they_come() -> None:
    async def talk() -> list[Any]:
        desk = Desk()
        number = await desk.post("a", paced=False)
        waiting = asyncio.create_task(desk.look(number, 0, patience=3600))
        await asyncio.sleep(0.02)
        early = waiting.done()
        await desk.record(number, {"step": 1})
        found = [early, len((await waiting)["events"]), await desk.ended(number, patience=0)]
        nothing_new = await desk.look(number, 1, patience=0.01)
        ending = asyncio.create_task(desk.ended(number, patience=3600))
        await desk.settle(number, {"summary": {}})
        return [*found, nothing_new["events"], await ending, (await desk.look(number, 1, 3600))["outcome"]]

    assert asyncio.run(talk()) == [False, 1, False, [], True, {"summary": {}}]


def test_a_job_stopped_while_the_group_was_away_is_not_begun_again() -> None:
    async def talk() -> Any:
        desk = Desk()
        await desk.post("a", paced=True)
        await desk.stop(0)
        await desk.post("b", paced=True)
        return await desk.next_job("two", 0, 0)

    assert asyncio.run(talk()) == (1, "b", True)


def test_nor_are_several_that_were_stopped_one_after_another() -> None:
    async def talk() -> Any:
        desk = Desk()
        for number, name in enumerate("ab"):
            await desk.post(name, paced=True)
            await desk.stop(number)
        await desk.post("c", paced=True)
        return await desk.next_job("two", 0, 0)

    assert asyncio.run(talk()) == (2, "c", True)


@pytest.mark.parametrize(("messages", "alike"), [(["x", "x"], True), (["x", "y"], False), (["x"], False)])
def test_ranks_stay_together_only_after_the_same_failure(
    messages: list[str], alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xinv.train.desk.AGREE", 0.1)

    async def talk() -> list[bool]:
        desk = Desk()
        told = [desk.fail("one", 0, rank, 2, {"message": message}) for rank, message in enumerate(messages)]
        return list(await asyncio.gather(*told))

    assert set(asyncio.run(talk())) == {alike}


def ranks() -> list[int]:
    """Ids of the training processes below this one."""
    below = psutil.Process().children(recursive=True)
    return sorted(one.pid for one in below if "RayTrainWorker" in " ".join([one.name(), *one.cmdline()]))


def a_hundred_wait() -> list[int]:
    """The jobs that so many ranks get, which all asked before there was one."""
    import ray

    desk = desk_for(100)
    asked = [desk.next_job.remote("one", 0, rank) for rank in range(100)]
    ray.get(desk.post.remote("a", False), timeout=60)
    return [number for number, _, _ in ray.get(asked, timeout=60)]


def train_in_turn(images: str, releases: str, folder: str) -> None:
    """In a process of its own, on one group: a job that diverges, one that its reader leaves, and its rest."""
    wild = {"learning_rate": 1e30, "clip": 0.0, "schedule": "constant", "warmup": 0.0}
    out, found = Path(folder), dict[str, Any]()
    with TrainingGroup(WorkerSettings(count=2), out / "ray", out / "log.txt") as group:
        good = job(Path(images), Path(releases), out / "good")
        try:
            list(group.validations(job(Path(images), Path(releases), out / "wild", **wild)))
        except WorkError as error:
            found["wild"] = str(error)
        before = ranks()
        records = group.validations(good)
        found["left"] = [next(records)["epoch"], next(records)["epoch"]]
        records.close()
        found["rest"] = [record["epoch"] for record in group.validations(good)]
        found["same"] = len(before) == 2 and ranks() == before
        found["many"] = a_hundred_wait()
    disconnect()
    (out / "found.json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_group_is_there_for_the_next_job_after_a_failed_one_and_one_that_was_left(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    paths = os.pathsep.join([str(ROOT / "tests"), *environment()["PYTHONPATH"].split(os.pathsep), *sys.path])
    (tmp_path / "ray").mkdir()
    program = "import sys, test_desk; test_desk.train_in_turn(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_images), str(tiny_releases), str(tmp_path)],
        env={**environment(), "PYTHONPATH": paths}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert "Lower learning_rate" in found["wild"]
    assert (found["left"], found["rest"]) == ([1, 2], [2, 3]), "the last validation is told again"
    assert found["same"], "the processes are those of the beginning"
    assert found["many"] == [0] * 100, "more ranks than an actor of Ray serves at once by default"


def test_memory_that_ran_out_is_said_to_have() -> None:
    told = reason_of(
        RuntimeError("Worker died.\nRefer to the documentation on how to address the Out of Memory issue: x")
    )
    assert "memory was full" in told and "micro_batch" in told
    assert reason_of(RuntimeError("one\n two ")) == " two" and reason_of(RuntimeError()) == "RuntimeError"
