"""Trainings that die at a step of the test's choice, as a kill would leave them."""

import contextlib
from collections.abc import Iterator

from xinv.train.checkpoint import Checkpoints, TrainState
from xinv.train.engine import Engine


@contextlib.contextmanager
def dying_after(step: int | None) -> Iterator[None]:
    """Whatever trains inside raises KeyboardInterrupt, on every rank, right after the checkpoint of `step`; None: it
    lives."""
    original = Checkpoints.save

    def save(self: Checkpoints, engine: Engine, state: TrainState, improved: bool) -> None:
        original(self, engine, state, improved)
        if state.step == step:
            raise KeyboardInterrupt

    Checkpoints.save = save  # type: ignore[method-assign]
    try:
        yield
    finally:
        Checkpoints.save = original  # type: ignore[method-assign]
