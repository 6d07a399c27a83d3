"""Control: explanations of a target that was never trained, in place of the target's own.

Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018, model parameter randomization test), randomise a
network and look whether its explanations change. Here the question is whether their leak does. What an untrained
network's explanation gives away comes from passing the image through any network of this architecture; the rest comes
from what training put into this one.
"""

from pathlib import Path

import torch

from xinv.attacks import Stages, inverters
from xinv.leak.score import Attack
from xinv.nets.classifier import Classifier
from xinv.progress import Progress
from xinv.stage import Finished
from xinv.train.weights import WEIGHTS, ClassifierSpec, load_classifier_spec, save_spec, save_weights

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


def untrained_classifier(spec: ClassifierSpec, seed: int) -> Classifier:
    """The classifier of `spec` with the weights that a training with `seed` would begin with, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build().eval()


def _random_target(audit: Stages, target: Finished) -> Finished:
    """A folder like a trained target's. Not the target's seed: trained weights are still close to where they began."""
    spec, seed = load_classifier_spec(target.folder), audit.config.seed + 6
    identity = {"format": RANDOM_TARGET_FORMAT, "network": spec.model_dump(mode="json"), "seed": seed}

    def work(folder: Path, progress: Progress) -> dict[str, int]:
        network = untrained_classifier(spec, seed)
        save_spec(folder, spec)
        save_weights(folder / WEIGHTS, {name: value.contiguous() for name, value in network.state_dict().items()})
        return {"parameters": sum(parameter.numel() for parameter in network.parameters())}

    return audit.stage("random_target", "Random target", identity, work)
