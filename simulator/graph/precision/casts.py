"""Kernels that make the operands of narrow GEMMs, where each linear layer casts its own (every recipe but DeepSeek's).

A GEMM needs both operands scaled along K, so that activations, gradients and weights are each read in two forms: along
rows, and along columns. Which kernels make these differs by recipe and software:

| scale | forward | backward |
|---|---|---|
| per tensor, delayed | one kernel casts x, on Hopper into both forms (cast_transpose) | the same for the gradient |
| per tensor, current | a pass finds the maximum first | the same |
| per row | one kernel by rows | gradient by rows; gradient and x by columns for the weight gradient |
| per block, MXFP8 | one kernel makes both forms | the same |
| NVFP4 | a pass for the scales of both forms, then a kernel for each of them | the same, rounded at random |

Transformer Engine (transformer_engine/pytorch/module/linear.py, layernorm_linear.py; csrc/extensions/
normalization.cpp; 2026): a norm before writes delayed FP8 itself, and finds the maximum of current scaling; what is
gathered over tensor-parallel ranks is cast before, per tensor by rows only, and turned when the weight gradient needs
it. It keeps x in the recipe's format. torchao (torchao/float8/float8_linear.py, 2026) keeps BF16 and casts x again for
the weight gradient, by a scale that it finds again; it also casts weights at each use. torch.compile keeps the maximum
of a weight that forward found (profiles of PyTorch 2.11 on an H200).

NVFP4 as Transformer Engine 2.8 to 2.14 runs it (csrc/quantizer.cpp, NVFP4Quantizer::quantize_impl): columns of x and of
gradients go through a random Hadamard transform of 16 values, so that a pass finds the maximum of both forms (a norm
does not: it knows nothing of the transform), a kernel casts rows, and another transforms, casts and turns columns. From
2.15 on the two are one, which reads the values once (`stack.block_casts`). Weights share a scale by 16 x 16 values and
are not transformed. The maxima are cleared by a kernel, and rounding at random takes another, which hands out its seed.

Eager PyTorch casts in four passes (to FP32, scale, clamp, to FP8) and finds a maximum in two
(`calibration/tables/h200_fp8_casts.csv`: bytes at 2.9 TB/s).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Unpack

from simulator.dtypes import BF16, FP8, FP32
from simulator.graph.block import SegmentBuilder
from simulator.ops import Collective, Facts, Part, Streaming
from simulator.spec.precision import Formats, Recipe

Place = Literal["column", "row", "alone"]
"""Where a linear layer is: `column` after a norm, its input gathered from tensor-parallel ranks; `row` before a
reduce-scatter, whose gradient is gathered; `alone` neither."""

CLASS: dict[Recipe, str] = {
    "fp8_tensor": "quant.tensor",
    "fp8_row": "quant.row",
    "fp8_block": "quant.block",
    "mxfp8": "quant.mxfp8",
    "nvfp4": "quant.nvfp4",
}
"""Kernel class of a cast."""


class _Made(NamedTuple):
    """Of a cast: whether it makes both forms, a norm before knows the values, ranks that each cast a part, and whether
    rows of many experts are cast by one call."""

    both: bool = False
    from_norm: bool = False
    shards: int = 1
    experts: bool = False


class Passes(NamedTuple):
    """Elementwise kernels, and the bytes that all of them together move of a value."""

    kernels: int
    work: Streaming


_EAGER_CAST = Passes(4, Streaming(read=BF16 + 3 * FP32, written=3 * FP32 + FP8))
EAGER: dict[str, Passes] = {
    **dict.fromkeys((*CLASS.values(), "quant.column"), _EAGER_CAST),
    "quant.amax": Passes(2, Streaming(read=2 * BF16, written=BF16)),
    "quant.rescale": Passes(2, Streaming(read=BF16 + FP32, written=FP32 + BF16)),
}
"""Casts, maxima and scaled outputs in eager PyTorch."""


def gathered_from(builder: SegmentBuilder) -> int:
    """Ranks that each cast a part of what a tensor-parallel layer gathers (sequence parallelism); what is gathered in
    BF16 is cast by each of them as a whole."""
    s = builder.shapes
    layout = s.job.layout
    return layout.tp if layout.sp and s.formats.travels_bytes < BF16 else 1


def of_input(
    builder: SegmentBuilder, name: str, values: float, place: Place, *, experts: bool = False, **facts: Unpack[Facts]
) -> None:
    """x of the forward GEMM; `experts`: rows of many, by one call."""
    formats = builder.shapes.settings
    shards = gathered_from(builder) if place == "column" else 1
    from_norm = place == "column" and builder.fused_quant and formats.kept == "recipe"
    both = formats.kept == "recipe" and (shards == 1 or formats.record.scaled != "tensor")
    made = _Made(both=both, from_norm=from_norm, shards=shards, experts=experts)
    _cast(builder, f"{name}.quant_x", values / shards, formats, made, facts)


def of_gradient(
    builder: SegmentBuilder, name: str, values: float, place: Place, *, experts: bool = False, **facts: Unpack[Facts]
) -> None:
    """The output's gradient, for the input gradient and as far as one kernel can for the weight gradient."""
    formats = builder.shapes.settings
    shards = gathered_from(builder) if place == "row" else 1
    scaled = formats.record.scaled
    both = scaled != "row" and (shards == 1 or scaled == "block")
    if formats.recipe == "nvfp4" and formats.kept == "recipe":
        _small(builder, f"{name}.quant_g.seed", facts)
    made = _Made(both=both, shards=shards, experts=experts)
    _cast(builder, f"{name}.quant_g", values / shards, formats, made, facts)


