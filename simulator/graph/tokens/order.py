"""Tokens into the order of experts and back, forward and backward, by the kernels that the software runs.

`stack.permute` fused: one kernel each way at memory bandwidth (DeepSeek's). fused_chunks: Transformer Engine's, as
Megatron-Core runs them with --moe-permute-fusion: as fused behind DeepEP and Hybrid-EP; with its all-to-all dispatcher,
which is also that of a rank alone (ep = 1), rows are permuted at home, and where a rank has several experts a kernel
sorts what arrives by chunks of one sender and expert, and another brings the results back (token_dispatcher.py,
MoEAlltoAllTokenDispatcher; workloads/facts/h200_te_layers.csv).

PyTorch's calls (index_add, gather_sum: named by how the copies of a token are summed up) sort the chosen experts,
select rows and add them up again; the gradient of a selection is an addition by index, at a tenth of the bandwidth
(`hardware_profiles/calibration/tables/h200_moe_layer.csv`). chunks: as gather_sum at home; what arrives by a plain
all-to-all stands in chunks of one sender and expert, which are split and joined in the order of experts (Megatron-Core
from 0.9 on, megatron/core/transformer/moe/moe_utils.py: sort_chunks_by_idxs).

Megatron-Core leaves rows as they arrive where a rank has one expert, in fused kernels, too (token_dispatcher.py,
MoEAlltoAllTokenDispatcher: `if self.num_local_experts > 1`).
"""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16, fp8_bytes
from simulator.graph.block import SegmentBuilder
from simulator.graph.parallel import expert_ranks_per_node, sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.graph.tokens import latent
from simulator.ops import Fixed, Streaming
from simulator.routing.traffic import gate_vector

CHUNK_ROW, TOKEN_ROW = 137.0, 9.8
"""What a row costs in the map of chunks besides a look at each chunk, in such looks, and a token in the map of rows
besides one at each expert (calibration/tables/h200_te_maps.csv: _make_chunk_sort_map_kernel and three _row_id_map
kernels with 8 to 128 experts)."""
SHORT_SORT = 4096
"""Rows up to which PyTorch sorts in one kernel (aten/src/ATen/native/cuda/Sort.cpp)."""
SORT_LAUNCHES, SHORT_SORT_LAUNCHES = 22, 5
"""Kernels of a stable argsort of int64: CUB's radix sort of 8 passes, or one in place (table h200_moe_layer)."""
COUNT_LAUNCHES = 6
"""Histogram (2), cumulative sum and its cast (3), division of the order by top-k (1)."""
ROW_BYTES = 4.0
"""Bytes of the map's entry for a row, an int32 that backward permutes by [B]."""
FUSED_CHUNKS = "fused_chunks"
WEIGHTED = "index_add"
"""PyTorch keeps the rows that it adds by index (tools/autograd/derivatives.yaml: the gradient of index_add's source
takes its sizes from the source itself); compiled, their weights are fused and nothing is kept."""
MERGE_LAUNCHES = {"index_add": (5, 6), "gather_sum": (3, 5), "chunks": (3, 5)}
"""Kernels of the weighted sum of a token's rows, forward and backward."""
MERGE_CLASS = {
    "index_add": "unpermute.index_add",
    "gather_sum": "unpermute.gather_sum",
    "chunks": "unpermute.gather_sum",
}
"""Their kernel class."""
COMPILED_LAUNCHES = (2, 3)
"""The same through torch.compile, which fuses the weights."""


def in_pytorch(s: Shapes) -> bool:
    """Whether PyTorch's own calls order the tokens."""
    return s.stack.permute not in ("fused", FUSED_CHUNKS)


def travels(s: Shapes) -> bool:
    """Whether there is another rank to send tokens to."""
    return s.job.layout.ep > 1


def every_copy_travels(s: Shapes) -> bool:
    """Whether a token is sent once for each of its experts, as by a plain all-to-all."""
    return travels(s) and s.stack.dispatcher == "nccl"


