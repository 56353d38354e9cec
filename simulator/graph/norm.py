"""Norms, forward and backward (one kernel each way, a finalize and an accumulation for the weight gradient), and the
residual stream they stand on.

`pre`: each branch reads a norm of the stream. `post`: each branch's output is normed before it is added (OLMo 2, arXiv
2501.00656, section 2.1). `both`: a norm before and one behind (GLM-4). A parallel block: both branches read the layer's
input, by a norm each (GPT-NeoX, arXiv 2204.06745, section 2.1) or by one that they share (Falcon-7B, GPT-J). Tensor
parallelism reduces each branch's output by itself, as row-parallel layers do.
"""

from __future__ import annotations

from typing import Literal

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import unvectorized
from simulator.graph.mixers import depth
from simulator.graph.parallel import gathered_tokens, sharded_tokens, shares_input
from simulator.graph.shapes import Norm, Shapes
from simulator.ops import Part, Streaming

SMALL = 1024  # below this width a norm kernel keeps more CTAs an SM (396 = 3x132 against 924 = 7x132 in the trace)

ONE_WARP = 2304
"""Up to this width one warp normalises a row, above it four do: NVIDIA/apex, `ln_fwd_cuda_kernel.cu`, and the
profile, whose narrow kernels use no shared memory."""


TUNED: dict[str, frozenset[int]] = {
    "rms": frozenset({512, 768, 1024, 2048, 4096, 8192}),
    "layer": frozenset({
        768, 1024, 1536, 2048, 2304, 3072, 3840, 4096, 5120, 6144, 8192, 10240, 12288, 12800, 15360, 16384, 18432,
        20480, 24576, 25600, 30720, 32768, 40960, 49152, 65536,
    }),
}  # fmt: skip
"""Widths that Transformer Engine has kernels of their own for; of others a general one is taken, which is slower
(transformer_engine/common/normalization/{rmsnorm,layernorm}/*_kernel.cu, 2.10, 2025-11: REGISTER_NORM_LAUNCHER)."""
WIDE = {"fwd": 10240, "bwd": 6144}
"""Above this width several CTAs share a row of a LayerNorm and wait for each other; in backward a row of an RMSNorm
takes all registers of an SM (the same files)."""
HEAD = 512
"""Up to this width one warp of the general kernels takes a whole row (the same files: WARPS_M 4, WARPS_N 1)."""


def norm_class(direction: Literal["fwd", "bwd"], width: int, kind: Literal["rms", "layer"]) -> str:
    """Kernel class of Transformer Engine's norm over so many values."""
    if width not in TUNED[kind] and width <= HEAD:
        return f"norm.{direction}.narrow"
    name = f"norm.{direction}.layer" if kind == "layer" else f"norm.{direction}"
    if width not in TUNED[kind]:
        return f"{name}.general"
    return f"{name}.wide" if width > WIDE[direction] else name


def _ctas(width: int, s: Shapes, wide: int, narrow: int) -> int:
    """Grid of a persistent norm kernel: a fixed number of CTAs per SM."""
    return s.sms * (wide if width >= SMALL else narrow)


def norm_output(
    s: Shapes, tokens: int, width: int, where: Norm = "layer", *, each: float = BF16, gathered: bool = False
) -> float:
    """Bytes kept of what a norm makes: its output, `each` a value, and per token 1/rms (of LayerNorm also the mean) in
    FP32 [B].

    Nothing where norms are recomputed. A narrow GEMM that alone reads the output keeps its own form of it instead
    (`Formats.kept_bytes`). Where the output is `gathered` for a tensor-parallel GEMM, that keeps all of it, unless the
    software gathers it again in backward.
    """
    statistics = FP32 * (2 if s.model.norm == "layer" else 1)
    parts = s.job.layout.tp if gathered and s.job.layout.sp and not s.stack.tp_regather else 1
    return 0.0 if s.norm_again(where) else tokens * (parts * width * each + statistics)


