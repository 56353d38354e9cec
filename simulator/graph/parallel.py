"""Tensor and sequence parallelism: what each rank holds, and the collectives around a block.

Megatron's scheme (arXiv 2205.05198, section 4.2): with sequence parallelism, norms and residuals work on 1/tp of the
tokens, an all-gather precedes the column-parallel and a reduce-scatter follows the row-parallel GEMM; without it, one
all-reduce follows.

The branches of a parallel block are summed before they are reduced, and with one norm they read the same gathered
input: one collective of each kind a direction serves both (PaLM, arXiv 2204.02311, section 2; MegaScale, arXiv
2402.15627, figure 3; EleutherAI/gpt-neox, megatron/model/transformer.py: gpt_j_residual).

What overlaps with GEMMs lies in buffers that all ranks of a node can write to. A rank's own part of a gather is copied
there first (`stack.tp_buffer`; Transformer Engine 2, fill_userbuffers_buffer_for_all_gather in module/base.py, 2025;
PyTorch, torch/distributed/_symmetric_memory, 2025), and an input gradient that was summed there is copied out of it
(`.clone()` in module/layernorm_linear.py). Before Transformer Engine 2 norms and casts wrote there themselves, and only
what comes as BF16 in backward was copied (v1.11, copy_input_to_ubuf).
"""

from __future__ import annotations

from simulator.dtypes import BF16
from simulator.errors import InputError
from simulator.graph.block import SegmentBuilder
from simulator.graph.shapes import Shapes
from simulator.ops import Collective, CollectiveKind, ConcurrentWith, Part, Streaming


def heads_per_rank(s: Shapes) -> int:
    """Query heads of one tensor-parallel rank."""
    heads, tp = s.model.num_attention_heads, s.job.layout.tp
    if heads % tp:
        raise InputError(f"layout.tp: {tp} does not divide the model's {heads} attention heads")
    return heads // tp


