"""How long a search will take: the arithmetic, on numbers worked out by hand, and the speed that goes into it."""

from pathlib import Path

import pytest
import torch
from searches import Play, load

from xinv.base import trial_workers
from xinv.nets.design import InverterDesign
from xinv.parallel import WorkerSettings
from xinv.search.forecast import Forecast, Speed, expected_epochs, forecast, time_first
from xinv.search.record import Past
from xinv.search.settings import AshaSettings
from xinv.train.pace import images_per_second
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec


@pytest.mark.parametrize(
    ("epochs", "asha", "age", "expected"),
    [
        (12, None, 0, 12),
        (12, None, 5, 7),
        (9, AshaSettings(grace=1, reduction=3), 0, 1 + 2 / 3 + 6 / 9),
        (4, AshaSettings(grace=1, reduction=2), 0, 1 + 1 / 2 + 2 / 4),
        (4, AshaSettings(grace=1, reduction=2), 2, 2),
        (4, AshaSettings(grace=4, reduction=2), 0, 4),
    ],
)
def test_halving_leaves_one_in_reduction_at_each_rung_before_the_last_epoch(
    epochs: int, asha: AshaSettings | None, age: int, expected: float
) -> None:
    assert expected_epochs(epochs, asha, age) == pytest.approx(expected)


def test_time_left_is_the_work_of_trials_to_come_and_under_way_over_the_speed_of_those_before(tmp_path: Path) -> None:
    config = load(tmp_path, "asha=null", "budget.trials=5")
    ahead = Forecast(config, 90, {"inside": 500, "outside": 700}, 1000.0, 2, Speed(1e4, "a few steps of inside"))
    whole = (500 + 700 + 3 * 1000) * 90 * 4
    assert ahead.seconds(Past()) == pytest.approx(whole / (2 * 1e4))
    assert "5 trials to come at 90 kFLOP" in ahead.words(Past()) and "an estimate" in ahead.words(Past())
    past = Past()
    lines = [
        {"kind": "begin", "trial": "0000", "title": "inside", "origin": "preset", "proposal": None}
        | {"parameters": None, "candidate": {}, "cost": {"flops": 500}},
        {"kind": "report", "trial": "0000", "epoch": 1, "mse": 1.0, "loss": 1.0, "seconds": 9.0}
        | {"flops": 500 * 90.0, "elapsed": 9.0},
    ]
    for line in lines:
        past.add(line)
    left = (500 * 3 + 700 * 4 + 3 * 1000 * 4) * 90
    assert ahead.work(past) == pytest.approx(left)
    assert ahead.seconds(past) == pytest.approx(left / (2 * 500 * 90 / 9)), "5000 FLOP/s were measured"
    assert "1 trials so far" in ahead.words(past)
    assert Forecast(config, 90, {}, 1000.0, 2, None).seconds(Past()) is None


def test_a_search_of_the_record_is_forecast_and_done_when_it_is(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    play = Play(load(tmp_path))
    course = play.course
    timed = time_first(
        play.config, course.task, course.space, course.price, trial_workers(play.config.place, WorkerSettings())
    )
    assert timed is not None and timed.flops > 0 and timed.source == "a few steps of inside"
    ahead = forecast(play.config, course.task, course.space, course.price, 1, timed)
    assert ahead.presets == {"inside": 16000, "outside": 16000} and 0 < ahead.proposal < 64000
    before = ahead.seconds(play.record.past)
    play.to_the_end()
    assert before is not None and before > 0 and ahead.seconds(play.record.past) == 0


def test_timing_leaves_torch_as_it_was() -> None:
    design = InverterDesign(encoder="cnn", width=2, hidden=4, bottleneck=8)
    spec = InverterSpec(design=design, channels=1, size=16, classes=4, methods=("grad_cam",), maps=((1, 4, 4),))
    torch.manual_seed(7)
    before = (torch.get_num_threads(), torch.get_rng_state())
    assert images_per_second(spec, TrainingSettings(batch_size=8), 1) > 0
    assert torch.get_num_threads() == before[0] and torch.equal(torch.get_rng_state(), before[1])
