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
SwiGLU is not fused) outputs are merged in FP32, kernel by kernel. `stack.context = "torch"` runs PyTorch's own kernels
instead (`context_torch`). The rank in the middle stands for all: others have as
many FLOP, in chunks of other lengths. A hop overlaps with the core's step before it.
"""

from __future__ import annotations

from simulator.dtypes import BF16
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.mixers import context_torch
from simulator.graph.mixers.context_parts import Around, Core, of_heads, prefixes, ring_steps, splits
from simulator.graph.parallel import circulate_keys, ranks_per_node
from simulator.graph.shapes import Shapes
from simulator.ops import Collective, Part

__all__ = ["Core", "backward", "forward"]


def forward(
    builder: SegmentBuilder, s: Shapes, core: Core, name: str, *, part: Part | None = None, saved: float = 0.0
) -> None:
    """The core with what context parallelism adds to it; `saved` is kept of its output [B]."""
    add, kind, t = Around(builder, s, part), s.job.layout.cp_kind, s.tokens
    if s.job.layout.cp == 1:
        builder.add(name, core.cls, core.work, part=part, saved=saved)
    elif s.stack.context == "torch" and kind != "all_to_all" and splits(s, core.work):
        context_torch.forward(builder, s, core, name, part=part, saved=saved)
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
    add, kind, t = Around(builder, s, None), s.job.layout.cp_kind, s.tokens
    if s.job.layout.cp == 1:
        builder.add(name, core.cls, core.work)
    elif s.stack.context == "torch" and kind != "all_to_all" and splits(s, core.work):
        context_torch.backward(builder, s, core, name)
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
