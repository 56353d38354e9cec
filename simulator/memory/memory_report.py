"""The result of a memory forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from simulator.memory.assumptions import Assumptions
from simulator.units import GB

SCHEMA = "foretrain.memory/1"

MADE = "gradients, made in backward"
"""The item, and the label, of gradients that are not there before backward."""

Answer = Literal["fits", "tight", "does not fit"]

GROUPS = ("weights", "gradients", "optimizer", "activations", "temporary", "buffers", "context", "slack")
"""Groups of items, in the order they are stacked."""

SERVED = ("weights", "kv_cache", "temporary", "buffers", "context", "slack")
"""The groups of a serving step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something that takes memory.

    Parameters
    ----------
    group : group that it counts in.
    name : what it is.
    bytes : its size [B].
    """

    group: str
    name: str
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Peak of one rank.

    Parameters
    ----------
    rank : pipeline rank.
    stages : stages that it holds.
    at : time of the peak [s] (None without a timeline).
    during : step of the rank's row at that time.
    items : what is allocated then; their sizes add up to `peak` [B].
    """

    rank: int
    stages: tuple[int, ...]
    at: float | None
    during: str
    items: tuple[Item, ...]

    @property
    def peak(self) -> float:
        """Sum of the items [B]."""
        return sum(item.bytes for item in self.items)

    def group(self, name: str) -> float:
        """Bytes of one group [B]."""
        return sum(item.bytes for item in self.items if item.group == name)

    def with_reserve(self, share: float) -> float:
        """The peak where the allocator reserves this share of all that comes and goes beyond it [B]."""
        made = sum(item.bytes for item in self.items if item.name == MADE)
        moving = self.group("activations") + self.group("temporary") + made
        return self.peak - self.group("slack") + share * moving


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Peaks of all ranks of one pipeline; other pipelines are equal.

    Parameters
    ----------
    ranks : peak of each rank.
    capacity : memory of one GPU as CUDA reports it [B].
    headroom : what of it stays free [B].
    reserve : least and most of the caching allocator's reserve [share of activations and temporary memory].
    assumptions : what was assumed.
    host : most that a rank keeps in the memory of its host; 0 where nothing is offloaded [B].
    host_capacity : a GPU's part of that memory [B].
    """

    ranks: tuple[RankMemory, ...]
    capacity: float
    headroom: float
    reserve: tuple[float, float]
    assumptions: Assumptions
    host: float = 0.0
    host_capacity: float = 0.0

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that items may be of: others where a KV cache is held."""
        return SERVED if self.worst.group("kv_cache") else GROUPS

    @property
    def worst(self) -> RankMemory:
        """The rank with the highest peak."""
        return max(self.ranks, key=lambda rank: rank.peak)

    @property
    def peak(self) -> float:
        """Highest peak of any rank [B]."""
        return self.worst.peak

    @property
    def usable(self) -> float:
        """What a rank may fill [B]."""
        return self.capacity - self.headroom

    @property
    def least(self) -> float:
        """Highest peak of any rank with the least reserve [B]."""
        return max(rank.with_reserve(self.reserve[0]) for rank in self.ranks)

    @property
    def most(self) -> float:
        """Highest peak of any rank with the most reserve [B]."""
        return max(rank.with_reserve(self.reserve[1]) for rank in self.ranks)

    @property
    def answer(self) -> Answer:
        """Whether every rank stays within what it may fill: also with the most reserve, with the least only, or not."""
        if self.least > self.usable or self.host > self.host_capacity:
            return "does not fit"
        return "fits" if self.most <= self.usable else "tight"

    @property
    def fits(self) -> bool:
        """Whether every rank stays within what it may fill, if only tightly."""
        return self.answer != "does not fit"

    def verdict(self) -> dict[str, Any]:
        """What a result says of memory."""
        return {
            "capacity_bytes": self.capacity,
            "headroom_bytes": self.headroom,
            "peak_bytes": self.peak,
            "least_bytes": self.least,
            "most_bytes": self.most,
            "worst_rank": self.worst.rank,
            "answer": self.answer,
            "fits": self.fits,
        } | ({"host_bytes": self.host, "host_capacity_bytes": self.host_capacity} if self.host else {})

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "schema": SCHEMA,
            **self.verdict(),
            "ranks": [
                {
                    "rank": rank.rank,
                    "stages": list(rank.stages),
                    "peak_bytes": rank.peak,
                    "at_s": rank.at,
                    "during": rank.during,
                    "groups_bytes": {name: rank.group(name) for name in self.groups},
                    "items": [{"group": i.group, "name": i.name, "bytes": i.bytes} for i in rank.items],
                }
                for rank in self.ranks
            ],
            "assumptions": self.assumptions.serving_lines() if self.groups is SERVED else self.assumptions.lines(),
        }


def needed(verdict: Mapping[str, Any]) -> str:
    """A `verdict` in words: "rank 0 needs 102.7 of 80.0 GB". Results of earlier versions have no headroom."""
    peak = max(verdict["peak_bytes"], verdict.get("least_bytes", 0.0)) / GB
    capacity = (verdict["capacity_bytes"] - verdict.get("headroom_bytes", 0.0)) / GB
    host, room = verdict.get("host_bytes", 0.0) / GB, verdict.get("host_capacity_bytes", 0.0) / GB
    if host > room and peak <= capacity:
        return f"a rank offloads {host:.1f} GB, and its part of the host's memory is {room:.1f} GB"
    return f"rank {verdict['worst_rank']} needs {peak:.1f} of {capacity:.1f} GB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Memory of one rank over time.

    Parameters
    ----------
    rank : pipeline rank.
    times : times of changes [s].
    groups : by group, bytes in use from each of these times on [B].
    """

    rank: int
    times: Sequence[float]
    groups: dict[str, Sequence[float]]