def chunk_map(rows: int, chunks: int) -> Streaming:
    """The map of rows in chunks of one sender and expert: each row looks at the sizes of all chunks."""
    return Streaming(read=8.0 * rows, written=ROW_BYTES * rows, values=rows * (CHUNK_ROW + chunks))


def row_map(tokens: int, experts: int) -> Streaming:
    """The map of a gate's choices to rows, by three kernels over all tokens and experts."""
    each = tokens * experts
    return Streaming(
        read=2.0 * (1 + ROW_BYTES) * each, written=2 * ROW_BYTES * each, values=tokens * (TOKEN_ROW + experts)
    )


def _fused_chunks(s: Shapes) -> bool:
    """Whether Transformer Engine's kernels permute rows at home and sort chunks on arrival."""
    alone = not travels(s) and s.job.layout.etp == 1
    return s.stack.permute == FUSED_CHUNKS and (every_copy_travels(s) or alone)


def permutes_at_home(s: Shapes) -> bool:
    """Whether the copies of tokens are ordered before they travel, if they do, and summed when they are back."""
    return every_copy_travels(s) or _fused_chunks(s)


def arrive_in_order(s: Shapes) -> bool:
    """Whether rows are in the order of experts as they arrive: those of one expert, which Megatron-Core leaves so."""
    return permutes_at_home(s) and s.local_experts == 1 and s.stack.permute != WEIGHTED


def _in_chunks(s: Shapes) -> bool:
    """Whether what arrives is split and joined chunk by chunk."""
    return (every_copy_travels(s) and s.stack.permute == "chunks") or _fused_chunks(s)


def _chunk_map(builder: SegmentBuilder, name: str, s: Shapes, after: tuple[str, ...]) -> tuple[str, ...]:
    """Where each row goes, by a kernel of its own. Returns what is still to wait for."""
    if not _fused_chunks(s):
        return after
    work = chunk_map(s.rows, s.model.n_routed_experts)
    builder.add(name, "permute.map.chunks", work, after=after, saved=s.rows * ROW_BYTES, scales_with_load=True)
    return ()


def each_bytes(s: Shapes) -> float:
    """Bytes of one token on the wire at dispatch: FP8 values with FP32 scales, or BF16 [B]."""
    return fp8_bytes(s.model.expert_hidden) if s.fp8 else s.model.expert_hidden * BF16


def gate_bytes(s: Shapes) -> float:
    """Bytes of gate weights, or of their gradients, that travel with a token [B]."""
    if s.stack.dispatcher != "hybrid_ep":
        return 0.0
    ranks, here = s.job.layout.ep, expert_ranks_per_node(s)
    return gate_vector(s.model.n_routed_experts, ranks=ranks, ranks_per_node=here)


def sort(builder: SegmentBuilder, name: str, rows: int, after: tuple[str, ...] = ()) -> None:
    """A stable argsort of the chosen experts."""
    short = rows <= SHORT_SORT
    launches = SHORT_SORT_LAUNCHES if short else SORT_LAUNCHES
    cls = "sort.short" if short else "sort.radix"
    builder.add(name, cls, Fixed(launches=launches), after=after, scales_with_load=True)


def sort_at_home(builder: SegmentBuilder, s: Shapes) -> None:
    """PyTorch: the order of this rank's token copies and the tokens per expert."""
    sort(builder, "moe.sort", sharded_tokens(s) * s.model.num_experts_per_tok)
    builder.add("moe.counts", "sort.counts", Fixed(launches=COUNT_LAUNCHES), scales_with_load=True)


def copies(s: Shapes) -> Streaming:
    """Every (token, expert) copy written before a plain all-to-all."""
    each, many = each_bytes(s), sharded_tokens(s) * s.model.num_experts_per_tok
    return Streaming(read=sharded_tokens(s) * each, written=many * each)


def copies_back(s: Shapes) -> Streaming:
    """The inverse: the copies of a token summed into one, in BF16."""
    t, width = sharded_tokens(s), s.model.expert_hidden * BF16
    return Streaming(read=t * s.model.num_experts_per_tok * width, written=t * width)


