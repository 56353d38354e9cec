"""Why each op of a job takes the time it takes: work, formula with its numbers, limit, source of its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from simulator.engine.kernel_sequence import ALONE, BANDWIDTH_SHARED, COLLECTIVE, Priced
from simulator.engine.lower import PricedModel
from simulator.graph.block import Block
from simulator.results.critical_path import CriticalPath, critical_path
from simulator.results.simulate import Engine, prepare, timeline_of
from simulator.schedule import Schedule
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario
from simulator.studies.kernel.answer import work_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedOp:
    """One op of a block with its price under every condition, the gaps after its kernels included.

    Parameters
    ----------
    block : kind of its block.
    half : forward or backward.
    priced : the op and its durations [s].
    """

    block: str
    half: str
    priced: Priced

    @property
    def alone(self) -> float:
        """With nothing concurrent [s]."""
        return self.priced.durations[ALONE]

    @property
    def concurrent(self) -> float:
        """Concurrent with an all-to-all; of an all-to-all: concurrent with compute [s]."""
        return self.priced.durations[BANDWIDTH_SHARED]

    @property
    def concurrent_collective(self) -> float:
        """Concurrent with a collective over a node, such as a gather of parameters or a reduction of gradients [s]."""
        return self.priced.durations[COLLECTIVE]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        op, cost = self.priced.op, self.priced.cost
        return {
            "block": self.block,
            "half": self.half,
            "op": op.name,
            "class": op.cls,
            "part": op.part,
            "segment": op.segment,
            "stream": op.stream,
            "count": op.count,
            "work": work_dict(op),
            "flop": op.flops,
            "alone_us": self.alone * 1e6,
            "concurrent_us": self.concurrent * 1e6,
            "concurrent_collective_us": self.concurrent_collective * 1e6,
            "bound_by": cost.bound_by,
            "formula": cost.formula,
            "terms": dict(cost.terms),
            "nic_bytes": cost.nic_bytes,
            "nvlink_bytes": cost.nvlink_bytes,
            "source": cost.source,
            "calibrated": cost.calibrated,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTime:
    """One kind of block: time of its ops alone.

    Parameters
    ----------
    kind : kind of block.
    count : how often the model has it.
    forward : forward compute [s].
    recomputed : recomputation [s].
    input_gradient : input gradients [s].
    weight_gradient : weight gradients [s].
    communication : its communication stream [s].
    """

    kind: str
    count: int
    forward: float
    recomputed: float
    input_gradient: float
    weight_gradient: float
    communication: float

    @property
    def total(self) -> float:
        """All of it [s]."""
        return self.forward + self.recomputed + self.input_gradient + self.weight_gradient + self.communication


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The ops of a job that were asked for, all its blocks, and what the step is simulated from."""

    scenario: Scenario
    ops: tuple[ExplainedOp, ...]
    blocks: tuple[BlockTime, ...]
    built: PricedModel
    schedule: Schedule

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Kernel classes of these ops that were not measured on this hardware."""
        return tuple(sorted({one.priced.op.cls for one in self.ops if not one.priced.cost.calibrated}))

    def critical_path(self, engine: Engine) -> CriticalPath:
        """What decides how long the step takes, by kernel class, as this engine simulates it."""
        return critical_path(timeline_of(self.built, self.schedule, engine))


def explain(scenario: Scenario, pattern: str = "*") -> Explanation:
    """Explain the ops whose name, class or segment fits `pattern` (as in `attn.*`, `gemm.fp8*`, `mlp.W`)."""
    built, schedule = prepare(scenario)
    ops = tuple(one for one in _ops(built) if _fits(one, pattern))
    blocks = tuple(_times(built, kind) for kind in built.blocks)
    return Explanation(scenario=scenario, ops=ops, blocks=blocks, built=built, schedule=schedule)


def _ops(built: PricedModel) -> Iterator[ExplainedOp]:
    for kind, block in built.blocks.items():
        for half, segments in (("forward", block.forward), ("backward", block.backward)):
            for segment in segments:
                for op in segment.ops:
                    yield ExplainedOp(block=kind, half=half, priced=built.price(op))


def _fits(one: ExplainedOp, pattern: str) -> bool:
    op = one.priced.op
    names = (op.name, op.cls, op.segment, f"{one.block}/{op.name}")
    return any(fnmatchcase(name, pattern) for name in names)


def pattern_names(scenario: Scenario) -> tuple[str, ...]:
    """Names, kernel classes and segments of the job's ops: what a pattern may mean."""
    built, _ = prepare(scenario)
    ops = [one.priced.op for one in _ops(built)]
    return tuple(dict.fromkeys(name for op in ops for name in (op.name, op.cls, op.segment)))


def _times(built: PricedModel, kind: BlockKind) -> BlockTime:
    block: Block = built.blocks[kind]
    parts = dict.fromkeys(("F", "R", "I", "W", "comm"), 0.0)
    for op in block.ops():
        parts["comm" if op.stream == "comm" else op.part] += built.price(op).durations[ALONE]
    return BlockTime(
        kind=kind,
        count=sum(stage.count(kind) for stage in built.stages),
        forward=parts["F"],
        recomputed=parts["R"],
        input_gradient=parts["I"],
        weight_gradient=parts["W"],
        communication=parts["comm"],
    )
