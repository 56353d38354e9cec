"""Which ranks are simulated apart, and what differs between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LoadsOfColumns = Callable[[int, int], Array]
"""(layer, microbatch) -> load of each column over the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Ranks of one or several expert-parallel groups, the same on every pipeline rank. The last column is a rank with
    the mean load on sound hardware: it waits for the others of the first group, nobody waits for it.

    Parameters
    ----------
    names : of each column but the last, the rank in its stage that it stands for.
    starts : first column of each group.
    loads, node_loads : tokens of each column's experts, and of its node's, over the mean, in a layer and microbatch.
    slowdown : how much longer kernels last (pipeline ranks x columns).
    nic : how much longer NICs take for the same bytes (pipeline ranks x columns).
    pace : how much longer tensor kernels last than on a GPU with the mean power demand (pipeline ranks x columns).
    jitter : seconds by which a host is late at an action (pipeline rank, action -> columns) [s]; None: never.
    """

    names: tuple[int, ...]
    starts: tuple[int, ...]
    loads: LoadsOfColumns
    node_loads: LoadsOfColumns
    slowdown: Array
    nic: Array
    pace: Array
    jitter: Callable[[int, int], Array] | None = None

    @property
    def count(self) -> int:
        """Columns, the mean one included."""
        return len(self.names) + 1

    def together(self, values: Array) -> Array:
        """The highest value of each group, on all its columns; the mean column is at its own, or the first group's."""
        mine = values[:-1]
        if len(self.starts) == 1:
            out = np.full(len(values), np.maximum.reduce(mine))
        else:
            tops = np.maximum.reduceat(mine, self.starts)
            sizes = np.diff(np.append(self.starts, len(mine)))
            out = np.append(np.repeat(tops, sizes), tops[0])
        out[-1] = max(out[-1], values[-1])
        return out

    def all_together(self, values: Array) -> Array:
        """The highest value of all columns, on all of them."""
        return np.full(len(values), values.max())
