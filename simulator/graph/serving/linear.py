"""A linear layer of serving: the cast of its input under FP8, the GEMM, and the sum over tensor-parallel ranks."""

from __future__ import annotations

from simulator.dtypes import BF16, FP8
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast, gemm_class, precision_of
from simulator.graph.serving.shapes import ServingShapes
from simulator.ops import Collective, Gemm


def linear(
    builder: SegmentBuilder,
    name: str,
    s: ServingShapes,
    m: int,
    n: int,
    k: int,
    *,
    after: tuple[str, ...] = (),
    is_cast: bool = False,
) -> None:
    """x (m, k) times w (k, n). `is_cast`: the op before wrote FP8.

    Casts write the scales as the GEMM reads them, so that nothing transposes them (DeepGEMM's README, 2025).
    """
    if s.fp8 and not is_cast and not s.stack.fused_quant:
        builder.add(f"{name}.quant", "quant.token", cast(m * k, BF16, FP8), after=after)
        after = ()
    builder.add(name, gemm_class(s.recipe), Gemm(m=m, n=n, k=k, precision=precision_of(s.recipe)), after=after)


def gather(builder: SegmentBuilder, name: str, s: ServingShapes, tokens: int, width: int) -> None:
    """Sequence parallelism: the tokens of all tensor-parallel ranks before a column-parallel GEMM."""
    layout = s.job.layout
    if layout.tp > 1 and layout.sp:
        work = Collective(kind="all_gather", bytes=tokens * width * BF16, ranks=layout.tp, per_node=layout.tp)
        builder.add(f"{name}.all_gather", "comm.tp.all_gather", work)


def add_up(builder: SegmentBuilder, name: str, s: ServingShapes, tokens: int, width: int) -> None:
    """The sum over tensor-parallel ranks behind a row-parallel GEMM: scattered with sequence parallelism."""
    layout, size = s.job.layout, tokens * width * BF16
    if layout.tp == 1:
        return
    if layout.sp:
        work = Collective(kind="reduce_scatter", bytes=size, ranks=layout.tp, per_node=layout.tp)
        builder.add(f"{name}.reduce_scatter", "comm.tp.reduce_scatter", work)
        return
    kernels = s.software.all_reduce
    work = Collective(kind="all_reduce", bytes=size, ranks=layout.tp, per_node=layout.tp, kernels=kernels)
    builder.add(f"{name}.all_reduce", "comm.tp.all_reduce", work)