FORWARD_OPERATORS = (
    ("widen", "elem.unvectorized", BF16, FP32),
    ("square", "elem", FP32, FP32),
    ("mean", "elem", FP32, 0.0),
    ("scale", "elem.unvectorized", FP32, FP32),
    ("narrow", "elem", FP32, BF16),
    ("weight", "elem.unvectorized", BF16, BF16),
)
BACKWARD_OPERATORS = (
    ("weight", "elem.unvectorized", BF16, BF16),
    ("gain", "elem", 2 * BF16, BF16),
    ("gain_sum", "elem", BF16, 0.0),
    ("narrow", "elem.unvectorized", BF16, FP32),
    ("scale", "elem.unvectorized", FP32, FP32),
    ("scale_gain", "elem", 2 * FP32, FP32),
    ("scale_sum", "elem", FP32, 0.0),
    ("mean", "elem", 0.0, FP32),
    ("power", "elem", FP32, FP32),
    ("twice", "elem", FP32, FP32),
    ("square", "elem", 2 * FP32, FP32),
    ("sum", "elem", 2 * FP32, FP32),
    ("widen", "elem", FP32, BF16),
)
"""Kernels of y = w * (x * rsqrt(mean(x^2) + eps)) op by op, with x in FP32 inside, and of its gradient as autograd runs
it (torchtitan/models/norms.py, RMSNorm, 2024; pytorch, tools/autograd/derivatives.yaml: pow, mean, mul): kernel class,
bytes read and written of a value [B]. Those on one number a token are left out. Factors that repeat along a row or a
column make the kernel one that computes every value's address.

Kept are the input in FP32, of pow and mul, and the normed value in BF16, of the multiplication with w, where a fused
norm keeps its input in BF16: 4 B a value more."""


def _operators(
    builder: SegmentBuilder,
    name: str,
    ops: tuple[tuple[str, str, float, float], ...],
    values: float,
    *,
    part: Part | None = None,
    saved: float = 0.0,
    after: tuple[str, ...] = (),
) -> None:
    """A norm's kernels over so many values; what it keeps is the first's."""
    for at, (which, cls, read, written) in enumerate(ops):
        first = at == 0
        builder.add(
            f"{name}.{which}",
            cls,
            unvectorized(values, read, written),
            part=part,
            saved=saved if first else 0.0,
            after=after if first else (),
        )


def norm_forward(
    builder: SegmentBuilder,
    name: str,
    tokens: int,
    width: int,
    *,
    residual: bool = False,
    part: Part | None = None,
    saved: float = 0.0,
    after: tuple[str, ...] = (),
) -> None:
    """Read x, write the normalised x; with `residual`, also read the branch and write the sum, where the software fuses
    that (else see `add_residual`).

    Software without a fused norm converts to FP32 and back with kernels of their own.
    """
    residual = residual and builder.stack.residual_fused
    if builder.stack.norm_kernels == "operators":
        kept = saved + tokens * width * FP32 if saved else 0.0
        _operators(builder, name, FORWARD_OPERATORS, tokens * width, part=part, saved=kept, after=after)
        return
    if not builder.stack.norm_fused:
        builder.add(f"{name}.to_fp32", "elem.unvectorized", unvectorized(tokens * width, BF16, FP32), after=after)
        after = ()
        builder.add(f"{name}.square_mean", "elem", Streaming(read=tokens * width * FP32, written=tokens * FP32))
        builder.add(f"{name}.scale", "elem", Streaming(read=tokens * width * FP32, written=tokens * width * FP32))
    per_value = BF16 * (4 if residual else 2)
    work = Streaming(
        read=tokens * width * per_value / 2,
        written=tokens * width * per_value / 2,
        blocks=_ctas(width, builder.shapes, 3, 7),
    )
    cls = "norm.fwd.residual" if residual else "norm.fwd.narrow" if width <= ONE_WARP else "norm.fwd"
    if builder.stack.norm_kernels == "te" and not residual:
        cls = norm_class("fwd", width, builder.shapes.model.norm)
    builder.add(name, cls, work, part=part, saved=saved, after=after)