def kv_heads_per_rank(s: Shapes) -> int:
    """Key/value heads of one tensor-parallel rank (at least one: they are replicated beyond that)."""
    return max(1, s.model.num_key_value_heads // s.job.layout.tp)


def sharded_tokens(s: Shapes) -> int:
    """Tokens that norms and residuals of one rank see."""
    layout = s.job.layout
    return -(-s.tokens // layout.tp) if layout.sp else s.tokens


def gathered_tokens(s: Shapes) -> int:
    """Tokens of attention's output where it is added to the other branch's: all, as both are summed first in a parallel
    block."""
    return s.tokens if s.model.parallel_block else sharded_tokens(s)


def shares_input(s: Shapes) -> bool:
    """Whether both branches of a layer read one norm's output."""
    return s.model.parallel_block and s.model.shared_norm


def _collective(
    builder: SegmentBuilder, name: str, kind: CollectiveKind, s: Shapes, row: float, *, concurrent_with: ConcurrentWith
) -> None:
    """One tensor-parallel collective over the activations of a microbatch, `row` bytes a token."""
    tp = s.job.layout.tp
    if tp > 1 and row:
        sms = 0
        if concurrent_with == "pipeline":
            sms = s.stack.tp_sms_attention if builder.name.startswith("attn") else s.stack.tp_sms_ffn
        work = Collective(kind=kind, bytes=s.tokens * row, ranks=tp, per_node=tp, sms=sms)
        builder.add(f"{name}.{kind}", f"comm.tp.{kind}", work, concurrent_with=concurrent_with)


def _in_pieces(s: Shapes, kind: CollectiveKind, in_layer: bool) -> ConcurrentWith:
    """How a collective overlaps with the GEMM that it feeds or drains: those of embedding and head do not, nor does a
    gather of BF16 that is cast by rows behind it (github.com/pytorch/pytorch/issues/149990, 2025)."""
    cast_behind = kind == "all_gather" and s.formats.record.scaled == "row"
    if cast_behind or not (s.stack.tp_overlap and s.job.layout.sp and in_layer):
        return "nothing"
    how = s.stack.tp_scatter
    pipeline = how == "pipeline" or (how == "recipe" and s.recipe == "bf16")
    return "pipeline" if pipeline and kind == "reduce_scatter" else "chunks"


def _order(builder: SegmentBuilder, name: str, s: Shapes, row: float, concurrent_with: ConcurrentWith) -> None:
    """The copy of `row` bytes a token that puts what a gather brought in the order of the sequence, or what is reduced
    in that of the ranks (torch/distributed/_functional_collectives.py, 2025: all_gather_tensor and
    reduce_scatter_tensor of another dimension than the first chunk and concatenate). Fused collectives choose the
    layout of their operands (torch/distributed/_symmetric_memory/__init__.py)."""
    if s.stack.sequence_copies and s.job.layout.tp > 1 and concurrent_with == "nothing":
        builder.add(f"{name}.order", "elem", Streaming(read=s.tokens * row, written=s.tokens * row))


def _copy(builder: SegmentBuilder, name: str, s: Shapes, row: float) -> None:
    """One copy of a rank's own part, `row` bytes a token, in the buffer of overlapped collectives."""
    if s.job.layout.tp > 1 and row:
        size = sharded_tokens(s) * row
        builder.add(f"{name}.copy", "elem", Streaming(read=size, written=size))


def _sum_pieces(builder: SegmentBuilder, name: str, s: Shapes, row: float, out: float, how: ConcurrentWith) -> None:
    """What pieces of a GEMM left for a rank, one of every rank, is summed in the end: `row` bytes a token read, `out`
    written (PyTorch,
    torch/distributed/_symmetric_memory/__init__.py, 2024-12 and 2025: torch.sum of stacked_partials; Transformer
    Engine, common/comm_gemm_overlap/comm_gemm_overlap.cpp, 2024 to 2026: reduce_bf16 ends split_overlap_rs)."""
    if how == "chunks" and s.job.layout.tp > 1:
        builder.add(f"{name}.sum", "elem", Streaming(read=s.tokens * row, written=sharded_tokens(s) * out))


def gather(builder: SegmentBuilder, name: str, s: Shapes, width: int, *, in_layer: bool = True) -> None:
    """All-gather of activations of `width` before a column-parallel GEMM (sequence parallelism only).

    Where each layer casts its own input, the cast comes first and narrow values travel (Transformer Engine; torchao
    with scales of tensors, Float8ColwiseParallel).
    """
    if s.job.layout.sp:
        each = s.formats.travels_bytes
        how = _in_pieces(s, "all_gather", in_layer)
        late = builder.part != "F" and each == BF16
        if how != "nothing" and (s.stack.tp_buffer == "copied" or late):
            _copy(builder, name, s, width * each)
        _collective(builder, name, "all_gather", s, width * each, concurrent_with=how)
        _order(builder, f"{name}.all_gather", s, width * each, how)


def all_reduce(builder: SegmentBuilder, name: str, s: Shapes, row: float) -> None:
    """Sum over the tensor-parallel ranks of `row` bytes a token."""
    _collective(builder, name, "all_reduce", s, row, concurrent_with="nothing")


def regather(builder: SegmentBuilder, name: str, s: Shapes, width: int, *, in_layer: bool = True) -> None:
    """The same once more in backward, for the weight gradient: overlapped with the input gradient that comes next."""
    if s.job.layout.sp and s.stack.tp_regather:
        each = s.formats.travels_bytes
        if _in_pieces(s, "all_gather", in_layer) != "nothing":
            _copy(builder, f"{name}.again", s, width * each)
        _collective(builder, f"{name}.again", "all_gather", s, width * each, concurrent_with="whole")


def scatter(
    builder: SegmentBuilder, name: str, s: Shapes, width: int, *, gradient: bool = False, in_layer: bool = True
) -> None:
    """Reduce-scatter after a row-parallel GEMM; without sequence parallelism an all-reduce.

    After the input `gradient` of a column-parallel one, Megatron overlaps it with the weight gradient; here the input
    gradient, which takes as long, stands for it.
    """
    kind: CollectiveKind = "reduce_scatter" if s.job.layout.sp else "all_reduce"
    summed = gradient and in_layer and s.stack.projections == "separate"
    in_layer = in_layer and not summed  # no GEMM, but the sum of several's outputs is scattered
    concurrent_with = "whole" if gradient and s.stack.tp_regather else _in_pieces(s, kind, in_layer)
    if kind == "reduce_scatter" and not (summed and s.stack.residual_fused):  # a compiled sum writes rank by rank
        _order(builder, f"{name}.{kind}", s, width * BF16, concurrent_with)
    narrow = s.stack.tp_reduced == "recipe" and not gradient and concurrent_with != "nothing"
    each = s.formats.travels_bytes if narrow else BF16
    _collective(builder, name, kind, s, width * each, concurrent_with=concurrent_with)
    _sum_pieces(builder, name, s, width * each, width * BF16, concurrent_with)
    summed_there = concurrent_with == "whole" and _in_pieces(s, kind, in_layer) != "nothing"
    if summed_there and s.stack.tp_buffer == "copied":
        _copy(builder, name, s, width * BF16)


def circulate_keys(
    builder: SegmentBuilder, name: str, s: Shapes, width: int, *, passes: int, part: Part | None = None
) -> None:
    """Context parallelism: every rank gathers all keys and values, `passes` times `width` values a token."""
    layout = s.job.layout
    if layout.cp > 1:
        size = passes * s.batch * s.seq_kv * width * BF16
        work = Collective(kind="all_gather", bytes=size, ranks=layout.cp, per_node=ranks_per_node(s))
        builder.add(name, "comm.cp.all_gather", work, part=part)


def ranks_per_node(s: Shapes) -> int:
    """Context-parallel ranks that share a node: tensor parallelism takes its place first."""
    room = max(1, s.node_gpus // s.job.layout.tp)
    return max(d for d in range(1, min(room, s.job.layout.cp) + 1) if s.job.layout.cp % d == 0)


def expert_ranks_per_node(s: Shapes) -> int:
    """Expert-parallel ranks that a node has room for: those that share an expert are nearer, and context-parallel ones
    where experts stay in the groups of data parallelism."""
    layout = s.job.layout
    nearer = layout.etp * (layout.cp if s.stack.expert_groups == "data" else 1)
    room = max(1, s.node_gpus // nearer)
    return room if layout.ep >= room else max(d for d in range(1, layout.ep + 1) if layout.ep % d == 0)
