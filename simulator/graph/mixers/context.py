"""Context parallelism around the attention core: what is sent, which kernels run on parts of a sequence, what merges.

Each rank has two of 2 x cp chunks of every sequence, one from each end, so that under a causal mask all do as much.

- ring: keys and values go from rank to rank while the core works on those that are there (Ring Attention, arXiv
  2310.01889). Of cp steps, one is causal over the rank's own chunks; with those of an earlier rank all queries attend
  to the first of two chunks, with those of a later rank the second half of them to both. Outputs are weighed by their
  softmax statistics and summed; gradients of queries and of keys and values are summed step by step, and the latter
  travel with the keys and values.
- all_gather: keys and values come from all ranks, are put in the order of the sequence, and each of the two chunks of
  queries attends to all that is before its end (Llama 3, arXiv 2407.21783, section 3.3.2). Backward gathers them again
  and reduce-scatters their gradients.
- all_to_all: a part of the sequence becomes a part of the heads before the core, and back behind it (DeepSpeed
  Ulysses, arXiv 2309.14509).

Kernels are those of Transformer Engine (`context_parallel.py` of its PyTorch attention, 2026:
AttnFuncWithCPAndKVP2P, AttnFuncWithCPAndKVAllGather, AttnFuncWithCPAndQKVOA2A). Written in eager modules (stacks whose
norms are not fused) outputs are merged in FP32, kernel by kernel. The rank in the middle stands for all: others have as
many FLOP, in chunks of other lengths. A hop overlaps with the core's step before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast, unvectorized
from simulator.graph.parallel import circulate_keys, ranks_per_node
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


def forward(
    builder: SegmentBuilder, s: Shapes, core: Core, name: str, *, part: Part | None = None, saved: float = 0.0
) -> None:
    """The core with what context parallelism adds to it; `saved` is kept of its output [B]."""
    add, kind, t = _Around(builder, s, part), s.job.layout.cp_kind, s.tokens
    if s.job.layout.cp == 1:
        builder.add(name, core.cls, core.work, part=part, saved=saved)
    elif kind == "all_to_all":
        add.to_heads(f"{name}.qkv", core.queries, core.keys)
        builder.add(name, core.cls, of_heads(s, core.work), part=part, saved=saved)
        add.to_tokens(f"{name}.out", core.outputs)
    elif kind == "ring":
        kept = core.outputs * t * BF16  # each step's output waits for the last step's statistics
        steps = ring_steps(s, core.work)
        add.op(f"{name}.kv.join", "elem", cast(t * core.keys, BF16, BF16))  # into the buffer that is sent
        for at, (step, work, times, hops) in enumerate(steps):
            add.halves(f"{name}.half.{at}", {"before": core.keys, "after": core.queries}.get(step, 0), times)
            add.hop(f"{name}.kv.{at}", core.keys, hops)
            alive = at * kept + (s.job.layout.cp - 1) * core.keys * t * BF16
            last = saved if at == len(steps) - 1 else 0.0
            builder.add(f"{name}.{step}.{at}", core.cls, work, part=part, count=times, alive=alive, saved=last)
        add.merge(name, core)
    elif not splits(s, core.work):
        circulate_keys(builder, f"{name}.kv", s, core.keys, passes=1, part=part)
        builder.add(name, core.cls, core.work, part=part, saved=saved)
    else:
        circulate_keys(builder, f"{name}.kv", s, core.keys, passes=1, part=part)
        add.op(f"{name}.kv.order", "elem", cast(s.batch * s.seq_kv * core.keys, BF16, BF16))
        for at, work in enumerate(prefixes(s, core.work)):
            builder.add(f"{name}.{at}", core.cls, work, part=part, saved=saved / 2)
        add.op(f"{name}.out", "elem", cast(t * core.outputs, BF16, BF16))


def backward(builder: SegmentBuilder, s: Shapes, core: Core, name: str) -> None:
    """Its backward; the gradients of queries, keys and values are this rank's own tokens' in the end."""
    add, kind, t = _Around(builder, s, None), s.job.layout.cp_kind, s.tokens
    if s.job.layout.cp == 1:
        builder.add(name, core.cls, core.work)
    elif kind == "all_to_all":
        add.to_heads(f"{name}.out", core.outputs)
        builder.add(name, core.cls, of_heads(s, core.work))
        add.to_tokens(f"{name}.qkv", core.queries, core.keys)
    elif kind == "ring":
        steps = ring_steps(s, core.work)[::-1]  # keys and values go first, their gradients come last
        halved = {"before": core.keys, "after": core.queries + 2 * core.outputs}
        add.op(f"{name}.kv.join", "elem", cast(t * core.keys, BF16, BF16))
        for at, (step, work, times, _) in enumerate(steps):
            add.halves(f"{name}.half.{at}", halved.get(step, 0), times)
            add.hop(f"{name}.kv.{at}", (1 if at in (0, len(steps) - 1) else 2) * core.keys, times)
            builder.add(f"{name}.{step}.{at}", core.cls, work, count=times, alive=4 * core.keys * t * BF16)
            sizes = {"dq": work.seq_q / s.seq * core.queries, "dkv": work.seq_kv / s.seq * core.keys}
            for which, size in sizes.items():  # the first step's are copied to their place, those of others added
                sums = cast(t * size, (1 if at == 0 else 2) * BF16, BF16)
                add.op(f"{name}.{which}.{at}", "elem", sums, count=times)
    elif not splits(s, core.work):
        circulate_keys(builder, f"{name}.kv", s, core.keys, passes=2)
        builder.add(name, core.cls, core.work)
    else:
        whole = s.batch * s.seq_kv * core.keys
        circulate_keys(builder, f"{name}.kv", s, core.keys, passes=1)
        add.op(f"{name}.kv.order", "elem", cast(whole, BF16, BF16))
        for at, work in enumerate(prefixes(s, core.work)):
            builder.add(f"{name}.{at}", core.cls, work)
            add.op(f"{name}.dkv.{at}", "elem", cast(s.batch * work.seq_kv * core.keys, 2 * BF16, BF16))
        add.op(f"{name}.dkv.order", "elem", cast(whole, BF16, BF16))
        cp, near = s.job.layout.cp, ranks_per_node(s)
        scattered = Collective(kind="reduce_scatter", bytes=whole * BF16, ranks=cp, per_node=near)
        add.op(f"{name}.dkv.scatter", "comm.cp.all_gather", scattered)


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
class _Around:
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

    def hop(self, name: str, width: int, hops: int) -> None:
        """`hops` times `width` values a token to the next rank, as many arrive; over the NIC where some ranks must."""
        if hops:
            tier: Literal["nvlink", "nic"] = "nvlink" if ranks_per_node(self.s) == self.s.job.layout.cp else "nic"
            work = PointToPoint(bytes=self.s.tokens * width * BF16, tier=tier, both_ways=True)
            self.op(name, "comm.cp.ring", work, count=hops, concurrent_with="whole")

    def merge(self, name: str, core: Core) -> None:
        """The outputs of a ring's steps in one, by their softmax statistics; a later rank's are of half the queries."""
        cp, t = self.s.job.layout.cp, self.s.tokens
        values = t * core.outputs * (cp // 2 + (cp - 1) // 2 / 2) / (cp - 1)  # of a step, mean
        statistics = cast(t * core.work.heads, 2 * FP32, FP32)
        if self.s.stack.norm_fused:
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