def norm_backward(
    builder: SegmentBuilder, name: str, tokens: int, width: int, *, residual: bool = False, weights: bool = True
) -> None:
    """Read x and dy (with `residual` also the gradient that by-passes the norm), write dx; then the weight's part, if
    the norm has any.

    Where the residual is not fused, autograd adds the two gradients with a kernel of its own.
    """
    fused = residual and builder.stack.residual_fused
    if builder.stack.norm_kernels == "operators":
        _operators(builder, f"{name}.bwd", BACKWARD_OPERATORS, tokens * width)
        if residual:
            builder.add(f"{name}.residual.bwd", "elem", sum_of_two(tokens * width))
        return
    read = tokens * width * BF16 * (3 if fused else 2)
    ctas = _ctas(width, builder.shapes, 1 if residual else 5, 4)
    whose = builder.stack.norm_kernels
    cls = norm_class("bwd", width, builder.shapes.model.norm) if whose == "te" else "norm.bwd"
    builder.add(f"{name}.bwd", cls, Streaming(read=read, written=tokens * width * BF16, blocks=ctas))
    if weights and whose == "torch":  # x and dy once more, for the weight's gradient
        again = Streaming(read=2 * tokens * width * BF16, written=width * FP32)
        builder.add(f"{name}.bwd_weight", "elem", again)
    elif weights and whose != "compiled":  # torch.compile's were measured as one, sum over the rows included
        kind = cls.rpartition(".")[2]
        sums = f"norm.sums.{kind}" if kind in ("narrow", "general") else "elem.norm_weight"
        partial = ctas * width * FP32
        builder.add(f"{name}.bwd_finalize", sums, Streaming(read=partial, written=width * FP32))
    kept = builder.shapes.states.gradient_bytes
    if weights:
        model, added = builder.shapes.model, Streaming(read=width * (FP32 + kept), written=width * kept)
        count = 2 if model.norm == "layer" and model.norm_bias else 1  # gain and bias
        builder.add(f"{name}.wgrad_acc", "elem.norm_weight", added, count=count)
    if residual and not fused:
        builder.add(f"{name}.residual.bwd", "elem", sum_of_two(tokens * width))


MASK = 1.0
"""Bytes of a dropout mask per value [B]."""


def sum_of_two(values: float) -> Streaming:
    """c = a + b in BF16."""
    return Streaming(read=2 * values * BF16, written=values * BF16)


def add_residual(
    builder: SegmentBuilder,
    name: str,
    s: Shapes,
    width: int,
    *,
    leaves: bool = False,
    alone: bool = False,
    after: tuple[str, ...] = (),
    tokens: int = 0,
    scales_with_load: bool = False,
) -> None:
    """The residual added by a kernel of its own, where no norm does it: the sum `leaves` the layer, or stands `alone`,
    with no norm of it behind, or the software does not fuse the two. `tokens`: if not this rank's part of them.

    Bias and dropout ride on it (Megatron-LM, arXiv 2104.04473, section 4.2; Megatron-Core, fused_bias_dropout.py).
    """
    values = (tokens or sharded_tokens(s)) * width
    if s.stack.dropout:
        work = Streaming(read=values * 2 * BF16, written=values * (BF16 + MASK))
        kind, saved = "dropout_add", values * MASK
    elif leaves or alone or not s.stack.residual_fused:
        kind, saved, work = "residual", 0.0, sum_of_two(values)
    else:
        return
    builder.add(
        f"{name}.{kind}.fwd",
        "elem",
        work,
        saved=saved,
        after=after,
        read_by_backward=not leaves,
        scales_with_load=scales_with_load,
    )


def drop_backward(builder: SegmentBuilder, name: str, s: Shapes, width: int, *, tokens: int = 0) -> None:
    """The gradient through that mask."""
    if s.stack.dropout:
        values = (tokens or sharded_tokens(s)) * width
        work = Streaming(read=values * (BF16 + MASK), written=values * BF16)
        builder.add(f"{name}.dropout_add.bwd", "elem", work)


def enter_branch(builder: SegmentBuilder, norm: str, s: Shapes, each: float, *, gathered: bool) -> float:
    """The norm before a branch, with what it keeps, `each` a value of its output [B].

    Returns the bytes that the branch's first GEMM keeps instead, its input, where no norm stands before it [B].
    """
    rows, h = sharded_tokens(s), s.model.hidden_size
    if s.model.norm_placement == "post":
        return rows * h * BF16
    depth.mix(builder, "attn", s)
    norm_forward(builder, norm, rows, h, saved=rows * h * BF16 + norm_output(s, rows, h, each=each, gathered=gathered))
    return 0.0


