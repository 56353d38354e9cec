"""The overlapped pair that a profile shows, simulated: as many layers, with the rows the profile's own gate chose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from simulator.engine.des import simulate
from simulator.engine.kernel_sequence import Priced, kernel_spans
from simulator.engine.lower import PricedModel
from simulator.engine.program import Program, pair_program, sequential_program
from simulator.engine.tasks import Tasks
from simulator.graph.block import Block
from simulator.graph.layer import dense_layer, moe_layer
from simulator.graph.shapes import Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Routed tokens of a layer's local experts, and the distinct tokens received; 0: as the job expects."""

    rows: int = 0
    received: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The layers of one period: `forward` overlaps with `backward`."""

    forward: Rows
    backward: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpan:
    """One op of the simulation.

    Parameters
    ----------
    priced : the op.
    phase : phase (`attn(F)`).
    period : number of the layer pair.
    start, end : when it ran, the gap after it included [s].
    """

    priced: Priced
    phase: str
    period: int
    start: float
    end: float


def phase_of(segment: str) -> str:
    """`attn.F` -> `attn(F)`."""
    name, _, direction = segment.rpartition(".")
    return f"{name}({direction})"


def block_of(built: PricedModel, rows: Rows) -> Block:
    """One layer of the job's main kind, with the given rows."""
    shapes: Shapes = built.shapes
    if rows.rows:
        shapes = replace(shapes, rows=rows.rows)
    if rows.received:
        shapes = replace(shapes, received=rows.received)
    return moe_layer(shapes) if built.scenario.model.is_moe else dense_layer(shapes)


def program_of(built: PricedModel, periods: Sequence[Layers]) -> Program:
    """Forward layers in order against backward layers in order: the first period's layer goes back first."""
    ahead = [block_of(built, period.forward) for period in periods]
    back = [block_of(built, period.backward) for period in reversed(periods)]
    make = pair_program if built.scenario.stack.overlaps_pairs else sequential_program
    return make(ahead, back, built.price, built.imbalance, built.resampled_per_layer)


def simulated(built: PricedModel, periods: Sequence[Layers]) -> list[OpSpan]:
    """Every op of the pair with its times, on one rank whose links it does not share."""
    program = program_of(built, periods)
    node = built.scenario.cluster.node
    tasks = Tasks(ranks=1, nic=node.nic.bandwidth, nvlink=node.nvlink.bandwidth)
    for step in program.steps:
        tasks.add(step.stream, step.sequence, step.waits)
    timeline = simulate(tasks)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    spans: list[OpSpan] = []
    for task, sequence in enumerate(tasks.sequence):
        times = kernel_spans(sequence, timeline.start[task], timeline.end[task], timeline.changes.get(task, ()))
        for priced, (start, end) in zip(sequence.ops, times, strict=True):
            phase = phase_of(priced.op.segment)
            key = (phase, priced.op.name)
            spans.append(OpSpan(priced=priced, phase=phase, period=counts[key], start=start, end=end))
            counts[key] += 1
    return spans
