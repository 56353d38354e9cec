"""How evenly the gate loads the expert-parallel ranks: tokens per expert and rank.

A training job that says nothing takes what others measured (`simulator.routing.published_loads`), and intervals draw
its range. DeepSeek's training profile does not show loads. Its gate uses random scores (`randn_like` before the
sigmoid), and its routed tokens, -6 to +5 % off the mean in four layers, spread as if all ranks used the same random
numbers: one rank's 4096 tokens times 64 spread by 4.4 %, 64 independent samples by 0.55 %; all four counts of received
tokens are multiples of 8.
"""

from __future__ import annotations

from simulator.errors import InputError
from simulator.ops import Gate
from simulator.spec.job import Routing
from simulator.spec.model import ModelSpec
from simulator.spec.scenario import Scenario

BY_EXPERT = ("hot", "sampled", "measured")
"""Kinds of routing that say how uneven experts are; what ranks get depends on who holds which."""
MEAN_OFF = 5e-3  # of given loads from 1: four written digits of 64 ranks stay well within


PADDING = 128  # rows; block of the grouped GEMM and of FP8 scales (arXiv 2412.19437, section 3.3.2)


def moe_layers(model: ModelSpec) -> list[int]:
    """Numbers of the layers with routed experts, counted from 0 over all layers, MTP modules last."""
    kinds = [*model.layer_kinds(), *[model.layer_kind(model.num_hidden_layers)] * model.num_nextn_predict_layers]
    return [number for number, kind in enumerate(kinds) if kind.is_moe]


def imbalance(scenario: Scenario, tokens: int) -> float:
    """Load of the most loaded expert-parallel rank over the mean, where one number stands for a whole step.

    `tokens` are those of the group in a microbatch. Of sampled and measured loads it is the mean over layers.
    """
    routing, ranks = scenario.job.routing, scenario.job.layout.ep
    check_routing(routing, ranks)
    if routing.kind in BY_EXPERT and ranks > 1:
        from simulator.routing.rank_loads import mean_imbalance  # NumPy takes 0.1 s to load

        return mean_imbalance(scenario, tokens)
    return max(rank_shares(routing, ranks))


def hot_shares(routing: Routing, gate: Gate) -> list[float]:
    """Part of the tokens that choose each expert of a layer whose expert 0 is hot; they sum to top_k."""
    mean = gate.top_k / gate.experts
    hot = mean * routing.hot_expert
    return [hot] + [(gate.top_k - hot) / (gate.experts - 1)] * (gate.experts - 1)


def loads_problem(routing: Routing, ranks: int) -> str:
    """What is wrong with the given loads of `ranks` expert-parallel ranks; empty if nothing."""
    count = len(routing.loads)
    if routing.kind != "given":
        return f'there are {count} of them; loads go with kind = "given" only' if count else ""
    if count != ranks:
        return f"there are {count} of them; each of the {ranks} expert-parallel ranks needs one"
    mean = sum(routing.loads) / count
    if min(routing.loads) < 0.0 or mean == 0.0:
        return "a load is a share of the tokens: none may be negative, not all may be 0"
    if abs(mean - 1.0) > MEAN_OFF:
        return f"their mean is {mean:.4g}; loads are relative to their mean: divide each by {mean:.4g}"
    return ""


def check_routing(routing: Routing, ranks: int) -> None:
    """Raise InputError for what cannot be."""
    wrong = loads_problem(routing, ranks)
    if wrong:
        raise InputError(f"routing.loads: {wrong}")
    if routing.max_over_mean < 1.0:
        raise InputError(
            f"routing.max_over_mean = {routing.max_over_mean} is below 1: the maximum is at least the mean"
        )
    if routing.kind == "skewed" and 1 < ranks < routing.max_over_mean:
        raise InputError(
            f"routing.max_over_mean = {routing.max_over_mean:g} is above ep = {ranks}: a rank with all tokens has"
            f" {ranks} times the mean"
        )
    if routing.cv < 0.0:
        raise InputError(f"routing.cv = {routing.cv} is negative: write standard deviation over mean, e.g. 0.1")


def mean_rows(*, ep: int, tokens: int, top_k: int, experts: int, padding: int = PADDING) -> float:
    """Rows of the expert GEMMs of a mean rank when each of `ep` ranks routes `tokens` tokens to `top_k` experts.

    Each expert's rows are padded by half a block on average.
    """
    if experts % ep:
        raise InputError(f"{experts} experts do not spread evenly over ep = {ep} ranks; take a divisor of {experts}")
    pad = experts // ep * max(0, padding - 1) / 2.0 if tokens else 0.0
    return float(tokens * top_k) + pad


def rank_shares(routing: Routing, ranks: int) -> list[float]:
    """Load of each rank over the mean, of routing that is about ranks.

    `skewed`: rank 0 has `max_over_mean` times the mean, the others share the rest. `given`: as the job lists them.
    Else all are equal.
    """
    check_routing(routing, ranks)
    if routing.kind == "given":
        mean = sum(routing.loads) / ranks
        return [load / mean for load in routing.loads]
    if routing.kind != "skewed" or ranks == 1:
        return [1.0] * ranks
    top = routing.max_over_mean
    return [top] + [(ranks - top) / (ranks - 1)] * (ranks - 1)
