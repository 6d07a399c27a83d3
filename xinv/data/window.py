"""How many images are worked on at once."""

import math
from collections.abc import Sequence


def window(asked: int, shape: Sequence[int], values: int) -> int:
    """How many images of this shape: `asked`, fewer where together they have more than so many `values`; 1 at least."""
    return max(1, min(asked, values // math.prod(shape)))
