"""The ranks of a scenario that differ, as columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.engine.lower import drawn_clocks
from simulator.engine.power import slowdown_above
from simulator.engine.ranks.columns import Columns, LoadsOfColumns
from simulator.engine.ranks.tables import FINEST
from simulator.graph.shapes import group_tokens
from simulator.routing.loads import moe_layers
from simulator.routing.rank_loads import loads_of
from simulator.spec.scenario import Scenario
from simulator.spec.uneven import Stragglers

Array = NDArray[np.float64]

PERSISTENT = ("uniform", "skewed", "hot", "given")
"""Kinds of routing under which a rank has the same load in every layer and microbatch."""


def columns_of(scenario: Scenario, pp: int, watts: float | None = None) -> Columns:
    """The columns of a scenario on `pp` pipeline ranks: the expert-parallel group with the slow GPUs, or all groups.

    Ranks of one group that are alike share a column where loads persist. `watts`: mean power that a GPU would demand at
    full clock [W].
    """
    slow = scenario.job.stragglers
    ranks, groups = _groups(scenario)
    relative = _relative(scenario, ranks, groups)
    names = list(range(ranks * groups))
    if scenario.job.routing.kind in PERSISTENT and not slow.jitter and groups == 1:
        first = np.stack([relative(0, 0), of_nodes(relative(0, 0), ranks, scenario), np.arange(ranks) < slow.gpus])
        names = sorted(np.unique(first, axis=1, return_index=True)[1].tolist())
    at = np.array(names)

    def nodes(layer: int, microbatch: int) -> Array:
        return _with_mean(of_nodes(relative(layer, microbatch), ranks, scenario)[at])

    return Columns(
        names=tuple(names),
        starts=tuple(range(0, ranks * groups, ranks)),
        loads=_kept(lambda layer, microbatch: _with_mean(relative(layer, microbatch)[at])),
        node_loads=_kept(nodes),
        slowdown=_where(slow, pp, at, slow.slowdown),
        nic=_where(slow, pp, at, 1.0 / slow.nic),
        pace=_paces(scenario, pp, len(names), watts),
        jitter=_jitter(slow, len(names)) if slow.jitter else None,
    )


def _groups(scenario: Scenario) -> tuple[int, int]:
    """(ranks of a group, groups that are simulated): replicas of a dense model are groups of one."""
    job = scenario.job
    every = job.stragglers.groups == "all" or drawn_clocks(scenario)
    if scenario.model.is_moe:
        return job.layout.ep, job.edp if every else 1
    return (1, job.dp) if every else (max(1, job.stragglers.gpus), 1)


def _paces(scenario: Scenario, pp: int, columns: int, watts: float | None) -> Array:
    """How much longer tensor kernels last on each GPU than on one with the mean demand (pipeline ranks x columns).

    A column stands for the GPUs that share a rank's matrices, and is as slow as their slowest.
    """
    gpu, out = scenario.cluster.gpu, np.ones((pp, columns + 1))
    if watts is None or not drawn_clocks(scenario):
        return out
    each = max(1, scenario.job.gpus // (pp * columns))
    usual = slowdown_above(watts, gpu, 0.0)
    for stage in range(pp):
        drawn = np.random.default_rng((scenario.job.stragglers.seed, stage)).standard_normal((columns, each))
        out[stage, :-1] = [slowdown_above(watts, gpu, float(above)) / usual for above in drawn.max(axis=1)]
    return out


def _kept(of: LoadsOfColumns) -> LoadsOfColumns:
    """The same, remembering the last ones."""
    return lru_cache(maxsize=8192)(of)


def _relative(scenario: Scenario, ranks: int, groups: int) -> LoadsOfColumns:
    """Load of each rank of the groups over the mean. Groups have tokens of their own, but experts of one popularity."""
    every = np.ones(ranks * groups)
    if not scenario.model.is_moe or scenario.job.routing.kind == "uniform":
        return lambda layer, microbatch: every
    of, many = loads_of(scenario, group_tokens(scenario)), scenario.job.microbatches
    if scenario.job.routing.kind in PERSISTENT:
        only = np.tile(of(0, 0).relative, groups)
        return lambda layer, microbatch: only

    def found(layer: int, microbatch: int) -> Array:
        if layer < 0:
            return every
        return np.concatenate([of(layer, microbatch + group * many).relative for group in range(groups)])

    return _kept(found)


def of_nodes(relative: Array, ranks: int, scenario: Scenario) -> Array:
    """Load of each rank's node over the mean; `ranks` are in a group."""
    per_node = min(ranks, scenario.cluster.node.gpus)
    if ranks % per_node:
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
