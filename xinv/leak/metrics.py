"""How much of the original is in a reconstruction: pixel metrics, and what an independent evaluator sees in it.

Axes: B images, C channels, H height, W width, K classes, D embedding dimensions. Every metric is per image and never
averaged over a batch, so that intervals can be resampled by image or by identity later.
"""

from typing import Protocol

import torch
from torch import Tensor

from xinv.errors import InputError, WorkError
from xinv.report.measures import METRICS, Metric

__all__ = ["METRICS", "Evaluator", "Metric", "evaluator_metrics", "image_metrics"]

MSE_FLOOR = 1e-10  # of PSNR: an exact reconstruction gets 100 dB in place of infinity, which no mean survives
SSIM_MIN_SIZE = 6  # the 11-pixel Gaussian window is padded by 5, and a reflection needs one pixel more than that


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
    """MSE, PSNR and SSIM of each reconstruction, as float32 tensors of shape (B,).

    Both arguments are float in [0, 1]. **The reconstruction is clamped to [0, 1] first**: an attacker knows that
    pixels lie there, so overshoot of a linear output layer is not counted against the attack.

    - mse: mean over C, H and W of the squared difference, in [0, 1].
    - psnr: 10 log10(1 / MSE) in dB with the MSE floored at 1e-10, so in [0, 100].
    - ssim: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004: Gaussian
      window of 11 pixels, sigma 1.5, K1 0.01, K2 0.03, data range 1, mean over the map and the channels, in [-1, 1].
      Deviation: borders are padded by reflection and count, where Wang et al. leave them out.

    InputError for images under 6 pixels, on which that window does not fit; WorkError for NaN or infinity in the
    reconstruction.
    """
    # Here because it takes seconds to import, which `xinv --help` should not pay.
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(image_BCHW.shape[2:]) < SSIM_MIN_SIZE:
        height, width = image_BCHW.shape[2:]
        raise InputError(f"SSIM needs images of at least {SSIM_MIN_SIZE} pixels a side, these are {height} x {width}.")
    reconstruction_BCHW = _clamped(reconstruction_BCHW, image_BCHW)
    image_BCHW = image_BCHW.float()
    mse_B = (reconstruction_BCHW - image_BCHW).square().flatten(1).mean(dim=1)
    ssim_B = structural_similarity_index_measure(
        reconstruction_BCHW, image_BCHW, sigma=1.5, kernel_size=11, reduction="none", data_range=1.0
    )
    assert isinstance(ssim_B, Tensor)
    return {"mse": mse_B, "psnr": -10.0 * torch.log10(mse_B.clamp_min(MSE_FLOOR)), "ssim": ssim_B.reshape(-1)}


@torch.no_grad()
def evaluator_metrics(
    evaluator: Evaluator, reconstruction_BCHW: Tensor, image_BCHW: Tensor, label_B: Tensor
) -> dict[str, Tensor]:
    """Embedding similarity and attack accuracy of each reconstruction, as float32 tensors of shape (B,).

    Images are float in [0, 1], the reconstruction is clamped to it first; label_B holds the true classes. The
    evaluator must be in evaluation mode and on the same device.

    - embedding_similarity: exp(-||u - v||_2) of the L2-normalised embeddings of reconstruction and original, in
      [exp(-2), 1]. Deviation: Zhao et al. (ICCV 2021) report an exponential of a distance of embeddings of a network
      of their own; ours are normalised, so that evaluators of different scale compare. GNIME's DeePSiM takes the root
      after summing over the whole set, which is no mean over images; ours is taken per image.
    - attack_accuracy_top1: 1.0 where the evaluator's first guess on the reconstruction is the label, else 0.0.

    WorkError for NaN or infinity in the reconstruction.
    """
    assert not getattr(evaluator, "training", False), "the evaluator must be in evaluation mode"
    reconstruction_BCHW = _clamped(reconstruction_BCHW, image_BCHW)
    u_BD = torch.nn.functional.normalize(evaluator.embed(reconstruction_BCHW).float(), dim=1)
    v_BD = torch.nn.functional.normalize(evaluator.embed(image_BCHW.float()).float(), dim=1)
    guess_B = evaluator(reconstruction_BCHW).argmax(dim=1)
    return {
        "embedding_similarity": torch.exp(-(u_BD - v_BD).norm(dim=1)),
        "attack_accuracy_top1": (guess_B == label_B).float(),
    }
