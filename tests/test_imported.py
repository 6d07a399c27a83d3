"""Targets of the user's own: built by their function, filled with their weights, and refused before any work."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from test_config import small
from torch import nn

from xinv import audit
from xinv import config as configs
from xinv.errors import InputError
from xinv.files import sha256_of
from xinv.release.methods import METHODS
from xinv.target import checked_target
from xinv.train.imported import ImportedSettings, ImportedSpec, load_target

MODULE = '''
import torch
import torch.nn.functional as F
from torch import nn

not_a_function = 3

def build(classes=10, width=4, size=32):
    body = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(width * (size // 2) ** 2, classes))

def wrapped(how, **arguments):
    return Odd(build(**arguments), how)

def fails():
    raise KeyError("nothing here")

def gives_text():
    return "network"

def on_meta():
    with torch.device("meta"):
        return build()

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

def without_weights():
    return nn.Flatten()

def tied():
    first = nn.Linear(1024, 1024, bias=False)
    second = nn.Linear(1024, 1024, bias=False)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, second, nn.Linear(1024, 10))

class Odd(nn.Module):
    """What a network may do wrong with good weights."""

    def __init__(self, network, how):
        super().__init__()
        self.network, self.how = network, how

    def forward(self, image):
        if self.how == "no_grad":
            with torch.no_grad():
                return self.network(image)
        if self.how == "normalises the batch":
            image = F.batch_norm(image, None, None, training=True)
        logit = self.network(image)
        if self.how == "nan":
            return logit / 0 * 0
        if self.how == "softmax":
            return logit.softmax(1)
        if self.how == "random":
            return F.dropout(logit)
        if self.how == "tuple":
            return logit, image
        if self.how == "one column":
            return logit[:, :1]
        if self.how == "four axes":
            return logit[:, :, None, None]
        if self.how == "looks closely":
            return {"torch.float32": logit}[str(image.dtype)]
        if self.how == "classes":
            return logit.argmax(1)
        if self.how == "two branches":
            return logit + image.mean((1, 2, 3))[:, None]
        return logit
'''


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the user starts xinv: their module lies in it, and weights for `build`. No path leads there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part not in ("", str(tmp_path))])
    for name in ("my_nets", "my_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "my_nets.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("import a_package_that_is_missing\n")
    (tmp_path / "my_failing.py").write_text("x = 1\ny = x / 0\n")
    torch.manual_seed(0)
    weights("good.safetensors", "build")
    return tmp_path


def built(function: str, **arguments: Any) -> nn.Module:
    spec = ImportedSpec(
        function=f"my_nets:{function}", arguments=arguments, layer=None, channels=1, size=32, classes=10
    )
    return spec.build()


def weights(path: str, function: str, **arguments: Any) -> nn.Module:
    network = built(function, **arguments)
    save_file(network.state_dict(), path)
    return network


def config(target: dict[str, Any] | None = None, **sections: Any) -> configs.AuditConfig:
    target = {"import": "my_nets:build", "weights": "good.safetensors"} | (target or {})
    release = {"methods": ["gradient", "grad_cam", "lrp_epsilon"]}
    return configs.validated(small(target=target, **{"release": release, **sections}), "test")


def complaint(target: dict[str, Any] | None = None, **sections: Any) -> str:
    with pytest.raises(InputError) as caught:
        checked_target(config(target, **sections))
    return str(caught.value)


# -------------------------------------------------------------------------------------------------- the configuration


def test_an_imported_target_is_dumped_as_it_is_written(tmp_path: Path) -> None:
    loaded = config({"arguments": {"width": 4, "names": ["a", None], "deep": {"x": 1.5}}, "layer": "2"})
    assert isinstance(loaded.target, ImportedSettings) and loaded.target.function == "my_nets:build"
    (tmp_path / "dump.yaml").write_text(configs.dump(loaded))
    assert "import: my_nets:build" in configs.dump(loaded)
    assert configs.load(tmp_path / "dump.yaml") == loaded
    assert "import" in json.loads(configs.schema())["$defs"]["ImportedSettings"]["properties"]


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (
            {"import": "a:b", "weights": "w", "network": {}},
            "target: an imported target is trained already and takes no network; expected either import, weights, "
            "arguments and layer, or network and training",
        ),
        (
            {"weights": "w", "network": {}, "training": {}},
            "target: an imported target is trained already and takes no network and no training; expected either "
            "import, weights, arguments and layer, or network and training",
        ),
        (
            {"import": "a:b", "wieghts": "w"},
            "target.wieghts: unknown key; did you mean 'weights'? Known keys: import, weights, arguments, layer.",
        ),
        (
            {"imprt": "a:b"},
            "target.imprt: unknown key; did you mean 'import'? Known keys: import, weights, arguments, layer.",
        ),
        ({"netwrk": {}}, "target.netwrk: unknown key; did you mean 'network'? Known keys: network, training."),
        (
            {"training": {"epoch": 3}},
            "target.training.epoch: unknown key; did you mean 'epochs'? Known keys: ",
        ),
        ({"import": "a", "weights": "w"}, "target.import: expected package.module:function, such as my_models:build"),
        ({"import": "a.py:b", "weights": 3}, "target.weights: expected a path, got 3"),
        ({"import": "a:b"}, "target.weights: is missing; expected a path (its trained weights, a .safetensors file"),
        ({"weights": "w"}, "target.import: is missing; expected text (package.module:function"),
        ({"import": "a:b", "weights": "w", "arguments": [1]}, "target.arguments: expected a section"),
        (3, "target: expected a section (keys with values), got 3"),
    ],
)
def test_wrong_settings_are_told_in_the_form_that_was_meant(target: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        configs.validated(small(target=target), "test")
    assert any(found.startswith(f"test: {line}") for found in str(caught.value).splitlines()), caught.value


def test_a_key_of_the_ordinary_form_that_stands_elsewhere_is_still_placed() -> None:
    with pytest.raises(InputError, match=r"did you mean 'target\.training\.epochs' or 'attack\.training\.epochs'"):
        configs.validated(small(epochs=3), "test")


# ---------------------------------------------------------------------------------------------- what it can be refused


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"import": "my_netz:build"}, ["my_netz cannot be imported", "No module named 'my_netz'", "PYTHONPATH"]),
        ({"import": "my_broken:build"}, ["my_broken cannot be", "'a_package_that_is_missing' (my_broken.py, line 1)"]),
        ({"import": "my_failing:build"}, ["failed as it was", "ZeroDivisionError", "(my_failing.py, line 2)"]),
        ({"import": "my_nets:bild"}, ["my_nets has no function bild; it has build"]),
        ({"import": "my_nets:not_a_function"}, ["holds int and no function as not_a_function"]),
        ({"import": "my_nets:fails"}, ["my_nets:fails() failed", "KeyError", "my_nets.py, line", "target.arguments"]),
        ({"arguments": {"wide": 3}}, ["my_nets:build(wide=3) failed", "TypeError", "wide"]),
        ({"import": "my_nets:gives_text"}, ["gave str; expected a torch.nn.Module"]),
        ({"import": "my_nets:on_meta"}, ["9 tensors", "(0.weight, 0.bias, 1.weight, ...)", "meta device"]),
        ({"import": "my_nets:lazy"}, ["2 tensors", "(1.weight, 1.bias)", "lazy"]),
        ({"import": "my_nets:without_weights"}, ["no parameters"]),
        ({"weights": "nowhere.safetensors"}, ["nowhere.safetensors is missing", "save_file"]),
        ({"weights": "my_nets.py"}, ["my_nets.py is no safetensors file", "can run code"]),
        (
            {"arguments": {"width": 8}},
            [
                "7 tensors of another shape: 0.weight (4, 1, 3, 3), expected (8, 1, 3, 3), 0.bias (4,), expected (8,)",
                ", ...",
            ],
        ),
        (
            {"import": "my_nets:wrapped", "arguments": {"how": ""}},
            ["9 tensors missing: network.0", "9 unexpected tensors: 0.bias"],
        ),
        ({"layer": "3.relu"}, ["target.layer: the network has no part called '3.relu'"]),
        ({"layer": "5"}, ["cam_layer 5 (Flatten) gives (1024,), which is no map"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(home: Path, target: dict[str, Any], words: list[str]) -> None:
    message = complaint(target)
    assert all(word in message for word in words), message
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nan", ["NaN or infinity"]),
        ("softmax", ["probabilities", "Leave out the softmax"]),
        ("random", ["two answers to the same images"]),
        ("normalises the batch", ["depends on the other images of the batch"]),
        ("tuple", ["gives tuple", "expected a tensor of logits (2, K)"]),
        ("one column", ["gives (2, 1) float32", "expected logits (2, K)"]),
        ("four axes", ["gives (2, 10, 1, 1) float32", "expected logits (2, K)"]),
        ("classes", ["gives (2,) int64", "expected logits (2, K)"]),
        ("looks closely", ["lrp_epsilon cannot explain", "cannot be followed layer by layer"]),
        ("no_grad", ["gradient cannot explain", "torch.no_grad", "these work on this network: occlusion, rise"]),
    ],
)
def test_answers_that_cannot_be_audited_are_refused(home: Path, how: str, words: list[str]) -> None:
    weights("odd.safetensors", "wrapped", how="")
    target = {"import": "my_nets:wrapped", "weights": "odd.safetensors", "arguments": {"how": how}}
    message = complaint(target)
    assert all(word in message for word in words), message


def test_images_of_another_size_and_labels_of_another_number_are_refused(home: Path) -> None:
    data = small()["data"] | {"size": 28}
    message = complaint(data=data)
    assert "fails on images (2, 1, 28, 28)" in message and "mat1 and mat2" in message
    weights("seven.safetensors", "build", classes=7)
    target = checked_target(config({"weights": "seven.safetensors", "arguments": {"classes": 7}}))
    assert target is not None
    with pytest.raises(InputError, match=r"gives \(2, 7\) for two images; expected \(2, 3\).*\(a, b, c\)"):
        target.check_labels(("a", "b", "c"))


def test_every_explanation_works_or_says_why_not(home: Path) -> None:
    """On a plain network all but those of attention and those that batch normalisation rules out; each of them runs."""
    target = checked_target(config())
    assert target is not None and target.spec.layer == "2"
    network = target.spec.build()
    refused = {name for name, method in METHODS.items() if method.why_not(network, (1, 32, 32))}
    assert refused == {"lrp_gamma", "lrp_zplus", "attention_rollout"}
    message = complaint(release={"methods": ["lrp_gamma"]})
    assert "1 (BatchNorm2d) has no rule" in message and "lrp_epsilon" in message
    image_BCHW = torch.rand(2, 1, 32, 32)
    for name in sorted(set(METHODS) - refused):
        map_BMHW = METHODS[name].explain(network, image_BCHW, torch.tensor([1, 2]))
        assert map_BMHW.isfinite().all() and map_BMHW.abs().sum() > 0, name


def test_a_layer_that_is_not_plain_is_asked_for_and_taken(home: Path) -> None:
    weights("odd.safetensors", "wrapped", how="")
    target = {"import": "my_nets:wrapped", "weights": "odd.safetensors", "arguments": {"how": "two branches"}}
    message = complaint(target, release={"methods": ["grad_cam"]})
    assert "name one under target.layer: network.0, network.1, network.2, network.3 give maps" in message
    found = checked_target(config(target | {"layer": "network.2"}, release={"methods": ["grad_cam"]}))
    assert found is not None and found.spec.layer == "network.2"
    assert checked_target(config(target, release={"methods": ["gradient"]})) is not None  # nobody asks for the layer


# -------------------------------------------------------------------------------------------------------- the stage


def test_the_stage_holds_all_but_the_function_and_changes_with_what_decides_it(home: Path) -> None:
    """A change of weights, source, arguments or layer makes another stage; the folder alone gives the same answers."""

    def stage(**target: Any) -> Path:
        found = audit.Audit(config(target), audit.unseen, Silent(), None)  # type: ignore[arg-type]
        imported = checked_target(found.config)
        return found.target(None, imported).folder  # type: ignore[arg-type]

    class Silent:
        def event(self, *_: Any, **__: Any) -> None: ...

    first = stage()
    assert stage() == first and stage(layer="2") == first and stage(layer=2) == first, (
        "the layer that is found is the layer that is named"
    )
    assert {path.name for path in first.iterdir()} == {"network.json", "weights.safetensors", "stage.json"}
    original = built("build")
    copy = load_target(first)
    assert torch.equal(copy.state_dict()["0.weight"], load_file("good.safetensors")["0.weight"])
    save_file(original.state_dict(), "other.safetensors")
    assert not any(module.training for module in copy.modules())
    assert sha256_of((first / "weights.safetensors").read_bytes()) == sha256_of(Path("good.safetensors").read_bytes())
    assert str(home) not in (first / "network.json").read_text()
    others = [stage(weights="other.safetensors"), stage(layer="3"), stage(arguments={"width": 4})]
    (home / "my_nets.py").write_text(MODULE + "\n# changed\n")
    others.append(stage())
    assert len({first, *others}) == 5


def test_it_is_found_from_elsewhere_when_the_folder_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker process of another machine."""
    spec = ImportedSpec(function="my_nets:build", arguments={}, layer="2", channels=1, size=32, classes=10)
    folder = home / "stage"
    folder.mkdir()
    (folder / "network.json").write_text(spec.model_dump_json())
    (folder / "weights.safetensors").write_bytes((home / "good.safetensors").read_bytes())
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    monkeypatch.delitem(sys.modules, "my_nets")
    with pytest.raises(InputError, match="my_nets cannot be imported"):
        load_target(folder)
    network = load_target(folder, home)
    assert network.cam_layer is network[2]  # type: ignore[index]
    assert str(home) not in sys.path
    (folder / "weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"weights\.safetensors is missing"):
        load_target(folder, home)


def test_tied_weights_may_be_saved_once(home: Path) -> None:
    network = built("tied")
    save_model(network, "tied.safetensors")
    found = checked_target(config({"import": "my_nets:tied", "weights": "tied.safetensors"}, release=ONE))
    assert found is not None and found.parameters == 1024 * 1024 + 10250


ONE = {"methods": ["gradient"]}


def test_the_untrained_network_needs_no_weights_and_follows_the_seed(home: Path) -> None:
    target = checked_target(config())
    assert target is not None
    Path("good.safetensors").unlink()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(target.spec.build().state_dict()["0.weight"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
