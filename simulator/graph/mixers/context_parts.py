"""Parts of the attention core under context parallelism, and what is around them, whatever software runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast, unvectorized
from simulator.graph.parallel import ranks_per_node
from simulator.graph.shapes import Shapes
from simulator.ops import Attention, Collective, ConcurrentWith, Part, PointToPoint, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The attention core of a microbatch on one rank.

    Parameters
    ----------
    work : all of it, over the whole sequence's keys.
    cls : kernel class.
    """

    work: Attention
    cls: str

    @property
    def queries(self) -> int:
        """Values of the queries of one token."""
        return self.work.heads * self.work.d_qk

    @property
    def keys(self) -> int:
        """Values of the keys and values of one token."""
        return self.work.kv_heads * (self.work.d_qk + self.work.d_v)

    @property
    def outputs(self) -> int:
        """Values of the output of one token."""
        return self.work.heads * self.work.d_v


# ---- parts of the core -------------------------------------------------------------------------------------------


def splits(s: Shapes, work: Attention) -> bool:
    """Whether the core runs on parts of a sequence; where queries see some of the keys only, it is one kernel still."""
    return s.job.layout.cp > 1 and not (work.is_banded or work.entries)


def of_heads(s: Shapes, work: Attention) -> Attention:
    """A part of the heads over the whole sequence."""
    cp = s.job.layout.cp
    return replace(work, seq_q=s.seq_kv, heads=work.heads // cp, kv_heads=max(1, work.kv_heads // cp))


def prefixes(s: Shapes, work: Attention) -> Iterator[Attention]:
    """The two chunks of queries of the rank in the middle, each with the keys up to its end."""
    cp, chunk = s.job.layout.cp, s.seq // 2
    middle = (cp - 1) // 2
    for number in (middle, 2 * cp - 1 - middle):
        end = (number + 1) * chunk
        yield replace(work, seq_q=chunk, seq_kv=end, cached=end - chunk)


def ring_steps(s: Shapes, work: Attention) -> list[tuple[str, Attention, int, int]]:
    """Equal steps in a row: what they are, the core's work in one, their number, and the hops that overlap with them.

    The last step stands alone, since nothing needs to arrive behind it.
    """
    earlier, later = s.job.layout.cp // 2, (s.job.layout.cp - 1) // 2
    kinds = ["own", *["before"] * earlier, *["after"] * later]
    works = {
        "own": replace(work, seq_kv=s.seq),
        "before": replace(work, seq_kv=s.seq // 2, causal=False),
        "after": replace(work, seq_q=s.seq // 2, seq_kv=s.seq, causal=False),
    }
    equal = [(kind, len(list(steps))) for kind, steps in groupby(kinds[:-1])]
    return [*((kind, works[kind], times, times) for kind, times in equal), (kinds[-1], works[kinds[-1]], 1, 0)]


# ---- what moves, and what merges ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Around:
    """Adds what is around the core, which checkpointing of single ops keeps with it: none runs again by itself."""

    builder: SegmentBuilder
    s: Shapes
    part: Part | None

    def op(
        self, name: str, cls: str, work: Work, *, count: int = 1, concurrent_with: ConcurrentWith = "nothing"
    ) -> None:
        """One op."""
        self.builder.add(
            name, cls, work, part=self.part, count=count, concurrent_with=concurrent_with, read_by_backward=False
        )

    def halves(self, name: str, width: int, count: int) -> None:
        """Half of the tokens of `width` values copied out for a kernel."""
        if width:
            self.op(name, "elem", cast(self.s.tokens * width / 2, BF16, BF16), count=count)

    def hop(self, name: str, width: int, hops: int, *, hidden: bool = True) -> None:
        """`hops` times `width` values a token to the next rank, as many arrive; over the NIC where some ranks must.
        `hidden`: behind the core's next step, as far as that lasts."""
        if hops:
            tier: Literal["nvlink", "nic"] = "nvlink" if ranks_per_node(self.s) == self.s.job.layout.cp else "nic"
            work = PointToPoint(bytes=self.s.tokens * width * BF16, tier=tier, both_ways=True)
            self.op(name, "comm.cp.ring", work, count=hops, concurrent_with="whole" if hidden else "nothing")

    def merge(self, name: str, core: Core) -> None:
        """The outputs of a ring's steps in one, by their softmax statistics; a later rank's are of half the queries.
        Transformer Engine compiles what merges them (flash_attn_fwd_out_correction and its like, jit_fuser in
        pytorch/jit.py, 1.10 to 2.10)."""
        cp, t = self.s.job.layout.cp, self.s.tokens
        values = t * core.outputs * (cp // 2 + (cp - 1) // 2 / 2) / (cp - 1)  # of a step, mean
        statistics = cast(t * core.work.heads, 2 * FP32, FP32)
        if self.s.stack.swiglu_fused:  # written to be compiled
            self.op(f"{name}.merge.statistics", "elem", statistics, count=cp - 1)
            self.op(f"{name}.merge.first", "elem", cast(t * core.outputs, BF16, BF16))
            self.op(f"{name}.merge", "elem", cast(values, 2 * BF16, BF16), count=cp - 1)
            return
        self.op(f"{name}.merge.statistics", "elem", statistics, count=5 * (cp - 1))
        self.op(f"{name}.merge.cast", "elem", cast(values, BF16, FP32), count=cp - 1)
        self.op(f"{name}.merge.scale", "elem.unvectorized", unvectorized(values, FP32, FP32), count=2 * (cp - 1))
        self.op(f"{name}.merge.sum", "elem", cast(values, 2 * FP32, FP32), count=cp - 1)
        self.op(f"{name}.merge", "elem", cast(t * core.outputs, FP32, BF16))

    def to_heads(self, name: str, *widths: int) -> None:
        """All-to-alls that bring all tokens of a part of the heads: packed by rank, sent, put in order (two copies)."""
        for at, width in enumerate(widths):
            self._copies(f"{name}.pack.{at}", width, 1)
            self._all_to_all(f"{name}.{at}", width)
            self._copies(f"{name}.order.{at}", width, 2)

    def to_tokens(self, name: str, *widths: int) -> None:
        """The way back: put in order (two copies), sent, unpacked."""
        for at, width in enumerate(widths):
            self._copies(f"{name}.order.{at}", width, 2)
            self._all_to_all(f"{name}.{at}", width)
            self._copies(f"{name}.unpack.{at}", width, 1)

    def _copies(self, name: str, width: int, count: int) -> None:
        self.op(name, "elem.unvectorized", unvectorized(self.s.tokens * width, BF16, BF16), count=count)

    def _all_to_all(self, name: str, width: int) -> None:
        size, cp = self.s.tokens * width * BF16, self.s.job.layout.cp
        work = Collective(kind="all_to_all", bytes=size, ranks=cp, per_node=ranks_per_node(self.s))
        self.op(name, "comm.cp.all_to_all", work)