def _permuted(s: Shapes) -> Streaming:
    """Tokens as received to rows sorted by expert (FP8 with scales, or BF16)."""
    return Streaming(read=s.received * each_bytes(s), written=s.rows * each_bytes(s))


def _unpermuted(s: Shapes) -> Streaming:
    """Rows back to tokens, summed over the experts of a token."""
    width = s.model.expert_hidden * BF16
    return Streaming(read=s.rows * width, written=s.received * width)


def _sorted(s: Shapes, each: float) -> Streaming:
    """Rows of `each` bytes in one order written in another."""
    return Streaming(read=s.rows * each, written=s.rows * each)


def _kept_sum(s: Shapes) -> float:
    """What is kept of a token's sum where it is made on this rank [B]."""
    return latent.kept(s) if travels(s) or s.job.layout.etp == 1 else 0.0


def _merge(builder: SegmentBuilder, name: str, s: Shapes, after: tuple[str, ...], *, backward: bool) -> None:
    """PyTorch: the weighted sum of a token's rows, or its gradient to rows and weights."""
    rows, t = sharded_tokens(s) * s.model.num_experts_per_tok, sharded_tokens(s)
    wide, narrow = rows * s.model.expert_hidden * BF16, t * s.model.expert_hidden * BF16
    compiled = s.stack.swiglu_fused
    launches = (COMPILED_LAUNCHES if compiled else MERGE_LAUNCHES[s.stack.permute])[int(backward)]
    cls = MERGE_CLASS[s.stack.permute]
    keeps = not backward and not compiled and s.stack.permute == WEIGHTED
    summed = 0.0 if backward else _kept_sum(s)
    work = Streaming(read=narrow + wide, written=wide) if backward else Streaming(read=wide, written=narrow)
    if compiled and s.stack.permute == "index_add":
        if backward:  # one kernel selects the gradient's rows, weighs them and sums up the weights' gradients
            builder.add(name, "elem", Streaming(read=2 * wide, written=wide), after=after, scales_with_load=True)
            return
        builder.add(f"{name}.weigh", "elem", Streaming(read=wide, written=wide), after=after, scales_with_load=True)
        after, cls, launches = (), "permute.index_add", 1
    builder.add(
        name,
        f"{cls}.bwd" if backward else cls,
        work,
        after=after,
        scales_with_load=True,
        launches=launches,
        saved=(wide if keeps else 0.0) + summed,
    )


def copy_at_home(builder: SegmentBuilder, s: Shapes) -> None:
    """Before a plain all-to-all: the copies, in the order of experts."""
    if permutes_at_home(s):
        if _fused_chunks(s):
            work = row_map(sharded_tokens(s), s.model.n_routed_experts)
            builder.add("moe.map.rows", "permute.map.rows", work, scales_with_load=True)
        cls = "permute.index_select" if in_pytorch(s) else "permute.expand"
        builder.add("moe.permute_local.fwd", cls, copies(s), scales_with_load=True)


def merge_at_home(builder: SegmentBuilder, s: Shapes, after: tuple[str, ...]) -> tuple[str, ...]:
    """Behind a plain all-to-all: the copies of each token summed. Returns what is still to wait for."""
    if not permutes_at_home(s):
        return after
    if in_pytorch(s):
        _merge(builder, "moe.unpermute_local.fwd", s, after, backward=False)
    else:
        builder.add(
            "moe.unpermute_local.fwd", "permute.reduce", copies_back(s), after=after, scales_with_load=True,
            saved=latent.kept(s),
        )  # fmt: skip
    return ()


def merge_at_home_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """The gradient of that sum."""
    if in_pytorch(s):
        _merge(builder, "moe.unpermute_local.bwd", s, (), backward=True)
    else:
        builder.add("moe.unpermute_local.bwd", "permute.expand", copies(s), scales_with_load=True)


