"""GPUs of a job that are slower than the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stragglers:
    """Slow GPUs, and hosts that are late. With the defaults there are none.

    Parameters
    ----------
    gpus : slow GPUs, next to each other in one stage: in the same node as far as they fit.
    stage : pipeline rank that they are on, from 0.
    slowdown : how much longer their kernels last.
    nic : share of the bandwidth that is left of their NICs.
    jitter : mean delay of a host before an action, drawn anew for every GPU and action (exponential) [s].
    seed : of the random numbers of `jitter`.
    """

    gpus: int = 0
    stage: int = 0
    slowdown: float = 1.0
    nic: float = 1.0
    jitter: float = 0.0
    seed: int = 0

    @property
    def any(self) -> bool:
        """Whether anything is uneven."""
        return self.jitter > 0.0 or (self.gpus > 0 and (self.slowdown != 1.0 or self.nic != 1.0))