def norm_behind(builder: SegmentBuilder, branch: str, s: Shapes, *, after: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The norm of a branch's output; it keeps the output, and its statistics, but nothing reads what it makes again.
    Returns what is still to wait for."""
    rows, h = sharded_tokens(s), s.model.hidden_size
    if s.model.norm_placement == "pre":
        return after
    statistics = FP32 * (2 if s.model.norm == "layer" else 1)
    norm_forward(builder, f"norm.{branch}.out.fwd", rows, h, saved=rows * (h * BF16 + statistics), after=after)
    return ()


def norm_behind_backward(builder: SegmentBuilder, branch: str, s: Shapes) -> None:
    """Its gradient."""
    if s.model.norm_placement != "pre":
        norm_backward(builder, f"norm.{branch}.out", sharded_tokens(s), s.model.hidden_size)


def leave_attention(builder: SegmentBuilder, s: Shapes) -> None:
    """From the output of attention to the input of the feed-forward part."""
    rows, h, model = sharded_tokens(s), s.model.hidden_size, s.model
    if model.mixer_only_layers:  # of a layer without a feed-forward part
        norm_behind(builder, "attn", s)
        add_residual(builder, "attn", s, h, leaves=True)
        return
    if model.norm_placement == "pre" and not model.parallel_block:
        add_residual(builder, "attn", s, h)
        depth.mix(builder, "ffn", s)
        kept = rows * h * BF16 + norm_output(s, rows, h, each=s.ffn_input, gathered=not s.ffn_is_moe)
        norm_forward(builder, "norm.ffn.fwd_residual", rows, h, residual=True, saved=kept)
        return
    norm_behind(builder, "attn", s)
    leaves = model.parallel_block  # a sequential block reads the sum
    add_residual(builder, "attn", s, h, leaves=leaves, alone=True, tokens=gathered_tokens(s))
    if model.norm_placement == "both":
        enter_branch(builder, "norm.ffn.fwd", s, s.ffn_input, gathered=not s.ffn_is_moe)
    elif model.parallel_block and not model.shared_norm:  # it reads the layer's input, which the first norm keeps
        norm_forward(
            builder, "norm.ffn.fwd", rows, h, saved=norm_output(s, rows, h, each=s.ffn_input, gathered=not s.ffn_is_moe)
        )


def kept_of_ffn_input(s: Shapes) -> float:
    """Bytes that the first GEMM of the feed-forward part keeps of its input, where no norm stands before it [B]."""
    return sharded_tokens(s) * s.model.hidden_size * BF16 if s.model.norm_placement == "post" else 0.0


def leave_ffn(builder: SegmentBuilder, s: Shapes) -> None:
    """From the output of a dense feed-forward part to that of the layer."""
    norm_behind(builder, "dense", s)
    add_residual(builder, "dense", s, s.model.hidden_size, leaves=True)


def enter_ffn_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """From the gradient of the layer's output to that of the dense feed-forward part's."""
    drop_backward(builder, "dense", s, s.model.hidden_size)
    norm_behind_backward(builder, "dense", s)


def leave_ffn_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """The gradient that by-passes the dense feed-forward part, where no norm's backward adds it."""
    if s.model.norm_placement == "post":
        builder.add("dense.residual.bwd", "elem", sum_of_two(sharded_tokens(s) * s.model.hidden_size))


def enter_attention_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """From the gradient of the feed-forward part's input to that of attention's output."""
    rows, h, model = sharded_tokens(s), s.model.hidden_size, s.model
    before = model.norm_placement != "post" and not model.mixer_only_layers
    if before and not shares_input(s):
        norm_backward(builder, "norm.ffn", rows, h, residual=True)
    depth.mix_backward(builder, "ffn", s)
    drop_backward(builder, "attn", s, h, tokens=gathered_tokens(s))
    norm_behind_backward(builder, "attn", s)


def leave_branch_backward(builder: SegmentBuilder, branch: str, s: Shapes) -> None:
    """From the gradient of attention's first GEMM to that of the layer's input."""
    rows, h, model = sharded_tokens(s), s.model.hidden_size, s.model
    if model.norm_placement == "post":
        builder.add(f"{branch}.residual.bwd", "elem", sum_of_two(rows * h))
        return
    if shares_input(s):  # the norm's output went to both branches, whose partial gradients are summed first
        builder.add(f"{branch}.branches.bwd", "elem", sum_of_two(s.tokens * h))
    norm_backward(builder, f"norm.{branch}", rows, h, residual=True)
    depth.mix_backward(builder, "attn", s)
