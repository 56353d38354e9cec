"""What failures cost: share of the time that ends up as training.

A checkpoint every tau seconds stops training for delta; failures come with rate lambda and throw it back to the last
checkpoint, restart included. Then a segment of tau takes (1/lambda + R)(exp(lambda (tau + delta)) - 1) on average
(Daly, "A higher order estimate of the optimum checkpoint interval", FGCS 2006, equation 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, sqrt

from simulator.studies.campaign.campaign import Failures
from simulator.units import HOUR


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


def optimum_interval(failures: Failures, gpus: int) -> float:
    """Training between two checkpoints that costs least, sqrt(2 delta / lambda) (Young, CACM 1974) [s]."""
    return failures.interval_s or sqrt(2 * failures.checkpoint_s / rate(failures, gpus))


def expected(failures: Failures, gpus: int, interval: float) -> float:
    """Expected share of the time that ends up as training."""
    lost = rate(failures, gpus)
    segment = (1 / lost + failures.restart_s) * expm1(lost * (interval + failures.checkpoint_s))
    return interval / segment


def sampled(failures: Failures, gpus: int, work: float) -> Goodput:
    """The same by sampling whole runs of `work` seconds of training."""
    import numpy as np

    lost, interval = rate(failures, gpus), optimum_interval(failures, gpus)
    segments = max(1, round(work / interval))
    span = interval + failures.checkpoint_s
    random = np.random.default_rng(failures.seed)
    shares = []
    for _ in range(failures.runs):
        # Each segment is tried until it gets through: the tries that fail are geometric, their lengths exponential.
        tries = int((random.geometric(np.exp(-lost * span), segments) - 1).sum())
        uniform = random.random(tries) * -expm1(-lost * span)
        wasted = float((-np.log1p(-uniform) / lost).sum()) + tries * failures.restart_s
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
