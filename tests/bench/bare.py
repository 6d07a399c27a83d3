"""The training loop that anyone would write: tensors in memory, torch's optimizer, autocast, nothing else."""

import torch
from torch import Tensor, nn

from xinv.train.engine import bf16_in_hardware
from xinv.train.loop import TrainJob
from xinv.train.weights import InverterSpec


class BareLoop:
    """`step` is one optimizer step on `batch` images of random numbers, of the shapes that `job` trains on.

    `wrap` is put around the network (DistributedDataParallel).
    """

    def __init__(self, job: TrainJob, batch: int, wrap: type[nn.Module] | None = None) -> None:
        spec, settings = job.network, job.settings
        assert isinstance(spec, InverterSpec)
        self.network: nn.Module = spec.build()
        if wrap is not None:
            self.network = wrap(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.clip = settings.clip
        self.narrow = settings.precision != "fp32" and bf16_in_hardware(torch.device("cpu"))
        self.batch = batch
        rows = 8 * batch
        self.image_NCHW = torch.rand(rows, spec.channels, spec.size, spec.size)
        self.logit_NK = torch.randn(rows, spec.classes)
        self.maps = [torch.randn(rows, *shape) for shape in spec.maps]
        self.order = torch.randperm(rows)
        self.at = 0

    def step(self) -> float:
        rows: Tensor = self.order[self.at : self.at + self.batch]
        self.at = (self.at + self.batch) % len(self.order)
        image_BCHW, logit_BK = self.image_NCHW[rows], self.logit_NK[rows]
        maps = [map_NMHW[rows] for map_NMHW in self.maps]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.narrow):
            made_BCHW = self.network(logit_BK, maps)
        loss = (made_BCHW.float() - image_BCHW).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()