def copy_at_home_backward(builder: SegmentBuilder, s: Shapes, after: tuple[str, ...]) -> tuple[str, ...]:
    """The gradient of the copies. Returns what is still to wait for."""
    if not permutes_at_home(s):
        return after
    cls = "permute.index_add" if in_pytorch(s) else "permute.reduce"
    builder.add("moe.permute_local.bwd", cls, copies_back(s), after=after, scales_with_load=True)
    return ()


def into_experts(builder: SegmentBuilder, s: Shapes, after: tuple[str, ...], saved: float) -> None:
    """Rows of the local experts from what arrived; `saved`: bytes kept for backward [B]."""
    if arrive_in_order(s):
        builder.hand_on(after, saved)
        return
    if _in_chunks(s):
        after = _chunk_map(builder, "moe.map.chunks", s, after)
        builder.add(
            "moe.permute.fwd", "elem", _sorted(s, each_bytes(s)), after=after, saved=saved, scales_with_load=True
        )
        return
    if in_pytorch(s):
        if travels(s):
            sort(builder, "moe.sort_received", s.rows, after)
        builder.add(
            "moe.permute.fwd", "permute.index_select", _permuted(s), after=() if travels(s) else after, saved=saved,
            scales_with_load=True,
        )  # fmt: skip
        return
    builder.add("moe.map.count", "permute.map.count", Fixed(), after=after, scales_with_load=True)
    builder.add("moe.map.build", "permute.map.build", Fixed(), saved=s.rows * ROW_BYTES, scales_with_load=True)
    builder.add("moe.permute.fwd", "permute.expand", _permuted(s), saved=saved, scales_with_load=True)


def out_of_experts(builder: SegmentBuilder, s: Shapes) -> None:
    """The rows back in the order in which they arrived, or (nothing travels) the sum of each token's."""
    if arrive_in_order(s):
        return
    if _in_chunks(s):
        _chunk_map(builder, "moe.map.chunks_back", s, ())
        work = _sorted(s, s.model.expert_hidden * BF16)
        builder.add("moe.unpermute.fwd", "elem", work, scales_with_load=True, read_by_backward=False)
    elif not in_pytorch(s):
        saved = 0.0 if travels(s) else _kept_sum(s)
        builder.add(
            "moe.unpermute.fwd", "permute.reduce", _unpermuted(s), scales_with_load=True, read_by_backward=saved > 0,
            saved=saved,
        )  # fmt: skip
    elif travels(s):
        sort(builder, "moe.sort_back", s.rows)
        builder.add(
            "moe.unpermute.fwd", "permute.index_select", _unpermuted(s), scales_with_load=True, read_by_backward=False
        )
    else:
        _merge(builder, "moe.unpermute.fwd", s, (), backward=False)


def out_of_experts_backward(builder: SegmentBuilder, s: Shapes, after: tuple[str, ...]) -> None:
    """The gradient of that, to the rows of the experts."""
    if arrive_in_order(s):
        builder.hand_on(after)
        return
    if in_pytorch(s) and not travels(s):
        _merge(builder, "moe.permute.grad", s, after, backward=True)
    else:
        cls = _turned_back(s, "permute.expand")
        work = _sorted(s, each_bytes(s)) if _in_chunks(s) else _permuted(s)
        builder.add("moe.permute.grad", cls, work, after=after, scales_with_load=True)


def into_experts_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """The gradient of the rows summed to that of what arrived."""
    if arrive_in_order(s):
        return
    work = _sorted(s, s.model.expert_hidden * BF16) if _in_chunks(s) else _unpermuted(s)
    if travels(s) and gate_bytes(s):
        work = replace(work, written=work.written + s.received * gate_bytes(s))
    builder.add("moe.unpermute.grad", _turned_back(s, "permute.reduce"), work, scales_with_load=True)


def _turned_back(s: Shapes, fused: str) -> str:
    """Kernel class of the gradient of rows that were put into another order: of joined chunks, again such."""
    return "elem" if _in_chunks(s) else "permute.index_add" if in_pytorch(s) else fused
