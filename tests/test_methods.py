"""What every explanation method promises: its shape, sign and cost, independence of the batch, an untouched network."""

import copy

import pytest
import torch
from torch import Tensor
from toys import Refused, classes, small

from xinv.errors import InputError
from xinv.nets.classifier import Classifier
from xinv.release.methods import METHODS, explain_all, method

BY_CLASS = [name for name, entry in METHODS.items() if entry.per_class]


def network_for(name: str) -> str:
    """A network that every part of the table can explain: the transformer for attention, the CNN for all else."""
    return "vit" if name == "attention_rollout" else "cnn"


def stated_shape(name: str, model: Classifier, image_BCHW: Tensor) -> tuple[int, ...]:
    seen: list[Tensor] = []
    handle = model.cam_layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logit_BK = model(image_BCHW)
    handle.remove()
    sizes = dict(zip("CHW", image_BCHW.shape[1:], strict=True)) | dict(zip("Ahw", seen[0].shape[1:], strict=True))
    sizes |= {"K": logit_BK.shape[1], "G": 8, "P": 8}
    return tuple(int(part) if part.isdigit() else sizes[part] for part in METHODS[name].shape.split(", "))


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_equals_its_images_one_by_one(name: str) -> None:
    model = small(network_for(name), channels=3, size=32, classes=4, width=8)
    image_BCHW, class_B = torch.rand(5, 3, 32, 32), classes(0, 3, 1, 2, 1)
    map_BMHW = METHODS[name].explain(model, image_BCHW, class_B)
    assert map_BMHW.shape == (5, *stated_shape(name, model, image_BCHW))
    assert map_BMHW.dtype == torch.float32
    assert not map_BMHW.requires_grad
    assert map_BMHW.isfinite().all() and map_BMHW.abs().sum() > 0
    assert METHODS[name].signed or map_BMHW.min() >= 0 or name == "lrp_zplus"  # of the logit's sign
    alone = [METHODS[name].explain(model, image_BCHW[row : row + 1], class_B[row : row + 1]) for row in range(5)]
    torch.testing.assert_close(map_BMHW, torch.cat(alone), rtol=1e-4, atol=1e-6 * map_BMHW.abs().max().item() + 1e-8)
    other_BMHW = METHODS[name].explain(model, image_BCHW, (class_B + 1) % 4)
    # The class is each image's own: another one gives another map, where a class has a part in it.
    same = [torch.equal(map_BMHW[row], other_BMHW[row]) for row in range(5)]
    assert same == [name in ("sigma_cam", "attention_rollout")] * 5


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = small(network_for(name))
    before, addresses = copy.deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    attributes = {key: sorted(vars(module)) for key, module in model.named_modules()}
    image_BCHW = torch.rand(2, 1, 16, 16)
    METHODS[name].check(model, (1, 16, 16))
    METHODS[name].explain(model, image_BCHW, classes(0, 1))
    if METHODS[name].per_class:
        with pytest.raises((IndexError, RuntimeError, AssertionError)):
            METHODS[name].explain(model, image_BCHW, classes(0, 99))  # fails in the middle
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {key: sorted(vars(module)) for key, module in model.named_modules()} == attributes
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    assert not image_BCHW.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_the_callers_modes_change_nothing(name: str) -> None:
    model = small(network_for(name))
    image_BCHW, class_B = torch.rand(2, 1, 16, 16), classes(0, 1)
    expected_BMHW = METHODS[name].explain(model, image_BCHW, class_B)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(METHODS[name].explain(model, image_BCHW, class_B), expected_BMHW)
    with torch.inference_mode():
        assert torch.equal(METHODS[name].explain(model, image_BCHW.clone(), class_B.clone()), expected_BMHW)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(METHODS[name].explain(model, image_BCHW, class_B), expected_BMHW)
    model.features[0].train()
    with pytest.raises(InputError, match="evaluation mode"):
        METHODS[name].explain(model, image_BCHW, class_B)


@pytest.mark.parametrize("name", METHODS)
def test_inplace_activations_are_explained_like_others(name: str) -> None:
    model = small(network_for(name))
    image_BCHW, class_B = torch.rand(2, 1, 16, 16), classes(0, 1)
    expected_BMHW = METHODS[name].explain(model, image_BCHW, class_B)
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True
    METHODS[name].check(model, (1, 16, 16))
    torch.testing.assert_close(METHODS[name].explain(model, image_BCHW, class_B), expected_BMHW)


@pytest.mark.parametrize("name", METHODS)
def test_the_stated_cost_is_what_goes_through_the_network(name: str) -> None:
    model, rows = small(network_for(name)), []
    model.features[0].register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    METHODS[name].explain(model, torch.rand(3, 1, 16, 16), classes(0, 1, 2))
    assert sum(rows) == 3 * METHODS[name].forward


