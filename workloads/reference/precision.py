"""How GEMMs are computed: exactly, in BF16, or in FP8 as DeepSeek-V3 trains (section 3.3)."""

from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from workloads.reference.fp8 import E4M3, Format, quantise

Array = NDArray[Any]

# Section 3.3.1: these keep their precision; norms and the attention core never come here.
KEPT_HIGH = frozenset({"head", "router.gate", "embed"})


class Precision(Protocol):
    """a [m, k] times b [k, n]; part F, I or W says which operand is a weight and which an activation."""

    def matmul(self, a: Array, b: Array, *, op: str, part: str) -> Array: ...


@dataclass(frozen=True, slots=True)
class Exact:
    """In the dtype of the operands, nothing rounded."""

    def matmul(self, a: Array, b: Array, *, op: str, part: str) -> Array:
        return a @ b


@dataclass(frozen=True, slots=True)
class Bf16:
    """Operands and result rounded to BF16, sums in float32; weight gradients stay float32 (main gradients)."""

    def matmul(self, a: Array, b: Array, *, op: str, part: str) -> Array:
        y = bf16(a) @ bf16(b)
        return y if part == "W" else bf16(y)


@dataclass(frozen=True, slots=True)
class Fp8:
    """Operands in FP8 with one scale per tile, sums in float32 (promotion makes them so, section 3.3.2).

    Activations and gradients get 1x`tile` tiles along the contracted dimension, weights `tile`x`tile` blocks.
    """

    tile: int = 128
    form: Format = E4M3
    power_of_two: bool = False

    def matmul(self, a: Array, b: Array, *, op: str, part: str) -> Array:
        if op in KEPT_HIGH:
            return Bf16().matmul(a, b, op=op, part=part)
        b_tile = (self.tile, 1) if part == "W" else (self.tile, self.tile)
        aq = quantise(a, (1, self.tile), form=self.form, power_of_two=self.power_of_two).dequantised()
        bq = quantise(b, b_tile, form=self.form, power_of_two=self.power_of_two).dequantised()
        y = aq @ bq
        return y if part == "W" else bf16(y)


EXACT = Exact()


def bf16(x: Array) -> Array:
    """x rounded to BF16, as float32."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
