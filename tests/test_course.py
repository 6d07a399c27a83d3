"""Which candidate is next, what the record holds, and that a search continued is the search undisturbed."""

from pathlib import Path
from typing import Any

import pytest
from searches import Play, TinySpace, load

from xinv.errors import InputError, WorkError
from xinv.search.best import pareto
from xinv.search.record import TRIALS, read
from xinv.search.study import Outcome, Study

pytest.importorskip("optuna")


def lines(folder: Path) -> list[dict[str, Any]]:
    return read(folder).lines


def content(folder: Path) -> list[dict[str, Any]]:
    """The record without its times."""
    return [{key: value for key, value in line.items() if key != "elapsed"} for line in lines(folder)]


def test_presets_come_first_then_proposals_and_the_budget_ends_it(tmp_path: Path) -> None:
    trials = Play(load(tmp_path)).to_the_end()
    assert len(trials) == 8
    assert [(trial.title, trial.origin) for trial in trials[:2]] == [("inside", "preset"), ("outside", "preset")]
    assert trials[0].parameters is not None and trials[1].parameters is None, "the space does not hold the second"
    assert {trial.origin for trial in trials[2:]} == {"proposal"}
    assert {trial.state for trial in trials} == {"finished", "stopped"}
    assert all(trial.epoch == 4 for trial in trials if trial.state == "finished")


def test_candidates_over_the_budget_are_counted_and_never_begun(tmp_path: Path) -> None:
    play = Play(load(tmp_path), limit=5)
    trials = play.to_the_end()
    refused = play.record.past.refused
    assert refused and all("is above 5" in str(line["reason"]) for line in refused)
    assert all(trial.candidate["design"]["width"] <= 5 for trial in trials)
    numbers = [line["proposal"] for line in play.record.past.lines if line.get("proposal") is not None]
    assert numbers == list(range(len(numbers))), "refused or begun, every proposal has a number of its own"


@pytest.mark.parametrize("how", [("searcher=tpe",), ("searcher=random",), ("searcher=tpe", "second=flops")])
def test_the_same_seed_proposes_the_same_and_another_does_not(tmp_path: Path, how: tuple[str, ...]) -> None:
    found = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        config = load(tmp_path, f"name={name}", f"seed={seed}", "budget.trials=16", *how)
        Play(config).to_the_end()
        found.append(content(config.folder))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("second", ["null", "parameters"])
@pytest.mark.parametrize("cut", [1, 3, 6, 9, 14, 20, 27, 40])
def test_cut_off_after_any_line_it_goes_on_as_if_it_had_not_been(tmp_path: Path, cut: int, second: str) -> None:
    """The record is cut after some line, and the last one torn, as a kill leaves it."""
    options = ("budget.trials=14", "seed=4", f"second={second}")
    whole = load(tmp_path, "name=whole", *options)
    Play(whole, limit=9).to_the_end()
    text = (whole.folder / TRIALS).read_text().splitlines(keepends=True)
    parted = load(tmp_path, "name=parted", *options)
    parted.folder.mkdir(parents=True)
    (parted.folder / TRIALS).write_text("".join(text[:cut]) + text[cut][:20])
    Play(parted, limit=9).to_the_end()
    assert content(parted.folder) == content(whole.folder)
    times = [line["elapsed"] for line in lines(parted.folder) if line["kind"] == "report"]
    assert times == sorted(times), "the time of both starts counts"


def test_two_objectives_find_a_front_that_random_search_does_not_reach(tmp_path: Path) -> None:
    """Every trial of a random search is matched by one that is as cheap and as good, and not the other way round."""
    fronts = {}
    for name, how in (("both", "second=flops"), ("random", "searcher=random")):
        config = load(tmp_path, f"name={name}", how, "presets=false", "asha=null", "budget.trials=40", "seed=1")
        play = Play(config, limit=12)
        play.to_the_end()
        fronts[name] = [(trial.cost["flops"], trial.score) for trial in pareto(play.record.past, "flops")]

    def matched(one: tuple[float, float], others: list[tuple[float, float]]) -> bool:
        return any(other[0] <= one[0] and other[1] <= one[1] for other in others)

    assert len(fronts["both"]) >= 3
    assert all(matched(one, fronts["both"]) for one in fronts["random"])
    assert not all(matched(one, fronts["random"]) for one in fronts["both"])


def test_with_two_objectives_a_stopped_trial_counts_by_the_error_that_it_reached() -> None:
    def walk(trial: Any) -> float:
        return float(trial.suggest_float("x", 0, 1))

    def proposed(last: Outcome) -> list[float]:
        study = Study("tpe", 0, objectives=2)
        for number in range(12):
            study.know(str(number), {"x": number / 12}, walk)
            study.tell(str(number), last if number == 11 else "finished", {3: 0.9 - number / 20}, price=10.0 + number)
        return [walk(study.ask(f"next {number}", number)) for number in range(5)]

    assert proposed("stopped") == proposed("finished") != proposed("failed")


