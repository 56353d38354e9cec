"""The sequences that an engine holds, and which of them gives way."""

from __future__ import annotations

from simulator.serving.engine.decode_batch import DecodeBatch
from simulator.serving.engine.kv_blocks import KvBlocks
from simulator.serving.engine.prompts import Prompts
from simulator.serving.engine.ranks import in_turn, least_loaded
from simulator.serving.engine.running import Running
from simulator.serving.request import Sequence
from simulator.spec.scheduler import Scheduler


class Held(Running):
    """Waiting and running sequences.

    Parameters
    ----------
    kv : blocks of the engine.
    scheduler : how steps are put together.
    decoding : sequences that decode, none yet.
    balanced : a sequence goes to the data-parallel rank with the fewest, not to one rank after the other.
    """

    def __init__(self, kv: KvBlocks, scheduler: Scheduler, decoding: DecodeBatch, *, balanced: bool) -> None:
        super().__init__()
        self.load = 0  # sequences in the engine
        self.keeps = False  # prompts stay when they are computed, until they are let go
        self.granted: list[Sequence] = []  # for which blocks were just taken
        self.kv, self.decoding, self.ranks = kv, decoding, len(decoding.on_rank)
        self.prompts = Prompts(kv, scheduler, least_loaded(self._on_rank) if balanced else in_turn(self.ranks))

    @property
    def _places(self) -> int:
        """Sequences that may still be admitted."""
        return self.prompts.scheduler.sequences - self.running - self.prompts.promised

    def ask(self, sequence: Sequence, now: float) -> None:
        """Blocks are asked for a sequence whose prompt is computed elsewhere; `now` is not later than `until`."""
        if not self.prompts.asking and self._places > 0:
            self._awake(now)
        self.prompts.asking.append(sequence)
        self.load += 1

    def arrive(self, sequence: Sequence, now: float) -> None:
        """The cache of a sequence that blocks were taken for is there."""
        self._awake(now)
        self.prompts.arrived.append(sequence)

    def let_go(self, sequence: Sequence, now: float) -> None:
        """The cache of a prompt that was computed here has been read."""
        prompts = self.prompts
        prompts.release(sequence)
        prompts.kept -= 1
        if not self.works and (prompts.waiting or prompts.prefilling):
            self._awake(now)

    def _awake(self, now: float) -> None:
        """Decide anew: at once where nothing runs, else behind the step that runs."""
        if self.ahead > 1:
            self.shorten(now)
        elif not self.works and self.until > now:
            self.since = self.until = now

    def _join_arrived(self) -> None:
        """Sequences whose caches are there decode; those that ask get blocks, in order, behind those put back."""
        prompts = self.prompts
        for sequence in prompts.arrived:
            prompts.promised -= 1
            self.decoding.join(sequence)
        prompts.arrived.clear()
        prompts.short, prompts.hoped = 0, False
        while prompts.asking and not prompts.waiting and self._places > 0 and prompts.promise(prompts.asking[0]):
            self.granted.append(prompts.asking.popleft())

    @property
    def running(self) -> int:
        """Sequences that have been admitted and not ended."""
        return len(self.decoding.members) + len(self.prompts.prefilling)

    def _on_rank(self) -> list[int]:
        """Running sequences of each rank."""
        found = list(self.decoding.on_rank)
        for sequence in self.prompts.prefilling:
            found[sequence.rank] += 1
        return found

    def _make_room(self) -> bool:
        """Put sequences back until the others can decode one step; whether any was."""
        preempted = False
        while self.decoding.members and self.decoding.needed() > self.kv.available:
            self._preempt()
            preempted = True
        return preempted

    def _preempt(self) -> None:
        """The sequence that was admitted last is put back."""
        prompts = self.prompts
        if prompts.prefilling:
            prompts.put_back(prompts.prefilling.pop())
            return
        sequence = next(reversed(self.decoding.members))
        self.decoding.leave(sequence)
        prompts.put_back(sequence)
