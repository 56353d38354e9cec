"""A linear layer as it runs: the GEMM and, under the FP8 recipe, everything that surrounds it.

FP8 (DeepSeek-V3 report, section 3.3.2): the input is cast per 1x128 tile before each GEMM and its scales transposed;
the input gradient needs the transposed weight and a cast of the output gradient; the weight gradient needs both
operands cast per 128x1. In BF16 only the three GEMMs remain.

Every other recipe casts by layer: `simulator.graph.precision.casts`.
"""

from __future__ import annotations

from math import ceil

from simulator.dtypes import BF16, FP8, FP8_TILE, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.precision import casts
from simulator.graph.precision.casts import Place
from simulator.ops import Gemm, GemmPrecision, Part, Streaming
from simulator.spec.precision import RECIPES, Recipe


def cast(elements: float, read: float, written: float) -> Streaming:
    """A streaming kernel over `elements`, `read` and `written` bytes each."""
    return Streaming(read=elements * read, written=elements * written)


def unvectorized(elements: float, read: float, written: float) -> Streaming:
    """The same by PyTorch's kernel for operands that are not next to each other, class `elem.unvectorized`."""
    return Streaming(read=elements * read, written=elements * written, values=elements)


def elementwise(elements: float, read: float, written: float, *, per_cta: int = 512) -> Streaming:
    """The same by PyTorch's elementwise kernels: 128 threads of 4 elements (2 in some copies) make a CTA."""
    work = cast(elements, read, written)
    return Streaming(read=work.read, written=work.written, blocks=ceil(elements / per_cta), values=elements)


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


def precision_of(recipe: Recipe) -> GemmPrecision:
    """The GEMM precision of the recipe."""
    return RECIPES[recipe].gemm


def gemm_class(recipe: Recipe, suffix: str = "") -> str:
    """Kernel class of a GEMM: `gemm.fp8`, `gemm.bf16.wgrad` ..."""
    return RECIPES[recipe].cls + suffix


def gradient_class(recipe: Recipe, suffix: str = "") -> str:
    """Kernel class of the GEMM of an input gradient.

    FP8 scaled by tensor or row adds partial sums up outside the tensor cores there, as in weight gradients (Transformer
    Engine: use_split_accumulator in transformer_engine/common/recipe/__init__.py, 2025; torchao: use_fast_accum false
    for gradients, torchao/float8/config.py, 2025).
    """
    return gemm_class(recipe, f"{suffix}.split" if splits(recipe) else suffix)


def splits(recipe: Recipe) -> bool:
    """Whether GEMMs of gradients add partial sums up outside the tensor cores."""
    return RECIPES[recipe].scaled in ("tensor", "row")


def gradient_gemm(recipe: Recipe, m: int, n: int, k: int) -> Gemm:
    """The GEMM of an input gradient."""
    return Gemm(m=m, n=n, k=k, precision=precision_of(recipe), split=splits(recipe))


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
    """x (m, k) times w (k, n). `cast_input=False` where an earlier op already wrote fine-grained FP8.

    `matrices`: output widths of the layers whose weights w joins (none: of one), each a GEMM of its own where the
    software keeps them apart.
    """
    tail = "_r" if recompute else ""
    part: Part | None = "R" if recompute else None
    if recipe == "fp8":
        if cast_input and not builder.fused_quant:
            builder.add(f"{name}.quant_x{tail}", "quant.token", cast(m * k, BF16, FP8), part=part)
        builder.add(f"{name}.scale_t{tail}", "scale_t", scales(m, k), part=part)
    elif RECIPES[recipe].by_layer and not recompute:
        casts.of_input(builder, name, m * k, place)
        casts.of_weight(builder, name, n * k, backward=False)
        casts.swizzle(builder, f"{name}.fwd", *casts.laid_out(builder, m * k, place == "column", n * k))
    for which, width, joined in _gemms(builder, name, n, matrices):
        builder.add(
            f"{which}.{'recompute' if recompute else 'fwd'}",
            gemm_class(recipe),
            Gemm(m=m, n=width, k=k, precision=precision_of(recipe)),
            part=part,
            saved=saved * width / n,
            matrices=joined,
            read_by_backward=read_by_backward,
        )


