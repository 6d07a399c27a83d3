"""DeepSpeed behind one small class: forward, backward, step, and the whole weights wherever ZeRO has put the pieces."""

import atexit
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xinv.errors import InputError
from xinv.extension import AIO_MEND, COMPILER_MEND, aio_possible, before_loading
from xinv.files import make_private
from xinv.nets.recompute import recompute
from xinv.train.section import deepspeed_section
from xinv.train.settings import TrainingSettings


class _Autocast(nn.Module):
    """Runs the wrapped network in bf16 autocast. DeepSpeed's own `torch_autocast` would also reduce the gradients in
    bf16 from ZeRO stage 1 on; inside the module the weights' gradients and their reduction stay fp32."""

    def __init__(self, network: nn.Module, device: str, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network = network
        self._device = device
        self._dtype = dtype

    def forward(self, *inputs: Any) -> Any:
        if self._dtype is None:
            return self.network(*inputs)
        with torch.autocast(self._device, dtype=self._dtype):
            output = self.network(*inputs)
        return output.float() if isinstance(output, Tensor) else tuple(one.float() for one in output)


def bf16_in_hardware(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 matrices natively (GPUs from Ampere on, CPUs with AVX512-bf16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_device() -> torch.device:
    """This rank's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def process_group() -> tuple[int, int]:
    """(rank, world size): of the group that exists (Ray Train, a test), of torchrun's, or of a group of one.

    A group made here lasts until the process ends: DeepSpeed keeps handles to the first group it meets.
    """
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), dist.get_world_size()


def _check_disk(settings: TrainingSettings) -> None:
    """InputError where weights cannot be offloaded to the folder `nvme`."""
    assert settings.nvme is not None
    if not aio_possible():
        raise InputError(f"offload_weights is nvme, which needs libaio, and this machine lacks it; {AIO_MEND}.")
    try:
        make_private(settings.nvme)
    except OSError as error:
        raise InputError(
            f"nvme names {settings.nvme}, which cannot be written to on this worker ({error.strerror}); name a folder "
            "on its NVMe disk."
        ) from error


def _check_compiler(settings: TrainingSettings) -> None:
    """InputError where the network is to be compiled and no compiler is there; torch would say so in mid-training."""
    compiler = os.environ.get("CXX") or "g++"
    if settings.compile and shutil.which(compiler) is None:
        raise InputError(f"compile is on, and the compiler {compiler} is not there; {COMPILER_MEND}.")


class Engine:
    """A network under DeepSpeed. Every method that says "all ranks" is a collective: each rank must call it.

    Args:
        network: the same on every rank, on the CPU; this class moves it.
        settings: optimizer, precision, ZeRO stage.
        world: number of ranks of the process group, which must exist already.

    Raises:
        InputError: bf16 asked for where neither the CPU nor the GPU computes it, or DeepSpeed refuses its section.
    """

    def __init__(self, network: nn.Module, settings: TrainingSettings, world: int) -> None:
        before_loading()
        import deepspeed  # 1.3 s, and it configures logging: not before it is needed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even of a process on its own
        self.device = pick_device()
        self.settings = settings
        share = -(-settings.batch_size // world)
        micro = min(share, settings.micro_batch or share)
        self.accumulation = -(-share // micro)
        dtype = self._dtype(settings)
        _check_compiler(settings)
        recompute(network, settings.recompute)
        # ZeRO-3 frees and re-creates weights; DeepSpeed can only broadcast contiguous ones (no channels_last here).
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()
        module = _Autocast(network.to(self.device), self.device.type, dtype)
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        # Fused: one pass over memory in place of a dozen, on the CPU several times faster.
        optimizer = kind(
            trainable,
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        section = deepspeed_section(settings, micro, self.accumulation, [part.numel() for part in trainable])
        try:
            if settings.offload_weights == "nvme":
                _check_disk(settings)
                # DeepSpeed's own conversion keeps what it swaps in bf16 where there is no GPU; told nothing of a type,
                # it keeps fp32 (partition_parameters._set_dtype).
                deepspeed.zero.Init(module=module, config_dict_or_path=section, remote_device="nvme")
            self._engine, self._optimizer, *_ = deepspeed.initialize(
                model=module, model_parameters=trainable, optimizer=optimizer, config=section, dist_init_required=False
            )
        except (ValueError, AssertionError, deepspeed.DeepSpeedConfigError) as error:
            raise InputError(f"DeepSpeed refuses the training settings: {error}") from error
        if settings.zero_stage == 0 and world == 1:
            # DeepSpeed would copy all gradients into one buffer and back, to reduce them over one rank.
            self._engine.enable_backward_allreduce = False
        if settings.zero_stage == 3 and settings.offload_optimizer == settings.offload_weights == "none":
            # Weights of fp32 are their own masters. DeepSpeed means to keep one copy of them
            # (stage3._create_fp32_partitions) and makes two, because it compares a device with a device's name.
            pairs = zip(
                self._optimizer.fp32_partitioned_groups_flat, self._optimizer.fp16_partitioned_groups_flat, strict=True
            )
            for master, weights in pairs:
                master.data = weights.data
        if settings.compile:
            self._engine.compile()
        self.network = network

    def _dtype(self, settings: TrainingSettings) -> torch.dtype | None:
        if settings.precision == "fp32":
            return None
        if bf16_in_hardware(self.device):
            return torch.bfloat16
        if settings.precision == "bf16":
            raise InputError("precision is bf16, and this hardware does not compute it; use precision: auto or fp32.")
        return None

    def set_learning_rate(self, value: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = value

    def forward(self, *inputs: Any) -> Any:
        """The network's output for one micro-batch, a tensor or a tuple of them, fp32. All ranks (ZeRO-3 gathers)."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of a scalar loss. All ranks. The mean over ranks and micro-batches is taken here."""
        self._engine.backward(loss)

    def step(self) -> None:
        """After each backward; the optimizer moves at the last micro-batch of a step. All ranks."""
        self._engine.step()

    def train(self, on: bool) -> None:
        self._engine.train(on)

    def full_weights(self) -> dict[str, Tensor]:
        """All weights and buffers of the network on the CPU, on rank 0; an empty dict elsewhere. All ranks."""
        whole: dict[str, Tensor] = {}
        first = dist.get_rank() == 0
        for name, parameter in self.network.named_parameters():
            with self._gathered(parameter):
                if first:
                    whole[name] = parameter.detach().to("cpu", copy=True).contiguous()
        if first:
            for name, buffer in self.network.named_buffers():
                whole[name] = buffer.detach().to("cpu", copy=True).contiguous()
        return whole

    def full_gradients(self) -> dict[str, Tensor]:
        """Gradients after the last backward of a step, reduced over ranks and on the CPU, on every rank. All ranks."""
        from deepspeed.utils import safe_get_full_grad

        found = {name: safe_get_full_grad(parameter) for name, parameter in self.network.named_parameters()}
        return {
            name: gradient.detach().float().cpu().clone() for name, gradient in found.items() if gradient is not None
        }

    @contextmanager
    def _gathered(self, parameter: nn.Parameter) -> Iterator[None]:
        if self.settings.zero_stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=None):
            yield

    def save(self, folder: str, tag: str, state: dict[str, Any]) -> None:
        """Write everything a resume needs into folder/tag. All ranks. No rename here: see checkpoint.py."""
        # Without this key DeepSpeed cannot convert stages 1 and 2 for another number of ranks (facts: DeepSpeed#5430).
        note = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}, "xinv": state}
        self._engine.save_checkpoint(folder, tag=tag, client_state=note, save_latest=False)

    def load(self, folder: str, tag: str) -> dict[str, Any]:
        """Continue from folder/tag as written by `save` with the same number of ranks. All ranks."""
        path, note = self._engine.load_checkpoint(folder, tag=tag)
        assert path is not None, f"DeepSpeed found no checkpoint {tag} in {folder}"
        return note["xinv"]

    def load_universal(self, folder: str, tag: str) -> dict[str, Any]:
        """Continue from DeepSpeed's universal form of a checkpoint, on any number of ranks. All ranks."""
        config = self._engine._config
        # Only for this load: as a standing setting it breaks the next save at stage 3 (facts: DeepSpeed#7546).
        config.load_universal_checkpoint = True
        try:
            return self.load(folder, tag)
        finally:
            config.load_universal_checkpoint = False

    def close(self) -> None:
        """Free the engine's hooks, so that the next training of this process starts clean."""
        self._engine.destroy()
