"""Memory follows routing: the rank that most tokens are sent to keeps most, and runs out of memory first."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from simulator.graph.shapes import Shapes, group_tokens
from simulator.routing.loads import BY_EXPERT, moe_layers, rank_shares
from simulator.spec.scenario import Scenario

MICROBATCHES = 2
"""Microbatches over which loads that change are averaged: a rank keeps those of several at once."""


def overload_of(scenario: Scenario) -> float:
    """Tokens of the rank that keeps most over those of a mean one.

    A rank keeps the tokens of all its layers and of several microbatches. Loads that change from layer to layer are
    therefore averaged for each rank before the highest is taken.
    """
    routing, ranks = scenario.job.routing, scenario.job.layout.ep
    if ranks == 1 or not scenario.model.is_moe:
        return 1.0
    if routing.kind not in BY_EXPERT:
        return max(rank_shares(routing, ranks))
    from simulator.routing.rank_loads import loads_of  # NumPy takes 0.1 s to load

    loads, layers = loads_of(scenario, group_tokens(scenario)), moe_layers(scenario.model)
    found = [loads(layer, microbatch).relative.tolist() for layer in layers for microbatch in range(MICROBATCHES)]
    means = [float(sum(mine)) / len(mine) for mine in zip(*found, strict=True)]
    return max(1.0, *means)


def most_loaded(s: Shapes, scenario: Scenario) -> Shapes:
    """The shapes of the rank that keeps most; `s` where all keep the same."""
    share = overload_of(scenario)
    if share == 1.0:
        return s
    most = s.received * s.job.layout.ep if s.stack.dispatcher == "nccl" else s.tokens * s.job.layout.ep
    return replace(s, rows=ceil(share * s.rows), received=min(ceil(share * s.received), most))
