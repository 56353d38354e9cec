"""How evenly the gate loads the expert-parallel ranks: tokens per expert and rank.

Every shipped job takes balanced ranks: nobody has published how evenly a trained gate loads the ranks of one
microbatch, and DeepSeek's training profile does not show it. Its gate uses random scores (`randn_like` before the
sigmoid), and its routed tokens, -6 to +5 % off the mean in four layers, spread as if all ranks used the same random
numbers: one rank's 4096 tokens times 64 spread by 4.4 %, 64 independent samples by 0.55 %; all four counts of received
tokens are multiples of 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from statistics import NormalDist

from simulator.errors import InputError
from simulator.spec.job import Routing

MEAN_OFF = 5e-3  # of given loads from 1: four written digits of 64 ranks stay well within


PADDING = 128  # rows; block of the grouped GEMM and of FP8 scales (arXiv 2412.19437, section 3.3.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoads:
    """Routed tokens of a rank (rows of its expert GEMMs), padded per expert.

    Parameters
    ----------
    mean_rows : mean over ranks [tokens].
    rows : of the rank that was asked for [tokens].
    max_over_mean : load of the most loaded rank over the mean.
    """

    mean_rows: float
    rows: float
    max_over_mean: float


def imbalance(routing: Routing, ranks: int, experts_per_rank: int) -> float:
    """Rows of the most loaded rank over the mean; for `sampled` the expected maximum over the ranks.

    Expert loads of a Dirichlet gate with coefficient of variation cv are gamma variates; a rank's load, the
    mean of its experts', is gamma with shape experts_per_rank / cv^2."""
    _check_routing(routing, ranks)
    if routing.kind == "uniform" or ranks <= 1:
        return 1.0
    if routing.kind == "given":
        return max(_given(routing, ranks, experts_per_rank, 0))
    if routing.kind == "skewed":
        return min(routing.max_over_mean, float(ranks))
    return _expected_max(routing.cv**2 / experts_per_rank, ranks)


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


def _check_routing(routing: Routing, ranks: int) -> None:
    wrong = loads_problem(routing, ranks)
    if wrong:
        raise InputError(f"routing.loads: {wrong}")
    if routing.max_over_mean < 1.0:
        raise InputError(
            f"routing.max_over_mean = {routing.max_over_mean} is below 1: the maximum is at least the mean"
        )
    if routing.cv < 0.0:
        raise InputError(f"routing.cv = {routing.cv} is negative: write standard deviation over mean, e.g. 0.1")


def _expected_max(variance: float, n: int) -> float:
    """Expected maximum of `n` gamma variates of mean 1 and this variance, by quadrature over its quantiles.

    The quantile of a gamma variate follows Wilson and Hilferty (1931): its cube root is nearly normal.
    """
    normal, points = NormalDist(), 64
    spread = variance / 9.0
    total = 0.0
    for i in range(points):
        u = ((i + 0.5) / points) ** (1.0 / n)
        total += max(0.0, 1.0 - spread + normal.inv_cdf(u) * spread**0.5) ** 3
    return max(1.0, total / points)


def load(
    routing: Routing,
    *,
    ep: int,
    tokens: int,
    top_k: int,
    experts: int,
    rank: int = 0,
    padding: int = PADDING,
    seed: int = 0,
) -> RankLoads:
    """Rows of rank `rank` when each of `ep` ranks routes `tokens` tokens to `top_k` experts.

    `uniform`: every rank has the mean. `skewed`: rank 0 has `max_over_mean` times the mean, the others share
    the rest. `sampled`: sampled from the Dirichlet gate with `seed`. `given`: as the job lists them. Each
    expert's rows are padded by half a block on average."""
    _check_routing(routing, ep)
    if experts % ep:
        raise InputError(f"{experts} experts do not spread evenly over ep = {ep} ranks; take a divisor of {experts}")
    if not 0 <= rank < ep:
        raise InputError(f"rank {rank} is not one of 0 .. {ep - 1}")
    local = experts // ep
    mean = float(tokens * top_k)
    pad = local * max(0, padding - 1) / 2.0 if tokens else 0.0
    shares = _SHARES[routing.kind](routing, ep, local, seed)
    top = max(shares)
    return RankLoads(
        mean_rows=mean + pad,
        rows=mean * shares[rank] + pad,
        max_over_mean=top,
    )


def _uniform(routing: Routing, ranks: int, local: int, seed: int) -> list[float]:
    return [1.0] * ranks


def _skewed(routing: Routing, ranks: int, local: int, seed: int) -> list[float]:
    if ranks == 1:
        return [1.0]
    top = min(routing.max_over_mean, float(ranks))
    return [top] + [(ranks - top) / (ranks - 1)] * (ranks - 1)


def _sampled(routing: Routing, ranks: int, local: int, seed: int) -> list[float]:
    if routing.cv == 0.0 or ranks == 1:
        return [1.0] * ranks
    draw = Random(seed)
    shape = 1.0 / routing.cv**2
    loads = [sum(draw.gammavariate(shape, 1.0) for _ in range(local)) for _ in range(ranks)]
    mean = sum(loads) / ranks
    return [x / mean for x in loads]


def _given(routing: Routing, ranks: int, local: int, seed: int) -> list[float]:
    mean = sum(routing.loads) / ranks
    return [load / mean for load in routing.loads]


_SHARES: dict[str, Callable[[Routing, int, int, int], list[float]]] = {
    "uniform": _uniform,
    "skewed": _skewed,
    "sampled": _sampled,
    "given": _given,
}
