"""The arithmetic of DeepSpeed's memory against what DeepSpeed's own engine allocates on fake groups of ranks."""

from typing import Any

import pytest
from measuring import Case, measure, planned, settings_of

from xinv.plan.memory import Rank
from xinv.plan.section import section_of

WORLDS = (1, 2, 4, 8)
SMALL_BUCKET = {"deepspeed": {"zero_optimization": {"reduce_bucket_size": 200_000}}}
LETS_GO = {
    "deepspeed": {
        "zero_optimization": {
            "reduce_bucket_size": 300_000,
            "stage3_max_live_parameters": 200_000,
            "stage3_max_reuse_distance": 200_000,
            "stage3_prefetch_bucket_size": 100_000,
        }
    }
}


def compared(cases: list[Case], peak: float, standing: float = 0.002) -> list[dict[str, Any]]:
    found = measure(cases)
    for case, real in zip(cases, found, strict=True):
        most, still, _ = planned(case)
        # On a CPU, what is offloaded lies beside the rest.
        assert still.total + still.host == pytest.approx(real["standing"], rel=standing), (case, still)
        assert most.total + most.host == pytest.approx(real["peak"], rel=peak), (case, most)
    return found


@pytest.mark.parametrize("world", WORLDS)
def test_every_stage_holds_what_the_engine_holds(world: int) -> None:
    cases = [Case("flatten_unet", world=world, training={"zero_stage": stage}) for stage in range(4)]
    for case, real in zip(cases, compared(cases, peak=0.06), strict=True):
        section = section_of(settings_of(case), planned(case)[2].sizes)
        assert real["zero"] == {
            "reduce_bucket_size": section.reduce_bucket,
            "param_persistence_threshold": section.persistence_threshold,
            "prefetch_bucket_size": section.prefetch_bucket,
            "max_live_parameters": section.max_live,
            "max_reuse_distance": section.max_reuse_distance,
            "contiguous": section.contiguous_gradients,
        }, "the engine's settings are those of section.py"


def test_buckets_smaller_than_the_network_are_reduced_when_they_are_full() -> None:
    """On the rank whose partition the most gradients reach into, which is what the planner states."""
    cases = [Case("unet", world=2, rank=1, training={"zero_stage": stage, **SMALL_BUCKET}) for stage in (1, 2)]
    # At stage 3 all ranks hold the same, and DeepSpeed asks rank 0 whether they agree, which the fake group cannot.
    compared([*cases, Case("unet", world=2, training={"zero_stage": 3, **SMALL_BUCKET})], peak=0.06)


def test_layers_are_gathered_ahead_and_let_go_as_the_section_says() -> None:
    compared([Case("film_unet", world=2, training={"zero_stage": 3, **more}) for more in ({}, LETS_GO)], peak=0.06)


def test_accumulated_gradients_stay_from_one_micro_batch_to_the_next() -> None:
    """At stage 2 on the rank whose partition the most gradients reach into."""
    ranks = {0: 0, 1: 0, 2: 1, 3: 0}
    cases = [Case("unet", 32, 4, 3, 2, rank, {"zero_stage": stage}) for stage, rank in ranks.items()]
    compared(cases, peak=0.06)


def test_what_is_offloaded_lies_in_the_hosts_memory() -> None:
    optimizer = [{"zero_stage": stage, "offload_optimizer": "cpu"} for stage in (1, 2, 3)]
    weights = {"zero_stage": 3, "offload_optimizer": "cpu", "offload_weights": "cpu"}
    cases = [Case("unet", world=2, training=training) for training in (*optimizer, weights)]
    compared(cases, peak=0.06)
    stays = [planned(case)[1].host for case in cases]
    assert all(stays) and stays[3] > stays[2]


def test_a_batch_is_cut_as_the_engine_cuts_it() -> None:
    assert Rank.of(100, None, 8, "cpu") == Rank(world=8, micro=13, accumulation=1, share=13, device="cpu")
    assert Rank.of(100, 4, 8, "cuda") == Rank(world=8, micro=4, accumulation=4, share=13, device="cuda")
    assert Rank.of(4, 64, 1, "cpu").micro == 4
