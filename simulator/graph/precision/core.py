"""The attention core on operands of the recipe: cuDNN's MXFP8 kernels, as Transformer Engine runs them.

From 2.15 on (FusedAttnFunc and combine_and_quantize of its PyTorch attention)
queries, keys and values are each cast by rows and by columns before the core, which backward multiplies again; the
output stays in BF16, and its gradient is cast both ways before backward. Scales are laid out for cuDNN behind each
cast. What is kept of both forms is as large as BF16.
cuDNN's backward kernels in MXFP8 do not skip keys before the window: its own benchmark (`calibration/tables/
gb200_attention.csv`, from cuDNN-frontend) takes as long with a window of 128 as without.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.mixers.context_parts import Core
from simulator.graph.precision.casts import CLASS, SWIZZLED
from simulator.graph.shapes import Shapes
from simulator.ops import Attention, Part


def core_of(s: Shapes, work: Attention) -> Core:
    """The core as it runs: in BF16, or in MXFP8 with what its backward does not skip."""
    way = "bwd" if work.backward else "fwd"
    if not s.formats.narrow_core:
        return Core(work=work, cls=f"attn.{way}")
    narrow = replace(work, precision="fp8", window=0 if work.backward else work.window)
    return Core(work=narrow, cls=f"attn.{way}.mxfp8")


def cast_operands(builder: SegmentBuilder, s: Shapes, core: Core, name: str, *, part: Part | None = None) -> None:
    """Both forms of queries, keys and values before forward, of the output's gradient before backward."""
    if not s.formats.narrow_core:
        return
    keys = core.keys * s.batch * s.seq_kv
    operands = {"g": core.outputs * s.tokens} if core.work.backward else {"q": core.queries * s.tokens, "kv": keys}
    for which, values in operands.items():
        builder.add(f"{name}.quant_{which}", CLASS["mxfp8"], cast(values, BF16, 2 * s.formats.record.value), part=part)
        scales = 2 * SWIZZLED["mxfp8"]
        builder.add(f"{name}.swizzle_{which}", "elem", cast(values, scales, scales), part=part)
