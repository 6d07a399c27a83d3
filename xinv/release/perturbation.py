"""Explanations by hiding parts of the image and watching the network: no gradients, so any network will do.

Axes in tensor names: N explained classes, B batch, S masks, C image channels, H height, W width, K classes, h and w of
a map. What is hidden becomes black.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xinv.release.passes import Pass, each_class

OCCLUSION_GRID = 8  # windows along a side, at most
RISE_MASKS = 256  # Petsiuk et al. use 4,000 to 8,000 at 224 px
RISE_CELLS = 7
RISE_KEPT = 0.5
RISE_SEED = 2018
ROWS_AT_ONCE = 256  # images of one forward pass; results do not depend on it


def occlusion(explained: Pass) -> Tensor:
    """Zeiler and Fergus, ECCV 2014: what the logit loses when one window is black. One value a window, (N, B, 1, h, w).

    Windows do not overlap, so that a map holds no more numbers than were measured.
    """
    from captum.attr import Occlusion

    channels, height, width = explained.image_BCHW.shape[1:]
    high, wide = window(height), window(width)
    at_once = max(1, ROWS_AT_ONCE // len(explained.image_BCHW))

    def one(model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
        drop_BCHW: Tensor = Occlusion(model).attribute(
            image_BCHW.detach(),
            (channels, high, wide),
            strides=(channels, high, wide),
            target=class_B,
            perturbations_per_eval=at_once,
        )
        return drop_BCHW[:, :1, ::high, ::wide]

    return each_class(explained, one)


def window(side: int) -> int:
    """The side of a window in pixels, for an image side of `side` pixels."""
    return -(-side // OCCLUSION_GRID)


def rise(explained: Pass) -> Tensor:
    """RISE (Petsiuk et al., BMVC 2018, eq. 6): the mean of masks, each weighted by the class's probability behind it.

    The masks are the same for every image, from a fixed seed. A map is (N, B, 1, H, W), in [0, 1 / share kept].
    """
    image_BCHW, class_NB = explained.image_BCHW.detach(), explained.classes
    mask_SHW = rise_masks(*image_BCHW.shape[2:]).to(image_BCHW.device)
    total_NBHW = torch.zeros(len(class_NB), len(image_BCHW), *mask_SHW.shape[1:], device=image_BCHW.device)
    size = max(1, ROWS_AT_ONCE // len(image_BCHW))
    with torch.no_grad():
        for part_SHW in mask_SHW.split(size):
            masked = (part_SHW[:, None, None] * image_BCHW).flatten(0, 1)
            share_SBK = explained.model(masked).softmax(dim=1).unflatten(0, (len(part_SHW), len(image_BCHW)))
            weight_SNB = share_SBK.gather(2, class_NB.T.expand(len(part_SHW), -1, -1)).transpose(1, 2)
            total_NBHW += torch.einsum("snb,shw->nbhw", weight_SNB, part_SHW)
    return (total_NBHW / (RISE_MASKS * RISE_KEPT)).unsqueeze(2)


@functools.lru_cache(maxsize=4)
def rise_masks(height: int, width: int) -> Tensor:
    """mask_SHW in [0, 1]: coarse random grids, enlarged bilinearly and shifted by less than a cell (section 3.2)."""
    source = torch.Generator().manual_seed(RISE_SEED)
    keep_S1hw = (torch.rand(RISE_MASKS, 1, RISE_CELLS, RISE_CELLS, generator=source) < RISE_KEPT).float()
    high, wide = -(-height // RISE_CELLS), -(-width // RISE_CELLS)
    large_S1HW = F.interpolate(
        keep_S1hw, size=((RISE_CELLS + 1) * high, (RISE_CELLS + 1) * wide), mode="bilinear", align_corners=False
    )
    tops = torch.randint(high, (RISE_MASKS,), generator=source).tolist()
    lefts = torch.randint(wide, (RISE_MASKS,), generator=source).tolist()
    return torch.stack(
        [
            large_HW[0, top : top + height, left : left + width]
            for large_HW, top, left in zip(large_S1HW, tops, lefts, strict=True)
        ]
    )
