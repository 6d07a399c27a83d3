"""Every subset of a release, scored on one inverter that learnt to do with any of them (explanation dropout).

Axes: B images, M map channels, h w map pixels, G explanations of the network.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from xinv.leak.attack import Attack
from xinv.nets.inverter import Inverter

MOST = 6
"""Explanations of a group with dropout: 2^6 = 64 subsets, each scored on all victims and compared with the baseline."""


def check_groups(groups: Sequence[Sequence[str]]) -> None:
    """ValueError unless explanation dropout makes sense for these groups of explanations, all of them together."""
    if not any(len(group) > 1 for group in groups):
        raise ValueError(
            "explanation_dropout withholds some explanations of a group from its inverter, and no group has two or "
            "more; name one, e.g. attack.releases=[[gradient, grad_cam]], or leave explanation_dropout out"
        )
    seen: set[frozenset[str]] = set()
    for group in groups:
        names = ", ".join(group)
        if len(group) > MOST:
            raise ValueError(
                f"the group [{names}] has {len(group)} explanations, hence 2^{len(group)} = {2 ** len(group)} subsets "
                f"to score; at most {MOST} (2^{MOST} = {2**MOST}) are allowed with explanation_dropout: divide it"
            )
        if len(set(group)) < len(group) or frozenset(group) in seen:
            raise ValueError(
                f"the group [{names}] repeats an explanation or another group, and with explanation_dropout every "
                "subset of a group is scored once; remove the repetition"
            )
        seen.add(frozenset(group))


def proper_subsets(attack: Attack) -> list[Attack]:
    """The attacks on every smaller release that the network of `attack` can do with, the larger ones first.

    `attack` sees all explanations of its group. The last one sees none of them: it is a control, which beside the
    audit's prediction-only baseline shows what sharing one inverter among all subsets costs.
    """
    group = attack.group
    assert attack.methods == group, (attack.methods, group)
    found = []
    for size in reversed(range(len(group))):
        for chosen in combinations(group, size):
            withheld = [name for name in group if name not in chosen]
            parts = [attack.inverter, "+".join(chosen), "withheld", "+".join(withheld)]
            changes = {
                "id": ":".join(filter(None, parts)),
                "kind": "attack" if chosen else "control",
                "methods": chosen,
            }
            found.append(attack.model_copy(update=changes))
    return found


def with_withheld(
    attack: Attack, network: nn.Module, maps: Sequence[Tensor], images: int
) -> tuple[list[Tensor], Tensor]:
    """What the network of `attack` reads where it sees a part of its group alone.

    Args:
        network: trained with explanation dropout on the maps of `attack.group`, in that order.
        maps: map_BMhw of each explanation in `attack.methods`, in that order.
        images: B.

    Returns:
        map_BMhw of the whole group, zeros where one is withheld, and present_BG, on the network's device.
    """
    assert isinstance(network, Inverter)
    device = network.map_mean.device
    given = dict(zip(attack.methods, maps, strict=True))
    shapes = zip(attack.group, network.release.maps, strict=True)
    whole = [given[name] if name in given else torch.zeros(images, *shape, device=device) for name, shape in shapes]
    present_G = torch.tensor([float(name in given) for name in attack.group], device=device)
    return whole, present_G.expand(images, -1)
