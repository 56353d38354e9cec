"""What differs between ranks: tokens per expert as somebody recorded them, and slow GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCounts:
    """Tokens that chose each expert, of every MoE layer.

    Parameters
    ----------
    source : the file that they are from.
    digest : hash of its contents; two recordings are equal if theirs are.
    microbatches : recorded microbatches (or steps) of a layer; a step that is longer begins anew.
    tokens : by layer number, tokens per microbatch and expert (microbatches x experts).
    """

    source: str
    digest: str
    microbatches: int
    tokens: Mapping[int, NDArray[np.float64]] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stragglers:
    """Slow GPUs, and hosts that are late. With the defaults there are none.

    Parameters
    ----------
    gpus : slow GPUs, next to each other in one stage: in the same node as far as they fit.
    stage : pipeline rank that they are on, from 0.
    slowdown : how much longer their kernels last.
    nic : share of the bandwidth that is left of their NICs.
    jitter : mean delay of a host before an action, of every GPU and action its own (exponential) [s].
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
