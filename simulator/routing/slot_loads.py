"""Tokens of every slot of a serving job's expert-parallel group: through its gate and its placement of the experts."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.ops import Gate
from simulator.routing.eplb import balanced, with_copies_in_order
from simulator.routing.loads import hot_shares, moe_layers, rank_shares
from simulator.routing.placement import Placement, in_order
from simulator.routing.popularity import chosen_shares, popularity
from simulator.routing.rank_loads import GroupLoads, tokens_of
from simulator.spec.job import Routing
from simulator.spec.scenario import Scenario
from simulator.spec.serving import Serving, expert_slots

Array = NDArray[np.float64]

PlacementOf = Callable[[int], Placement]
"""Layer -> where its experts stand."""


def policy_of(scenario: Scenario) -> str:
    """How the job's experts are placed: off, global or hierarchical."""
    serving = scenario.job.serving
    assert serving is not None
    if serving.eplb not in ("auto", "on"):
        return serving.eplb
    if serving.eplb == "auto" and not serving.redundant_experts:
        return "off"
    groups, nodes = scenario.model.gate.groups, nodes_of(scenario)
    fits = groups > 1 and groups % nodes == 0 and serving.redundant_experts % nodes == serving.shared_slots % nodes == 0
    return "hierarchical" if nodes > 1 and fits else "global"


def nodes_of(scenario: Scenario) -> int:
    """Nodes of an expert-parallel group."""
    return max(1, scenario.job.layout.ep // scenario.cluster.node.gpus)


def placements(scenario: Scenario) -> PlacementOf:
    """Where the experts of each layer stand.

    A balancer sees what it could have counted: the expected load of each expert, not the tokens of this step.
    """
    serving, model, ep = scenario.job.serving, scenario.model, scenario.job.layout.ep
    assert serving is not None
    policy, slots = policy_of(scenario), expert_slots(model, serving)
    fixed = (serving.shared_slots,) if serving.shared_slots else ()
    if policy == "off" and slots == model.n_routed_experts:
        return lambda layer: in_order(slots, ep)
    if policy == "off":
        return lambda layer: with_copies_in_order(model.n_routed_experts, slots=slots, ranks=ep, fixed=fixed)
    nodes, groups = (nodes_of(scenario), model.gate.groups) if policy == "hierarchical" else (1, 1)
    return lambda layer: _balanced(
        tuple(expected_shares(scenario, layer)) + ((1.0,) if fixed else ()), slots, ep, nodes, groups, fixed
    )


@lru_cache(maxsize=1024)
def _balanced(
    loads: tuple[float, ...], slots: int, ranks: int, nodes: int, groups: int, fixed: tuple[int, ...]
) -> Placement:
    return balanced(loads, slots=slots, ranks=ranks, nodes=nodes, groups=groups, fixed=fixed)


def expected_shares(scenario: Scenario, layer: int) -> list[float]:
    """Expected part of the tokens that choose each routed expert of a layer; as tokens choose top_k, they sum to it."""
    routing, gate = scenario.job.routing, scenario.model.gate
    if routing.kind == "measured" and scenario.counts is not None:
        counted = np.asarray(scenario.counts.tokens[layer], dtype=np.float64).sum(axis=0)
        return [float(each) for each in counted * (gate.top_k / counted.sum())]
    return list(_sampled(routing, gate, layer))


@lru_cache(maxsize=1024)
def _sampled(routing: Routing, gate: Gate, layer: int) -> tuple[float, ...]:
    if routing.kind == "hot":
        return tuple(hot_shares(routing, gate))
    if routing.kind != "sampled":
        return (gate.top_k / gate.experts,) * gate.experts
    found = chosen_shares(popularity(gate.experts, routing.cv, seed=routing.seed, layer=layer), gate)
    return tuple(float(each) for each in found)


def mean_chosen(scenario: Scenario, tokens: int) -> float:
    """Experts of a layer that at least one of `tokens` tokens chooses, in expectation: mean over layers."""
    layers = moe_layers(scenario.model)
    if scenario.job.routing.kind == "hot":
        layers = layers[:1]
    shares = np.array([expected_shares(scenario, layer) for layer in layers])
    return float((1.0 - (1.0 - np.minimum(shares, 1.0)) ** tokens).sum(axis=1).mean())


def slot_loads(scenario: Scenario, tokens: int) -> Callable[[int, int], GroupLoads]:
    """(layer, microbatch) -> tokens of each slot of each rank, where the ranks bring `tokens` tokens together."""
    serving, routing = scenario.job.serving, scenario.job.routing
    assert serving is not None
    if routing.kind in ("skewed", "given"):
        return lambda layer, microbatch: _of_ranks(scenario, serving, tokens)
    chosen, where = tokens_of(routing, scenario.model.gate, tokens=tokens, counts=scenario.counts), placements(scenario)

    def of(layer: int, microbatch: int) -> GroupLoads:
        each = chosen(layer, microbatch)
        if serving.shared_slots:
            each = np.append(each, float(tokens))
        return GroupLoads(rows=where(layer).rows(each))

    return of


def _of_ranks(scenario: Scenario, serving: Serving, tokens: int) -> GroupLoads:
    """Loads that the job gives by rank, whatever experts stand there."""
    ep, model = scenario.job.layout.ep, scenario.model
    slots = expert_slots(model, serving) // ep
    chosen = model.num_experts_per_tok + (1 if serving.shared_slots else 0)
    shares = np.array(rank_shares(scenario.job.routing, ep))
    return GroupLoads(rows=np.repeat(shares[:, None] * (tokens * chosen / (ep * slots)), slots, axis=1))


def mean_slot_imbalance(scenario: Scenario, tokens: int) -> float:
    """Load of the most loaded rank over the mean: mean over the layers of one step."""
    of, layers = slot_loads(scenario, tokens), moe_layers(scenario.model)
    if scenario.job.routing.kind in ("uniform", "hot"):  # all layers are alike
        layers = layers[:1]
    found = [of(layer, 0).imbalance for layer in layers]
    return sum(found) / len(found)
