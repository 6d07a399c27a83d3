"""The space of a search, opened: the one place that knows `search/space.py` and `search/cost.py`."""

import importlib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from xinv.errors import InputError
from xinv.mistakes import explain
from xinv.search.settings import SearchConfig
from xinv.search.task import Candidate, Cost, Pricing, Space, Task
from xinv.train.settings import TrainingSettings

Offer = Callable[[Task], tuple[Space, Pricing]]
"""Opens the space when the releases, and so the shape of what an inverter reads, are there."""


def offer(config: SearchConfig, training: TrainingSettings) -> Offer:
    """The space that `config.space` describes, checked now and opened later.

    Args:
        training: how a candidate is trained where the space does not say otherwise.

    Raises:
        InputError: the section `space` is wrong.
    """
    # By name, until the two modules are there: then these become imports, and SearchConfig.space a SpaceSettings.
    spaces, costs = (importlib.import_module(f"xinv.search.{name}") for name in ("space", "cost"))
    try:
        settings = spaces.SpaceSettings.model_validate(config.space)
    except ValidationError as error:
        found = str(explain(error, spaces.SpaceSettings, "space"))
        raise InputError(f"{config.name}: {found}") from None

    def opened(task: Task) -> tuple[Space, Pricing]:
        def price(candidate: Candidate) -> Cost:
            batch = candidate.training.micro_batch or candidate.training.batch_size
            found: Cost = costs.cost(candidate.design, task.shape, task.channels, task.size, batch)
            return found

        space: Any = spaces.SearchSpace(settings, training, task.shape, task.channels, task.size)
        return space, price

    return opened
