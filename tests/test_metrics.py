"""Metrics against hand-computed values and a reference, image by image."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xinv.errors import InputError, WorkError
from xinv.leak.metrics import METRICS, MS_SSIM_MIN_SIZE, Judgement, embedded, evaluator_metrics, image_metrics, judged
from xinv.report.measures import metric_of, metrics_of

torch.set_num_threads(1)


def images(count: int = 3, channels: int = 1, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


class FirstPixels(nn.Module):
    """An evaluator that sees the first two pixels: embedding and logits are those, the embedding scaled by 7."""

    def embed(self, image_BCHW: Tensor) -> Tensor:
        return 7.0 * image_BCHW.flatten(1)[:, :2]

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.flatten(1)[:, :2]


def seen_by(
    evaluator: FirstPixels, reconstruction_BCHW: Tensor, image_BCHW: Tensor, class_B: Tensor
) -> dict[str, Tensor]:
    return evaluator_metrics(judged(evaluator, reconstruction_BCHW), embedded(evaluator, image_BCHW), class_B)


def reference_ssim(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """Wang et al. 2004, written out with loops over windows; borders reflected."""
    place = np.arange(-5, 6)
    window = np.exp(-(place**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    a_pad, b_pad = np.pad(a_HW, 5, mode="reflect"), np.pad(b_HW, 5, mode="reflect")
    values = []
    for y in range(a_HW.shape[0]):
        for x in range(a_HW.shape[1]):
            a, b = a_pad[y : y + 11, x : x + 11], b_pad[y : y + 11, x : x + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
            both = (window * a * b).sum() - mean_a * mean_b
            c1, c2 = 0.01**2, 0.03**2
            top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
            values.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(values))


def test_a_perfect_copy_has_the_best_value_of_every_metric() -> None:
    image_BCHW = images()
    found = image_metrics(image_BCHW.clone(), image_BCHW)
    torch.testing.assert_close(found["mse"], torch.zeros(3))
    torch.testing.assert_close(found["psnr"], torch.full((3,), 100.0))
    torch.testing.assert_close(found["ssim"], torch.ones(3))


def test_mse_and_psnr_by_hand_per_image() -> None:
    image_BCHW = torch.zeros(2, 3, 8, 8)
    reconstruction_BCHW = torch.zeros(2, 3, 8, 8)
    reconstruction_BCHW[0] = 0.1  # squared error 0.01 everywhere: 20 dB
    reconstruction_BCHW[1, 0] = 0.3  # 0.09 in one channel of three
    found = image_metrics(reconstruction_BCHW, image_BCHW)
    torch.testing.assert_close(found["mse"], torch.tensor([0.01, 0.03]))
    torch.testing.assert_close(found["psnr"], torch.tensor([20.0, -10 * math.log10(0.03)]))


def test_the_reconstruction_is_clamped_first() -> None:
    image_BCHW = torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)])
    overshoot_BCHW = torch.cat([torch.full((1, 1, 8, 8), -4.0), torch.full((1, 1, 8, 8), 9.0)])
    torch.testing.assert_close(image_metrics(overshoot_BCHW, image_BCHW)["mse"], torch.zeros(2))


def test_ssim_equals_the_reference() -> None:
    image_BCHW, noise_BCHW = images(2, size=13), images(2, size=13, seed=1)
    reconstruction_BCHW = (0.7 * image_BCHW + 0.3 * noise_BCHW).clamp(0, 1)
    expected = [
        reference_ssim(a.double().numpy(), b.double().numpy())
        for a, b in zip(reconstruction_BCHW[:, 0], image_BCHW[:, 0], strict=True)
    ]
    found = image_metrics(reconstruction_BCHW, image_BCHW)["ssim"]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def reference_ms_ssim(a_HW: Tensor, b_HW: Tensor) -> float:
    """Wang, Simoncelli and Bovik 2003: contrast-structure at scales 1 to 4, whole SSIM at the fifth; windows that fit.

    At the coarsest scale the borders count by reflection, as in our SSIM.
    """
    place = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-(place**2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    c1, c2, value = 0.01**2, 0.03**2, 1.0
    a, b = a_HW[None, None].double(), b_HW[None, None].double()
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale == 4:
            a, b = (torch.nn.functional.pad(x, (5, 5, 5, 5), mode="reflect") for x in (a, b))
        mean_a, mean_b, aa, bb, ab = (torch.nn.functional.conv2d(x, window) for x in (a, b, a * a, b * b, a * b))
        contrast = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        value *= float((contrast * luminance if scale == 4 else contrast).mean().clamp_min(0)) ** weight
        a, b = (torch.nn.functional.avg_pool2d(x, 2) for x in (a, b))
    return value


def test_ms_ssim_equals_the_reference_and_is_left_out_where_five_scales_do_not_fit() -> None:
    size = MS_SSIM_MIN_SIZE
    blurred_BCHW = torch.nn.functional.avg_pool2d(images(2, size=size + 8), 9, stride=1)
    image_BCHW = (8 * (blurred_BCHW - 0.5) + 0.5).clamp(0, 1)
    reconstruction_BCHW = (0.8 * image_BCHW + 0.2 * images(2, size=size, seed=1)).clamp(0, 1)
    found_B = image_metrics(reconstruction_BCHW, image_BCHW)["ms_ssim"]
    expected = [reference_ms_ssim(a, b) for a, b in zip(reconstruction_BCHW[:, 0], image_BCHW[:, 0], strict=True)]
    assert found_B.shape == (2,) and 0.2 < expected[0] < 0.999
    np.testing.assert_allclose(found_B.numpy(), expected, atol=2e-4)
    torch.testing.assert_close(image_metrics(image_BCHW, image_BCHW)["ms_ssim"], torch.ones(2))
    inverted = image_metrics(1 - image_BCHW, image_BCHW)["ms_ssim"]
    assert torch.isfinite(inverted).all()  # negative contrast, to a fractional power
    assert "ms_ssim" not in image_metrics(images(size=size - 1), images(size=size - 1))


def test_five_guesses_by_hand_and_only_among_more_than_ten_classes() -> None:
    logit_BK = torch.arange(12.0).repeat(4, 1)  # best guesses 11, 10, 9, 8, 7
    found = Judgement(torch.zeros(4, 2), logit_BK)
    scores = evaluator_metrics(found, torch.zeros(4, 2), torch.tensor([11, 7, 6, 0]))
    assert scores["attack_accuracy_top1"].tolist() == [1, 0, 0, 0]
    assert scores["attack_accuracy_top5"].tolist() == [1, 1, 0, 0]
    few = evaluator_metrics(Judgement(torch.zeros(4, 2), logit_BK[:, :10]), torch.zeros(4, 2), torch.zeros(4))
    assert "attack_accuracy_top5" not in few


def test_an_image_scores_the_same_whatever_its_batch_mates() -> None:
    image_BCHW, reconstruction_BCHW = images(4, channels=3), images(4, channels=3, seed=1)
    together = image_metrics(reconstruction_BCHW, image_BCHW)
    for key, value_B in together.items():
        alone = image_metrics(reconstruction_BCHW[2:3], image_BCHW[2:3])[key]
        assert value_B.shape == (4,) and alone.shape == (1,)
        torch.testing.assert_close(alone[0], value_B[2])


def test_embedding_similarity_and_accuracy_by_hand() -> None:
    original_BCHW, reconstruction_BCHW = torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    original_BCHW[:, 0, 0, 0] = 1.0  # embedding direction (1, 0), class 0
    reconstruction_BCHW[0, 0, 0, 0] = 0.2  # the same direction, another length
    reconstruction_BCHW[1, 0, 0, 1] = 0.9  # at right angles: sqrt(2) away, class 1
    reconstruction_BCHW[2, 0, 0, :2] = torch.tensor([0.3, 0.4])
    found = seen_by(FirstPixels().eval(), reconstruction_BCHW, original_BCHW, torch.tensor([0, 0, 1]))
    expected = [1.0, math.exp(-math.sqrt(2.0)), math.exp(-math.hypot(0.6 - 1.0, 0.8))]
    torch.testing.assert_close(found["embedding_similarity"], torch.tensor(expected))
    assert found["attack_accuracy_top1"].tolist() == [1.0, 0.0, 1.0]


def test_directions_and_ranges_say_what_the_metrics_do() -> None:
    image_BCHW, noise_BCHW = images(8, size=24), images(8, size=24, seed=1)
    evaluator = FirstPixels().eval()
    label_B = evaluator(image_BCHW).argmax(dim=1)
    scores = []
    for share in (0.1, 0.9):
        reconstruction_BCHW = (1 - share) * image_BCHW + share * noise_BCHW
        found = image_metrics(reconstruction_BCHW, image_BCHW)
        found |= seen_by(evaluator, reconstruction_BCHW, image_BCHW, label_B)
        scores.append(found)
    assert set(scores[0]) == {"mse", "psnr", "ssim", "embedding_similarity", "attack_accuracy_top1"}
    for key in scores[0]:
        metric = METRICS[key]
        close, far = scores[0][key].mean().item(), scores[1][key].mean().item()
        assert metric.sign * close > metric.sign * far, key
        assert all(metric.range[0] <= value <= metric.range[1] for found in scores for value in found[key].tolist()), (
            key
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_inverter_is_an_error_and_not_a_score(bad: float) -> None:
    reconstruction_BCHW = images()
    reconstruction_BCHW[1, 0, 3, 3] = bad
    with pytest.raises(WorkError, match="1 of 3 reconstructions"):
        image_metrics(reconstruction_BCHW, images())
    with pytest.raises(WorkError, match="diverged"):
        judged(FirstPixels().eval(), reconstruction_BCHW)


def test_images_too_small_for_ssim_are_refused() -> None:
    with pytest.raises(InputError, match="at least 6 pixels a side, these are 5 x 5"):
        image_metrics(images(size=5), images(size=5))
    assert torch.isfinite(image_metrics(images(size=6), images(size=6, seed=1))["ssim"]).all()


def test_numbers_as_readers_see_them() -> None:
    assert METRICS["mse"].format(0.01234) == "0.0123"
    assert METRICS["attack_accuracy_top1"].format(0.9731) == "97.3"
    assert METRICS["psnr"].format(-3.25) == "−3.25"
    assert METRICS["mse"].format(0.0) == METRICS["mse"].format(-1e-15) == "0.0000"
    assert METRICS["mse"].format(-0.00002) == "−0.00002"  # a small leak does not read as none


def test_a_further_evaluator_has_its_metrics_under_its_name() -> None:
    metric = metric_of("attack_accuracy_top1:cnn")
    assert metric.key == "attack_accuracy_top1:cnn" and metric.evaluator == "cnn"
    assert metric.label == "Attack accuracy (cnn)" and "evaluator cnn" in metric.meaning
    assert metric.range == METRICS["attack_accuracy_top1"].range and not metric.headline
    assert metric_of("ssim") is METRICS["ssim"] and metric_of("ssim").headline
    assert not metric_of("reidentification_rank5").headline
    for unknown in ("lpips", "lpips:cnn", "ssim:"):
        with pytest.raises(InputError, match="unknown here; known: mse, psnr"):
            metric_of(unknown)


def test_metrics_come_in_one_order_whatever_the_file_says() -> None:
    keys = ["attack_accuracy_top1:vit", "attack_accuracy_top1:cnn", "reidentification_rank1", "mse"]
    found = [metric.key for metric in metrics_of([dict.fromkeys(keys), {"attack_accuracy_top1": None, "mse": None}])]
    assert found == ["mse", "attack_accuracy_top1", *keys[1::-1], "reidentification_rank1"]
