"""The ranks of a scenario that differ, as columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.engine.ranks.columns import Columns, LoadsOfColumns
from simulator.engine.ranks.tables import FINEST
from simulator.graph.shapes import group_tokens
from simulator.routing.loads import moe_layers
from simulator.routing.rank_loads import loads_of
from simulator.spec.scenario import Scenario
from simulator.spec.uneven import Stragglers

Array = NDArray[np.float64]

PERSISTENT = ("uniform", "skewed", "given")
"""Kinds of routing under which a rank has the same load in every layer and microbatch."""


def columns_of(scenario: Scenario, pp: int) -> Columns:
    """The columns of a scenario on `pp` pipeline ranks: one expert-parallel group, the one with the slow GPUs.

    Ranks that are alike share a column where loads persist. If there are other groups, sound ones without uneven loads
    stand for them in a column of their own: it waits for the others when gradients are reduced.
    """
    slow = scenario.job.stragglers
    ranks = scenario.job.layout.ep if scenario.model.is_moe else 1
    if not scenario.model.is_moe:
        ranks = max(1, slow.gpus)
    relative = _relative(scenario, ranks)
    names = list(range(ranks))
    if scenario.job.routing.kind in PERSISTENT and not slow.jitter:
        first = np.stack([relative(0, 0), of_nodes(relative(0, 0), scenario), np.arange(ranks) < slow.gpus])
        names = sorted(np.unique(first, axis=1, return_index=True)[1].tolist())
    at = np.array(names)
    starts = (0,)
    return Columns(
        names=tuple(names),
        starts=starts,
        loads=_kept(lambda layer, microbatch: _with_mean(relative(layer, microbatch)[at])),
        node_loads=_kept(lambda layer, microbatch: _with_mean(of_nodes(relative(layer, microbatch), scenario)[at])),
        slowdown=_where(slow, pp, at, slow.slowdown),
        nic=_where(slow, pp, at, 1.0 / slow.nic),
        jitter=_jitter(slow, len(names)) if slow.jitter else None,
    )


def _kept(of: LoadsOfColumns) -> LoadsOfColumns:
    """The same, remembering the last ones."""
    return lru_cache(maxsize=8192)(of)


def _relative(scenario: Scenario, ranks: int) -> LoadsOfColumns:
    """Load of each rank of the group over the mean."""
    if not scenario.model.is_moe:
        return lambda layer, microbatch: np.ones(ranks)
    of = loads_of(scenario, group_tokens(scenario))
    if scenario.job.routing.kind in PERSISTENT:
        only = of(0, 0).relative
        return lambda layer, microbatch: only
    return _kept(lambda layer, microbatch: of(layer, microbatch).relative if layer >= 0 else np.ones(ranks))


def of_nodes(relative: Array, scenario: Scenario) -> Array:
    """Load of each rank's node over the mean."""
    per_node = min(len(relative), scenario.cluster.node.gpus)
    if len(relative) % per_node:
        return np.ones_like(relative)
    return np.repeat(relative.reshape(-1, per_node).mean(axis=1), per_node)


def _with_mean(values: Array) -> Array:
    return np.append(values, 1.0)


def _where(slow: Stragglers, pp: int, at: NDArray[np.intp], factor: float) -> Array:
    """`factor` on the slow GPUs, 1 elsewhere (pipeline ranks x columns)."""
    out = np.ones((pp, len(at) + 1))
    out[slow.stage % pp, :-1] = np.where(at < slow.gpus, factor, 1.0)
    return out


def _jitter(slow: Stragglers, count: int) -> Callable[[int, int], Array]:
    """Delays of hosts; the mean rank has the mean."""

    def late(rank: int, action: int) -> Array:
        drawn = np.random.default_rng((slow.seed, rank, action)).exponential(slow.jitter, count)
        return np.append(drawn, slow.jitter)

    return late


WIDER = 0.1
"""Share by which tables reach beyond the loads of a sample."""


def range_of(scenario: Scenario, columns: Columns) -> tuple[Array, Array]:
    """Loads of ranks and of nodes that tables must reach over: all there are, or a sample and some more."""
    if scenario.job.routing.kind in PERSISTENT or not scenario.model.is_moe:
        return columns.loads(0, 0), np.append(columns.node_loads(0, 0), columns.nic.max())
    many = max(1, min(3, scenario.job.microbatches))
    places = [(layer, microbatch) for layer in moe_layers(scenario.model) for microbatch in range(many)]
    found = []
    for of in (columns.loads, columns.node_loads):
        seen = np.concatenate([of(*place) for place in places])
        low, high = float(seen.min()), float(seen.max())
        found.append(np.linspace(low * (1.0 - WIDER), high * (1.0 + WIDER), FINEST))
    return found[0], found[1]
