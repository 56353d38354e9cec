"""A model with prices, and the programs of its actions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.engine.kernel_sequence import KernelSequence, sequence_of
from simulator.engine.program import Copies, Pricer, Program, lone_program, pair_program, sequential_program
from simulator.engine.ranks.waits import Rendezvous
from simulator.engine.tasks import Tasks
from simulator.engine.two_batch import two_batch_program
from simulator.graph.block import Block
from simulator.graph.precision.amax import with_amax
from simulator.graph.serving.shapes import ServingShapes
from simulator.graph.shapes import Shapes
from simulator.ops import HostWork, Op
from simulator.schedule import Pair, Schedule, Step
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrolled:
    """The tasks of a whole step at other prices: what follows what is the same with these `stages`."""

    scenario: Scenario
    schedule: Schedule
    stages: tuple[tuple[BlockKind, ...], ...]
    tasks: Tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedModel:
    """What is built once for a scenario: blocks, their prices, and the blocks of each stage.

    Parameters
    ----------
    scenario : the scenario.
    shapes : one rank's view of a microbatch.
    blocks : the ops of each kind of block.
    price : prices an op.
    imbalance : of serving, load of the most loaded expert-parallel rank over the mean.
    stages : kinds of blocks on each stage.
    block_seconds : time of each kind of block, forward and backward [s].
    pace : how much longer tensor kernels take at the clock of the step.
    watts : mean power that a GPU would demand at full clock [W]; None without a power model.
    resampled_per_layer : of serving, whether another rank is the most loaded in every layer and microbatch.
    rendezvous : of training on uneven ranks, what a mean rank meets at the rendezvous of a step's action.
    unrolled : the step at full clock, which `lower` need not unroll again.
    """

    scenario: Scenario
    shapes: Shapes
    blocks: dict[BlockKind, Block]
    price: Pricer
    imbalance: float
    stages: tuple[tuple[BlockKind, ...], ...]
    block_seconds: dict[BlockKind, float]
    pace: float = 1.0
    watts: float | None = None
    resampled_per_layer: bool = False
    rendezvous: Callable[[PricedModel, Step, Program], Rendezvous] | None = None
    unrolled: Unrolled | None = None

    def blocks_of(self, stage: int) -> list[Block]:
        """The blocks of a stage in order."""
        blocks = [self.blocks[kind] for kind in self.stages[stage]]
        return blocks if isinstance(self.shapes, ServingShapes) else with_amax(blocks, self.shapes)


def program_of(built: PricedModel, step: Step) -> Program:
    """The program of a step's action on a rank that waits for nobody."""
    uneven = built.imbalance, built.resampled_per_layer
    if isinstance(step, Pair):
        ahead, back = built.blocks_of(step.forward.stage), built.blocks_of(step.backward.stage)
        made = pair_program if built.scenario.stack.overlaps_pairs else sequential_program
        return made(ahead, back, built.price, *uneven, _copies(built, step.forward.stage, step.backward.stage))
    blocks, serving = built.blocks_of(step.stage), built.scenario.job.serving
    if serving is not None and serving.two_batch_overlap:
        return two_batch_program(blocks, built.scenario.job.workload, built.price, *uneven)
    copies = _copies(built, step.stage if step.kind == "F" else None, step.stage if step.kind in ("B", "I") else None)
    return lone_program(step.kind, blocks, built.price, *uneven, copies, step.filled)


def offloaded_layers(kinds: Sequence[BlockKind]) -> list[int]:
    """Blocks of a stage whose kept activations may go to the host: its layers but the last, which backward needs first
    (Megatron-Core, pipeline_parallel/fine_grained_activation_offload.py, 2025)."""
    return [at for at, kind in enumerate(kinds) if kind.is_layer][:-1]


def _copies(built: PricedModel, ahead: int | None, back: int | None) -> Copies:
    """The copies to and from the host of a forward and a backward of these stages."""
    away = built.scenario.job.offload.activations
    return Copies(to_host=_each(built, ahead, away, "to_host"), from_host=_each(built, back, away, "from_host"))


def _each(
    built: PricedModel, stage: int | None, away: float, name: Literal["to_host", "from_host"]
) -> dict[int, KernelSequence]:
    """One copy a layer of a stage that is offloaded, by the number of its block."""
    if stage is None or not away or built.scenario.workload.serves:
        return {}
    kinds, out = built.stages[stage], {}
    for block in offloaded_layers(kinds):
        size = away * built.blocks[kinds[block]].saved_bytes
        work = HostWork(to_host=size) if name == "to_host" else HostWork(from_host=size)
        op = Op(name=f"offload.{name}", cls="comm.host", part="F", segment="offload", stream="comm", work=work)
        if size:
            out[block] = sequence_of("copy", "offload", [built.price(op)])
    return out


def action_key(stages: Sequence[tuple[BlockKind, ...]], step: Step) -> Hashable:
    """All that the program of a step depends on, of a priced model."""
    if isinstance(step, Pair):
        return "pair", stages[step.forward.stage], stages[step.backward.stage]
    return step.kind, step.filled, stages[step.stage]
