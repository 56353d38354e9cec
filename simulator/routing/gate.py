"""How many nodes and ranks a token reaches through the gate.

Volumes are expectations over affinities that are independent and uniform on (0, 1), the state of a balanced
gate. Experts lie on ranks in order, ranks on nodes in order, and the gate's groups are equal runs of experts.
The node-limited gate of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) keeps the `node_limit` groups with the
highest sum of their two highest affinities and picks the `top_k` experts among those; DeepSeek-V2 scores a
group by its highest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, exp, lgamma
from operator import mul

from simulator.errors import InputError
from simulator.ops import Gate

QUANTILES = 10  # of the group threshold; the counts below change by less than 1e-3 beyond it


LEVELS = 64  # of affinity; likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What one token reaches on average, its own node and rank included if chosen.

    Parameters
    ----------
    nodes : expected nodes.
    ranks : expected ranks.
    """

    nodes: float
    ranks: float


@lru_cache(maxsize=1024)
def reach(gate: Gate, ranks: int, ranks_per_node: int) -> Reach:
    """Expected nodes and ranks per token whose experts lie on `ranks` ranks, `ranks_per_node` of which share a node.

    Raises InputError where the experts do not spread evenly, or the kept groups hold too few of them.
    """
    _check(gate, ranks, ranks_per_node)
    nodes = max(1, ranks // ranks_per_node)
    if not gate.is_limited:
        return Reach(
            nodes=_distinct(nodes, gate.experts, gate.top_k),
            ranks=_distinct(ranks, gate.experts, gate.top_k),
        )
    if (
        gate.top_k == gate.node_limit * gate.group_size
    ):  # all experts of the kept groups: only groups are left to chance
        return Reach(nodes=_covered(gate, nodes), ranks=_covered(gate, ranks))
    return Reach(nodes=min(gate.top_k, _reached(gate, nodes)), ranks=min(gate.top_k, _reached(gate, ranks)))


def _check(gate: Gate, ranks: int, ranks_per_node: int) -> None:
    experts, top_k, groups, node_limit = gate.experts, gate.top_k, gate.groups, gate.node_limit
    if top_k > experts > 0:
        raise InputError(f"gate: top_k = {top_k}: a token cannot choose more than the {experts} experts there are")
    if min(ranks, ranks_per_node, experts, top_k) < 1 or min(groups, node_limit) < 0:
        raise InputError(
            f"gate: ranks={ranks}, ranks_per_node={ranks_per_node}, experts={experts}, top_k={top_k} must be "
            f"at least 1 and groups={groups}, node_limit={node_limit} at least 0"
        )
    if ranks > ranks_per_node and ranks % ranks_per_node:
        raise InputError(
            f"ep = {ranks} does not fill nodes of {ranks_per_node} GPUs; take a multiple of {ranks_per_node}"
        )
    if experts % ranks:
        raise InputError(f"{experts} experts do not spread evenly over {ranks} ranks; take a divisor of {experts}")
    if gate.scored not in (1, 2):
        raise InputError(f"a group is scored by its 1 or 2 highest affinities, not {gate.scored}")
    if gate.is_limited:
        size = gate.group_size
        if experts % groups:
            raise InputError(f"{experts} experts do not split into {groups} groups; take a divisor of {experts}")
        if size < 2 or node_limit * size < top_k:
            raise InputError(f"{node_limit} groups of {size} experts hold no top {top_k}; raise node_limit")


def _distinct(places: float, experts: int, picks: int) -> float:
    """Expected places hit by `picks` of `experts` sampled without replacement; places hold equal runs of
    experts."""
    held = experts / places
    missed = 1.0
    for drawn in range(picks):
        missed *= max(0.0, experts - held - drawn) / (experts - drawn)
    return places * (1.0 - missed)


def _covered(gate: Gate, places: int) -> float:
    """Expected places hit when all experts of the kept groups are chosen."""
    if places >= gate.groups:
        return gate.node_limit * places / gate.groups
    return _distinct(places, gate.groups, gate.node_limit)


def _reached(gate: Gate, places: int) -> float:
    """Expected places hit by the chosen experts, places being equal runs of experts (nodes or ranks)."""
    if places >= gate.groups:  # a group spans whole places: only the number of its experts chosen matters
        inside = places / gate.groups
        return gate.node_limit * sum(
            p * _distinct(inside, gate.group_size, min(picks, gate.group_size)) for picks, p in enumerate(_picks(gate))
        )
    # A place holds whole groups: missed when none of its kept groups is hit.
    per_place = gate.groups // places
    missed = 0.0
    for held in range(min(per_place, gate.node_limit) + 1):
        others = gate.groups - per_place
        ways = comb(per_place, held) * comb(others, gate.node_limit - held) / comb(gate.groups, gate.node_limit)
        missed += ways * _all_empty(gate, held)
    return places * (1.0 - missed)


@lru_cache(maxsize=256)
def _picks(gate: Gate) -> tuple[float, ...]:
    """P(a kept group holds j of the chosen experts), j = 0 .. top_k.

    The group holds at least j when at most top_k - j experts of the other kept groups beat its j-th.
    """
    k = gate.top_k
    at_least = [0.0] * (k + 2)
    at_least[0] = 1.0
    for weight, levels in _levels(gate):
        others = [_power(row, gate.node_limit - 1) for row in levels]
        for j in range(1, k + 1):
            own = [1.0 - sum(row[:j]) for row in levels]
            beaten = [sum(row[: k - j + 1]) for row in others]
            at_least[j] += weight * _stieltjes(own, beaten)
    return tuple(at_least[j] - at_least[j + 1] for j in range(k + 1))


@lru_cache(maxsize=256)
def _all_empty(gate: Gate, held: int) -> float:
    """P(none of the chosen experts lies in `held` given kept groups): the top k of the others come first."""
    if held == 0:
        return 1.0
    if (gate.node_limit - held) * gate.group_size < gate.top_k:
        return 0.0
    total = 0.0
    for weight, levels in _levels(gate):
        full = [1.0 - sum(_power(row, gate.node_limit - held)) for row in levels]
        total += weight * _stieltjes(full, [row[0] ** held for row in levels])
    return total


def _stieltjes(rising: Sequence[float], value: Sequence[float]) -> float:
    """Integral of `value` over the increments of `rising` (trapezoid)."""
    steps = zip(rising, rising[1:], value, value[1:], strict=False)
    return sum((hi - lo) * 0.5 * (a + b) for lo, hi, a, b in steps)


def _power(row: Sequence[float], n: int) -> list[float]:
    """Distribution of the sum of `n` independent counts, kept up to the length of `row`."""
    total = [1.0] + [0.0] * (len(row) - 1)
    for _ in range(n):
        total = [sum(map(mul, total, row[j::-1])) for j in range(len(row))]
    return total


Levels = list[tuple[float, ...]]


def _levels(gate: Gate) -> list[tuple[float, Levels]]:
    """For quantiles of the threshold that kept groups pass: (weight, P(n experts of a kept group above level
    t)).

    Levels are distances t from the highest affinity. Row i holds n = 0 .. top_k - 1 at level i. Given the
    score of the best dropped group, kept groups are independent."""
    out = []
    spread = 1.0 - (1e-9) ** (1.0 / gate.group_size)
    for weight, bound in _thresholds(gate):
        grid = [spread * (i / LEVELS) ** 2 for i in range(LEVELS + 1)]
        out.append((weight, [_counts(gate, t, bound) for t in grid]))
    return out


def _thresholds(gate: Gate) -> list[tuple[float, float]]:
    """Quantiles (weight, s) of the best dropped group's score, as distance from the highest possible.

    Its position u in the distribution of scores is Beta(kept + 1, groups - kept).
    """
    a, b = gate.node_limit + 1, gate.groups - gate.node_limit
    scale = exp(lgamma(a + b) - lgamma(a) - lgamma(b))
    points = [(i + 0.5) / QUANTILES for i in range(QUANTILES)]
    weights = [scale * u ** (a - 1) * (1 - u) ** (b - 1) for u in points]
    total = sum(weights)
    return [(w / total, _invert(gate, u)) for w, u in zip(weights, points, strict=True)]


def _invert(gate: Gate, u: float) -> float:
    low, high = 0.0, float(gate.scored)
    for _ in range(40):
        mid = 0.5 * (low + high)
        low, high = (mid, high) if _passed(gate, mid) < u else (low, mid)
    return 0.5 * (low + high)


def _passed(gate: Gate, bound: float) -> float:
    """P(a group's score lies within `bound` of the highest possible)."""
    m, rest = gate.group_size, max(0.0, 1.0 - bound)
    if gate.scored == 1:
        return 1.0 - rest**m
    return 1.0 - 2.0 * max(0.0, 1.0 - bound / 2) ** m + rest**m


def _counts(gate: Gate, t: float, bound: float) -> tuple[float, ...]:
    """P(n of the group's experts lie within t of the highest affinity | its score lies within `bound`), n <
    top_k."""
    norm = _passed(gate, bound)
    terms = _counts_max(gate, t, bound) if gate.scored == 1 else _counts_pair(gate, t, bound)
    return tuple(min(1.0, max(0.0, p / norm)) for p in terms)


def _counts_max(gate: Gate, t: float, bound: float) -> list[float]:
    """Joint probabilities with a best expert within `bound`: binomial, less where the best lies beyond."""
    m, near = gate.group_size, min(1.0, bound)
    if t <= near:
        row = [comb(m, n) * t**n * (1 - t) ** (m - n) for n in range(gate.top_k)]
        row[0] -= (1 - near) ** m
        return row
    out = [0.0]
    for n in range(1, gate.top_k):
        out.append(comb(m, n) * (t**n - (t - near) ** n) * (1 - t) ** (m - n))
    return out


def _counts_pair(gate: Gate, t: float, bound: float) -> list[float]:
    """Joint probabilities with d1 + d2 <= `bound`, d1 <= d2 the distances of the two best of m uniform
    experts.

    Their density is m (m - 1) (1 - d2)^(m - 2); integrating it over d1 > t, over d1 <= t < d2 and over d2 <=
    t gives the three cases; in the last the other n - 2 are binomial between d2 and t."""
    m, s = gate.group_size, bound
    rest, half = max(0.0, 1.0 - s), max(0.0, 1.0 - s / 2)
    none = (1 - t) ** m + max(0.0, 1 - s + t) ** m - 2 * half**m if t < s / 2 else 0.0
    u = min(t, s - t)
    one = m * (1 - t) ** (m - 1) * u - max(0.0, 1 - s + u) ** m + rest**m if u > 0 else 0.0
    out = [none, one]
    for n in range(2, gate.top_k):
        ways = m * (m - 1) * comb(m - 2, n - 2) if m >= n else 0
        out.append(ways * (1 - t) ** max(0, m - n) * _wedge(t, s, n - 2))
    return out[: gate.top_k]


def _wedge(t: float, s: float, q: int) -> float:
    """Integral over y in (0, t) of min(y, s - y)_+ (t - y)^q: where the second best may lie."""
    mid, end = min(t, s / 2), min(t, s)

    def below(y: float) -> float:  # of y (t - y)^q, up to a constant
        w = t - y
        return float(w ** (q + 2) / (q + 2) - t * w ** (q + 1) / (q + 1))

    def above(y: float) -> float:  # of (s - y) (t - y)^q
        return float(-s * (t - y) ** (q + 1) / (q + 1)) - below(y)

    return below(mid) - below(0.0) + above(end) - above(mid)
