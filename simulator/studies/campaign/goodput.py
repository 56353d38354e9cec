"""What failures cost: share of the time that ends up as training.

A checkpoint every tau seconds stops training for delta; failures come with rate lambda and throw it back to the last
checkpoint, restart included. Then a segment of tau takes (1/lambda + R)(exp(lambda (tau + delta)) - 1) on average
(Daly, "A higher order estimate of the optimum checkpoint interval", FGCS 2006, equation 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, sinh, sqrt
from typing import TYPE_CHECKING

from simulator.errors import PlanError
from simulator.studies.campaign.campaign import Failures
from simulator.units import HOUR

if TYPE_CHECKING:
    from numpy.random import Generator

_DRAWS = 1e8
"""Random numbers drawn for all sampled runs, at most; a run that needs more is sampled by the sum's distribution."""
_FAILURES = 1e15
"""A run with more failures than this never ends."""
_FLAT = 1e-3
"""Failures per segment below which the time of a failure is as good as uniform within the segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Useful time over wall-clock time under failures.

    Parameters
    ----------
    expected : in closed form, share of 1.
    mean, low, high : mean, 5th and 95th percentile of the sampled runs, share of 1.
    interval : training between checkpoints [s].
    failures : failures expected in the run.
    """

    expected: float
    mean: float
    low: float
    high: float
    interval: float
    failures: float


def rate(failures: Failures, gpus: int) -> float:
    """Failures a second of the whole job."""
    return gpus / (failures.mtbf_gpu_hours * HOUR)


def optimum_interval(failures: Failures, gpus: int, step: float = 0.0) -> float:
    """Training between two checkpoints that costs least, sqrt(2 delta / lambda) (Young, CACM 1974) [s].

    At least a `step` [s]: a checkpoint holds the state after one. Checkpoints that do not stop training (delta 0) are
    best taken after every step.
    """
    return failures.interval_s or max(step, sqrt(2 * failures.checkpoint_s / rate(failures, gpus)))


def expected(failures: Failures, gpus: int, interval: float) -> float:
    """Expected share of the time that ends up as training."""
    lost = rate(failures, gpus)
    segment = (1 / lost + failures.restart_s) * expm1(lost * (interval + failures.checkpoint_s))
    return interval / segment


def sampled(failures: Failures, gpus: int, work: float, step: float = 0.0) -> Goodput:
    """The same by sampling whole runs of `work` seconds of training in steps of `step` [s].

    Raises PlanError where failures come so often that the run never ends, and where checkpoints are to come more often
    than steps end.
    """
    import numpy as np

    if 0 < failures.interval_s < step:
        raise PlanError(
            f"failures.interval_s = {failures.interval_s:g} is shorter than a step of {step:.3g} s, and a checkpoint"
            " holds the state after one; 0 takes the optimum"
        )
    lost, interval = rate(failures, gpus), optimum_interval(failures, gpus, step)
    segments = max(1, round(work / interval))
    span = interval + failures.checkpoint_s
    _check_ends(lost, span, segments)
    random = np.random.default_rng(failures.seed)
    shares = []
    for _ in range(failures.runs):
        wasted = _wasted(random, failures, lost, span, segments)
        shares.append(segments * interval / (segments * span + wasted))
    low, high = np.percentile(shares, [5, 95])
    share = expected(failures, gpus, interval)
    return Goodput(
        expected=share,
        mean=float(np.mean(shares)),
        low=float(low),
        high=float(high),
        interval=interval,
        failures=lost * work / share,
    )


def _check_ends(lost: float, span: float, segments: int) -> None:
    tries = expm1(min(lost * span, 700.0))  # beyond it no float holds them
    if segments * tries > _FAILURES:
        raise PlanError(
            f"failures: one every {1 / lost:.3g} s, and {span:.3g} s to get from one checkpoint through the next: the"
            " run never ends; checkpoint more often, or give a longer mtbf_gpu_hours"
        )


def _wasted(random: Generator, failures: Failures, lost: float, span: float, segments: int) -> float:
    """Time that failures take of one sampled run [s]."""
    import numpy as np

    if segments * (1 + expm1(lost * span)) <= _DRAWS / failures.runs:
        # Each segment is tried until it gets through: the tries that fail are geometric, their lengths exponential.
        tries = int((random.geometric(np.exp(-lost * span), segments) - 1).sum())
        uniform = random.random(tries) * -expm1(-lost * span)
        return float((-np.log1p(-uniform) / lost).sum()) + tries * failures.restart_s
    # The same sums by their distributions: geometric ones add up to a negative binomial, many lengths to a normal.
    tries = int(random.negative_binomial(segments, np.exp(-lost * span)))
    mean, deviation = _length(lost, span)
    return tries * (mean + failures.restart_s) + sqrt(tries) * deviation * float(random.standard_normal())


def _length(lost: float, span: float) -> tuple[float, float]:
    """Mean and standard deviation of the time until a failure within a segment [s]: an exponential cut at `span`."""
    if lost * span < _FLAT:
        return span / 2, span / sqrt(12)
    mean = 1 / lost - span / expm1(lost * span)
    return mean, sqrt(max(0.0, 1 / lost**2 - (span / (2 * sinh(lost * span / 2))) ** 2))
