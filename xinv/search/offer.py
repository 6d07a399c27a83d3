"""The space of a search, opened when it is known what an inverter reads."""

from collections.abc import Callable

from xinv.config import AuditConfig
from xinv.search.settings import SearchConfig, training_of
from xinv.search.space import SearchSpace, walk
from xinv.search.task import Pricing, Space, Task

Offer = Callable[[Task], tuple[Space, Pricing]]
"""Opens the space when the releases, and so the shape of what an inverter reads, are there."""


def offer(config: SearchConfig, base: AuditConfig) -> Offer:
    """The space that `config.space` describes around the base's own training and loss, opened later.

    Raises:
        InputError: no candidate is left in the space: its values exclude each other.
    """
    training = training_of(config, base)
    walk(config.space, bool(config.release), base.data.size)

    def opened(task: Task) -> tuple[Space, Pricing]:
        space = SearchSpace(config.space, training, base.attack.loss, task.shape, task.channels, task.size)
        return space, space.price

    return opened
