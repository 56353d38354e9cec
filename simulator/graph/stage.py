"""From a model to pipeline stages: the list of blocks, and which stage holds which.

61 layers do not divide by 16: `balanced` cuts the list of blocks so that the slowest stage is as fast as possible (and
among cuts equally fast, so that no stage holds more blocks than it must), `even` gives every stage the same number of
layers (the first ones one more), an explicit tuple says it itself, and so does a
layout in Megatron-Core's letters, which gives embedding, MTP modules and loss stages of their own if it likes
(`simulator.spec.placement`).
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace

from simulator.errors import InputError
from simulator.graph import ends, layer
from simulator.graph.block import Block, running
from simulator.graph.recompute import inner
from simulator.graph.serving.layer import build_block, serving_kinds
from simulator.graph.serving.shapes import ServingShapes
from simulator.graph.shapes import Shapes
from simulator.graph.shard import with_copies
from simulator.spec.job import Job, Layout
from simulator.spec.model import BlockKind, ModelSpec
from simulator.spec.placement import decoder_counts, is_written, placed
from simulator.spec.precision import Precision
from simulator.spec.recompute import NOTHING, recomputed_modules

TIE = 0.005
"""Share of the slowest stage's time below which cuts count as equally fast: far less than the times are known to."""


MIRRORED_SLACKS = (0.0, 0.01, 0.02, 0.04, 0.08)
"""By what share a stage may exceed the least possible slowest one where the rank's other stage makes good for it."""


def block_kinds(model: ModelSpec, precision: Precision | None = None) -> tuple[BlockKind, ...]:
    """The blocks of a model in order: `embed`, its layers, `head`, then per MTP module `mtp`, a layer and a head.

    The MTP modules share embedding and head with the main model (DeepSeek-V3 report, section 2.2). A job's `precision`
    leaves some layers in BF16.
    """
    modules = range(model.num_hidden_layers, model.num_hidden_layers + model.num_nextn_predict_layers)
    tail = [kind for layer in modules for kind in (BlockKind.MTP, model.layer_kind(layer), BlockKind.HEAD)]
    kinds = (BlockKind.EMBED, *model.layer_kinds(), BlockKind.HEAD, *tail)
    return kinds if precision is None else with_bf16((kinds,), model.num_hidden_layers, precision)[0]


def with_bf16(
    stages: Sequence[Sequence[BlockKind]], layers: int, precision: Precision
) -> tuple[tuple[BlockKind, ...], ...]:
    """The stages of a model of so many layers, those that a job keeps in BF16 named so."""
    first, last = precision.bf16_first_layers, layers - precision.bf16_last_layers
    last_of_all = layers if "mtp" not in precision.bf16 else sum(kind.is_layer for kinds in stages for kind in kinds)
    if precision.recipe == "bf16":
        return tuple(tuple(kinds) for kinds in stages)
    seen, out = 0, []
    for kinds in stages:
        stage = []
        for kind in kinds:
            wide = kind.is_layer and (seen < first or last <= seen < last_of_all)
            stage.append(kind.in_bf16 if wide else kind)
            seen += kind.is_layer
        out.append(tuple(stage))
    return tuple(out)


def build_blocks(s: Shapes) -> dict[BlockKind, Block]:
    """Each kind of block once, of the directions that the workload runs: equal layers are built once."""
    if isinstance(s, ServingShapes):
        return {kind: build_block(kind, s) for kind in dict.fromkeys(serving_kinds(s))}
    build = {
        BlockKind.EMBED: lambda: ends.embedding(s),
        BlockKind.HEAD: lambda: ends.head(s),
        BlockKind.MTP: lambda: ends.mtp_projection(s),
    }

    def build_one(kind: BlockKind) -> Block:
        if not kind.is_layer:
            return build[kind]()
        return layer.build_layer(kind, s.in_bf16() if kind.is_bf16 else s)

    kinds = dict.fromkeys(block_kinds(s.model, s.job.precision))
    made = {kind: running(with_copies(build_one(kind), s), s.workload) for kind in kinds}
    return made | _variants(made, s)