@pytest.mark.parametrize("name", METHODS)
def test_several_classes_are_stacked_on_the_channels(name: str) -> None:
    model = small(network_for(name), channels=2, classes=5)
    image_BCHW = torch.rand(3, 2, 16, 16)
    logit_BK, maps = explain_all([METHODS[name]], model, image_BCHW, 3)
    torch.testing.assert_close(logit_BK, model(image_BCHW).detach())
    order_BK = logit_BK.argsort(1, descending=True)
    alone = [METHODS[name].explain(model, image_BCHW, order_BK[:, n]) for n in range(3 if name in BY_CLASS else 1)]
    expected = torch.cat(alone, dim=1)
    torch.testing.assert_close(maps[name], expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    everything = explain_all([METHODS[name]], model, image_BCHW, "all")[1][name]
    assert everything.shape[1] == expected.shape[1] * (5 if name in BY_CLASS else 3) // 3
    torch.testing.assert_close(
        everything[:, : alone[0].shape[1]],
        METHODS[name].explain(model, image_BCHW, classes(0, 0, 0)),
        rtol=1e-4,
        atol=1e-6 * expected.abs().max().item(),
    )


def test_methods_asked_together_give_what_each_gives_alone() -> None:
    model, image_BCHW = small(channels=2), torch.rand(4, 2, 16, 16)
    entries = [entry for name, entry in METHODS.items() if name != "attention_rollout"]
    logit_BK, maps = explain_all(entries[::-1], model, image_BCHW)
    assert list(maps) == [entry.name for entry in entries[::-1]]
    for name, map_BMHW in maps.items():
        expected_BMHW = METHODS[name].explain(model, image_BCHW, logit_BK.argmax(1))
        torch.testing.assert_close(map_BMHW, expected_BMHW, rtol=1e-5, atol=1e-7)


def test_gradients_and_cams_share_one_forward_pass() -> None:
    model, rows = small(), []
    model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    shared = [entry for entry in METHODS.values() if entry.shared]
    assert len(shared) >= 9
    explain_all(shared, model, torch.rand(3, 1, 16, 16))
    assert rows == [3]


def test_no_method_no_map() -> None:
    model = small()
    logit_BK, maps = explain_all([], model, torch.rand(2, 1, 16, 16))
    assert maps == {} and logit_BK.shape == (2, 3) and not logit_BK.requires_grad
    with pytest.raises(InputError, match="4 classes cannot be explained: the network has 3"):
        explain_all([METHODS["gradient"]], model, torch.rand(2, 1, 16, 16), 4)


WORKING = {
    "residual": [
        "gradient", "abs_gradient", "gradient_input", "integrated_gradients", "smoothgrad", "grad_cam", "grad_cam_pp",
        "hires_cam", "layer_cam", "sigma_cam", "partial_cam", "occlusion", "rise",
    ],
    "cnn": [name for name in METHODS if name != "attention_rollout"],
    "gnime_cnn": [name for name in METHODS if name != "attention_rollout"],
}  # fmt: skip
WORKING["vit"] = [*WORKING["residual"], "attention_rollout"]


@pytest.mark.parametrize("network", WORKING)
def test_what_the_message_recommends_does_work(network: str) -> None:
    model = small(network)
    refused = [name for name in METHODS if name not in WORKING[network]]
    with pytest.raises(InputError) as caught:
        METHODS[refused[0]].check(model, (1, 16, 16))
    recommended = str(caught.value).split("these work on this network: ")[1].rstrip(".").split(", ")
    assert recommended == WORKING[network]
    for name in recommended:
        METHODS[name].check(model, (1, 16, 16))
        assert METHODS[name].explain(model, torch.rand(2, 1, 16, 16), classes(0, 1)).abs().sum() > 0


def test_refusals_name_the_layer() -> None:
    with pytest.raises(InputError, match=r"features\.1\.norm_1 \(GroupNorm\)"):
        METHODS["lrp_zplus"].check(small("residual"), (1, 16, 16))
    with pytest.raises(InputError, match=r"features\.1\.attention\.weights \(Softmax\)"):
        METHODS["guided_backprop"].check(small("vit"), (1, 16, 16))
    with pytest.raises(InputError, match=r"body\.1 \(GELU\)"):
        METHODS["deeplift"].check(Refused("gelu"), (1, 8, 8))


def test_names_and_the_unknown_one() -> None:
    assert all(name == entry.name for name, entry in METHODS.items())
    assert method("grad_cam") is METHODS["grad_cam"]
    with pytest.raises(InputError, match=r"'gradcam'; known are gradient, .*lrp_zplus"):
        method("gradcam")
    assert all(entry.forward >= 1 and entry.backward >= 0 and entry.networks for entry in METHODS.values())
