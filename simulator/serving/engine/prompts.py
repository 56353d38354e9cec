"""Which prompts a step works on: those under way, then waiting ones in order of arrival, while they fit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from heapq import heappop, heappush
from math import ceil, inf
from typing import NamedTuple

from simulator.serving.engine.first_chunk import first_chunk
from simulator.serving.engine.kv_blocks import KvBlocks
from simulator.serving.request import Sequence
from simulator.spec.scheduler import Scheduler


class Chunk(NamedTuple):
    """Part of a prompt in a step."""

    sequence: Sequence
    tokens: int


def most_of_a_rank(chunks: Items[Chunk], ranks: int) -> tuple[int, float, int]:
    """Prompt tokens of the rank that has most, the mean number that each of them attends to, and its prompts."""
    if ranks == 1 and len(chunks) == 1:
        sequence, new = chunks[0]
        return new, sequence.computed + new / 2, 1
    tokens, work, count = [0] * ranks, [0.0] * ranks, [0] * ranks
    for sequence, new in chunks:
        tokens[sequence.rank] += new
        work[sequence.rank] += new * (sequence.computed + new / 2)
        count[sequence.rank] += 1
    rank = max(range(ranks), key=lambda at: tokens[at])
    return tokens[rank], work[rank] / tokens[rank], count[rank]


class Prompts:
    """Sequences of an engine that wait or whose prompts are being computed, and the blocks that sequences hold.

    Parameters
    ----------
    kv : blocks of the engine.
    scheduler : how steps are put together.
    rank_of : picks the data-parallel rank of a sequence that is admitted.
    """

    __slots__ = (
        "arrived", "asking", "decided", "final", "held", "hoped", "kept", "kv", "link_free", "loading", "loads",
        "preemptions", "prefilling", "promised", "rank_of", "scheduler", "short", "waiting",
    )  # fmt: skip

    def __init__(self, kv: KvBlocks, scheduler: Scheduler, rank_of: Callable[[], int]) -> None:
        self.kv, self.scheduler, self.rank_of = kv, scheduler, rank_of
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.final = self.held = 0  # blocks that running sequences will hold at their ends, and hold now
        self.preemptions = 0
        self.loads: list[tuple[int, int]] = []  # tokens from host and disk of each prompt that this step loads
        self.loading: list[tuple[float, int, Sequence]] = []  # until when; admitted as soon as their cache is there
        self.link_free = 0.0  # when the link to the host is free [s]
        self.asking: deque[Sequence] = deque()  # for blocks, as their prompts are computed elsewhere
        self.arrived: list[Sequence] = []  # whose caches are there
        self.promised = self.kept = 0  # sequences with blocks whose caches are to come; and to be read by others
        self.decided = 0.0  # when it was decided what the step that begins works on [s]
        self.short = 0  # blocks that the first waiting sequence lacked at the last try
        self.hoped = False  # or may fit a chunk once others pushed out what it found in the cache

    def chosen(self, left: list[int], spare: int, decoding: int, now: float, *, admit: bool) -> list[Chunk]:
        """See `fill`. Where none can go on for want of blocks, and nothing else could free some, the one admitted last
        gives way."""
        chunks = self.fill(left, spare, decoding, now, admit=admit)
        while not chunks and not decoding and self.prefilling and not self.elsewhere:
            self.put_back(self.prefilling.pop())
            chunks = self.fill(left, self.kv.available, decoding, now, admit=not self.prefilling)
        return chunks

    def fill(self, left: list[int], spare: int, decoding: int, now: float, *, admit: bool) -> list[Chunk]:
        """Parts of prompts for a step, next to `decoding` sequences, of up to `spare` blocks and as many tokens as each
        rank has `left`, which are taken off."""
        chunks: list[Chunk] = []
        kv, self.short, self.hoped, self.loads = self.kv, 0, False, []
        while self.loading and self.loading[0][0] <= now:
            self.prefilling.append(heappop(self.loading)[2])
        for sequence in self.prefilling:
            count = min(sequence.target - sequence.computed, left[sequence.rank])
            if count <= 0:
                continue
            need = kv.of_tokens(sequence.computed + count) - kv.of_tokens(sequence.computed)
            if need > spare:
                return chunks
            self.grow(need)
            chunks.append(Chunk(sequence, count))
            left[sequence.rank] -= count
            spare -= need
        most = self.scheduler.sequences - decoding
        if self.loading:
            spare -= sum(kv.of_tokens(one.target) - kv.of_tokens(one.computed) for _, _, one in self.loading)
        while admit and max(left) > 0 and self.waiting and len(self.prefilling) < most and not self.waiting[0].computed:
            if self.late:
                break
            alone = not (decoding or self.prefilling)
            loading = len(self.loading)
            count, spare = self._admit(self.waiting[0], left, spare, now, first=not chunks, alone=alone)
            if len(self.loading) > loading:
                continue
            if not count:
                break
            chunks.append(Chunk(self.prefilling[-1], count))
            left[self.prefilling[-1].rank] -= count
        return chunks

    def next_loaded(self) -> float:
        """When the next cache that is loaded will be there; infinity where none is [s]."""
        return self.loading[0][0] if self.loading else inf

    def grow(self, blocks: int) -> None:
        """Running sequences take blocks."""
        self.kv.take(blocks)
        self.held += blocks

    def _admit(
        self, sequence: Sequence, left: list[int], spare: int, now: float, *, first: bool, alone: bool
    ) -> tuple[int, int]:
        """Admit a waiting sequence if it fits: its tokens in this step (0: it does not fit, or its cache is loaded
        first), and the blocks left."""
        kv, request, scheduler, budget = self.kv, sequence.request, self.scheduler, max(left)
        part = first_chunk(kv, sequence, budget, chunked=scheduler.chunked, first=first)
        if part is None:
            return 0, spare
        whole = kv.of_tokens(sequence.target) - part.cached
        asked, final = part.need, kv.of_tokens(request.longest)
        if scheduler.reserved_output and not alone:
            asked = final - part.cached + ceil(scheduler.reserved_output * (self.final - self.held))
        if part.below and not kv.by_layer:
            asked = max(asked, whole)
        kept = part.below + part.idle
        if asked + kept > spare:
            self.short = asked + kept - spare
            least = min(part.tokens + request.hash_tokens, budget)
            self.hoped = bool(part.hits) and kv.of_tokens(least) - 1 <= spare
            return 0, spare
        self.waiting.popleft()
        rank = self.rank_of()
        sequence.rank = rank if left[rank] >= min(part.tokens, budget) else left.index(budget)
        if part.hits:
            kv.read(part.here.hbm)
            kv.load(part.here.below, request.hash_tokens // kv.size)
        sequence.shared, sequence.hits, sequence.computed = part.hits, part.found, part.found
        low = (len(tier) * request.hash_tokens for tier in (part.here.host, part.here.disk))
        sequence.host_hits, sequence.disk_hits = low
        if sequence.started < 0:
            sequence.started = now
        self.held += part.cached
        self.final += final
        if part.below and self._loaded_first(sequence, now):
            return 0, spare - kept - whole
        self.prefilling.append(sequence)
        self.grow(part.need)
        return part.tokens, spare - part.need - kept

    def _loaded_first(self, sequence: Sequence, now: float) -> bool:
        """Load what a sequence found in lower tiers: before its prompt goes on, if so, else along with this step."""
        tiers = self.kv.tiers
        if tiers is None or tiers.room.by_layer:
            self.loads.append((sequence.host_hits, sequence.disk_hits))
            return False
        self.link_free = max(self.link_free, now) + tiers.room.busy(sequence.host_hits, sequence.disk_hits)
        heappush(self.loading, (self.link_free, sequence.request.number, sequence))
        return True

    @property
    def late(self) -> bool:
        """Whether the first waiting sequence came when it was decided already what the step that begins works on."""
        return bool(self.waiting) and self.waiting[0].queued > self.decided

    @property
    def elsewhere(self) -> bool:
        """Whether blocks are held for caches that travel: they will be free again without a step here."""
        return bool(self.promised or self.kept)

    def promise(self, sequence: Sequence) -> bool:
        """Take blocks for a sequence whose cache is to come; False: too few."""
        taken = self.receive(sequence)
        self.promised += taken
        return taken

    def receive(self, sequence: Sequence) -> bool:
        """Take blocks for a sequence whose prompt was computed elsewhere; False: too few."""
        kv, request = self.kv, sequence.request
        need, final = kv.of_tokens(sequence.computed), kv.of_tokens(request.longest)
        asked = need
        if self.scheduler.reserved_output:
            asked = final + ceil(self.scheduler.reserved_output * (self.final - self.held))
        if asked > kv.available and (self.held or need > kv.available):
            self.short = asked - kv.available
            return False
        sequence.rank = self.rank_of()
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

    def drop_loading(self) -> None:
        """Put all sequences back whose caches are being loaded."""
        while self.loading:
            self.put_back(heappop(self.loading)[2])
