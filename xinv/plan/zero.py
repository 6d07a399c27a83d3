"""What DeepSpeed 0.19 holds on one rank while the engine trains in fp32 (with or without autocast), by ZeRO stage.

Read from its source (runtime/engine.py, zero/stage_1_and_2.py, zero/stage3.py) and held to what its own engine
allocates by tests/test_plan_zero.py. With P the bytes of all trained weights, N ranks, and a partition P/N of them a
rank:

    stage 0   P, moments 2P; gradients P, and a copy of them while they are reduced
    stage 1   P, a copy of the partition and its moments 3P/N; the rest as stage 0, with the reduce bucket in backward
    stage 2   as 1, but gradients go as they come: the bucket, and the rank's share of what was reduced
    stage 3   two copies of the partition, its moments and its gradients 5P/N; the bucket all the time; gathered layers

A partition's gradients are kept as whole parameters at stages 1 and 2: those that straddle its ends count in full.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xinv.plan.gather import Gathered, gathered
from xinv.plan.memory import NUMBER, Memory, Rank
from xinv.plan.section import Section
from xinv.plan.step import Step

WHOLE_BUCKET = 500_000_000
"""Gradients that stage 0 reduces at once (MEMORY_OPT_ALLREDUCE_SIZE), in numbers."""


def memory(step: Step, section: Section, rank: Rank) -> Memory:
    """The most that one rank holds from the second optimizer step on, and before it while the engine is built."""
    moments: list[Memory] = []
    for state in _STATES[section.stage].worst(step, section, rank):
        moments += [*state.moments(), state.building(), state.validation()]
    return max(moments, key=lambda one: one.total)


def standing(step: Step, section: Section, rank: Rank) -> Memory:
    """What one rank holds between two optimizer steps."""
    return _STATES[section.stage](step, section, rank).standing


class _State:
    """What stages have in common. All sizes in bytes."""

    def __init__(self, step: Step, section: Section, rank: Rank) -> None:
        self.step, self.section, self.rank = step, section, rank
        self.trained = [NUMBER * n if on else 0 for n, on in zip(step.parameters, step.trained, strict=True)]
        self.whole = sum(self.trained)
        self.fixed = NUMBER * step.total - self.whole + step.buffers  # frozen weights, and buffers
        self.held = step.held(rank.micro)
        if rank.device == "cpu" and rank.accumulation > 1:
            self.held = self.held + rank.share * step.input_bytes  # a GPU is sent each micro-batch by itself
        self.bucket = NUMBER * section.reduce_bucket if section.contiguous_gradients else 0

    @classmethod
    def worst(cls, step: Step, section: Section, rank: Rank) -> "Sequence[_State]":
        """The ranks among which the one with the most is; equal ones once."""
        return [cls(step, section, rank)]

    @property
    def standing(self) -> Memory:
        """What stays from step to step."""
        raise NotImplementedError

    def moments(self) -> list[Memory]:
        raise NotImplementedError

    def building(self) -> Memory:
        """While the engine takes the network over."""
        return Memory(weights=self.whole + self.fixed, moment="building")

    def validation(self) -> Memory:
        still = self.standing
        return replace(still, activations=self.step.validation(self.rank.micro), moment="validation")

    def at(self, extra: np.ndarray | int, still: Memory, gradients: np.ndarray | int) -> Memory:
        """The worst operation of forward and backward, where DeepSpeed holds `extra` and `gradients` meanwhile."""
        total = self.held + extra + gradients
        worst = int(total.argmax())
        return replace(
            still,
            activations=int(self.held[worst]),
            buffers=still.buffers + _value(extra, worst),
            gradients=still.gradients + _value(gradients, worst),
            moment="backward",
        )

    def arrived(self) -> np.ndarray:
        """Bytes of the gradients that have come to rest before each operation."""
        coming = np.zeros(len(self.held), dtype=np.int64)
        for place, number in self.step.arrivals:
            if place < len(coming):
                coming[place] += self.trained[number]
        return np.cumsum(coming)

    @property
    def after(self) -> int:
        """Activations that outlive backward: the batch, the output."""
        return int(self.held[-1])


class _Stage0(_State):
    @property
    def standing(self) -> Memory:
        return Memory(weights=self.whole + self.fixed, optimizer=2 * self.whole)

    def moments(self) -> list[Memory]:
        # One rank alone has nothing to reduce, and engine.py has DeepSpeed leave it out.
        still, copy = self.standing, 0 if self.rank.world == 1 else min(self.whole, NUMBER * WHOLE_BUCKET)
        gradients = self.whole if self.rank.accumulation > 1 else self.arrived()
        done = replace(still, gradients=self.whole, activations=self.after)
        return [
            self.at(0, still, gradients),
            replace(done, buffers=copy, moment="reducing"),
        ]


class _Partitioned(_State):
    """Stages 1 and 2: one flat copy of the weights, cut into equal parts. `number`: which of the ranks."""

    def __init__(self, step: Step, section: Section, rank: Rank, number: int = 0) -> None:
        super().__init__(step, section, rank)
        align = 2 * rank.world  # nccl_start_alignment_factor
        self.flat = NUMBER * (-(-(self.whole // NUMBER) // align) * align)
        self.part = self.flat // rank.world
        self.within = self._cut()
        self.inside = frozenset(self.within[number])
        self.own = 0 if section.offload_optimizer else sum(self.trained[one] for one in self.inside)
        self.gpu_buffer = max(self.trained) if section.offload_optimizer else 0
        self.buckets = (2 if section.overlap else 1) * self.bucket

    @classmethod
    def worst(cls, step: Step, section: Section, rank: Rank) -> Sequence[_State]:
        within = cls(step, section, rank).within
        sizes = [sum(step.parameters[one] for one in inside) for inside in within]
        return [cls(step, section, rank, number) for number in {0, sizes.index(max(sizes)), rank.world - 1}]

    def _cut(self) -> list[list[int]]:
        """The parameters that reach into each partition."""
        within: list[list[int]] = [[] for _ in range(self.rank.world)]
        start = 0
        for number, size in enumerate(self.trained):
            if size:
                for part in range(start // self.part, -(-(start + size) // self.part)):
                    within[part].append(number)
            start += size
        return within

    def copied(self, filled: int) -> int:
        """The flat copy of what is reduced at once: slice by slice of each partition, until a bucket is full. None
        where the bucket itself is reduced."""
        if self.section.contiguous_gradients and not self.section.reduce_scatter:
            return 0
        return min(filled, self.bucket + self.part)

    @property
    def standing(self) -> Memory:
        weights = self.flat + self.fixed
        if self.section.offload_optimizer:
            # fp32 copy, its gradient, both moments, a buffer to copy from; and one parameter's gradient on its way.
            return Memory(weights=weights, buffers=self.gpu_buffer, host=5 * self.part + max(self.trained))
        return Memory(weights=weights, optimizer=3 * self.part)

    def building(self) -> Memory:
        return Memory(
            weights=self.whole + self.flat + self.fixed,
            moment="building",
        )

    @property
    def idle(self) -> int:
        """Of the bucket, what is never written to."""
        return max(0, self.bucket - self.whole)

    def stepping(self) -> list[Memory]:
        """The optimizer's step. The gradients' norm is taken in fp64, tensor after tensor."""
        still = replace(self.standing, activations=self.after, moment="optimizer")
        if self.section.offload_optimizer:
            return [still]
        slices = min(self.part, max(self.trained))
        return [
            replace(still, gradients=self.own, buffers=still.buffers + 2 * slices),
            replace(still, gradients=self.own, buffers=still.buffers + self.part),
        ]


class _Stage1(_Partitioned):
    def moments(self) -> list[Memory]:
        still = self.standing
        gradients = self.whole if self.rank.accumulation > 1 else self.arrived()
        first = min((place for place, _ in self.step.arrivals), default=0)
        bucket = np.zeros(len(self.held), dtype=np.int64)
        bucket[0 if self.rank.accumulation > 1 else first :] = self.buckets
        backward = replace(self.at(bucket, still, gradients), untouched=self.idle)
        return [backward, *self._reducing(replace(still, activations=self.after)), *self.stepping()]

    def _reducing(self, still: Memory) -> list[Memory]:
        """After backward: into the bucket, parameter after parameter, and reduced whenever it is full."""
        found: list[Memory] = []
        base = replace(still, moment="reducing", untouched=self.idle)
        left, kept = self.whole, 0  # gradients that are by themselves; those of the partition, side by side
        pending: list[int] = []

        def flush() -> None:
            nonlocal kept, left, pending
            copy = self.copied(sum(self.trained[one] for one in pending))
            found.append(replace(base, gradients=left + kept, buffers=still.buffers + self.buckets + copy))
            if self.inside.intersection(pending):
                kept = self.own
                found.append(replace(base, gradients=left + kept, buffers=still.buffers + self.buckets))
            left -= sum(self.trained[one] for one in self.inside.intersection(pending) if self._large(one))
            pending = []

        for number, size in enumerate(self.trained):
            if pending and sum(self.trained[one] for one in pending) + size > self.bucket:
                flush()
            left -= 0 if self._large(number) else size
            pending.append(number)
        flush()
        return found

    def _large(self, number: int) -> bool:
        return self.trained[number] > self.bucket


class _Stage2(_Partitioned):
    def moments(self) -> list[Memory]:
        """Gradients are reduced as they come, whenever the bucket is full; one that is larger waits for the next."""
        still = self.standing
        already = self.own if self.rank.accumulation > 1 else 0
        extra = np.zeros(len(self.held), dtype=np.int64)
        found: list[Memory] = []
        pending: list[int] = []
        kept = large = last = 0

        def flush(activations: int) -> None:
            nonlocal kept, pending
            base = replace(still, activations=activations, moment="reducing", untouched=self.idle)
            copy = self.copied(sum(self.trained[one] for one in pending))
            buffers = still.buffers + self.buckets
            found.append(replace(base, gradients=already + kept + large, buffers=buffers + copy))
            if self.inside.intersection(pending):
                kept = self.own
                found.append(replace(base, gradients=already + kept + large, buffers=buffers))
            pending = []

        for place, number in self.step.arrivals:
            size = self.trained[number]
            extra[last:place] = (self.buckets if last else 0) + kept + large
            if pending and sum(self.trained[one] for one in pending) + size > self.bucket:
                flush(int(self.held[min(place, len(self.held) - 1)]))
                large = 0
            large = size if size > self.bucket else large
            pending.append(number)
            last = place
        extra[last:] = self.buckets + kept + large
        flush(self.after)
        backward = replace(self.at(extra, still, already), untouched=self.idle)
        return [backward, *found, *self.stepping()]


class _Stage3(_State):
    """Every parameter is cut by itself; those that a module needs are gathered for it."""

    def __init__(self, step: Step, section: Section, rank: Rank) -> None:
        super().__init__(step, section, rank)
        self.pieces = [NUMBER * -(-n // rank.world) for n in step.parameters]
        self.cut = [piece if on else 0 for piece, on in zip(self.pieces, step.trained, strict=True)]
        self.part = sum(self.cut)
        self.persistent = frozenset(
            number for number, n in enumerate(step.parameters) if n <= section.persistence_threshold
        )

    @property
    def standing(self) -> Memory:
        section = self.section
        whole = NUMBER * sum(self.step.parameters[number] for number in self.persistent)
        gathers = self.rank.world > 1 or section.offload_weights
        on_rank = 0 if section.offload_weights else sum(self.pieces)
        weights = self.step.buffers + on_rank + (whole if gathers else 0)
        host = sum(self.pieces) if section.offload_weights else 0
        if section.offload_optimizer:  # fp32 copy, gradients twice, moments
            return Memory(weights=weights, buffers=self.bucket, host=host + 5 * self.part, untouched=self.idle)
        moments = 3 if section.offload_weights else 2  # with an fp32 copy, or where the weights are that copy
        return Memory(
            weights=weights,
            gradients=self.part,
            optimizer=moments * self.part,
            buffers=self.bucket,
            host=host,
            untouched=self.idle,
        )

    @property
    def idle(self) -> int:
        return max(0, self.bucket - self.whole)

    def building(self) -> Memory:
        """The whole network is there before it is cut."""
        return Memory(weights=NUMBER * self.step.total + self.step.buffers + max(self.pieces), moment="building")

    def validation(self) -> Memory:
        whole = sum(NUMBER * n for n in self.step.parameters)
        live = min(whole, NUMBER * self.section.max_live) if self.rank.world > 1 else 0
        found = super().validation()
        return replace(found, buffers=found.buffers + live)

    def moments(self) -> list[Memory]:
        still = self.standing
        layers = self._layers()
        found = [self.at(layers.held, still, self._waiting())]
        for place, bytes_ in layers.passing:
            held = int(self.held[min(place, len(self.held) - 1)])
            found.append(replace(still, activations=held, buffers=still.buffers + bytes_, moment="backward"))
        found += self._reducing(still, layers.held)
        if not self.section.offload_optimizer:
            stepping = replace(still, activations=self.after, moment="optimizer")
            found.append(replace(stepping, gradients=still.gradients + self.part))
        return found

    def _layers(self) -> Gathered:
        gathers = self.rank.world > 1 or self.section.offload_weights
        return (
            gathered(self.step, self.section, self.rank.world, self.persistent)
            if gathers
            else Gathered.none(len(self.held))
        )

    def _waiting(self) -> np.ndarray:
        """Gradients too large for the bucket, until the next one comes."""
        waiting = np.zeros(len(self.held), dtype=np.int64)
        large = [(place, self.trained[number]) for place, number in self.step.arrivals]
        for one, (place, size) in enumerate(large):
            if size > self.bucket:
                stop = large[one + 1][0] if one + 1 < len(large) else len(self.held)
                waiting[place:stop] = size
        return waiting

    def _reducing(self, still: Memory, layers: np.ndarray) -> list[Memory]:
        """The bucket's gradients, cut for the ranks one after another: a copy, but of a single one that fits evenly."""
        found: list[Memory] = []
        inside: list[int] = []

        def flush(place: int) -> None:
            nonlocal inside
            place = min(place, len(self.held) - 1)
            numbers = [self.step.parameters[number] for number in inside]
            even = len(inside) == 1 and numbers[0] % self.rank.world == 0
            copy = 0 if even else self.rank.world * sum(self.pieces[number] for number in inside)
            large = sum(self.trained[number] for number in inside if self.trained[number] > self.bucket)
            buffers = still.buffers + copy + int(layers[place])
            found.append(
                replace(
                    still,
                    gradients=still.gradients + large,
                    activations=int(self.held[place]),
                    buffers=buffers,
                    moment="reducing",
                )
            )
            inside = []

        for place, number in self.step.arrivals:
            if inside and sum(self.trained[one] for one in inside) + self.trained[number] > self.bucket:
                flush(place)
            inside.append(number)
        flush(len(self.held))
        return found


def _value(series: np.ndarray | int, place: int) -> int:
    return int(series[place]) if isinstance(series, np.ndarray) else series


_STATES: dict[int, type[_State]] = {0: _Stage0, 1: _Stage1, 2: _Stage2, 3: _Stage3}
