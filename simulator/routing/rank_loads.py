"""Tokens of every rank of an expert-parallel group, in one layer and microbatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.ops import Gate
from simulator.routing.loads import check_routing, hot_shares, moe_layers, rank_shares
from simulator.routing.placement import Placement, in_order
from simulator.routing.popularity import chosen_shares, popularity, tokens_of_microbatch
from simulator.spec.job import Routing
from simulator.spec.scenario import Scenario
from simulator.spec.uneven import ExpertCounts

Array = NDArray[np.float64]

TokensOf = Callable[[int, int], Array]
"""(layer, microbatch) -> tokens that choose each expert in the whole group (experts)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLoads:
    """Tokens of an expert-parallel group's ranks in one layer and microbatch.

    Parameters
    ----------
    rows : tokens of each expert slot of each rank, before any padding (ranks x slots).
    """

    rows: Array

    @property
    def per_rank(self) -> Array:
        """Tokens of each rank (ranks)."""
        return np.asarray(self.rows.sum(axis=1))

    @property
    def relative(self) -> Array:
        """Load of each rank over the mean (ranks)."""
        rows = self.per_rank
        mean = float(rows.mean())
        return rows / mean if mean else np.ones_like(rows)

    @property
    def imbalance(self) -> float:
        """Load of the most loaded rank over the mean."""
        return float(self.relative.max())


def rank_loads(
    routing: Routing,
    gate: Gate,
    placement: Placement,
    *,
    tokens: int,
    layer: int,
    microbatch: int,
    counts: ExpertCounts | None = None,
) -> GroupLoads:
    """Loads of the ranks that hold the experts as `placement` says.

    Parameters
    ----------
    routing : how uneven the choice is. `skewed` and `given` say it of ranks, whatever experts these hold.
    gate : how a token chooses.
    placement : experts of each rank.
    tokens : tokens of the whole group in the microbatch.
    layer, microbatch : their numbers; `layer` as the model counts its layers.
    counts : what was recorded, for `measured`.
    """
    if routing.kind in ("skewed", "given"):
        shares = np.array(rank_shares(routing, placement.ranks))
        slots = len(placement.slots[0])
        mean = tokens * gate.top_k / (placement.ranks * slots)
        return GroupLoads(rows=np.repeat(shares[:, None] * mean, slots, axis=1))
    chosen = tokens_of(routing, gate, tokens=tokens, counts=counts)(layer, microbatch)
    return GroupLoads(rows=placement.rows(chosen))


def tokens_of(routing: Routing, gate: Gate, *, tokens: int, counts: ExpertCounts | None = None) -> TokensOf:
    """Tokens per expert of any layer and microbatch, whatever rank holds which expert.

    Of kinds that are about experts; with the others every expert has as many.
    """
    if routing.kind == "sampled":
        return lambda layer, microbatch: _sampled(routing, gate, tokens, layer, microbatch)
    if routing.kind == "hot":
        hot = np.array(hot_shares(routing, gate)) * tokens
        return lambda layer, microbatch: hot
    if routing.kind == "measured" and counts is not None:
        return lambda layer, microbatch: _scaled(counts, layer, microbatch, tokens * gate.top_k)
    return lambda layer, microbatch: np.full(gate.experts, tokens * gate.top_k / gate.experts)


@lru_cache(maxsize=1024)
def _sampled(routing: Routing, gate: Gate, tokens: int, layer: int, microbatch: int) -> Array:
    """Tokens of each expert, drawn."""
    return tokens_of_microbatch(
        _shares(gate, routing.cv, routing.seed, layer),
        gate.top_k,
        tokens=tokens,
        cv=routing.microbatch_cv,
        seed=routing.seed,
        layer=layer,
        microbatch=microbatch,
    )


@lru_cache(maxsize=1024)
def _shares(gate: Gate, cv: float, seed: int, layer: int) -> Array:
    """Shares of a layer's experts, which last for the whole step."""
    return chosen_shares(popularity(gate.experts, cv, seed=seed, layer=layer), gate)


def _scaled(counts: ExpertCounts, layer: int, microbatch: int, total: float) -> Array:
    """What was recorded, as parts of the tokens that there are."""
    recorded = counts.tokens[layer][microbatch % counts.microbatches]
    return np.asarray(recorded * (total / recorded.sum()))


LoadsOf = Callable[[int, int], GroupLoads]
"""(layer, microbatch) -> loads of the ranks."""

SAMPLE = 4
"""Microbatches whose imbalance stands for all of a step where one number is asked for."""


def loads_of(scenario: Scenario, tokens: int, placement: Placement | None = None) -> LoadsOf:
    """The loads of a scenario's expert-parallel group whose ranks bring `tokens` tokens together in a microbatch.

    Experts are in order on its ranks unless `placement` says otherwise.
    """
    model = scenario.model
    where = placement or in_order(model.n_routed_experts, scenario.job.layout.ep)
    check_routing(scenario.job.routing, where.ranks)
    return lambda layer, microbatch: rank_loads(
        scenario.job.routing,
        model.gate,
        where,
        tokens=tokens,
        layer=layer,
        microbatch=microbatch,
        counts=scenario.counts,
    )


def mean_imbalance(scenario: Scenario, tokens: int) -> float:
    """Load of the most loaded rank over the mean: mean over layers and the first microbatches of a step."""
    of = loads_of(scenario, tokens)
    many = min(SAMPLE, max(1, scenario.job.microbatches))
    found = [of(layer, at).imbalance for layer in moe_layers(scenario.model) for at in range(many)]
    return sum(found) / len(found)
