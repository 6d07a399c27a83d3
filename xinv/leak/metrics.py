"""How much of the original is in a reconstruction: pixel metrics, and what an independent evaluator sees in it.

Axes: B images, C channels, H height, W width, K classes, D embedding dimensions. Every metric is per image and never
averaged over a batch, so that intervals can be resampled by image or by identity later.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from xinv.errors import InputError, WorkError
from xinv.report.measures import METRICS, Metric, metric_of

__all__ = [
    "METRICS",
    "Evaluator",
    "Judgement",
    "Metric",
    "embedded",
    "evaluator_metrics",
    "image_metrics",
    "judged",
    "metric_of",
    "similarity",
]

MSE_FLOOR = 1e-10  # of PSNR: an exact reconstruction gets 100 dB in place of infinity, which no mean survives
SSIM_MIN_SIZE = 6  # the 11-pixel Gaussian window is padded by 5, and a reflection needs one pixel more than that
MS_SSIM_MIN_SIZE = 176  # halved four times, what is left must still hold the window
TOP = 5  # guesses of attack_accuracy_top5, which is left out where they are half of the classes or more


class Evaluator(Protocol):
    """A classifier that the attacker never saw, such as `xinv.nets.classifier.Classifier`."""

    def __call__(self, image_BCHW: Tensor, /) -> Tensor:
        """logit_BK of images in [0, 1]."""
        ...

    def embed(self, image_BCHW: Tensor, /) -> Tensor:
        """embedding_BD of images in [0, 1]."""
        ...


def _clamped(reconstruction_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
    """The reconstruction clamped to [0, 1], after a look for what clamping would hide."""
    assert reconstruction_BCHW.shape == image_BCHW.shape, (reconstruction_BCHW.shape, image_BCHW.shape)
    broken = int((~torch.isfinite(reconstruction_BCHW)).flatten(1).any(dim=1).sum())
    if broken:
        raise WorkError(
            f"{broken} of {len(reconstruction_BCHW)} reconstructions hold NaN or infinity: the inverter's training "
            "diverged. Train it again with a lower learning rate or with float32."
        )
    return reconstruction_BCHW.float().clamp(0.0, 1.0)


@torch.no_grad()
def image_metrics(reconstruction_BCHW: Tensor, image_BCHW: Tensor) -> dict[str, Tensor]:
    """MSE, PSNR, SSIM and, from 176 pixels on, MS-SSIM of each reconstruction, as float32 tensors of shape (B,).

    Both arguments are float in [0, 1]. **The reconstruction is clamped to [0, 1] first**: an attacker knows that
    pixels lie there, so overshoot of a linear output layer is not counted against the attack.

    - mse: mean over C, H and W of the squared difference, in [0, 1].
    - psnr: 10 log10(1 / MSE) in dB with the MSE floored at 1e-10, so in [0, 100].
    - ssim: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004: Gaussian
      window of 11 pixels, sigma 1.5, K1 0.01, K2 0.03, data range 1, mean over the map and the channels, in [-1, 1].
      Deviation: borders are padded by reflection and count, where Wang et al. leave them out.
    - ms_ssim: Wang, Simoncelli and Bovik, "Multi-scale structural similarity", 2003: contrast and structure at five
      scales, luminance at the coarsest, with their exponents, in [0, 1]. It is **left out below 176 pixels a side**,
      where five scales do not fit: with fewer scales it would be another figure under the same name, which compares
      with nobody's. Deviations: as for ssim at the coarsest scale, and negative terms, of which a power would not be
      real, count as 0.

    InputError for images under 6 pixels, on which that window does not fit; WorkError for NaN or infinity in the
    reconstruction.
    """
    # Here because it takes seconds to import, which `xinv --help` should not pay.
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )

    if min(image_BCHW.shape[2:]) < SSIM_MIN_SIZE:
        height, width = image_BCHW.shape[2:]
        raise InputError(f"SSIM needs images of at least {SSIM_MIN_SIZE} pixels a side, these are {height} x {width}.")
    reconstruction_BCHW = _clamped(reconstruction_BCHW, image_BCHW)
    image_BCHW = image_BCHW.float()
    mse_B = (reconstruction_BCHW - image_BCHW).square().flatten(1).mean(dim=1)
    if image_BCHW.device.type == "cpu" and image_BCHW.shape[1] > 1:
        # The window's convolution of each channel by itself is twice as fast so.
        reconstruction_BCHW, image_BCHW = (
            one.contiguous(memory_format=torch.channels_last) for one in (reconstruction_BCHW, image_BCHW)
        )
    ssim_B = structural_similarity_index_measure(
        reconstruction_BCHW, image_BCHW, sigma=1.5, kernel_size=11, reduction="none", data_range=1.0
    )
    assert isinstance(ssim_B, Tensor)
    found = {"mse": mse_B, "psnr": -10.0 * torch.log10(mse_B.clamp_min(MSE_FLOOR)), "ssim": ssim_B.reshape(-1)}
    if min(image_BCHW.shape[2:]) >= MS_SSIM_MIN_SIZE:
        found["ms_ssim"] = multiscale_structural_similarity_index_measure(
            reconstruction_BCHW, image_BCHW, sigma=1.5, kernel_size=11, reduction="none", data_range=1.0
        ).reshape(-1)
    return found


@dataclass(frozen=True)
class Judgement:
    """What an evaluator makes of some images."""

    embedding_BD: Tensor  # float32, L2-normalised
    logit_BK: Tensor


@torch.no_grad()
def embedded(evaluator: Evaluator, image_BCHW: Tensor) -> Tensor:
    """embedding_BD of images, float32, L2-normalised; the images are float and are clamped to [0, 1].

    The evaluator must be in evaluation mode and on the same device. WorkError for NaN or infinity in the images.
    """
    assert not getattr(evaluator, "training", False), "the evaluator must be in evaluation mode"
    image_BCHW = _clamped(image_BCHW, image_BCHW)
    return torch.nn.functional.normalize(evaluator.embed(image_BCHW).float(), dim=1)


@torch.no_grad()
def judged(evaluator: Evaluator, image_BCHW: Tensor) -> Judgement:
    """What `evaluator` makes of images; conditions as for `embedded`."""
    embedding_BD = embedded(evaluator, image_BCHW)
    return Judgement(embedding_BD, evaluator(_clamped(image_BCHW, image_BCHW)).float())


def similarity(found_BD: Tensor, original_BD: Tensor) -> Tensor:
    """exp(-||u - v||_2) of the L2-normalised embeddings of reconstruction and original, (B,), in [exp(-2), 1].

    Deviation: Zhao et al. (ICCV 2021) report an exponential of a distance of embeddings of a network of their own; ours
    are normalised, so that evaluators of different scale compare. GNIME's DeePSiM takes the root after summing over the
    whole set, which is no mean over images; ours is taken per image.
    """
    return torch.exp(-(found_BD - original_BD).norm(dim=1))


def evaluator_metrics(found: Judgement, original_BD: Tensor, class_B: Tensor) -> dict[str, Tensor]:
    """Embedding similarity and attack accuracy of each reconstruction, as float32 tensors of shape (B,).

    `found` is what an evaluator makes of the reconstructions, original_BD its embeddings of the originals, class_B
    (int64) its true classes: labels, or identities for an evaluator that tells people apart.

    - embedding_similarity: see `similarity`.
    - attack_accuracy_top1: 1.0 where the evaluator's first guess on the reconstruction is the true class, else 0.0.
    - attack_accuracy_top5: likewise for the first five guesses. Left out where there are 10 classes or fewer: five
      guesses would be right half of the time by chance.
    """
    scores = {
        "embedding_similarity": similarity(found.embedding_BD, original_BD),
        "attack_accuracy_top1": (found.logit_BK.argmax(dim=1) == class_B).float(),
    }
    if found.logit_BK.shape[1] > 2 * TOP:
        guess_BT = found.logit_BK.topk(TOP, dim=1).indices
        scores["attack_accuracy_top5"] = (guess_BT == class_B[:, None]).any(dim=1).float()
    return scores