def for_weight_gradient(
    builder: SegmentBuilder, name: str, x: float, g: float, place: Place, **facts: Unpack[Facts]
) -> None:
    """What the weight gradient still needs of `x` and `g` values: casts by columns, or transposes of what was cast."""
    formats, shards = builder.shapes.settings, gathered_from(builder)
    scaled, value = formats.record.scaled, formats.record.value
    again = Streaming(read=BF16, written=value)
    turned = Streaming(read=FP8, written=FP8)
    if formats.kept == "bf16":
        if scaled == "tensor" and formats.scaling == "current":
            _maximum(builder, f"{name}.quant_x_t.amax", x, "W", facts)
        _stream(builder, f"{name}.quant_x_t", _by_columns(builder, formats), x, again, "W", facts)
    elif scaled == "tensor" and formats.layouts == 2 and place == "column" and (builder.fused_quant or shards > 1):
        _stream(builder, f"{name}.x_t", "weight_t", x, turned, "W", facts)
    if scaled == "row":
        _stream(builder, f"{name}.quant_g_t", _by_columns(builder, formats), g, again, "W", facts)
    elif scaled == "tensor" and formats.layouts == 2 and place == "row" and shards > 1:
        _stream(builder, f"{name}.g_t", "weight_t", g, turned, "W", facts)


def of_weight(builder: SegmentBuilder, name: str, values: float, *, backward: bool, **facts: Unpack[Facts]) -> None:
    """The weight at each use, where no copy of it is kept: by rows in forward, by columns in backward.

    Weights that are gathered in FP8 need only be turned for backward.
    """
    s = builder.shapes
    formats = s.settings
    resident: Facts = {**facts, "reads_resident": True}
    if formats.weights == "recipe" and s.job.layout.zero >= 3:
        if backward and formats.layouts == 2:
            _stream(builder, f"{name}.w_t", "weight_t", values, Streaming(read=FP8, written=FP8), None, resident)
        return
    if formats.weights != "cast":
        return
    if backward:
        work = Streaming(read=BF16, written=formats.record.weight)
        if formats.record.scaled == "tensor" and formats.scaling == "current" and not builder.stack.swiglu_fused:
            _maximum(builder, f"{name}.quant_w_t.amax", values, None, resident)
        if formats.layouts == 2:
            _stream(builder, f"{name}.quant_w_t", _by_columns(builder, formats), values, work, None, resident)
        return
    _cast(builder, f"{name}.quant_w", values, formats, _Made(), resident)


SWIZZLED: dict[Recipe, float] = {"mxfp8": 1.0 / 32.0, "nvfp4": 1.0 / 16.0}
"""Bytes of scales of a value: one for 32 or 16 values [B]."""


def swizzle(
    builder: SegmentBuilder,
    name: str,
    cast: float,
    gathered: float,
    part: Part | None = None,
    **facts: Unpack[Facts],
) -> None:
    """Before each MXFP8 or NVFP4 GEMM Transformer Engine lays the scales of its two operands out as cuBLAS reads them,
    by a kernel each; a grouped GEMM's are laid out together (transformer_engine/pytorch/csrc/extensions/gemm.cpp,
    swizzle_scaling_factors, 2.9, 2025-11). `cast`: values of operands that were cast just before, whose scales MXFP8's
    casts write so themselves from 2.12 on (module/linear.py, optimize_for_gemm); `gathered`: of weights and of what is
    gathered over ranks."""
    formats = builder.shapes.settings
    if formats.recipe not in SWIZZLED or formats.kept != "recipe":
        return
    laid_out = formats.recipe == "mxfp8" and builder.stack.block_casts != "apart"
    values, many = (gathered, int(gathered > 0)) if laid_out else (cast + gathered, 2)
    if many:
        each = Streaming(read=SWIZZLED[formats.recipe], written=SWIZZLED[formats.recipe])
        _stream(builder, f"{name}.swizzle", "elem", values / many, each, part, {**facts, "count": many})


def laid_out(builder: SegmentBuilder, values: float, is_gathered: bool, weights: float = 0.0) -> tuple[float, float]:
    """Values of an operand and of weights whose scales a cast may lay out, and those whose scales it does not."""
    apart = is_gathered and gathered_from(builder) > 1
    return (0.0, values + weights) if apart else (values, weights)


