"""Samples of Transformer Engine's memory-bound kernels and of those that Megatron-Core runs around them, on one H200
(`measuring/te/measure_te_kernels.py`, `measure_te_experts.py`), and of the ends of a model (single kernels of the
microbatches of `workloads/facts/measure_te_layers.py`).

Half of the sizes are held out, as the tables mark them. Of calls of several kernels the sum counts: gaps between them
are the stack's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hardware_profiles.calibration.sample import Row, Sample, integer, number, rows
from simulator.graph.norm import HEAD, norm_class
from simulator.ops import Streaming

KERNELS, EXPERTS, ENDS = "h200_te_kernels", "h200_te_experts", "h200_te_ends"
BF16, FP8, FP32 = 2.0, 1.0, 4.0
SCALE_KERNEL = 1.1e-6
"""Time of the kernel that makes a scale of a maximum (measure_te_layers.py, compute_scale_from_amax_kernel) [s]."""
SUMS, SUMS_GENERAL, SUMS_OF_HEADS = 3.4e-6, 1.31e-5, 7.58e-5
"""Time of the second kernel of a norm's backward, which adds up the weight's gradient: after tuned kernels, after the
general one, and over heads of 128 values, where one CTA adds up those of all (table h200_te_ends) [s]."""


def _sample(
    row: Row, cls: str, read: float, written: float, seconds: float, table: str, *, each: float = 1.0
) -> Sample:
    """A kernel that reads and writes so many bytes a value of the row's (tokens, width), and computes `each` values."""
    values = float(integer(row, "tokens") or integer(row, "rows")) * integer(row, "width")
    return Sample(
        hardware="h200", cls=cls, table=table, label=f"{row['op']} {values / 1e6:.1f} M", seconds=seconds,
        work=(Streaming(read=values * read, written=values * written, values=values * each),), rested=1.0,
        resolution=2.5e-7, held=row["held_out"] == "1",
    )  # fmt: skip


def _norm(row: Row) -> Sample | None:
    """Norms in BF16; those that cast are a kernel more."""
    name, backward = row["op"].removesuffix("_backward"), row["op"].endswith("_backward")
    if name not in ("rmsnorm", "layernorm") or row["recipe"] != "none":
        return None
    kind = "rms" if name == "rmsnorm" else "layer"
    cls = norm_class("bwd" if backward else "fwd", integer(row, "width"), kind)  # type: ignore[arg-type]
    sums = (SUMS_GENERAL if cls.endswith("general") else SUMS) if backward else 0.0
    read = 2 * BF16 if backward else BF16
    return _sample(row, f"{cls}@te", read, BF16, number(row, "busy_us") * 1e-6 - sums, KERNELS)


def _cast(row: Row) -> Sample | None:
    """Casts into one form or both; per tensor these are two kernels."""
    both = row["usage"] == "row+col"
    if row["op"] != "cast" or row["recipe"] not in ("delayed", "block1d"):
        return None
    cls = "quant.block@te" if row["recipe"] == "block1d" else "quant.turned@te" if both else "quant.tensor@te"
    return _sample(row, cls, BF16, FP8 * (1 + both), number(row, "busy_us") * 1e-6, KERNELS)


def _rope(row: Row) -> Sample | None:
    if not row["op"].startswith("rope"):
        return None
    return _sample(row, "rope@te", BF16, BF16, number(row, "busy_us") * 1e-6, KERNELS)


def _maxima(table: list[Row]) -> Iterator[Sample]:
    """What current scaling runs before the cast that delayed scaling runs alone."""
    delayed = {
        (r["tokens"], r["width"]): number(r, "busy_us")
        for r in table
        if (r["op"], r["recipe"], r["usage"]) == ("cast", "delayed", "row")
    }
    for row in table:
        if (row["op"], row["recipe"], row["usage"]) == ("cast", "current", "row"):
            more = number(row, "busy_us") - delayed[row["tokens"], row["width"]]
            yield _sample(row, "quant.amax@te", BF16, 0.0, more * 1e-6 - SCALE_KERNEL, KERNELS)


def _around(row: Row) -> Sample | None:
    """Norms of heads, copies of heads, and the dense SwiGLU. Its backward is compiled to one kernel that chooses for
    every value between the gradients of the two halves and reads the inputs for both: instructions decide."""
    back, us = row["backward"] == "1", number(row, "busy_us") * 1e-6
    if row["op"] == "head_norm":
        cls = "norm.bwd.narrow@te" if back else "norm.fwd.narrow@te"
        return _sample(row, cls, BF16 * (1 + back), BF16, us - SUMS_OF_HEADS * back, EXPERTS)
    if row["op"] in ("copy_q", "copy_v"):
        return _sample(row, "copy.heads", BF16, BF16, us, EXPERTS)
    if row["op"] == "swiglu" and row["shapes"] == "static":
        if back:
            return _sample(row, "swiglu.bwd@te", 3 * BF16, 2 * BF16, us, EXPERTS, each=2)
        return _sample(row, "swiglu@te", 2 * BF16, BF16, us, EXPERTS)
    return None


ENDS_CLASS = {
    "table_gradient": ("embedding.bwd.table", 2 * BF16, BF16),
    "add_to_fp32": ("elem.mixed", BF16 + FP32, FP32),
    "online_softmax": ("loss.te", BF16, 0.0),
    "loss_gradient": ("loss.te.write", BF16, BF16),
    "bias_gelu": ("gelu@te", BF16, BF16),
    "bias_gelu_backward": ("gelu.bwd@te", 2 * BF16, BF16),
    "layernorm": ("norm.fwd.layer.wide@te", BF16, BF16),
}
"""What runs at the ends of a model, and what GPT-3's layer runs -> class, bytes read and written a value."""


def _end(row: Row) -> Sample:
    seconds = number(row, "us") * 1e-6
    if row["op"] == "norm_sums":
        which = "narrow" if integer(row, "width") <= HEAD else "general"
        sample = _sample(row, f"norm.sums.{which}@te", 0.0, FP32, seconds, ENDS)
    else:
        sample = _sample(row, *ENDS_CLASS[row["op"]], seconds, ENDS)
    return replace(sample, rested=0.0)


def transformer_engine() -> list[Sample]:
    """All samples of the tables."""
    kernels = rows(f"{KERNELS}.csv")
    alone = [sample for row in kernels for sample in (_norm(row), _cast(row), _rope(row)) if sample is not None]
    around = [sample for row in rows(f"{EXPERTS}.csv") if (sample := _around(row)) is not None]
    return [*alone, *_maxima(kernels), *around, *map(_end, rows(f"{ENDS}.csv"))]
