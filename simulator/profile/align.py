"""Kernels of a profile matched with simulated ops: both in order, as many as possible (Needleman and Wunsch 1970)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import NamedTuple

from simulator.profile.names import likeness

SIZE_WEIGHT = 0.9
"""What a fitting duration adds to a match, at most: less than any difference between classes."""
SKIPPED = 1.0
"""What an op that is skipped between two matches costs, all its launches together: enough to keep layers together."""
MANY = 6_000_000
"""Cells of the table above which nothing is matched."""


class Item(NamedTuple):
    """A kernel or one of `launches` of an op: class, seconds, phase. A kernel whose phase is known is only an op of
    that one."""

    cls: str
    seconds: float
    phase: str = ""
    launches: int = 1


def align(kernels: Sequence[Item], ops: Sequence[Item]) -> list[int]:
    """For each kernel the index of the op launch it is, or -1: the pairing in order with the highest total score.

    Either list may begin before or end after the other: what is skipped at the ends of `ops` costs nothing, nor does
    a kernel that is no op.
    """
    if len(kernels) * len(ops) > MANY or not kernels or not ops:
        return [-1] * len(kernels)
    table = _Scores(kernels, ops)
    best = [[0.0] * (len(ops) + 1)]
    for i in range(len(kernels)):
        best.append(table.next_row(i, best[-1]))
    return _path(table, best)


class _Scores:
    """How well each kernel fits each op; likeness is looked up once per class."""

    def __init__(self, kernels: Sequence[Item], ops: Sequence[Item]) -> None:
        self.kernels = [((k.cls, k.phase), log(max(k.seconds, 1e-7))) for k in kernels]
        self.sizes = [log(max(op.seconds, 1e-7)) for op in ops]
        self.skips = [SKIPPED / op.launches for op in ops]
        self.likes = {
            (cls, phase): [likeness(cls, op.cls) if phase in ("", op.phase) else 0 for op in ops]
            for cls, phase in {key for key, _ in self.kernels}
        }

    def of(self, i: int, j: int) -> float:
        """Score of kernel `i` as op `j`; 0: it cannot be."""
        key, size = self.kernels[i]
        like = self.likes[key][j]
        return like + SIZE_WEIGHT / (1.0 + abs(size - self.sizes[j])) if like else 0.0

    def next_row(self, i: int, above: list[float]) -> list[float]:
        """Best total score of the first i + 1 kernels against each beginning of the ops."""
        key, size = self.kernels[i]
        row = [0.0]
        last = 0.0
        for j, like in enumerate(self.likes[key]):
            value = above[j + 1]
            if last - self.skips[j] > value:
                value = last - self.skips[j]
            if like:
                hit = above[j] + like + SIZE_WEIGHT / (1.0 + abs(size - self.sizes[j]))
                if hit > value:
                    value = hit
            row.append(value)
            last = value
        return row


def _path(table: _Scores, best: Sequence[Sequence[float]]) -> list[int]:
    """Follow the choices back from the best end."""
    i = len(best) - 1
    found = [-1] * i
    j = max(range(len(best[i])), key=lambda at: best[i][at])
    while i and j:
        fit = table.of(i - 1, j - 1)
        if fit and abs(best[i][j] - best[i - 1][j - 1] - fit) < 1e-9:
            found[i - 1] = j - 1
            i, j = i - 1, j - 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            j -= 1
    return found
