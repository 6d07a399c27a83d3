"""Which step is next: each once, needs first, the longest chain first; failures take down what needs them alone."""

from xinv.trials.schedule import FINISH, Schedule
from xinv.trials.walk import Step


def step(ident: str, *needs: str) -> Step:
    return Step(ident, ident, frozenset(needs))


def two_trials() -> Schedule:
    """Trials a and b share target and baseline; each has an inverter of its own."""
    schedule = Schedule()
    shared = [step("judge-1"), step("target-1"), step("releases-1", "target-1"), step("inverter-0", "releases-1")]
    schedule.add("a", [*shared, step("inverter-a", "releases-1")])
    schedule.add("b", [*shared, step("inverter-b", "releases-1")])
    return schedule


def test_each_step_comes_once_and_after_what_it_needs() -> None:
    schedule, order = two_trials(), []
    while (found := schedule.next()) is not None:
        order.append(found.id)
        schedule.done(found.id)
    # The judge is ready first, but two others wait behind the target, one behind the releases.
    assert order[:2] == ["target-1", "releases-1"]
    assert sorted(order) == ["inverter-0", "inverter-a", "inverter-b", "judge-1", "releases-1", "target-1"]
    assert schedule.owner["inverter-0"] == "a" and schedule.owner["inverter-b"] == "b"
    assert schedule.settled() == ["a", "b"]


def test_two_workers_are_both_busy_as_long_as_anything_is_ready() -> None:
    schedule = two_trials()
    first, second = schedule.next(), schedule.next()
    assert first is not None and second is not None
    assert (first.id, second.id) == ("target-1", "judge-1")
    assert schedule.next() is None, "the rest needs the target"
    schedule.done("target-1")
    third = schedule.next()
    assert third is not None and third.id == "releases-1"


def test_the_last_step_of_a_trial_goes_before_new_work() -> None:
    schedule = two_trials()
    schedule.add("c", [step(f"{FINISH}-c")])
    found = schedule.next()
    assert found is not None and found.id == f"{FINISH}-c"


def test_a_failure_loses_the_trials_that_wait_for_it_and_no_others() -> None:
    schedule = two_trials()
    while (found := schedule.next()) is not None:
        if found.id == "inverter-a":
            schedule.failed(found.id, RuntimeError("diverged"))
        else:
            schedule.done(found.id)
    assert schedule.lost() == {"a": "inverter-a"}
    assert schedule.settled() == ["b"]
    assert schedule.waiting() == []


def test_time_is_shared_out_by_what_each_kind_took_so_far() -> None:
    schedule = two_trials()
    for ident in ("target-1", "releases-1"):
        schedule.running.add(ident)
        schedule.done(ident)
    schedule.running.add("inverter-0")
    seconds = {"target": [10.0], "releases": [2.0]}
    # Unseen kinds (three inverters, a judge, one last step) count as the mean, 6 s.
    assert schedule.share(seconds, {"inverter-0": 0.5}, more=1) == (12 + 3, 12 + 4 * 6 + 6)
