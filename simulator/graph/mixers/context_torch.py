"""Context parallelism of PyTorch itself, as torchtitan uses it (torch/distributed/tensor/experimental/_attention.py,
2025: _templated_ring_attention and its backward).

The core runs in a ring's steps, but keys and values are gathered at once (`all_gather`, its default), behind the first
step; with `ring` they go round. torchtitan repeats keys and values for every query head before (repeat_kv), so that
repeated ones are sent. Outputs are merged in FP32, and gradients summed in FP32; those of keys and values go round as
FP32, each time behind the next step, the last time behind nothing. torch.compile fuses a merging, and puts gradients'
sums and their way round behind all kernels of the core, where nothing hides them (PyTorch 2.11 on an H200, table
h200_torchao_ring); eager mergings are five kernels over values and as many over statistics.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast, unvectorized
from simulator.graph.mixers.context_parts import Around, Core, ring_steps
from simulator.graph.parallel import ranks_per_node
from simulator.graph.shapes import Shapes
from simulator.ops import Collective, Part, Streaming


def forward(
    builder: SegmentBuilder, s: Shapes, core: Core, name: str, *, part: Part | None = None, saved: float = 0.0
) -> None:
    """The core with what is around it; `saved` is kept of its output [B]."""
    add, t, whole = Around(builder, s, part), s.tokens, repeated(core)
    if core.keys < whole.keys:
        copied = Streaming(read=t * core.keys * BF16, written=t * whole.keys * BF16)
        add.op(f"{name}.kv.repeat", "elem", copied)
    steps = ring_steps(s, whole.work)
    for at, (step, work, times, hops) in enumerate(steps):
        _bring(add, s, f"{name}.kv.{at}", whole.keys, at, hops)
        last = saved if at == len(steps) - 1 else 0.0
        builder.add(f"{name}.{step}.{at}", core.cls, work, part=part, count=times, saved=last)
        if at:
            _merge(add, s, f"{name}.merge.{at}", whole, work.seq_q / s.seq, times)
    add.op(f"{name}.merge", "elem", cast(t * whole.outputs, FP32, BF16))


def backward(builder: SegmentBuilder, s: Shapes, core: Core, name: str) -> None:
    """Its backward."""
    add, t, whole = Around(builder, s, None), s.tokens, repeated(core)
    steps = ring_steps(s, whole.work)
    for at, (step, work, times, hops) in enumerate(steps):
        gradients = 2 * whole.keys if at else 0  # FP32, of the step before
        _bring(add, s, f"{name}.kv.{at}", whole.keys, at, hops, more=gradients)
        if gradients and not (hops and s.job.layout.cp_kind == "ring"):
            add.hop(f"{name}.dkv.{at}", gradients, times, hidden=not s.stack.residual_fused)
        builder.add(f"{name}.{step}.{at}", core.cls, work, count=times)
        part_q, part_kv = work.seq_q / s.seq, work.seq_kv / s.seq
        add.op(f"{name}.dq.{at}", "elem", cast(part_q * t * whole.queries, FP32 + BF16, FP32), count=times)
        add.op(f"{name}.dkv.sum.{at}", "elem", cast(part_kv * t * whole.keys, FP32 + BF16, FP32), count=times)
        add.op(f"{name}.dkv.join.{at}", "elem", cast(t * whole.keys, FP32, FP32), count=times)
    add.hop(f"{name}.dkv.home", 2 * whole.keys, 1, hidden=False)
    add.op(f"{name}.narrow", "elem", cast(t * (whole.queries + whole.keys), FP32, BF16))
    if core.keys < whole.keys:
        summed = Streaming(read=t * whole.keys * BF16, written=t * core.keys * BF16)
        add.op(f"{name}.dkv.repeat", "elem.reduce", summed)


def repeated(core: Core) -> Core:
    """The core with a key and a value for every query head."""
    return replace(core, work=replace(core.work, kv_heads=core.work.heads))


def _bring(add: Around, s: Shapes, name: str, width: int, at: int, hops: int, *, more: int = 0) -> None:
    """Keys and values joined and sent: all at once before the first step, or before each step to the next rank, with
    `more` values a token."""
    if s.job.layout.cp_kind == "ring":
        if hops:
            add.op(f"{name}.join", "elem", cast(s.tokens * width, BF16, BF16), count=hops)
        add.hop(name, width + more, hops)
    elif not at:
        add.op(f"{name}.join", "elem", cast(s.tokens * width, BF16, BF16))
        size = s.batch * s.seq_kv * width * BF16
        work = Collective(kind="all_gather", bytes=size, ranks=s.job.layout.cp, per_node=ranks_per_node(s))
        add.op(name, "comm.cp.all_gather", work, concurrent_with="whole")


def _merge(add: Around, s: Shapes, name: str, core: Core, share: float, times: int) -> None:
    """The output of a step, of so large a `share` of the queries, joined with those before it."""
    t, values = s.tokens, share * s.tokens * core.outputs
    if s.stack.residual_fused:
        add.op(f"{name}.fused", "elem", cast(values, FP32 + BF16, FP32), count=times)
    else:
        statistics = cast(share * t * core.work.heads, 2 * FP32, FP32)
        add.op(f"{name}.statistics", "elem", statistics, count=5 * times)
        add.op(f"{name}.cast", "elem", cast(values, BF16, FP32), count=times)
        add.op(f"{name}.difference", "elem", cast(values, 2 * FP32, FP32), count=2 * times)
        add.op(f"{name}.scale", "elem.unvectorized", unvectorized(values, FP32, FP32), count=times)
    if share < 1.0:  # the half is put in its place by a concatenation
        add.op(f"{name}.place", "elem", cast(t * core.outputs, FP32, FP32), count=times)
