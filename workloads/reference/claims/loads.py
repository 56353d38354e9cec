"""Loads of expert-parallel ranks out of a gate that is balanced, or not, while it works on skewed tokens."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from workloads.reference.balance import Skew, balance_run, rank_loads
from workloads.reference.config import RefConfig
from workloads.reference.count import Array
from workloads.reference.parallel.traffic import Layout

Method = Literal["none", "bias", "auxiliary-loss"]
SPEED = 1e-3  # of the bias; DeepSeek-V3 section 4.2
ALPHA, RATE = 1e-2, 30.0  # of the auxiliary loss, and of the gradient descent on it: ours, for a gate alone
TAIL = 4  # the last quarter of the steps counts: balance is reached by then, and single batches average out
SKEW = Skew(sequences=64, length=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoads:
    """Tokens of each rank over the mean, with how they came about."""

    loads: Array  # [ranks], mean 1
    method: Method
    steps: int
    tokens: int  # that were routed in the steps that count

    @property
    def max_over_mean(self) -> float:
        return float(self.loads.max())


def loads_of_ranks(cfg: RefConfig, ranks: int, method: Method, *, steps: int, seed: int = 0) -> RankLoads:
    """Loads of `ranks` ranks under this model's gate after `steps` steps of a balancing method."""
    trace = balance_run(
        cfg,
        steps=steps,
        seed=seed,
        speed=SPEED if method == "bias" else 0.0,
        alpha=ALPHA if method == "auxiliary-loss" else 0.0,
        learning_rate=RATE if method == "auxiliary-loss" else 0.0,
        skew=SKEW,
    )
    tail = trace.loads[-max(1, steps // TAIL) :]
    load = rank_loads(tail.sum(axis=0), Layout(experts=cfg.experts, ranks=ranks, nodes=1))
    tokens = len(tail) * SKEW.sequences * SKEW.length
    return RankLoads(loads=load / load.mean(), method=method, steps=steps, tokens=tokens)


def as_toml(found: RankLoads, *, model: str, extends: str) -> str:
    """A job file: another job, `extends`, with these loads as its routing."""
    rounded = np.round(found.loads, 4)
    lines = [", ".join(f"{load:.4f}" for load in rounded[i : i + 12]) for i in range(0, len(rounded), 12)]
    body = ",\n    ".join(lines)
    return (
        f"# Loads of {len(rounded)} expert-parallel ranks over their mean, from the NumPy gate of {model}: skewed\n"
        f"# synthetic tokens, balancing: {found.method}, {found.steps} steps, the last {found.tokens} tokens counted.\n"
        f'extends = "{extends}"\n\n[routing]\nkind = "given"\nloads = [\n    {body},\n]\n'
    )
