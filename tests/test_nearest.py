"""The nearest release against a comparison of every pair, written apart; ties, blocks and scales."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from xinv.leak import nearest
from xinv.leak.nearest import nearest_images

CPU = torch.device("cpu")


def data(count: int, seed: int) -> list[Tensor]:
    """Logits (N, 4) and maps (N, 2, 3, 3), their channels of very different scale."""
    random = torch.Generator().manual_seed(seed)
    logit_NK = torch.randn(count, 4, generator=random) * torch.tensor([1.0, 10.0, 0.1, 1.0]) + 5
    map_NMHW = torch.randn(count, 2, 3, 3, generator=random) * torch.tensor([1e-6, 300.0]).view(1, 2, 1, 1)
    return [logit_NK, map_NMHW]


def numbered(count: int) -> Tensor:
    """image_NCHW, each the number of its place."""
    return torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 1000


def found(parts: list[Tensor], known: list[Tensor], victims: int = 4, attack: int = 5) -> list[int]:
    """The place of the nearest for each of the releases `parts`."""

    def cut(released: list[Tensor], size: int) -> Iterator[list[Tensor]]:
        for start in range(0, len(released[0]), size):
            yield [part[start : start + size] for part in released]

    image_ACHW = numbered(len(known[0]))
    again: Callable[[], Iterator[tuple[list[Tensor], Tensor]]] = lambda: zip(  # noqa: E731
        cut(known, attack), image_ACHW.split(attack), strict=True
    )
    batches = list(nearest_images(cut(parts, victims), again, CPU))
    assert [len(batch) for batch in batches] == [len(batch[0]) for batch in cut(parts, victims)]
    return [round(1000 * float(image_CHW[0, 0, 0])) for image_CHW in torch.cat(batches)]


def by_every_pair(parts: list[Tensor], known: list[Tensor]) -> list[int]:
    distance_VA = np.zeros((len(parts[0]), len(known[0])))
    for own, other in zip(parts, known, strict=True):
        own_VMD, other_AMD = (part.double().numpy().reshape(*part.shape[:2], -1) for part in (own, other))
        spread_M = other_AMD.std(axis=(0, 2))
        for row in range(len(own_VMD)):
            share_AMD = (own_VMD[row][None] - other_AMD) / spread_M[None, :, None]
            distance_VA[row] += np.square(share_AMD).sum((1, 2)) / share_AMD[0].size
    return distance_VA.argmin(axis=1).tolist()


@pytest.mark.parametrize("parts", [slice(0, 1), slice(0, 2)])
def test_it_is_the_nearest_of_all(parts: slice) -> None:
    victims, known = data(23, 0)[parts], data(37, 1)[parts]
    expected = by_every_pair(victims, known)
    assert len(set(expected)) > 10
    assert found(victims, known) == expected
    assert found(victims, known, victims=23, attack=37) == expected


def test_blocks_of_victims_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    victims, known = data(23, 0), data(37, 1)
    expected = found(victims, known)
    for limit in (0, 1500):  # a batch of four takes 4 x 22 x 8 = 704 bytes: blocks of one batch, and of two
        monkeypatch.setattr(nearest, "BLOCK_BYTES", limit)
        assert found(victims, known) == expected


def test_the_attack_set_is_read_once_a_block_and_once_for_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    victims, known, passes = data(12, 0), data(9, 1), []

    def again() -> Iterator[tuple[list[Tensor], Tensor]]:
        passes.append(0)
        yield known, numbered(9)

    batches = [[part[start : start + 4] for part in victims] for start in (0, 4, 8)]
    assert len(list(nearest_images(batches, again, CPU))) == 3 and len(passes) == 2
    monkeypatch.setattr(nearest, "BLOCK_BYTES", 0)
    assert len(list(nearest_images(batches, again, CPU))) == 3 and len(passes) == 2 + 4


@pytest.mark.parametrize("attack", [1, 2, 5, 12])
def test_of_equally_near_images_the_first_is_taken(attack: int) -> None:
    known = [torch.cat([part, part, part]) for part in data(4, 1)]
    victims = data(9, 0)
    first = found(victims, data(4, 1))
    assert found(victims, known, attack=attack) == first and max(first) < 4
    assert found(known, known, attack=attack) == [0, 1, 2, 3] * 3


def test_a_channel_that_never_varies_favours_nobody() -> None:
    """A logit that is 0.1 for all attack images; the victims differ in it wildly, from all attack images alike."""
    (victim_VK, _), (known_AK, _) = data(9, 0), data(37, 1)
    expected = found([victim_VK], [known_AK])
    constant_A1 = torch.full((37, 1), 0.1)
    wild_V1 = torch.full((9, 1), 1e6)
    assert found([torch.cat([victim_VK, wild_V1], 1)], [torch.cat([known_AK, constant_A1], 1)]) == expected
