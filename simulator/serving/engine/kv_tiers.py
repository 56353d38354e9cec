"""Prefix cache below HBM: past prompts in the host's memory and on disk, the least recently used given up first.

What engines do with it. SGLang's HiCache (docs.sglang.io, HiCache design, 2026) writes blocks to the host as soon as
they are computed (write-through), or when HBM gives them up (write-back, for which that waits), and loads the next
layer's while a layer is computed. vLLM's offloading (docs.vllm.ai, kv_offload, 2026) writes through and loads before a
request is scheduled, while others run. LMCache's local disk takes what its host memory gives up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRoom:
    """The tiers of one engine.

    Parameters
    ----------
    host, disk : blocks that they hold.
    host_seconds, disk_seconds : time that the cache of a token takes from or to them [s].
    write_back : blocks go down when HBM gives them up, not as soon as they are computed.
    by_layer : blocks come up while layers are computed, not before their request is admitted.
    layers : layers of the model.
    links : links to the host, one for each data-parallel rank of the engine.
    """

    host: int
    disk: int
    host_seconds: float
    disk_seconds: float
    write_back: bool
    by_layer: bool
    layers: int
    links: int = 1

    def busy(self, host: int, disk: int) -> float:
        """Time until the cache of so many tokens of the host, and of the disk, is up: what comes from disk crosses the
        host's link, too [s]."""
        return max((host + disk) * self.host_seconds, disk * self.disk_seconds)

    def exposed(self, busy: float, computing: float) -> float:
        """Time of a step whose layers each wait for their part of a cache that takes `busy` to load [s]."""
        load, layer = busy / self.layers, computing / self.layers
        return load + layer + (self.layers - 1) * max(load, layer)


class Lru:
    """Hashes with their blocks, up to a number of blocks."""

    __slots__ = ("evicted", "held", "known", "most")

    def __init__(self, most: int) -> None:
        self.most, self.held, self.evicted = most, 0, 0
        self.known: OrderedDict[int, int] = OrderedDict()

    def add(self, name: int, blocks: int) -> list[tuple[int, int]]:
        """Keep a hash as the newest; what must go for it."""
        if name in self.known:
            self.known.move_to_end(name)
            return []
        gone: list[tuple[int, int]] = []
        if blocks > self.most:
            return [(name, blocks)]
        self.known[name] = blocks
        self.held += blocks
        while self.held > self.most:
            old, count = self.known.popitem(last=False)
            self.held -= count
            self.evicted += 1
            gone.append((old, count))
        return gone


class KvTiers:
    """What the host and the disk hold.

    Parameters
    ----------
    room : sizes and bandwidths.
    """

    __slots__ = ("disk", "host", "room", "spilled", "written")

    def __init__(self, room: TierRoom) -> None:
        self.room = room
        self.host, self.disk = Lru(room.host), Lru(room.disk)
        self.written = 0  # blocks copied down to the host so far
        self.spilled = 0  # of these, blocks for which the next step waits

    def place(self, name: int) -> str:
        """Where a hash is: host, disk, or nowhere (empty)."""
        return "host" if name in self.host.known else "disk" if name in self.disk.known else ""

    def computed(self, names: Iterable[int], blocks: int) -> None:
        """Blocks of a prompt are in HBM for the first time."""
        if not self.room.write_back:
            for name in names:
                self._down(name, blocks)

    def given_up(self, name: int, blocks: int) -> None:
        """HBM gives a hash up."""
        if self.room.write_back and self._down(name, blocks):
            self.spilled += blocks

    def read(self, names: Iterable[int], blocks: int) -> None:
        """Hashes go up to HBM; they stay here, as the newest ones, those of the disk in the host's memory, too."""
        for name in names:
            if name in self.disk.known:
                self.disk.known.move_to_end(name)
            self._keep(name, blocks)

    def touch(self, names: Iterable[int]) -> None:
        """Hashes were read in HBM: their copies below are as new as they."""
        for name in names:
            for tier in (self.host, self.disk):
                if name in tier.known:
                    tier.known.move_to_end(name)

    def step(self, seconds: float, loads: Sequence[tuple[int, int]], block: int) -> float:
        """Time of a step that computes for `seconds`, with what it loads (tokens from host and disk of each prompt)
        and what HBM had to write down before it; a block holds `block` tokens [s]."""
        room = self.room
        if loads:
            longest = max(room.busy(*one) for one in loads)
            every = room.busy(sum(host for host, _ in loads), sum(disk for _, disk in loads))
            seconds = room.exposed(max(longest, every / room.links), seconds)
        spilled, self.spilled = self.spilled, 0
        return seconds + spilled * block * room.host_seconds / room.links

    def _down(self, name: int, blocks: int) -> bool:
        """Copy a hash to the host, unless it is there; whether anything was copied."""
        new = name not in self.host.known
        self.written += blocks if new else 0
        self._keep(name, blocks)
        return new

    def _keep(self, name: int, blocks: int) -> None:
        for old, count in self.host.add(name, blocks):
            self.disk.add(old, count)
