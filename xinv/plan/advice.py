"""Which ZeRO stage, micro-batch and savings let a training fit, and what would help where none does."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from xinv.errors import InputError
from xinv.nets.design import PRESETS
from xinv.plan.memory import Device, Memory, Rank
from xinv.plan.rehearsal import Training
from xinv.plan.section import Section, section_of
from xinv.plan.step import Precision, Step
from xinv.plan.zero import memory
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec

STAGES = (0, 1, 2, 3)
ENOUGH = 8
"""Images at once below which a GPU idles: a higher stage or recomputing is tried before fewer are."""
MOST_RANKS = 1024


@dataclass(frozen=True)
class Ranks:
    """So many ranks on one kind of device, in one precision."""

    count: int
    device: Device
    precision: Precision


@dataclass(frozen=True)
class Option:
    """A way to train, and what one rank then takes."""

    zero_stage: int
    micro_batch: int
    memory: Memory
    recompute: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False

    def words(self, setting: str) -> str:
        """As overrides of a configuration."""
        given = [f"{setting}.zero_stage={self.zero_stage}", f"{setting}.micro_batch={self.micro_batch}"]
        given += [f"{setting}.recompute=true"] if self.recompute else []
        given += [f"{setting}.offload_optimizer=cpu"] if self.offload_optimizer else []
        given += [f"{setting}.offload_weights=cpu"] if self.offload_weights else []
        return " ".join(given)


def ladder(share: int) -> list[int]:
    """Micro-batches: 1, 2, 4 ... and the whole share."""
    steps = [2**power for power in range(share.bit_length()) if 2**power < share]
    return [*steps, share]


class Trial:
    """One training on some ranks: what every setting of it takes."""

    def __init__(self, training: Training, ranks: Ranks) -> None:
        self.training, self.ranks = training, ranks
        self.settings = training.job.settings
        self.share = -(-self.settings.batch_size // ranks.count)

    def step(self, recompute: bool) -> Step:
        return self.training.step(self.ranks.precision, recompute)

    def option(
        self, stage: int, micro: int, recompute: bool = False, optimizer: bool = False, weights: bool = False
    ) -> Option:
        section = replace(self.section(stage), offload_optimizer=optimizer, offload_weights=weights and stage == 3)
        rank = Rank.of(self.settings.batch_size, micro, self.ranks.count, self.ranks.device)
        return Option(
            stage, micro, memory(self.step(recompute), section, rank), recompute, optimizer, section.offload_weights
        )

    def section(self, stage: int) -> Section:
        """The training's own section at another stage."""
        return section_of(self.settings.model_copy(update={"zero_stage": stage}), self.step(False).sizes)

    def configured(self) -> Option:
        """As the configuration has it."""
        own = section_of(self.settings, self.step(False).sizes)
        micro = min(self.share, self.settings.micro_batch or self.share)
        return self.option(own.stage, micro, self.settings.recompute, own.offload_optimizer, own.offload_weights)

    def table(self) -> list[Option]:
        """Every stage with every micro-batch, activations kept or recomputed as the configuration has it."""
        return [self.option(stage, micro, self.settings.recompute) for stage in STAGES for micro in ladder(self.share)]

    def recommended(self, usable: int) -> Option | None:
        """The least that must be given up: None where nothing fits.

        Of the stages the least, with its largest micro-batch, where that is `ENOUGH` images or the whole share; else
        with recomputing; else with fewer images; else with the optimizer, then the weights too, in the host's memory.
        """
        return next((one for one in self._ways() if one.memory.total <= usable), None)

    def _ways(self) -> Iterator[Option]:
        micros = ladder(self.share)[::-1]
        enough = [micro for micro in micros if micro >= min(ENOUGH, self.share)]
        rest = [micro for micro in micros if micro not in enough]
        for sizes in (enough, rest):
            for recompute in (False, True):
                for stage in STAGES:
                    yield from (self.option(stage, micro, recompute) for micro in sizes)
        if self.ranks.device == "cuda":  # on a CPU the host's memory is the rank's own
            for stage, weights in ((1, False), (2, False), (3, False), (3, True)):
                yield from (self.option(stage, micro, True, True, weights) for micro in micros)

    def instead(self, usable: int) -> list[str]:
        """What would fit where nothing does, in words. Worked out in fp32, which is quicker and takes about as much."""
        plain = Trial(self.training, replace(self.ranks, precision="fp32"))
        found = [plain._more_ranks(usable), plain._other_designs(usable)]
        return [words for words in found if words]

    def _more_ranks(self, usable: int) -> str:
        count = self.ranks.count * 2
        while count <= min(MOST_RANKS, max(self.settings.batch_size, 2)):
            found = Trial(self.training, replace(self.ranks, count=count)).recommended(usable)
            if found is not None:
                return f"{count} ranks of this size ({found.words(self.training.setting)})"
            count *= 2
        return ""

    def _other_designs(self, usable: int) -> str:
        """Shipped designs that read the same and fit; the least changed first."""
        spec = self.training.spec
        if not isinstance(spec, InverterSpec):
            return ""
        fitting = []
        for name, design in PRESETS.items():
            if design.reads_maps != spec.design.reads_maps or design == spec.design:
                continue
            job = self.training.job.model_copy(update={"network": spec.model_copy(update={"design": design})})
            try:
                if Trial(replace(self.training, job=job), self.ranks).recommended(usable) is not None:
                    fitting.append(name)
            except InputError:
                continue  # a design that cannot make images of this size
        return f"the design {' or '.join(fitting)}" if fitting else ""


def precision_of(settings: TrainingSettings, device: Device, bf16: bool) -> Precision:
    """What `Engine` computes in. `bf16`: whether the hardware does."""
    return "fp32" if settings.precision == "fp32" or not (bf16 or device == "cuda") else "bf16"
