"""A linear layer as it runs: the GEMM and, under the FP8 recipe, everything that surrounds it.

FP8 (DeepSeek-V3 report, section 3.3.2): the input is cast per 1x128 tile before each GEMM and its scales transposed;
the input gradient needs the transposed weight and a cast of the output gradient; the weight gradient needs both
operands cast per 128x1. In BF16 only the three GEMMs remain.

FP8 with one scale a tensor (Transformer Engine, delayed scaling): Hopper's FP8 GEMMs need both operands contiguous
along K, so each of a layer's two activations is cast and transposed, by one kernel (cast_transpose). Where a norm comes
before, it writes FP8 itself; what is gathered over tensor-parallel ranks travels in FP8, cast before. Both are
transposed when the weight gradient needs them (transformer_engine/pytorch/module/linear.py, layernorm_linear.py).
"""

from __future__ import annotations

from math import ceil
from typing import Literal

from simulator.dtypes import BF16, FP8, FP8_TILE, FP32
from simulator.graph.block import SegmentBuilder
from simulator.ops import Gemm, GemmPrecision, Part, Streaming
from simulator.spec.job import Recipe


def cast(elements: float, read: float, written: float) -> Streaming:
    """A streaming kernel over `elements`, `read` and `written` bytes each."""
    return Streaming(read=elements * read, written=elements * written)


def unvectorized(elements: float, read: float, written: float) -> Streaming:
    """The same by PyTorch's kernel for operands that are not next to each other, class `elem.unvectorized`."""
    return Streaming(read=elements * read, written=elements * written, values=elements)


def elementwise(elements: float, read: float, written: float, *, per_cta: int = 512) -> Streaming:
    """The same by PyTorch's elementwise kernels: 128 threads of 4 elements (2 in some copies) make a CTA."""
    work = cast(elements, read, written)
    return Streaming(read=work.read, written=work.written, blocks=ceil(elements / per_cta))


ROTATED = 256
"""Elements that a CTA of the rotary kernel takes: 4 tokens of a head, 64 wide (its grid in the profile)."""


def rotation(elements: int) -> Streaming:
    """Rotary embedding of so many elements of queries or keys."""
    return elementwise(elements, BF16, BF16, per_cta=ROTATED)


SCALE_TILE = 128
"""Rows and columns of scales that a CTA of the transposition takes (from its grid and shared memory in the profile)."""


