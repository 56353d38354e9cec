"""Blocks and segments: ops in launch order, and the checker that keeps them honest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Unpack

from simulator.graph.shapes import Shapes
from simulator.ops import ConcurrentWith, Facts, HostRead, Op, Part, Stream, Unit, Work
from simulator.spec.model import BlockKind
from simulator.spec.stack import Stack
from simulator.spec.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive ops of one stream (`attn.F`, `dispatch.F`, `mlp.B`, `mlp.W` ...).

    `direction` is F, B (input gradients with their recomputation and casts) or W (weight gradients that a schedule may
    defer).
    """

    name: str
    stream: Stream
    ops: tuple[Op, ...]

    @property
    def direction(self) -> str:
        """The letter after the last dot of the name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What pipeline stages are made of: an embedding, a layer, an MTP module, a head.

    `forward` and `backward` are segments in program order; `backward` holds B and W segments, compute and comm.
    """

    kind: BlockKind
    forward: tuple[Segment, ...]
    backward: tuple[Segment, ...]

    def ops(self) -> Iterator[Op]:
        """All ops in program order, forward then backward."""
        for segment in self.forward + self.backward:
            yield from segment.ops

    @property
    def saved_bytes(self) -> float:
        """Bytes that one microbatch keeps from forward until backward [B]."""
        return sum(op.saved for op in self.ops())

    def flops(self, *parts: Part) -> float:
        """FLOP of the ops in `parts` (all if none is named)."""
        return sum(op.flops for op in self.ops() if not parts or op.part in parts)


def running(block: Block, workload: Workload) -> Block:
    """The block as a workload runs it: segments of its directions only, and nothing kept for a backward that never
    comes."""
    forward, backward = (
        tuple(segment for segment in segments if segment.direction in workload.directions)
        for segments in (block.forward, block.backward)
    )
    if not workload.keeps_activations:
        forward = tuple(replace(one, ops=tuple(replace(op, saved=0.0) for op in one.ops)) for one in forward)
    return replace(block, forward=forward, backward=backward)


ATTENTION_SEGMENTS = ("attn.F", "attn.B", "attn.W")
"""Segments of attention, and of the gate up to the dispatch."""


class SegmentBuilder:
    """Collects the ops of one segment in launch order; the only mutable thing here, gone once `done()` is called."""

    def __init__(self, name: str, part: Part, shapes: Shapes, stream: Stream = "compute") -> None:
        self.name = name
        self.shapes = shapes
        self.part: Part = part
        self.stream: Stream = stream
        self.unit: Unit = ""
        self._ops: list[Op] = []
        self._waits: tuple[str, ...] = ()
        self._saved = 0.0

    @property
    def stack(self) -> Stack:
        """The software that launches the ops."""
        return self.shapes.stack

    @property
    def fused_quant(self) -> bool:
        """Whether casts to FP8 ride on the kernel before."""
        return self.stack.fused_quant

    @property
    def fused_accumulation(self) -> bool:
        """Whether weight-gradient GEMMs add into the main gradient."""
        return self.stack.wgrad_accumulation_fused

    @contextmanager
    def inside(self, unit: Unit) -> Iterator[None]:
        """Ops that are added inside belong to this part of the layer."""
        before, self.unit = self.unit, unit
        yield
        self.unit = before

    def hand_on(self, waits: tuple[str, ...], saved: float = 0.0) -> None:
        """What is added next waits for these ops, too, and keeps so many bytes more [B]."""
        self._waits, self._saved = self._waits + waits, self._saved + saved

    def add(
        self,
        name: str,
        cls: str,
        work: Work,
        *,
        part: Part | None = None,
        after: tuple[str, ...] = (),
        saved: float = 0.0,
        concurrent_with: ConcurrentWith = "nothing",
        **facts: Unpack[Facts],
    ) -> None:
        """Append one op; `part` defaults to the segment's. `facts`: see `Op`."""
        facts["captured"] = self._captured(name) and not isinstance(work, HostRead)
        facts.setdefault("unit", self.unit)
        after, self._waits = (*self._waits, *after), ()
        saved, self._saved = self._saved + saved, 0.0
        self._ops.append(
            Op(
                name=name,
                cls=cls,
                part=part or self.part,
                segment=self.name,
                stream=self.stream,
                work=work,
                after=after,
                saved=saved,
                concurrent_with=concurrent_with,
                **facts,
            )
        )

    def _captured(self, name: str) -> bool:
        """Whether the host replays an op of this name in a CUDA graph."""
        if self.name not in ATTENTION_SEGMENTS:
            return self.stack.cuda_graphs == "layers"
        match self.stack.cuda_graphs:
            case "gate":
                return name.startswith("router.")
            case "mamba":
                return self.shapes.model.mixer_of(0).has_state
            case graphs:
                return graphs != "none"

    def done(self) -> Segment:
        """The segment."""
        return Segment(name=self.name, stream=self.stream, ops=tuple(self._ops))


def problems(block: Block) -> list[str]:
    """What is wrong with a block: duplicate names, waits for ops that do not exist, waits within one stream.

    A wait must point to an earlier op of the *other* stream: that keeps the graph acyclic by construction.
    """
    found: list[str] = []
    for half, segments in (("forward", block.forward), ("backward", block.backward)):
        seen: dict[str, Op] = {}
        for segment in segments:
            for op in segment.ops:
                if op.name in seen:
                    found.append(f"{block.kind} {half}: {op.name} appears twice")
                for name in op.after:
                    if name not in seen:
                        found.append(f"{block.kind} {half}: {op.name} waits for {name}, which does not come before it")
                    elif seen[name].stream == op.stream:
                        found.append(f"{block.kind} {half}: {op.name} waits for {name} of its own stream")
                if op.stream != segment.stream:
                    found.append(f"{block.kind} {half}: {op.name} is not on the stream of {segment.name}")
                seen[op.name] = op
    return found
