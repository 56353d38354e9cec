"""`[precision]` of jobs and stacks: the recipe, what stays in BF16, and how software keeps weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.dtypes import BF16
from simulator.spec.precision.recipes import RECIPES, Recipe, RecipeRecord

Scaling = Literal["delayed", "current"]
Primary = Literal["cast", "cached", "recipe"]
Kept = Literal["recipe", "bf16"]
HighPrecision = Literal["head", "attention", "recurrent", "dense", "shared_experts", "experts", "mtp"]
"""GEMMs that can stay in BF16: of the output head, of a layer's attention, of its recurrent mixer, of its dense
feed-forward part, of shared and of routed experts, of MTP modules with their layers. Those of the gate always do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What a job says; None: as its stack.

    Parameters
    ----------
    recipe : bf16: everything in BF16; fp8: DeepSeek's own program of fine-grained FP8 (arXiv 2412.19437, section 3.3);
        fp8_block: the same scales in Transformer Engine (Float8BlockScaling); fp8_tensor: one scale per tensor;
        fp8_row: one per row of an operand (torchao, rowwise); mxfp8, nvfp4: scales that Blackwell's tensor cores apply.
    bf16 : GEMMs that stay in BF16.
    bf16_first_layers, bf16_last_layers : layers of the model whose GEMMs all stay in BF16 (Megatron-Core,
        --first-last-layers-bf16) [layers].
    scaling : of fp8_tensor. delayed: by the maxima of earlier steps; current: by the tensor's own, found first.
    weights : what is kept of weights that are not FP32 shards. cached: BF16, and a copy in the recipe's format, made
        once a step; recipe: that copy only (Megatron-Core, --fp8-param-gather), which is then what is gathered; cast:
        BF16 only, cast wherever a GEMM reads it.
    kept : what a GEMM keeps of its input for its weight gradient: in the recipe's format, or in BF16 to be cast again.
    attention : operands of the attention core, forward and backward: in BF16, or in the recipe's format (MXFP8 only;
        Transformer Engine, fp8_dpa).
    """

    recipe: Recipe = "bf16"
    bf16: tuple[HighPrecision, ...] = ("head",)
    bf16_first_layers: int = 0
    bf16_last_layers: int = 0
    scaling: Scaling | None = None
    weights: Primary | None = None
    kept: Kept | None = None
    attention: Kept = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionStack:
    """What a stack does where its job does not say; see `Precision`."""

    scaling: Scaling
    weights: Primary
    kept: Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """The settings of a job over those of its stack, on a GPU of an architecture."""

    recipe: Recipe
    scaling: Scaling
    weights: Primary
    kept: Kept
    attention: Kept
    architecture: str

    @property
    def record(self) -> RecipeRecord:
        """Widths and kernels of the recipe."""
        return RECIPES[self.recipe]

    @property
    def layouts(self) -> int:
        """Forms of one operand: GEMMs read it along its rows, and along its columns.

        Hopper multiplies FP8 only where both operands are contiguous along K, so that it needs both forms; Blackwell
        does not (Transformer Engine, nvte_is_non_tn_fp8_gemm_supported). Where scales are by row or block, they differ
        in both directions on any GPU.
        """
        differ = self.record.scaled in ("row", "block") or self.architecture != "blackwell"
        return 2 if self.record.by_layer and differ else 1

    @property
    def gathered_bytes(self) -> float:
        """One weight of the recipe's GEMMs on its way to the ranks that share it [B].

        Megatron-Core gathers BF16 for MXFP8, whose two forms cannot be made from each other
        (--reuse-grad-buf-for-mxfp8-param-ag).
        """
        narrow = self.recipe == "fp8" or (self.record.by_layer and self.weights == "recipe" and self.recipe != "mxfp8")
        return self.record.weight if narrow else BF16

    @property
    def narrow_core(self) -> bool:
        """Whether the attention core multiplies in MXFP8."""
        return self.attention == "recipe" and self.recipe == "mxfp8"

    @property
    def kept_bytes(self) -> float:
        """One value of a GEMM's input that is kept for its weight gradient [B]."""
        return self.record.value if self.record.by_layer and self.kept == "recipe" else BF16

    @property
    def copied_bytes(self) -> float:
        """The same where others keep the input in BF16, too: the attention core its output, the gate its input [B]."""
        return self.record.value if self.record.by_layer and self.kept == "recipe" else 0.0

    @property
    def travels_bytes(self) -> float:
        """One value that a tensor-parallel layer gathers [B]; torchao gathers BF16 where scales are by row."""
        return self.record.value if self.record.by_layer and self.record.scaled != "row" else BF16

    @property
    def cached_bytes(self) -> float:
        """What is kept of a weight in the recipe's format, all its layouts [B]."""
        if not self.record.by_layer or self.weights == "cast":
            return 0.0
        return self.layouts * self.record.weight


def formats_of(own: Precision, stack: PrecisionStack, architecture: str, zero: int) -> Formats:
    """A job's formats on a GPU of this architecture.

    Under ZeRO-3 no copy of a weight outlives its layer: where it would be cached, it is cast at each use.
    """
    weights = own.weights or stack.weights
    return Formats(
        recipe=own.recipe,
        scaling=own.scaling or stack.scaling,
        weights="cast" if weights == "cached" and zero >= 3 else weights,
        kept=own.kept or stack.kept,
        attention=own.attention,
        architecture=architecture,
    )
