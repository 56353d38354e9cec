"""Which prompts a step works on: those under way, then waiting ones in order of arrival, while they fit."""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import NamedTuple

from simulator.serving.engine.kv_blocks import KvBlocks
from simulator.serving.request import Sequence
from simulator.spec.scheduler import Scheduler


class Chunk(NamedTuple):
    """Part of a prompt in a step."""

    sequence: Sequence
    tokens: int


class Prompts:
    """Sequences of an engine that wait or whose prompts are being computed, and the blocks that sequences hold.

    Parameters
    ----------
    kv : blocks of the engine.
    scheduler : how steps are put together.
    """

    __slots__ = ("final", "held", "kv", "preemptions", "prefilling", "scheduler", "short", "waiting")

    def __init__(self, kv: KvBlocks, scheduler: Scheduler) -> None:
        self.kv, self.scheduler = kv, scheduler
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.final = self.held = 0  # blocks that running sequences will hold at their ends, and hold now
        self.preemptions = 0
        self.short = 0  # blocks that the first waiting sequence lacked at the last try

    def fill(self, budget: int, spare: int, decoding: int, now: float, *, admit: bool) -> list[Chunk]:
        """Parts of prompts for a step of up to `budget` tokens and `spare` blocks, next to `decoding` sequences."""
        chunks: list[Chunk] = []
        kv, self.short = self.kv, 0
        for sequence in self.prefilling:
            count = min(sequence.target - sequence.computed, budget)
            need = kv.of_tokens(sequence.computed + count) - kv.of_tokens(sequence.computed)
            if count <= 0 or need > spare:
                return chunks
            self.grow(need)
            chunks.append(Chunk(sequence, count))
            budget -= count
            spare -= need
        most = self.scheduler.sequences - decoding
        while admit and budget > 0 and self.waiting and len(self.prefilling) < most and not self.waiting[0].computed:
            alone = not (decoding or self.prefilling)
            count, spare = self._admit(self.waiting[0], budget, spare, now, first=not chunks, alone=alone)
            if not count:
                break
            chunks.append(Chunk(self.prefilling[-1], count))
            budget -= count
        return chunks

    def grow(self, blocks: int) -> None:
        """Running sequences take blocks."""
        self.kv.take(blocks)
        self.held += blocks

    def _admit(
        self, sequence: Sequence, budget: int, spare: int, now: float, *, first: bool, alone: bool
    ) -> tuple[int, int]:
        """Admit a waiting sequence if it fits: its tokens in this step (0: it does not fit), and the blocks left."""
        kv, request, scheduler = self.kv, sequence.request, self.scheduler
        hits = kv.matched(request.hashes) if request.hashes else 0
        while hits and hits * request.hash_tokens >= sequence.target:
            hits -= 1  # the last token is computed in any case
        found, cached = hits * request.hash_tokens, hits * (request.hash_tokens // kv.size)
        count = sequence.target - found
        if count > budget:
            if not (scheduler.chunked or first):
                return 0, spare
            count = budget if scheduler.chunked else count
        need, final = kv.of_tokens(found + count) - cached, kv.of_tokens(request.longest)
        asked = need
        if scheduler.reserved_output and not alone:
            asked = final - cached + ceil(scheduler.reserved_output * (self.final - self.held))
        idle = kv.idle_among(request.hashes[:hits]) if hits else 0
        if asked + idle > spare:
            self.short = asked + idle - spare
            return 0, spare
        self.waiting.popleft()
        if hits:
            kv.read(request.hashes[:hits])
        sequence.shared, sequence.hits, sequence.computed = hits, found, found
        if sequence.started < 0:
            sequence.started = now
        self.held += cached
        self.final += final
        self.prefilling.append(sequence)
        self.grow(need)
        return count, spare - need - idle

    def receive(self, sequence: Sequence) -> bool:
        """Take blocks for the first waiting sequence, whose prompt was computed elsewhere; False: too few."""
        kv, request = self.kv, sequence.request
        need, final = kv.of_tokens(sequence.computed), kv.of_tokens(request.longest)
        asked = need
        if self.scheduler.reserved_output:
            asked = final + ceil(self.scheduler.reserved_output * (self.final - self.held))
        if asked > kv.available and (self.held or need > kv.available):
            return False
        self.waiting.popleft()
        self.final += final
        self.grow(need)
        return True

    def cache(self, sequence: Sequence) -> None:
        """The prompt of a sequence is computed: its whole blocks are there for others."""
        request, kv = sequence.request, self.kv
        self.prefilling.remove(sequence)
        if kv.prefix_cache and sequence.shared < len(request.hashes):
            kv.cache(request.hashes[sequence.shared :], request.hash_tokens // kv.size)
            sequence.shared = len(request.hashes)

    def release(self, sequence: Sequence) -> None:
        """Give back all blocks of a sequence."""
        request, kv = sequence.request, self.kv
        blocks = kv.of_tokens(sequence.computed)
        kv.put_back(blocks - sequence.shared * (request.hash_tokens // kv.size))
        if sequence.shared:
            kv.leave(request.hashes[: sequence.shared])
            sequence.shared = 0
        self.held -= blocks
        self.final -= kv.of_tokens(request.longest)

    def put_back(self, sequence: Sequence) -> None:
        """Preempt a sequence: it gives its blocks back, waits before all others, and is computed anew."""
        self.release(sequence)
        sequence.target = sequence.request.input_tokens + sequence.made
        sequence.computed = 0
        sequence.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(sequence)
