"""Control: explanations of a target that was never trained, in place of the target's own.

Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018, model parameter randomization test), randomise a
network and look whether its explanations change. Here the question is whether their leak does. What an untrained
network's explanation gives away comes from passing the image through any network of this architecture; the rest comes
from what training put into this one.
"""

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from xinv.attacks import Stages, inverters
from xinv.errors import InputError
from xinv.files import write_json
from xinv.leak.score import Attack
from xinv.progress import Progress
from xinv.stage import Finished
from xinv.train.imported import ImportedSpec, load_target_spec
from xinv.train.weights import NETWORK, WEIGHTS, ClassifierSpec, save_weights

RANDOM_TARGET_FORMAT = 1


def random_targets(audit: Stages, images: Finished, releases: Finished, target: Finished) -> list[Attack]:
    """Every inverter, trained and scored on (the target's own prediction, the untrained target's explanations).

    One untrained network serves all of them, as one target does. It explains the classes that it predicts itself, where
    `release.classes` asks for the highest logits: its explanations are made exactly as the target's are.
    """
    config = audit.config
    if "random_target" not in config.attack.controls:
        return []
    untrained = _random_target(audit, target)
    attacked = {method for group in config.attacked_releases() for method in group}
    methods = tuple(method for method in config.release.methods if method in attacked)
    settings = config.release.model_copy(update={"methods": methods})
    return inverters(audit, images, releases, audit.explain("random_releases", images, untrained, settings))


def untrained_target(spec: ClassifierSpec | ImportedSpec, seed: int) -> nn.Module:
    """The network of `spec` with the weights that a training with `seed` would begin with, in evaluation mode.

    An imported one gets the weights that its function gives it, which may draw them from torch, NumPy or Python.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            return spec.build().eval()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _random_target(audit: Stages, target: Finished) -> Finished:
    """A folder like a trained target's. Not the target's seed: trained weights are still close to where they began."""
    spec, seed = load_target_spec(target.folder), audit.config.seed + 6
    identity = {"format": RANDOM_TARGET_FORMAT, "target": target.id, "seed": seed}

    def work(folder: Path, progress: Progress) -> dict[str, int]:
        network = untrained_target(spec, seed)
        weights = {name: value.clone().contiguous() for name, value in network.state_dict().items()}
        trained = load_file(target.folder / WEIGHTS)
        if all(torch.equal(value, weights[name]) for name, value in trained.items()):
            raise InputError(
                "attack.controls: random_target needs a network that is not trained, and the function that "
                "target.import names returns the trained weights themselves. Let it build the network alone."
            )
        write_json(folder / NETWORK, spec.model_dump(mode="json"))
        save_weights(folder / WEIGHTS, weights)
        return {"parameters": sum(parameter.numel() for parameter in network.parameters())}

    return audit.stage("random_target", "Random target", identity, work)