def rescale(builder: SegmentBuilder, name: str, values: float, part: Part | None = None) -> None:
    """A GEMM of a gradient runs without the scales of its rows and columns, and so many values of its output are
    multiplied with both behind it: where sums are split, cuBLAS with scales of tensors is faster than CUTLASS with
    scales of rows (torchao/float8/float8_ops.py, addmm_float8_unwrapped, 2024-12 to 2026-08).

    torch.compile computes both scales again for every value, a division in FP64, a logarithm and an exponential each
    (amax_to_scale in torchao/float8/float8_utils.py, scales rounded to powers of two since 2025-02): its instructions
    decide, in a kernel of their own as in one fused with what follows (`calibration/tables/h200_torchao_layer.csv`).
    """
    if builder.shapes.settings.record.scaled == "row":
        _stream(builder, f"{name}_scale", "quant.rescale", values, Streaming(read=BF16, written=BF16), part, {})


def _by_columns(builder: SegmentBuilder, formats: Formats) -> str:
    """Kernel class of a cast along columns; scales of rows are found in strides, and what torch.compile or Transformer
    Engine write turned, alone or with the form along rows, is a kernel of its own."""
    if formats.record.scaled == "row":
        return "quant.column"
    own = formats.record.scaled == "tensor" and builder.stack.norm_kernels in ("compiled", "te")
    return "quant.turned" if own else CLASS[formats.recipe]


def _cast(builder: SegmentBuilder, name: str, values: float, formats: Formats, made: _Made, facts: Facts) -> None:
    """The maximum, where the recipe scales whole tensors by their own, and the cast into one form or both."""
    tensor, nvfp4 = formats.record.scaled == "tensor", formats.recipe == "nvfp4"
    delayed = tensor and formats.scaling == "delayed"
    if delayed and made.from_norm:
        return
    if nvfp4 and formats.kept == "recipe":
        _small(builder, f"{name}.amax.clear", facts)
    if nvfp4 or (tensor and not delayed and not made.from_norm):
        _maximum(builder, f"{name}.amax", values, None, facts)
    if formats.kept == "recipe":
        _agree(builder, name, formats, made.shards, facts)
    if nvfp4 and made.both and builder.stack.block_casts != "joined":
        once = Streaming(read=BF16, written=formats.record.value)
        for form in (name, f"{name}_t"):
            _stream(builder, form, CLASS[formats.recipe], values, once, None, facts)
        return
    turns = made.both and formats.layouts == 2
    written = formats.record.value * (formats.layouts if made.both else 1)
    cls = _by_columns(builder, formats) if turns and tensor else CLASS[formats.recipe]
    if turns and delayed and made.experts and builder.stack.grouped_gemm == "streams":
        cls = "quant.turned.experts"  # transformer_engine/common/transpose/multi_cast_transpose.cu
    _stream(builder, name, cls, values, Streaming(read=BF16, written=written), None, facts)


def _maximum(builder: SegmentBuilder, name: str, values: float, part: Part | None, facts: Facts) -> None:
    """The largest of so many values."""
    _stream(builder, name, "quant.amax", values, Streaming(read=BF16, written=0.0), part, facts)


def _agree(builder: SegmentBuilder, name: str, formats: Formats, shards: int, facts: Facts) -> None:
    """What Transformer Engine runs between a tensor's maximum and its cast: of a tensor in `shards` that are gathered
    the maximum over their ranks, and for current scaling a kernel that makes the scale of it
    (transformer_engine/pytorch/csrc/quantizer.cpp, Float8CurrentScalingQuantizer::quantize_impl, 2.9, 2025-11)."""
    current = formats.record.scaled == "tensor" and formats.scaling == "current"
    if shards > 1 and (current or formats.recipe == "nvfp4"):
        near = min(shards, builder.shapes.node_gpus)
        work = Collective(kind="all_reduce", bytes=FP32, ranks=shards, per_node=near)
        builder.add(f"{name}.maximum.all_reduce", "comm.tp.all_reduce", work, **facts)
    if current:
        _small(builder, f"{name}.scale", facts)


def _small(builder: SegmentBuilder, name: str, facts: Facts) -> None:
    """A kernel over one value."""
    builder.add(name, "elem.small", Streaming(read=FP32, written=FP32), **facts)


def _stream(
    builder: SegmentBuilder,
    name: str,
    cls: str,
    values: float,
    each: Streaming,
    part: Part | None,
    facts: Facts,
) -> None:
    """A kernel over so many values that moves so many bytes of `each`; in eager PyTorch, the passes that do it."""
    if not builder.stack.swiglu_fused and cls in EAGER:
        passes, cls = EAGER[cls], "elem"
        each, facts = passes.work, {**facts, "launches": passes.kernels}
    work = Streaming(read=values * each.read, written=values * each.written, values=values)
    builder.add(name, cls, work, part=part, **facts)
