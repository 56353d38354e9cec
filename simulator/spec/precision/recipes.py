"""The number formats that GEMMs can run in: how wide a value is, how it is scaled, which hardware multiplies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.dtypes import BF16, FP8, FP8_MATRIX, FP8_SCALED, MXFP8, NVFP4
from simulator.ops import GemmPrecision

Recipe = Literal["bf16", "fp8", "fp8_block", "fp8_tensor", "fp8_row", "mxfp8", "nvfp4"]
Scaled = Literal["no", "tensor", "row", "block"]
"""What shares a scale: nothing has one, a whole tensor, a row of a GEMM's operand, a block of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRecord:
    """One recipe.

    Parameters
    ----------
    words : what it is, for reports.
    gemm : the GEMMs that it runs.
    cls : their kernel class.
    scaled : what shares a scale.
    value : one value of an activation or gradient, with its part of a scale [B].
    weight : one value of a weight, with its part of a scale [B].
    blackwell : whether tensor cores of Blackwell are needed.
    """

    words: str
    gemm: GemmPrecision
    cls: str
    scaled: Scaled
    value: float
    weight: float
    blackwell: bool = False

    @property
    def by_layer(self) -> bool:
        """Whether each linear layer casts its own operands, as Transformer Engine and torchao do."""
        return self.scaled != "no" and self.cls != "gemm.fp8"


RECIPES: dict[Recipe, RecipeRecord] = {
    "bf16": RecipeRecord(words="BF16", gemm="bf16", cls="gemm.bf16", scaled="no", value=BF16, weight=BF16),
    "fp8": RecipeRecord(
        words="DeepSeek's fine-grained FP8",
        gemm="fp8_block",
        cls="gemm.fp8",
        scaled="block",
        value=FP8_SCALED,
        weight=FP8_MATRIX,
    ),
    "fp8_block": RecipeRecord(
        words="FP8 scaled by blocks",
        gemm="fp8_block",
        cls="gemm.fp8_block",
        scaled="block",
        value=FP8_SCALED,
        weight=FP8_MATRIX,
    ),
    "fp8_tensor": RecipeRecord(
        words="FP8 scaled by tensor",
        gemm="fp8_tensor",
        cls="gemm.fp8_tensor",
        scaled="tensor",
        value=FP8,
        weight=FP8,
    ),
    "fp8_row": RecipeRecord(
        words="FP8 scaled by row", gemm="fp8_row", cls="gemm.fp8_row", scaled="row", value=FP8, weight=FP8
    ),
    "mxfp8": RecipeRecord(
        words="MXFP8", gemm="mxfp8", cls="gemm.mxfp8", scaled="block", value=MXFP8, weight=MXFP8, blackwell=True
    ),
    "nvfp4": RecipeRecord(
        words="NVFP4", gemm="nvfp4", cls="gemm.nvfp4", scaled="block", value=NVFP4, weight=NVFP4, blackwell=True
    ),
}
"""The scale of a tensor or a row is not counted: 4 bytes for thousands of values."""
