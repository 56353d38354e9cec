"""Sequences that draft tokens and verify them: each gets one token or more in a step, as chance has it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from operator import mul

import numpy as np

from simulator.serving.engine.decode_batch import DecodeBatch
from simulator.serving.request import Sequence


class DraftBatch(DecodeBatch):
    """Sequences with drafts. A step keeps places for all drafted tokens; those of rejected ones are free behind it.

    Parameters
    ----------
    block : size of a block of the KV cache [tokens].
    chances : probability that the first, second, ... drafted token is accepted where those before it were.
    seed : seed of what is accepted.
    ranks : data-parallel ranks over which they are spread.
    """

    __slots__ = ("_chances", "_drawn", "_rng")

    def __init__(self, block: int, chances: tuple[float, ...], seed: int, ranks: int = 1) -> None:
        super().__init__(block, ranks)
        self._chances = np.array([*accumulate(chances, mul)][::-1])  # that so many drafts are accepted, rising
        self._rng = np.random.default_rng(seed)
        self._drawn: list[int] = []

    def join(self, sequence: Sequence) -> None:
        """A sequence has its first token and more to come."""
        sequence.joined = self.steps
        self.members[sequence] = None
        self.on_rank[sequence.rank] += 1
        self.fresh.append(sequence)
        self.context += sequence.computed

    def leave(self, sequence: Sequence) -> None:
        """A sequence decodes no longer."""
        del self.members[sequence]
        self.on_rank[sequence.rank] -= 1
        self.context -= sequence.computed
        if self.steps > sequence.joined:
            sequence.last = self.last
        else:
            self.fresh.remove(sequence)

    def draw(self) -> None:
        """Decide how many tokens each member gets in the step that begins."""
        chances = self._chances
        accepted = len(chances) - np.searchsorted(chances, self._rng.random(len(self.members)), side="right")
        self._drawn = [min(1 + more, one.left) for more, one in zip(accepted.tolist(), self.members, strict=True)]

    def tokens(self, steps: int) -> Iterator[tuple[Sequence, int, int]]:
        """See `DecodeBatch`; the step is the one that was drawn."""
        return ((one, one.made, count) for one, count in zip(self.members, self._drawn, strict=True))

    @property
    def extra(self) -> int:
        """Tokens of the step beyond one for each member."""
        return sum(self._drawn) - len(self._drawn)

    def advance(self, steps: int, now: float) -> list[Sequence]:
        """A step is over at `now`; those that are done with it, which leave."""
        self.fresh.clear()
        self.steps += steps
        self.last = now
        done = []
        for sequence, count in zip(self.members, self._drawn, strict=True):
            sequence.computed += count
            sequence.made += count
            self.context += count
            if not sequence.left:
                done.append(sequence)
        self._drawn = []
        for sequence in done:
            self.leave(sequence)
        return done

    def first_end(self) -> int:
        """One: tokens are drawn for every step anew."""
        return 1

    def needed(self) -> int:
        """Blocks that the next step may begin: room for every draft."""
        return sum(self._begun(one, min(1 + len(self._chances), one.left)) for one in self.members)

    def growth(self, steps: int) -> int:
        """Blocks that the step under way begins and keeps."""
        return sum(self._begun(one, count) for one, count in zip(self.members, self._drawn, strict=True))

    def _begun(self, sequence: Sequence, count: int) -> int:
        return -(-(sequence.computed + count) // self.block) + -sequence.computed // self.block

    def steps_in(self, room: int, most: int) -> int:
        """One."""
        return 1