def scales(rows: int, width: int) -> Streaming:
    """Transposition of the FP32 scales of a (rows, width) matrix, one per 128 values of a row."""
    columns = -(-width // FP8_TILE)
    work = cast(rows * columns, FP32, FP32)
    return Streaming(read=work.read, written=work.written, blocks=-(-rows // SCALE_TILE) * -(-columns // SCALE_TILE))


def row_scales(rows: int, width: int) -> Streaming:
    """The same for the rows of the experts, by PyTorch's strided copy."""
    return elementwise(rows * -(-width // FP8_TILE), FP32, FP32, per_cta=256)


PRECISION: dict[Recipe, GemmPrecision] = {"fp8": "fp8_block", "fp8_tensor": "fp8_tensor", "bf16": "bf16"}
CLASS: dict[Recipe, str] = {"fp8": "gemm.fp8", "fp8_tensor": "gemm.fp8_tensor", "bf16": "gemm.bf16"}


def precision_of(recipe: Recipe) -> GemmPrecision:
    """The GEMM precision of the recipe."""
    return PRECISION[recipe]


def gemm_class(recipe: Recipe, suffix: str = "") -> str:
    """Kernel class of a GEMM: `gemm.fp8`, `gemm.bf16.wgrad` ..."""
    return CLASS[recipe] + suffix


def gradient_class(recipe: Recipe, suffix: str = "") -> str:
    """Kernel class of the GEMM of an input gradient.

    Per-tensor FP8 adds partial sums up outside the tensor cores there, as in weight gradients (Transformer Engine:
    use_split_accumulator in transformer_engine/common/recipe/__init__.py, 2025; torchao: use_fast_accum false for
    gradients, torchao/float8/config.py, 2025).
    """
    return gemm_class(recipe, f"{suffix}.split" if recipe == "fp8_tensor" else suffix)


def gradient_gemm(recipe: Recipe, m: int, n: int, k: int) -> Gemm:
    """The GEMM of an input gradient."""
    return Gemm(m=m, n=n, k=k, precision=precision_of(recipe), split=recipe == "fp8_tensor")


def cast_tensor(builder: SegmentBuilder, name: str, elements: float, *, shards: int = 1) -> None:
    """Per-tensor FP8: one kernel writes the cast and its transpose; of what is gathered from `shards` ranks each casts
    its own."""
    if shards == 1:
        builder.add(name, "quant.tensor", cast(elements, BF16, 2 * FP8))
    else:
        builder.add(name, "quant.tensor", cast(elements / shards, BF16, FP8))


Place = Literal["column", "row", "alone"]
"""Where a linear layer is: `column` after a norm, its input gathered from tensor-parallel ranks; `row` before a
reduce-scatter, whose gradient is gathered; `alone` neither."""


def gathered_from(builder: SegmentBuilder) -> int:
    """Ranks that each hold a part of what a tensor-parallel layer gathers (sequence parallelism)."""
    layout = builder.shapes.job.layout
    return layout.tp if layout.sp else 1


def transpose_tensor(builder: SegmentBuilder, name: str, elements: float) -> None:
    """Per-tensor FP8: the transpose for the weight gradient of what was cast without one."""
    builder.add(name, "weight_t", cast(elements, FP8, FP8), part="W")


def forward(
    builder: SegmentBuilder,
    name: str,
    m: int,
    n: int,
    k: int,
    *,
    recipe: Recipe,
    place: Place = "alone",
    cast_input: bool = True,
    recompute: bool = False,
    saved: float = 0.0,
    matrices: tuple[int, ...] = (),
    read_by_backward: bool = True,
) -> None:
    """x (m, k) times w (k, n). `cast_input=False` where an earlier op already wrote FP8.

    `matrices`: output widths of the layers whose weights w joins (none: of one).
    """
    tail = "_r" if recompute else ""
    part: Part | None = "R" if recompute else None
    if recipe == "fp8":
        if cast_input and not builder.fused_quant:
            builder.add(f"{name}.quant_x{tail}", "quant.token", cast(m * k, BF16, FP8), part=part)
        builder.add(f"{name}.scale_t{tail}", "scale_t", scales(m, k), part=part)
    elif recipe == "fp8_tensor" and cast_input and not recompute and not (place == "column" and builder.fused_quant):
        cast_tensor(builder, f"{name}.quant_x", m * k, shards=gathered_from(builder) if place == "column" else 1)
    gemm = Gemm(m=m, n=n, k=k, precision=precision_of(recipe))
    builder.add(
        f"{name}.{'recompute' if recompute else 'fwd'}",
        gemm_class(recipe),
        gemm,
        part=part,
        saved=saved,
        matrices=matrices or (n,),
        read_by_backward=read_by_backward,
    )


def weight_transpose(builder: SegmentBuilder, name: str, n: int, k: int, *, experts: int = 1) -> None:
    """Fine-grained FP8 only: the weight laid out for the input gradient."""
    builder.add(f"{name}.weight_t", "weight_t", cast(experts * n * k, FP8, FP8), reads_resident=True)


def input_gradient(
    builder: SegmentBuilder,
    name: str,
    m: int,
    n: int,
    k: int,
    *,
    recipe: Recipe,
    place: Place = "alone",
    cast_gradient: bool = True,
    weight_first: bool = True,
) -> None:
    """dx (m, k) = dy (m, n) times w^T. `cast_gradient=False` where dy arrives in FP8."""
    if recipe == "fp8":
        if weight_first:
            weight_transpose(builder, name, n, k)
        if cast_gradient and not builder.fused_quant:
            builder.add(f"{name}.quant_g", "quant.token", cast(m * n, BF16, FP8))
        if not weight_first:
            weight_transpose(builder, name, n, k)
        builder.add(f"{name}.scale_t_g", "scale_t", scales(m, n))
    elif recipe == "fp8_tensor" and cast_gradient:
        cast_tensor(builder, f"{name}.quant_g", m * n, shards=gathered_from(builder) if place == "row" else 1)
    builder.add(f"{name}.dgrad", gradient_class(recipe), gradient_gemm(recipe, m, k, n))


def cast_for_wgrad(
    builder: SegmentBuilder, name: str, rows: int, width: int, *, which: str, read: float = BF16
) -> None:
    """Fine-grained FP8 only: one operand of the weight gradient cast per 128x1 and transposed (`which` is x or g)."""
    builder.add(f"{name}.quant_{which}_t", "quant.chan_t", cast(rows * width, read, FP8), part="W")


def weight_gradient(
    builder: SegmentBuilder, name: str, m: int, n: int, k: int, *, recipe: Recipe, place: Place = "alone"
) -> None:
    """dw (n, k) += dy^T (n, m) times x (m, k), accumulated in the gradients' format (FP32: report, section 3.3.2).

    Software that does not fuse the accumulation writes BF16 and adds it with a kernel of its own, or, where it copies
    gradients into the buffer that is reduced, adds what was reduced shard by shard.
    """
    fused, shards = builder.fused_accumulation, gathered_from(builder)
    kept = builder.shapes.states.gradient_bytes
    if recipe == "fp8_tensor" and place == "column" and (builder.fused_quant or shards > 1):
        transpose_tensor(builder, f"{name}.x_t", m * k)
    if recipe == "fp8_tensor" and place == "row" and shards > 1:
        transpose_tensor(builder, f"{name}.g_t", m * n)
    gemm = Gemm(
        m=n,
        n=k,
        k=m,
        precision=precision_of(recipe),
        form="wgrad",
        out_bytes=kept if fused else BF16,
        split=recipe == "fp8_tensor",
    )
    builder.add(f"{name}.wgrad", gemm_class(recipe, ".wgrad"), gemm)
    if not fused and not builder.shapes.copies_shards:
        add_gradient(builder, name, n * k)


def add_gradient(builder: SegmentBuilder, name: str, values: float) -> None:
    """A kernel of its own adds a microbatch's BF16 gradient of so many values to what is kept.

    Autograd keeps that of a step's first microbatch as it is, so that of m microbatches m - 1 are added: here each
    moves that part of the bytes.
    """
    shapes = builder.shapes
    microbatches = max(1, shapes.job.microbatches)
    part, kept = 1.0 - 1.0 / microbatches, shapes.states.gradient_bytes
    if microbatches > 1:
        work = Streaming(read=part * values * (BF16 + kept), written=part * values * kept)
        builder.add(f"{name}.wgrad_add", "elem", work)
