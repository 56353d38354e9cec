"""The sequences that an engine holds, and which of them gives way."""

from __future__ import annotations

from simulator.serving.engine.decode_batch import DecodeBatch
from simulator.serving.engine.kv_blocks import KvBlocks
from simulator.serving.engine.prompts import Prompts
from simulator.serving.engine.ranks import in_turn, least_loaded
from simulator.serving.engine.running import Running
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
        self.kv, self.decoding, self.ranks = kv, decoding, len(decoding.on_rank)
        self.prompts = Prompts(kv, scheduler, least_loaded(self._on_rank) if balanced else in_turn(self.ranks))

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