def _gemms(
    builder: SegmentBuilder, name: str, n: int, matrices: tuple[int, ...]
) -> list[tuple[str, int, tuple[int, ...]]]:
    """Name, width and matrices of each GEMM of a layer of `n` outputs."""
    if len(matrices) > 1 and builder.stack.projections == "separate":
        return [(f"{name}.{at}", width, (width,)) for at, width in enumerate(matrices)]
    return [(name, n, matrices or (n,))]


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
    matrices: tuple[int, ...] = (),
) -> None:
    """dx (m, k) = dy (m, n) times w^T. `cast_gradient=False` where dy arrives in FP8. `matrices`: as in `forward`;
    what separate ones make is summed, by one compiled kernel, or by autograd two at a time."""
    if recipe == "fp8":
        if weight_first:
            weight_transpose(builder, name, n, k)
        if cast_gradient and not builder.fused_quant:
            builder.add(f"{name}.quant_g", "quant.token", cast(m * n, BF16, FP8))
        if not weight_first:
            weight_transpose(builder, name, n, k)
        builder.add(f"{name}.scale_t_g", "scale_t", scales(m, n))
    elif RECIPES[recipe].by_layer:
        casts.of_gradient(builder, name, m * n, place)
        casts.of_weight(builder, name, n * k, backward=True)
        casts.swizzle(builder, f"{name}.dgrad", *casts.laid_out(builder, m * n, place == "row", n * k))
    gemms = _gemms(builder, name, n, matrices)
    for which, width, _ in gemms:
        builder.add(f"{which}.dgrad", gradient_class(recipe), gradient_gemm(recipe, m, k, width))
        if RECIPES[recipe].by_layer:
            casts.rescale(builder, f"{which}.dgrad", m * k)
    more = len(gemms) - 1
    if more:
        at_once = more if builder.stack.residual_fused else 1
        work = cast(m * k, (1 + at_once) * BF16, BF16)
        builder.add(f"{name}.dgrad_sum", "elem", work, count=more // at_once)


def cast_for_wgrad(
    builder: SegmentBuilder, name: str, rows: int, width: int, *, which: str, read: float = BF16
) -> None:
    """Fine-grained FP8 only: one operand of the weight gradient cast per 128x1 and transposed (`which` is x or g)."""
    builder.add(f"{name}.quant_{which}_t", "quant.chan_t", cast(rows * width, read, FP8), part="W")


def weight_gradient(
    builder: SegmentBuilder,
    name: str,
    m: int,
    n: int,
    k: int,
    *,
    recipe: Recipe,
    place: Place = "alone",
    matrices: tuple[int, ...] = (),
) -> None:
    """dw (n, k) += dy^T (n, m) times x (m, k), accumulated in the gradients' format (FP32: report, section 3.3.2).

    Software that does not fuse the accumulation writes BF16 and adds it with a kernel of its own, or, where it copies
    gradients into the buffer that is reduced, adds what was reduced shard by shard.
    """
    fused, kept = builder.fused_accumulation, builder.shapes.states.gradient_bytes
    if RECIPES[recipe].by_layer:
        casts.for_weight_gradient(builder, name, m * k, m * n, place)
        x, g = casts.laid_out(builder, m * k, place == "column"), casts.laid_out(builder, m * n, place == "row")
        casts.swizzle(builder, f"{name}.wgrad", x[0] + g[0], x[1] + g[1], "W")
    for which, width, _ in _gemms(builder, name, n, matrices):
        gemm = Gemm(
            m=width,
            n=k,
            k=m,
            precision=precision_of(recipe),
            form="wgrad",
            out_bytes=kept if fused else BF16,
            split=splits(recipe),
        )
        builder.add(f"{which}.wgrad", gemm_class(recipe, ".wgrad"), gemm)
        if RECIPES[recipe].by_layer:
            casts.rescale(builder, f"{which}.wgrad", width * k, "W")
    if not fused and not builder.shapes.copies_shards:
        add_gradient(builder, name, n * k)


def add_gradient(builder: SegmentBuilder, name: str, values: float) -> None:
    """A kernel of its own adds a microbatch's BF16 gradient of so many values to what is kept.

    Where gradients are freed, autograd keeps that of a step's first microbatch as it is, so that of m microbatches
    m - 1 are added: here each moves that part of the bytes. Where they are cleared, all are added.
    """
    shapes = builder.shapes
    microbatches = max(1, shapes.job.microbatches)
    part = 1.0 if builder.stack.gradients_zeroed else 1.0 - 1.0 / microbatches
    kept = shapes.states.gradient_bytes
    if part:
        work = Streaming(read=part * values * (BF16 + kept), written=part * values * kept)
        builder.add(f"{name}.wgrad_add", sum_class(kept), work)


def sum_class(kept: float) -> str:
    """Kernel class of PyTorch's sum of a BF16 gradient and what is `kept` in so many bytes a value: of two formats it
    reads one value at a time and asks each for its type (aten/src/ATen/native/cuda/CUDALoops.cuh, LoadWithCast)."""
    return "elem" if kept == BF16 else "elem.mixed"


def bias_gradient(builder: SegmentBuilder, name: str, rows: int, width: int) -> None:
    """The sum over rows of the gradient of an output (rows, width) with a bias, added into the main gradient.

    A kernel of its own makes it where the bias is not added by the layer itself (Megatron-Core adds those of the
    feed-forward part and of attention's output later, skip_bias_add) or autograd has no fused one; that of Transformer
    Engine's own biases comes with the weight gradient's GEMM (transformer_engine/pytorch/module/layernorm_linear.py).
    """
    kept = builder.shapes.states.gradient_bytes
    builder.add(f"{name}.bias.bwd", "elem.reduce", Streaming(read=rows * width * BF16, written=width * BF16))
    added = Streaming(read=width * (BF16 + kept), written=width * kept)
    builder.add(f"{name}.bias.wgrad_acc", "elem.norm_weight", added)