def _variants(made: Mapping[BlockKind, Block], s: Shapes) -> dict[BlockKind, Block]:
    """The layers that differ from the others where whole ones are recomputed: see `with_variants`."""
    layout, layers = s.job.layout, [kind for kind in made if kind.is_layer]
    if "layer" not in recomputed_modules(layout, s.stack):
        return {}
    if layout.recompute_method == "block":
        plain = build_blocks(
            replace(s, job=replace(s.job, layout=replace(layout, recompute="none")), recompute=NOTHING)
        )
        return {kind.kept: replace(plain[kind], kind=kind.kept) for kind in layers}
    if layout.recompute_layers == 1:
        return {}
    return {
        kind.inner: replace(inner(made[kind]) if "layer" in s.recompute else made[kind], kind=kind.inner)
        for kind in layers
    }


def with_variants(stages: Sequence[Sequence[BlockKind]], layout: Layout) -> tuple[tuple[BlockKind, ...], ...]:
    """The stages of a job that recomputes whole layers, each layer as it runs there (Megatron-Core,
    --recompute-method).

    `block`: the first layers of each stage run again, the others are `kept`. `uniform` in groups: all but the first
    layer of each group are `inner`.
    """
    size, out = layout.recompute_layers, []
    for kinds in stages:
        layers, stage = 0, []
        for kind in kinds:
            layers += kind.is_layer
            if not kind.is_layer:
                stage.append(kind)
            elif layout.recompute_method == "block":
                stage.append(kind if layers <= size else kind.kept)
            else:
                stage.append(kind if (layers - 1) % size == 0 else kind.inner)
        out.append(tuple(stage))
    return tuple(out)


def place(
    model: ModelSpec, stages: int, job: Job, weights: Mapping[BlockKind, float], *, mirrored: bool = False
) -> tuple[tuple[BlockKind, ...], ...]:
    """The blocks of each stage as a job's layout places them; see `split`."""
    layout = job.layout
    how: str | Sequence[int] = layout.stages
    if layout.decoder_first_pipeline_num_layers is not None or layout.decoder_last_pipeline_num_layers is not None:
        counts = decoder_counts(layout, model.num_hidden_layers, stages)
        if isinstance(counts, str):
            raise InputError(f"layout.decoder_first_pipeline_num_layers: {counts}")
        how = counts
    found = split(model, stages, how, weights, mirrored=mirrored, precision=job.precision)
    return with_variants(found, layout)


def split(
    model: ModelSpec,
    stages: int,
    how: str | Sequence[int],
    weights: Mapping[BlockKind, float],
    *,
    mirrored: bool = False,
    precision: Precision | None = None,
) -> tuple[tuple[BlockKind, ...], ...]:
    """The kinds of the blocks on each stage.

    Parameters
    ----------
    how : "balanced", "even", the number of main-model layers per stage, or a layout (`simulator.spec.placement`).
    weights : time of one block of each kind, forward and backward [s]; only `balanced` reads them.
    precision : which layers stay in BF16.
    mirrored : whether a rank holds the first stage and the last, the second and the last but one, and so on (DualPipe).

    Raises
    ------
    InputError : more stages than layers, or explicit numbers that do not add up.
    """
    kinds = block_kinds(model, precision)
    layers = model.num_hidden_layers
    if isinstance(how, str) and is_written(how):
        found = placed(how, model, stages)
        return found if precision is None else with_bf16(found, layers, precision)
    if how == "balanced":
        if stages > layers + 2:
            raise InputError(
                f"layout: {stages} pipeline stages for {layers} layers: nothing is left for a stage beyond "
                "the layers, the embedding and the head"
            )
        return _balanced(kinds, stages, weights, MIRRORED_SLACKS if mirrored else (0.0,))
    counts = _even(layers, stages) if how == "even" else tuple(int(n) for n in how)
    if len(counts) != stages or sum(counts) != layers or min(counts) < 0:
        raise InputError(
            f"layout.stages: {list(counts)} puts {sum(counts)} layers on {len(counts)} stages; "
            f"it must put {layers} layers on {stages} stages"
        )
    return _by_counts(kinds, counts)