def test_a_continued_trial_may_tell_its_last_report_again(tmp_path: Path) -> None:
    play = Play(load(tmp_path))
    trial = play.course.next()
    assert trial is not None
    assert play.course.report(trial.id, 1, 0.5, 0.5, 2.0) and not play.course.report(trial.id, 1, 0.5, 0.5, 9.0)
    assert play.course.report(trial.id, 2, 0.4, 0.4, 3.0)
    assert (trial.epoch, trial.seconds, len(trial.reports)) == (2, 5.0, 2)
    assert trial.flops == trial.cost["flops"] * 90 * 2


def test_time_that_is_up_leaves_trials_open_for_a_larger_budget(tmp_path: Path) -> None:
    play = Play(load(tmp_path, "budget.minutes=0.05", "asha=null"))  # three seconds, one an epoch
    trial = play.course.next()
    assert trial is not None
    play.trial(trial, until=3)
    assert play.course.time_is_up() and play.course.next() is None and play.course.over()
    play.course.pause(trial.id)
    later = Play(load(tmp_path, "budget.minutes=1", "asha=null"))
    again = later.course.next()
    assert again is not None and (again.id, again.epoch) == (trial.id, 3)
    assert later.course.elapsed() == 3.0
    trials = later.to_the_end()
    assert len(trials) == 8 and all(one.state == "finished" for one in trials if one.id != trial.id)


def test_an_earlier_search_on_the_same_data_is_learnt_from(tmp_path: Path) -> None:
    """Its scores are told: proposals differ from those of a search that starts from nothing, and are better placed."""
    first = load(tmp_path, "name=first", "budget.trials=30", "asha=null", "seed=3")
    Play(first).to_the_end()
    cold, warm = (
        load(tmp_path, f"name={name}", "presets=false", "budget.trials=10", "asha=null", *more)
        for name, more in (("cold", ()), ("warm", (f"warm_start=[{first.folder}]",)))
    )
    scores = [sum(trial.score for trial in Play(config).to_the_end()) / 10 for config in (cold, warm)]
    assert scores[1] < scores[0]


def test_of_an_earlier_search_on_other_data_the_best_candidates_are_tried(tmp_path: Path) -> None:
    first = load(tmp_path, "name=first", "budget.trials=12", "asha=null")
    best = sorted(Play(first, data="images-2").to_the_end(), key=lambda trial: trial.score)
    held = [trial for trial in best if trial.parameters is not None][:3]
    options = ("name=second", "presets=false", f"warm_start=[{first.folder}]")
    trials = Play(load(tmp_path, *options)).to_the_end()
    assert [trial.candidate for trial in trials[:3]] == [trial.candidate for trial in held]
    assert {trial.origin for trial in trials[:3]} == {"warm"} and trials[3].origin == "proposal"
    with pytest.raises(InputError, match="holds no search"):
        Play(load(tmp_path, "name=third", f"warm_start=[{tmp_path}]"))


def test_a_candidate_that_was_tried_is_not_tried_again(tmp_path: Path) -> None:
    """A space of few candidates is exhausted, and says so by ending."""

    class Few(TinySpace):
        def propose(self, trial: object) -> object:  # type: ignore[override]
            design = self.presets()[0][1].design.model_copy(update={"width": trial.suggest_int("width", 2, 4)})  # type: ignore[attr-defined]
            return self.presets()[0][1].model_copy(update={"design": design})

        def parameters(self, candidate: object) -> dict[str, int]:  # type: ignore[override]
            return {"width": candidate.design.width}  # type: ignore[attr-defined]

    play = Play(load(tmp_path))
    play.course.space = Few(play.course.space.training)  # type: ignore[attr-defined, assignment]
    trials = play.to_the_end()
    widths = [trial.candidate["design"]["width"] for trial in trials]
    assert sorted(widths[2:]) == [2, 3] and play.course.exhausted
    assert {line["reason"] for line in play.record.past.refused} <= {f"the same as trial {one.id}" for one in trials}


def test_a_space_in_which_everything_breaks_the_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Every one of 64 candidates .* is above 1"):
        Play(load(tmp_path), limit=1).course.check()


def test_trials_that_all_fail_end_the_search_with_the_reason(tmp_path: Path) -> None:
    play = Play(load(tmp_path))
    with pytest.raises(WorkError, match="All of 5 trials failed; the last: out of memory"):
        while (trial := play.course.next()) is not None:
            play.course.end(trial.id, "failed", "out of memory")


def test_the_end_of_a_trial_frees_its_checkpoints(tmp_path: Path) -> None:
    play = Play(load(tmp_path))
    for name in ("0000", "0001"):
        (play.course.folder(name) / "checkpoints" / "step-1").mkdir(parents=True)
    first, second = play.course.next(), play.course.next()
    assert first is not None and second is not None
    play.course.end(first.id, "stopped")
    play.course.pause(second.id)
    assert not (play.course.folder("0000") / "checkpoints").exists()
    assert (play.course.folder("0001") / "checkpoints" / "step-1").exists()


def test_a_record_of_other_data_or_with_a_foreign_line_is_refused(tmp_path: Path) -> None:
    config = load(tmp_path)
    Play(config)
    with pytest.raises(InputError, match=r"images-1.*images-9"):
        Play(config, data="images-9")
    with (config.folder / TRIALS).open("a") as stream:
        stream.write('{"kind": "report", "trial": "0099"}\n')
    with pytest.raises(InputError, match=r"trials.jsonl:2 is no line"):
        read(config.folder)
