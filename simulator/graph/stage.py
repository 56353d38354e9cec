"""From a model to pipeline stages: the list of blocks, and which stage holds which.

61 layers do not divide by 16: `balanced` cuts the list of blocks so that the slowest stage is as fast as possible,
`even` gives every stage the same number of layers (the first ones one more), an explicit tuple says it itself.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from simulator.errors import InputError
from simulator.graph import ends, layer
from simulator.graph.block import Block
from simulator.graph.shapes import Shapes
from simulator.graph.shard import with_copies
from simulator.model import ModelSpec


def block_kinds(model: ModelSpec) -> tuple[str, ...]:
    """The blocks of a model in order: `embed`, its layers, `head`, then per MTP module `mtp`, a layer and a head.

    The MTP modules share embedding and head with the main model (DeepSeek-V3 report, section 2.2).
    """
    tail = ("mtp", "moe" if model.is_moe else "dense", "head") * model.num_nextn_predict_layers
    return ("embed", *model.layer_kinds(), "head", *tail)


def build_blocks(s: Shapes, sms: int) -> dict[str, Block]:
    """Each kind of block once: equal layers are built once."""
    build = {
        "embed": lambda: ends.embedding(s),
        "dense": lambda: layer.dense_layer(s, sms),
        "moe": lambda: layer.moe_layer(s, sms),
        "head": lambda: ends.head(s, sms),
        "mtp": lambda: ends.mtp_projection(s, sms),
    }
    return {kind: with_copies(build[kind](), s) for kind in dict.fromkeys(block_kinds(s.model))}


def split(
    model: ModelSpec, stages: int, how: str | Sequence[int], weights: Mapping[str, float]
) -> tuple[tuple[str, ...], ...]:
    """The kinds of the blocks on each stage.

    Parameters
    ----------
    how : "balanced", "even" or the number of main-model layers per stage.
    weights : time of one block of each kind, forward and backward [s]; only `balanced` reads them.

    Raises
    ------
    InputError : more stages than layers, or explicit numbers that do not add up.
    """
    kinds = block_kinds(model)
    layers = model.num_hidden_layers
    if how == "balanced":
        if stages > layers + 2:
            raise InputError(
                f"layout: {stages} pipeline stages for {layers} layers: nothing is left for a stage beyond "
                "the layers, the embedding and the head"
            )
        return _balanced(kinds, stages, weights)
    counts = _even(layers, stages) if how == "even" else tuple(int(n) for n in how)
    if len(counts) != stages or sum(counts) != layers or min(counts) < 0:
        raise InputError(
            f"layout.stages: {list(counts)} puts {sum(counts)} layers on {len(counts)} stages; "
            f"it must put {layers} layers on {stages} stages"
        )
    return _by_counts(kinds, counts)


def _even(layers: int, stages: int) -> tuple[int, ...]:
    return tuple(layers // stages + (1 if i < layers % stages else 0) for i in range(stages))


def _by_counts(kinds: Sequence[str], counts: Sequence[int]) -> tuple[tuple[str, ...], ...]:
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


def _balanced(kinds: Sequence[str], stages: int, weights: Mapping[str, float]) -> tuple[tuple[str, ...], ...]:
    """Cut before layers only, minimising the slowest stage; among equals, the smallest sum of squares.

    Exact dynamic programme over the cuts. The tail (head, MTP) stays on one stage: its head is shared. Loads are whole
    numbers, so that cuts which only swap equal stages tie exactly, whatever the last bits of the weights are.
    """
    units = _units(kinds)
    unit_load = max(weights.values()) * 1e-9 or 1.0
    cost = [sum(round(weights[kind] / unit_load) for kind in unit) for unit in units]
    total = [0]
    for value in cost:
        total.append(total[-1] + value)
    n = len(units)
    limit = _reachable(cost, stages)
    never = float("inf")
    worst, square = [0.0] + [never] * n, [0.0] + [never] * n  # of the best cut before each unit
    cuts: list[list[int]] = []
    for stage in range(1, stages + 1):
        slowest, squares, cut = [never] * (n + 1), [never] * (n + 1), [0] * (n + 1)
        first = max(stage, bisect_left(total, total[n] - (stages - stage) * limit))
        last = min(n - (stages - stage), bisect_right(total, stage * limit) - 1)
        for end in range(first, last + 1):
            high = never
            for start in range(max(stage - 1, bisect_left(total, total[end] - limit)), end):
                load = total[end] - total[start]
                most = worst[start] if worst[start] > load else load
                if most > high:
                    continue
                squared = square[start] + load * load
                if most < high or squared < squares[end]:
                    high, squares[end], cut[end] = most, squared, start
            slowest[end] = high
        worst, square = slowest, squares
        cuts.append(cut)
    bounds = [n]
    for cut in reversed(cuts):
        bounds.append(cut[bounds[-1]])
    bounds.reverse()
    return tuple(tuple(kind for unit in units[a:b] for kind in unit) for a, b in itertools.pairwise(bounds))


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


def _units(kinds: Sequence[str]) -> list[tuple[str, ...]]:
    """Indivisible groups of blocks: the embedding, each layer, head and MTP together (they share the head)."""
    tail = kinds.index("head")
    return [*((kind,) for kind in kinds[:tail]), tuple(kinds[tail:])]
