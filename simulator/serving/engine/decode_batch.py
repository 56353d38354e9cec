"""The sequences of an engine that decode: how far each is, and which blocks they will need."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from simulator.serving.request import Sequence


class DecodeBatch:
    """Sequences that get one token a step. Counts of single ones are brought up to date when they leave.

    Parameters
    ----------
    block : size of a block of the KV cache [tokens].
    ranks : data-parallel ranks over which they are spread.
    """

    __slots__ = ("_endings", "_residues", "block", "context", "fresh", "last", "members", "on_rank", "steps")

    def __init__(self, block: int, ranks: int = 1) -> None:
        self.block = block
        self.on_rank = [0] * ranks  # members of each rank
        self.members: dict[Sequence, None] = {}  # in the order of their first tokens
        self.fresh: list[Sequence] = []  # those that have not decoded since they joined
        self.context = 0  # cached tokens of all
        self.steps = 0  # steps so far
        self.last = 0.0  # when all but the fresh ones had their newest token [s]
        self._endings: list[tuple[int, int, Sequence]] = []
        self._residues = [0] * block  # members by where their context is in a block

    def join(self, sequence: Sequence) -> None:
        """A sequence has its first token and more to come."""
        sequence.joined, sequence.ends = self.steps, self.steps + sequence.left
        self.members[sequence] = None
        self.on_rank[sequence.rank] += 1
        self.fresh.append(sequence)
        self.context += sequence.computed
        self._residues[(sequence.computed - self.steps) % self.block] += 1
        heappush(self._endings, (sequence.ends, sequence.request.number, sequence))

    def leave(self, sequence: Sequence) -> None:
        """A sequence decodes no longer; its counts are those of now."""
        del self.members[sequence]
        self.on_rank[sequence.rank] -= 1
        self._residues[(sequence.computed - sequence.joined) % self.block] -= 1
        passed = self.steps - sequence.joined
        sequence.computed += passed
        sequence.made += passed
        self.context -= sequence.computed
        if passed:
            sequence.last = self.last
        else:
            self.fresh.remove(sequence)

    def advance(self, steps: int, now: float) -> list[Sequence]:
        """All members have so many tokens more, the last at `now`; those that are done with it, which leave."""
        self.fresh.clear()
        self.steps += steps
        self.context += len(self.members) * steps
        self.last = now
        endings, count, done = self._endings, self.steps, []
        while endings and endings[0][0] <= count:
            sequence = heappop(endings)[2]
            if sequence in self.members and sequence.ends <= count:
                self.leave(sequence)
                done.append(sequence)
        return done

    @property
    def most(self) -> int:
        """Members of the rank that has most: the batch that every rank waits for."""
        return len(self.members) if len(self.on_rank) == 1 else max(self.on_rank)

    def draw(self) -> None:
        """Nothing is by chance: one token a step."""

    def tokens(self, steps: int) -> Iterator[tuple[Sequence, int, int]]:
        """Every member, its tokens so far, and those that so many steps add."""
        passed = self.steps
        return ((one, one.made + passed - one.joined, steps) for one in self.members)

    @property
    def extra(self) -> int:
        """Tokens of the step under way beyond one for each member: none."""
        return 0

    def needed(self) -> int:
        """Blocks that the next step begins."""
        return self.growth(1)

    def first_end(self) -> int:
        """Steps from now until the next member is done."""
        endings = self._endings
        while True:
            ends, _, sequence = endings[0]
            if sequence.ends == ends and sequence in self.members:
                return ends - self.steps
            heappop(endings)  # was put back meanwhile

    def growth(self, steps: int) -> int:
        """Blocks that the next so many steps begin."""
        residues, block = self._residues, self.block
        if steps == 1:
            return residues[-self.steps % block]
        whole, rest = divmod(steps, block)
        count = whole * len(self.members)
        for step in range(self.steps, self.steps + rest):
            count += residues[-step % block]
        return count

    def steps_in(self, room: int, most: int) -> int:
        """Steps, up to `most`, for which so many blocks are enough; one at least."""
        block, batch = self.block, len(self.members)
        if batch * (most // block + 1) <= room:
            return most
        whole = room // batch
        steps, room = whole * block, room - whole * batch
        while steps < most:
            room -= self._residues[-(self.steps + steps) % block]
            if room < 0:
                break
            steps += 1
        return max(1, min(steps, most))
