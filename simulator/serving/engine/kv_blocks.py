"""The KV cache of one engine in blocks, with a prefix cache.

Blocks are free, owned by one sequence, or cached: filled with a part of a prompt whose hash is known. Cached blocks
that no running sequence reads are given up when room is needed, the least recently used first (vLLM's and SGLang's
rule).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Items
from typing import NamedTuple

from simulator.serving.engine.kv_tiers import KvTiers, TierRoom


class Found(NamedTuple):
    """Where the cached beginning of a prompt is.

    Attributes
    ----------
    hbm : hashes in HBM.
    host, disk : hashes in the host's memory and on disk.
    """

    hbm: list[int]
    host: list[int]
    disk: list[int]

    @property
    def below(self) -> list[int]:
        """Hashes that must be loaded."""
        return self.host + self.disk


class KvBlocks:
    """Blocks of one engine.

    Parameters
    ----------
    blocks : how many there are.
    size : tokens of a block [tokens].
    prefix_cache : whether blocks of past prompts are kept.
    tiers : what is below HBM; nothing without.
    """

    __slots__ = ("blocks", "evicted", "free", "idle", "prefix_cache", "reserved", "size", "tiers", "users")

    def __init__(self, blocks: int, size: int, *, prefix_cache: bool, tiers: TierRoom | None = None) -> None:
        self.blocks, self.size, self.prefix_cache = blocks, size, prefix_cache
        self.tiers = KvTiers(tiers) if tiers is not None else None
        self.free = blocks  # neither owned nor cached
        self.users: dict[int, tuple[int, int]] = {}  # hash -> sequences that read it, blocks that it takes
        self.idle: OrderedDict[int, int] = OrderedDict()  # cached and read by nobody -> blocks, oldest first
        self.reserved = 0  # blocks in `idle`
        self.evicted = 0  # hashes given up so far

    @property
    def available(self) -> int:
        """Blocks that can be had: free ones, and cached ones that nobody reads."""
        return self.free + self.reserved

    @property
    def used(self) -> int:
        """Blocks that running sequences hold."""
        return self.blocks - self.free - self.reserved

    def of_tokens(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.size)

    def knows(self, name: int) -> bool:
        """Whether a hash may be cached, in whichever tier."""
        return name in self.users or name in self.idle or self.tiers is not None

    def matched(self, hashes: Items[int]) -> int:
        """How many of these hashes, from the first on, are cached, in whichever tier."""
        if not self.prefix_cache:
            return 0
        users, idle, tiers, count = self.users, self.idle, self.tiers, 0
        for each in hashes:
            if each not in idle and each not in users and not (tiers and tiers.place(each)):
                break
            count += 1
        return count

    def located(self, hashes: Items[int]) -> Found:
        """Where these hashes are, which are all cached."""
        if self.tiers is None:
            return Found(list(hashes), [], [])
        found = Found([], [], [])
        for each in hashes:
            if each in self.users or each in self.idle:
                found.hbm.append(each)
            else:
                (found.host if self.tiers.place(each) == "host" else found.disk).append(each)
        return found

    def load(self, hashes: Items[int], blocks: int) -> None:
        """Hashes of lower tiers get `blocks` each of HBM, and are read by one sequence."""
        if self.tiers is not None and hashes:
            self.tiers.read(hashes, blocks)
            self.take(blocks * len(hashes))
            self.users.update(dict.fromkeys(hashes, (1, blocks)))

    @property
    def at_once(self) -> int:
        """Blocks that can be had without a step that waits for what must be written below."""
        spills = self.tiers is not None and self.tiers.room.write_back
        return self.free if spills else self.available

    def idle_among(self, hashes: Items[int]) -> int:
        """Blocks of these that nobody reads now: reading them takes them out of what is available."""
        return sum(self.idle.get(each, 0) for each in hashes)

    def read(self, hashes: Items[int]) -> None:
        """One more sequence reads these cached blocks."""
        users, idle = self.users, self.idle
        if self.tiers is not None:
            self.tiers.touch(hashes)
        for each in hashes:
            blocks = idle.pop(each, 0)
            if blocks:
                self.reserved -= blocks
                users[each] = (1, blocks)
            else:
                count, blocks = users[each]
                users[each] = (count + 1, blocks)

    @property
    def by_layer(self) -> bool:
        """Whether what is loaded comes up while layers are computed."""
        return self.tiers is None or self.tiers.room.by_layer

    def with_tiers(self, seconds: float, loads: Items[tuple[int, int]]) -> float:
        """Time of a step of `seconds` with what it loads from lower tiers (tokens from host and disk of each prompt)
        and what had to be written there before it [s]."""
        return seconds if self.tiers is None else self.tiers.step(seconds, loads, self.size)

    def take(self, count: int) -> None:
        """Take blocks; there must be as many available. Idle cached ones go where free ones do not do."""
        while self.free < count:
            name, blocks = self.idle.popitem(last=False)
            if self.tiers is not None:
                self.tiers.given_up(name, blocks)
            self.reserved -= blocks
            self.free += blocks
            self.evicted += 1
        self.free -= count

    def put_back(self, count: int) -> None:
        """Blocks that a sequence owned are free."""
        self.free += count

    def cache(self, hashes: Items[int], blocks: int) -> None:
        """Owned blocks become cached ones that their sequence reads, `blocks` for each hash. Where another sequence has
        cached the same meanwhile, its copy is read and the own one is free (as in SGLang's radix cache)."""
        users, idle = self.users, self.idle
        for each in hashes:
            if each in users or each in idle:
                self.read((each,))
                self.free += blocks
            else:
                users[each] = (1, blocks)
        if self.tiers is not None:
            self.tiers.computed(hashes, blocks)

    def leave(self, hashes: Items[int]) -> None:
        """A sequence reads these no longer. Blocks late in a prompt are given up first, as they need the others."""
        users, idle = self.users, self.idle
        for each in reversed(hashes):
            count, blocks = users[each]
            if count > 1:
                users[each] = (count - 1, blocks)
            else:
                del users[each]
                idle[each] = blocks
                self.reserved += blocks
