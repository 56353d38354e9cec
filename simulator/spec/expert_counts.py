"""Tokens per expert as somebody recorded them."""

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
