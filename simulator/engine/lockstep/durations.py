"""How long each kernel sequence of a step lasts on each rank: by the tokens of its experts and the lengths of its
sequences.

Experts, dispatch and combine are priced at some loads between the least and the most that any rank has, and
interpolated: ranks with as many tokens are alike, however their slots share them. Attention is priced for each
data-parallel rank with the lengths of its own sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.engine.kernel_sequence import ALONE, KernelSequence
from simulator.engine.lower import PricedModel
from simulator.engine.program import PlacedSegment, sequences_of
from simulator.graph.serving.layer import build_block
from simulator.graph.serving.shapes import ServingShapes, group_tokens, microbatches_of, serving_of
from simulator.ops import DecodeAttention, Op
from simulator.routing.slot_loads import slot_loads
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario
from simulator.spec.serving import sampled_contexts

Array = NDArray[np.float64]

FINEST = 17
"""Most loads at which experts are priced."""
EXPERTS = (BlockKind.MOE, BlockKind.MTP, BlockKind.DRAFT)
"""Blocks that may hold experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoads:
    """Loads of all ranks.

    Parameters
    ----------
    of : (number of a block, microbatch) -> tokens of each rank's experts over the mean (ranks).
    least, most : of any rank, block and microbatch.
    """

    of: Callable[[int, int], Array]
    least: float
    most: float


def loads_of_ranks(built: PricedModel, kinds: Sequence[BlockKind]) -> RankLoads:
    """The loads of the ranks of a serving job in every block of `kinds` and both microbatches."""
    scenario = built.scenario
    shapes = built.shapes
    assert isinstance(shapes, ServingShapes)
    layer, found = -1, dict[tuple[int, int], Array]()
    last = scenario.model.num_hidden_layers
    groups = max(1, scenario.job.gpus // scenario.job.layout.ep)
    many = microbatches_of(serving_of(scenario))
    drafted = 0
    for block, kind in enumerate(kinds):
        layer += kind.is_layer
        drafted += kind in (BlockKind.MTP, BlockKind.DRAFT)
        own = shapes.drafts[drafted - 1] if drafted else shapes
        if kind not in EXPERTS or not own.local_experts:
            continue
        number = last if drafted else layer
        of = slot_loads(scenario, group_tokens(scenario, own.tokens, own.brings_own))
        for microbatch in range(many):
            parts = [of(number, (drafted * groups + group) * many + microbatch).relative for group in range(groups)]
            found[block, microbatch] = np.concatenate(parts)
    flat = np.concatenate(list(found.values())) if found else np.ones(1)
    even = np.ones(scenario.job.gpus)
    return RankLoads(
        of=lambda block, microbatch: found.get((block, microbatch), even),
        least=float(flat.min()),
        most=float(flat.max()),
    )


def at_load(s: ServingShapes, load: float) -> ServingShapes:
    """The shapes of a rank whose experts have `load` times the mean tokens."""
    rows = max(1, round(s.rows * load))
    return replace(
        s,
        rows=rows,
        received=max(1, round(s.received * load)),
        active=min(s.active, rows),
        imbalance=load,
        drafts=tuple(at_load(one, load) for one in s.drafts),
    )


class Durations:
    """Times of the sequences of a step on each rank; local to `lock_step`."""

    def __init__(self, built: PricedModel, kinds: Sequence[BlockKind]) -> None:
        shapes = built.shapes
        assert isinstance(shapes, ServingShapes)
        self.built, self.kinds = built, kinds
        self.loads = loads_of_ranks(built, kinds)
        few = self.loads.most - self.loads.least < 1e-12
        self.grid = np.array([1.0]) if few else np.linspace(self.loads.least, self.loads.most, FINEST)
        self.blocks = [
            {kind: build_block(kind, at_load(shapes, load)) for kind in dict.fromkeys(kinds) if kind in EXPERTS}
            for load in self.grid
        ]
        self.contexts = contexts_of_ranks(built.scenario)
        self.known: dict[tuple[BlockKind, str, int], Array] = {}
        self.cores: dict[tuple[DecodeAttention, int], Array] = {}

    def of(self, placed: PlacedSegment, at: int, sequence: KernelSequence) -> Array:
        """Time of the sequence number `at` of a placed segment on each rank [s]."""
        kind = self.kinds[placed.block]
        out = np.full(self.built.scenario.job.gpus, sequence.alone)
        if kind in EXPERTS and len(self.grid) > 1:
            loads = self.loads.of(placed.block, placed.microbatch)
            out = np.interp(loads, self.grid, self._at_grid(kind, placed.segment.name, at))
        for priced in sequence.ops:
            work = priced.op.work
            if isinstance(work, DecodeAttention) and len(self.contexts) > 1:
                out = out + self._attention(priced.op, work, placed.microbatch) - priced.durations[ALONE]
        return np.asarray(out)

    def mean_imbalance(self) -> float:
        """Load of the most loaded rank over the mean: mean over blocks with experts and microbatches."""
        many = range(microbatches_of(serving_of(self.built.scenario)))
        tops = [
            self.loads.of(block, at).max() for block, kind in enumerate(self.kinds) if kind in EXPERTS for at in many
        ]
        return float(np.mean(tops)) if tops else 1.0

    def _at_grid(self, kind: BlockKind, name: str, at: int) -> Array:
        """Time of one sequence at each load of the grid [s]."""
        key = (kind, name, at)
        if key not in self.known:
            segments = [next(one for one in blocks[kind].forward if one.name == name) for blocks in self.blocks]
            self.known[key] = np.array([sequences_of(segment, self.built.price)[at].alone for segment in segments])
        return self.known[key]

    def _attention(self, op: Op, work: DecodeAttention, microbatch: int) -> Array:
        """Time of decode attention on each rank, with the lengths of its own sequences [s]."""
        key = (work, microbatch)
        if key not in self.cores:
            scenario = self.built.scenario
            many = microbatches_of(serving_of(scenario))
            each = [self._core(op, work, cached[microbatch::many]) for cached in self.contexts]
            self.cores[key] = np.repeat(np.array(each), scenario.job.layout.tp)
        return self.cores[key]

    def _core(self, op: Op, work: DecodeAttention, cached: tuple[int, ...]) -> float:
        """Time with these cached lengths; a rank without sequences runs dummies of nothing but their new tokens [s]."""
        lengths = tuple(one + work.q_len for one in cached) or (work.q_len,) * work.batch
        mine = replace(
            work,
            batch=len(lengths),
            kv_len=max(1, round(sum(lengths) / len(lengths))),
            lengths=lengths if len(set(lengths)) > 1 else (),
        )
        return self.built.price(replace(op, work=mine)).durations[ALONE]


def contexts_of_ranks(scenario: Scenario) -> list[tuple[int, ...]]:
    """Cached tokens of the sequences of each data-parallel rank; one entry where all ranks have the same."""
    serving, dp = serving_of(scenario), scenario.job.dp
    busy = dp - serving.idle_ranks
    if isinstance(serving.context, int):
        if not serving.idle_ranks:
            return [(serving.context,) * serving.sequences]
        return [(serving.context,) * serving.sequences] * busy + [()] * serving.idle_ranks
    return [sampled_contexts(serving, rank) for rank in range(busy)] + [()] * serving.idle_ranks
