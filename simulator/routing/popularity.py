"""Experts of uneven popularity: how often a token chooses each through the gate, and the tokens of one microbatch.

A token's affinity to expert e is u^(1/q), u uniform on (0, 1) and q the expert's popularity (mean 1): without limits
experts are chosen in the order in which exponential clocks with rates q ring (Plackett-Luce). With equal popularities
that is the gate of `simulator.routing.gate`. Which clock rings last of the chosen is taken to be at its expected time
(Rosen, 1972, on sampling with varying probabilities). A limited gate keeps the groups whose first clock, or whose first
two together, ring early enough; an expert's own clock helps its group. `tests/routing` holds the shares against a gate
that draws every affinity.

Popularities are log-normal: the distribution that fits recorded tokens per rank of DeepSeek-V3 best, layer by layer
(deepseek-ai/DeepEP, pull request 393, 2025-09, on MMLU-Pro).
"""

from __future__ import annotations

from math import log

import numpy as np
from numpy.typing import NDArray

from simulator.ops import Gate

Array = NDArray[np.float64]

TIMES = 48
"""Times at which the choice of a limited gate is integrated."""

LASTING, PASSING = 0, 1
"""Streams of random numbers: what lasts for the whole step, and what each microbatch draws anew."""


def popularity(experts: int, cv: float, *, seed: int, layer: int) -> Array:
    """Popularity of each expert of a layer, mean 1; `cv` is its coefficient of variation (experts)."""
    return _log_normal(np.random.default_rng((seed, LASTING, layer)), experts, cv)


def tokens_of_microbatch(
    shares: Array, top_k: int, *, tokens: int, cv: float, seed: int, layer: int, microbatch: int
) -> Array:
    """Tokens that choose each expert in one microbatch of `tokens` tokens; they sum up to tokens x top_k (experts).

    `shares` are those of the layer (`chosen_shares`); each microbatch multiplies them by factors of its own with
    coefficient of variation `cv`, and its tokens are drawn (multinomial).
    """
    random = np.random.default_rng((seed, PASSING, layer, microbatch))
    wanted = shares * _log_normal(random, len(shares), cv)
    return random.multinomial(tokens * top_k, wanted / wanted.sum()).astype(np.float64)


def _log_normal(random: np.random.Generator, count: int, cv: float) -> Array:
    """Log-normal variates of mean 1 over themselves."""
    if cv == 0.0:
        return np.ones(count)
    drawn = random.lognormal(0.0, log(1.0 + cv * cv) ** 0.5, count)
    return np.asarray(drawn / drawn.mean())


def chosen_shares(popular: Array, gate: Gate) -> Array:
    """Expected part of a token's choice that goes to each expert: between 0 and 1, in all top_k (experts)."""
    free = _first(popular, float(gate.top_k))
    if not gate.is_limited:
        return np.asarray(1.0 - np.exp(-free * popular))
    groups = popular.reshape(gate.groups, gate.group_size).sum(axis=1)
    total = np.repeat(groups, gate.group_size)
    bound = _bound(groups, gate)
    latest = 2.0 * free * gate.groups / gate.node_limit
    for _ in range(20):
        times = latest * np.linspace(0.0, 1.0, TIMES) ** 2
        chosen = _chosen_before(times, popular, total - popular, bound, gate.scored)
        if chosen[:, -1].sum() >= gate.top_k:
            break
        latest *= 2.0
    sums = chosen.sum(axis=0)
    at = int(np.searchsorted(sums, gate.top_k, side="right").clip(1, TIMES - 1))
    part = min(1.0, (gate.top_k - sums[at - 1]) / (sums[at] - sums[at - 1]))
    return np.asarray(chosen[:, at - 1] + part * (chosen[:, at] - chosen[:, at - 1]))


def _first(rates: Array, wanted: float) -> float:
    """The time before which `wanted` of the clocks with these rates are expected to ring."""
    if wanted >= len(rates):
        return 60.0 / float(rates.min())
    time = wanted / float(rates.sum())
    for _ in range(60):  # Newton from the left of a concave rising function: it never overshoots
        silent = np.exp(-time * rates)
        short = wanted - float((1.0 - silent).sum())
        if abs(short) <= 1e-10 * wanted:
            break
        time += short / float(rates @ silent)
    return time


def _bound(groups: Array, gate: Gate) -> float:
    """The sum of its `scored` first times up to which a group is kept, so that `node_limit` are."""
    low, high = 0.0, 1.0
    while _kept(groups, high, gate.scored).sum() < gate.node_limit:
        high *= 2.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        few = _kept(groups, middle, gate.scored).sum() < gate.node_limit
        low, high = (middle, high) if few else (low, middle)
    return 0.5 * (low + high)


def _kept(rate: Array, bound: float, scored: int) -> Array:
    """P(the first time, or the first two together, of clocks with these rates in all stay below `bound`)."""
    if scored == 1:
        return np.asarray(1.0 - np.exp(-rate * bound))
    return np.asarray((1.0 - np.exp(-0.5 * rate * bound)) ** 2)


def _chosen_before(times: Array, own: Array, others: Array, bound: float, scored: int) -> Array:
    """P(an expert's clock rings before each time, and its group is kept) (experts x times).

    `own` is its rate, `others` that of the rest of its group; the trapezoid rule over the time at which it rings.
    """
    time, rate = times[None, :], others[:, None]
    if scored == 1:
        kept = np.where(time < bound, 1.0, _kept(rate, bound, 1))
    else:
        early = 1.0 - np.exp(-rate * np.maximum(bound - time, 0.0))
        late = 1.0 - 2.0 * np.exp(-0.5 * rate * bound) + np.exp(-rate * np.minimum(time, bound))
        kept = np.where(2.0 * time <= bound, early, late)
    rung = 1.0 - np.exp(-own[:, None] * time)
    pieces = np.diff(rung, axis=1) * 0.5 * (kept[:, 1:] + kept[:, :-1])
    return np.concatenate([np.zeros((len(own), 1)), pieces.cumsum(axis=1)], axis=1)
