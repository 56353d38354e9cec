"""What differs between ranks: tokens per expert as somebody recorded them, and slow GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

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
    """Slow GPUs, hosts that are late, and clocks of their own. With the defaults there are none.

    Parameters
    ----------
    gpus : slow GPUs, next to each other in one stage: in the same node as far as they fit.
    stage : pipeline rank that they are on, from 0.
    slowdown : how much longer their kernels last.
    nic : share of the bandwidth that is left of their NICs.
    jitter : mean delay of a host before an action, of every GPU and action its own (exponential) [s].
    clocks : of a step at the power limit. slowest: tensor kernels of all GPUs last as long as on the one that is
        expected to demand most of all of the job's, for which the others wait; drawn: each GPU has a power demand of
        its own (normal, `Power.spread`), and a clock of its own.
    groups : expert-parallel groups (of a dense model: replicas) of a stage that are simulated: the first, in which the
        slow GPUs are, or all. With clocks `drawn` all are.
    seed : of the random numbers of `jitter` and `clocks`.
    """

    gpus: int = 0
    stage: int = 0
    slowdown: float = 1.0
    nic: float = 1.0
    jitter: float = 0.0
    clocks: Literal["slowest", "drawn"] = "slowest"
    groups: Literal["first", "all"] = "first"
    seed: int = 0

    @property
    def any(self) -> bool:
        """Whether anything is uneven, apart from clocks."""
        return self.jitter > 0.0 or (self.gpus > 0 and (self.slowdown != 1.0 or self.nic != 1.0))