def _even(layers: int, stages: int) -> tuple[int, ...]:
    return tuple(layers // stages + (1 if i < layers % stages else 0) for i in range(stages))


def _by_counts(kinds: Sequence[BlockKind], counts: Sequence[int]) -> tuple[tuple[BlockKind, ...], ...]:
    """Embedding goes with the first stage, head and MTP with the last."""
    out, position = [], 1
    for index, count in enumerate(counts):
        part = list(kinds[position : position + count])
        position += count
        if index == 0:
            part.insert(0, kinds[0])
        if index == len(counts) - 1:
            part.extend(kinds[position:])
        out.append(tuple(part))
    return tuple(out)


def _balanced(
    kinds: Sequence[BlockKind], stages: int, weights: Mapping[BlockKind, float], slacks: Sequence[float]
) -> tuple[tuple[BlockKind, ...], ...]:
    """Cut before layers only, so that the longest stage is as short as possible.

    Stages that share a rank can compensate each other: with several `slacks` one stage may be slower by them, and the
    cut with the shortest time of the slowest rank is taken. Of cuts within `TIE` of each other, the one is taken whose
    largest stage has the fewest blocks (it sets the memory), then the one with the smallest sum of squares. The end
    (head, MTP) stays on one stage: its head is shared. Loads are integers, so that cuts which only swap equal stages
    tie exactly.
    """
    units = _units(kinds)
    unit_load = max(weights.values()) * 1e-9 or 1.0
    cost = [sum(round(weights[kind] / unit_load) for kind in unit) for unit in units]
    total = [0, *itertools.accumulate(cost)]
    least = _reachable(cost, stages)
    cuts = [_cut(total, stages, least * (1 + TIE + slack)) for slack in slacks]
    if len(cuts) > 1:
        slowest = {cut: _slowest_pair(total, cut) for cut in cuts}
        good = min(slowest.values()) * (1 + TIE)
        cuts = [cut for cut in cuts if slowest[cut] <= good]
    best = min(cuts, key=lambda cut: max(b - a for a, b in itertools.pairwise(cut)))
    return tuple(tuple(kind for unit in units[a:b] for kind in unit) for a, b in itertools.pairwise(best))


def _slowest_pair(total: Sequence[int], cut: Sequence[int]) -> int:
    """The largest load of two stages at the same distance from both ends."""
    loads = [total[b] - total[a] for a, b in itertools.pairwise(cut)]
    return max(one + other for one, other in zip(loads, reversed(loads), strict=True))


def _cut(total: Sequence[int], stages: int, limit: float) -> tuple[int, ...]:
    """Bounds of stages that each stay below `limit`, with the fewest units on the largest, then the least squares.

    Exact dynamic programme over the cuts; `total` are the loads of all units before each one.
    """
    n = len(total) - 1
    never = float("inf")
    imbalance, square = [0.0] + [never] * n, [0.0] + [never] * n  # of the best cut before each unit
    cuts: list[list[int]] = []
    for stage in range(1, stages + 1):
        counts, squares, cut = [never] * (n + 1), [never] * (n + 1), [0] * (n + 1)
        first = max(stage, bisect_left(total, total[n] - (stages - stage) * limit))
        last = min(n - (stages - stage), bisect_right(total, stage * limit) - 1)
        for end in range(first, last + 1):
            high = never
            for start in range(max(stage - 1, bisect_left(total, total[end] - limit)), end):
                load = total[end] - total[start]
                most = imbalance[start] if imbalance[start] > end - start else end - start
                if most > high:
                    continue
                squared = square[start] + load * load
                if most < high or squared < squares[end]:
                    high, squares[end], cut[end] = most, squared, start
            counts[end] = high
        imbalance, square = counts, squares
        cuts.append(cut)
    bounds = [n]
    for cut in reversed(cuts):
        bounds.append(cut[bounds[-1]])
    return tuple(reversed(bounds))


def _reachable(cost: Sequence[float], stages: int) -> float:
    """A load that no stage of the best cut exceeds: the least, by bisection, that filling stages greedily reaches."""
    low, high = max(cost), sum(cost)
    for _ in range(40):
        middle = (low + high) / 2
        used, load = 1, 0.0
        for value in cost:
            load += value
            if load > middle:
                used, load = used + 1, value
        low, high = (low, middle) if used <= stages else (middle, high)
    return high * (1 + 1e-9)


def _units(kinds: Sequence[BlockKind]) -> list[tuple[BlockKind, ...]]:
    """Indivisible groups of blocks: the embedding, each layer, head and MTP together (they share the head)."""
    tail = kinds.index(BlockKind.HEAD)
    return [*((kind,) for kind in kinds[:tail]), tuple(kinds[tail:])]
