"""Gradients of many classes from one forward pass: captum's values, in chunks that memory lets through."""

import pytest
import torch
from torch import Tensor, nn
from toys import classes, small

from xinv.errors import InputError, WorkError
from xinv.release import passes
from xinv.release.methods import METHODS, explain_all
from xinv.release.passes import Chunks, Pass


def one_pass(model: nn.Module, image_BCHW: Tensor, wanted: object = "all", chunks: Chunks | None = None) -> Pass:
    return Pass(model, image_BCHW.clone().requires_grad_(), wanted, chunks=chunks)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [1, 1 << 20, 1 << 30])
@pytest.mark.parametrize("network", ["cnn", "residual", "vit"])
def test_all_classes_are_captums_class_by_class(network: str, budget: int) -> None:
    from captum.attr import LayerGradCam, Saliency

    model, image_BCHW = small(network, channels=3, classes=7, width=8), torch.rand(4, 3, 16, 16)
    explained = one_pass(model, image_BCHW, "all", Chunks(budget))
    gradient_KBCHW = explained.image_gradient()
    cam_BKhw = METHODS["sigma_cam"].attribute(explained)[0]
    saliency, cam = Saliency(model), LayerGradCam(model, model.cam_layer)
    for k in range(7):
        leaf_BCHW = image_BCHW.clone().requires_grad_()
        expected = saliency.attribute(leaf_BCHW, target=k, abs=False)
        assert (gradient_KBCHW[k] - expected).abs().max() <= 1e-5 * expected.abs().max()
        expected = cam.attribute(leaf_BCHW, target=k, relu_attributions=True).detach()
        assert (cam_BKhw[:, k : k + 1] - expected).abs().max() <= 1e-5 * max(expected.abs().max(), 1e-3)


def test_classes_by_rank_by_name_and_too_many() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 3.0, 3.0, 2.0]))
    image_BCHW = torch.rand(2, 1, 1, 2)
    assert one_pass(model, image_BCHW, 1).classes.tolist() == [[1, 1]]
    assert one_pass(model, image_BCHW, 3).classes.tolist() == [[1, 1], [2, 2], [3, 3]]  # of equals the first
    assert one_pass(model, image_BCHW, "all").classes.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    with pytest.raises(InputError, match="5 classes cannot be explained: the network has 4"):
        _ = one_pass(model, image_BCHW, 5).classes


def test_the_budget_bounds_what_goes_backward_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image_BCHW = small(classes=9), torch.rand(4, 1, 16, 16)
    # Two convolutions and ReLUs of 4 and 8 channels at 16 and 8 px, two poolings, three layers behind, for 4 images.
    each = 4 * 4 * (2 * 4 * 256 + 4 * 64 + 2 * 8 * 64 + 8 * 16 + 32 + 32 + 9)
    sizes: list[int] = []
    plain = passes._gradients

    def watched(logit_BK: Tensor, sources: list[Tensor], row: Tensor, batched: bool) -> list[Tensor]:
        sizes.append(len(row) if batched else 1)
        return plain(logit_BK, sources, row, batched)

    monkeypatch.setattr(passes, "_gradients", watched)
    for budget, expected in (
        (4 * each, [4, 4, 1]),
        (5 * each, [5, 4]),
        (4 * each - 1, [1] * 9),
        (1, [1] * 9),
        (100 * each, [9]),
    ):
        sizes.clear()
        one_pass(model, image_BCHW, "all", Chunks(budget)).image_gradient()
        assert sizes == expected


class Scarce:
    """A memory that holds the gradients of `room` classes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, error: Exception) -> None:
        self.sizes: list[int] = []
        self.plain = passes._gradients
        self.room, self.error = room, error
        monkeypatch.setattr(passes, "_gradients", self)

    def __call__(self, logit_BK: Tensor, sources: list[Tensor], row: Tensor, batched: bool) -> list[Tensor]:
        size = len(row) if batched else 1
        self.sizes.append(size)
        if size > self.room:
            raise self.error
        return self.plain(logit_BK, sources, row, batched)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_the_chunk_is_halved_until_memory_lets_it_through(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model, image_BCHW = small(classes=9), torch.rand(2, 1, 16, 16)
    expected = one_pass(model, image_BCHW).image_gradient()
    scarce, chunks = Scarce(monkeypatch, 3, error), Chunks(1 << 40)
    torch.testing.assert_close(one_pass(model, image_BCHW, "all", chunks).image_gradient(), expected)
    assert scarce.sizes == [9, 4, 2, 2, 2, 2, 1]
    assert chunks.found == {"image": 2}
    scarce.sizes.clear()
    one_pass(model, image_BCHW, "all", chunks).image_gradient()  # the next batch begins where this one ended
    assert scarce.sizes == [2, 2, 2, 2, 1]


def test_where_not_even_one_class_fits_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    Scarce(monkeypatch, 0, ERRORS[0])
    with pytest.raises(WorkError, match=r"lower release\.batch_size"):
        one_pass(small(), torch.rand(2, 1, 16, 16)).image_gradient()
    Scarce(monkeypatch, 0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        one_pass(small(), torch.rand(2, 1, 16, 16)).image_gradient()


def test_a_freed_pass_keeps_what_was_found() -> None:
    model, image_BCHW = small(), torch.rand(2, 1, 16, 16)
    explained = one_pass(model, image_BCHW, 1)
    gradient_NBCHW, logit_BK = explained.image_gradient(), explained.logits.detach()
    assert explained.logits.requires_grad
    explained.free()
    assert not explained.logits.requires_grad
    assert torch.equal(explained.logits, logit_BK)
    assert explained.image_gradient() is gradient_NBCHW


class Doubled(torch.autograd.Function):
    """An operation with a backward pass of its own, and no rule for batches of gradients."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.from_numpy(gradient.numpy() * 2)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(2 * 36, 3)
        self.cam_layer = nn.Conv2d(1, 1, 1)  # runs, and does not count
        self.eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        self.cam_layer(image_BCHW)
        return self.head(Doubled.apply(self.convolution(image_BCHW)).flatten(1))  # type: ignore[no-any-return]


def test_operations_without_a_batching_rule_go_class_by_class() -> None:
    torch.manual_seed(0)
    model, image_BCHW = Own(), torch.rand(2, 1, 8, 8)
    gradient_KBCHW = one_pass(model, image_BCHW).image_gradient()
    for k in range(3):
        alone = METHODS["gradient"].explain(model, image_BCHW, classes(k, k))
        torch.testing.assert_close(gradient_KBCHW[k], alone)


def test_a_cam_layer_that_does_not_count_has_no_gradient() -> None:
    torch.manual_seed(0)
    _, maps = explain_all([METHODS[name] for name in ("gradient", "hires_cam")], Own(), torch.rand(2, 1, 8, 8))
    assert maps["gradient"].abs().sum() > 0
    assert maps["hires_cam"].abs().sum() == 0
