"""FP8 numbers with a scale per tile, and the tensor core's short accumulator (DeepSeek-V3 section 3.3)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Format:
    """An 8-bit float: its largest finite value, mantissa bits and the exponent of its smallest normal number."""

    name: str
    largest: float
    mantissa: int
    exponent: int

    def rounded(self, x: Array) -> Array:
        """float32 values within ±`largest` rounded to the nearest number of the format, ties to even [like x].

        On the bits of float32, as a conversion by element is eight times slower.
        """
        drop = 23 - self.mantissa
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        up = (bits >> np.uint32(drop)) & np.uint32(1)
        up += np.uint32((1 << (drop - 1)) - 1)
        up += bits
        up &= np.uint32(0xFFFFFFFF ^ ((1 << drop) - 1))
        normal: Array = up.view(np.float32)
        small = np.abs(x) < np.float32(2.0**self.exponent)
        if not small.any():
            return normal
        # Adding this leaves no bits of float32 below the format's smallest number.
        shift = np.float32(1.5 * 2.0 ** (23 + self.exponent - self.mantissa))
        return np.where(small, np.copysign((x + shift) - shift, x), normal)


E4M3 = Format("e4m3", 448.0, 3, -6)
E5M2 = Format("e5m2", 57344.0, 2, -14)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """values [m, n] (exactly representable in the format, held as float32) and one scale per tile."""

    values: Array
    scales: Array  # [m / tile rows, n / tile columns], float32
    tile: tuple[int, int]

    def dequantised(self) -> Array:
        """What the numbers stand for [m, n], float32."""
        rows, columns = self.values.shape
        scales = self.scales.repeat(self.tile[0], axis=0)[:rows].repeat(self.tile[1], axis=1)[:, :columns]
        out: Array = self.values * scales
        return out


def quantise(x: Array, tile: tuple[int, int] | None, *, form: Format = E4M3, power_of_two: bool = False) -> Quantised:
    """Scale each tile so that its largest magnitude becomes the format's largest, then round to the format.

    `tile` is (rows, columns), None one tile for the whole tensor. Edge tiles may be smaller. `power_of_two` rounds
    scales up to powers of two, so that scaling itself is exact (section 3.3.2 uses it for some activations).
    """
    if x.ndim != 2:
        raise ValueError(f"quantise takes a matrix, got shape {x.shape}: reshape to [rows, columns]")
    if tile is None:
        tile = max(x.shape[0], 1), max(x.shape[1], 1)
    if min(tile) < 1:
        raise ValueError(f"tile {tile} must be at least (1, 1)")
    x = np.asarray(x, np.float32)
    largest = _tile_maxima(np.abs(x), tile)
    if not np.isfinite(largest).all():
        raise ValueError("quantise got NaN or infinity: FP8 scales are undefined for it")
    scales = np.where(largest > 0, largest / form.largest, 1.0).astype(np.float32)
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    if power_of_two:
        scales = np.exp2(np.ceil(np.log2(scales))).astype(np.float32)
    spread = scales.repeat(tile[0], axis=0)[: x.shape[0]].repeat(tile[1], axis=1)[:, : x.shape[1]]
    values = form.rounded(np.clip(x / spread, -form.largest, form.largest))
    return Quantised(values=values, scales=scales, tile=tile)


def accumulate(a: Array, b: Array, *, bits: int | None = 14, step: int = 32, promote: int | None = None) -> Array:
    """a [m, k] b [k, n] summed as an H800 tensor core sums FP8 products, result float32.

    Each instruction takes `step` products and the accumulator, shifts all to the largest exponent among them, keeps
    the highest `bits` bits of each and drops the rest (section 3.5.2: 32 products, 14 bits). `promote` = 128 moves
    the accumulator to a float32 sum every 128 elements of k (section 3.3.2, N_C); None never does. bits=None is exact.
    """
    if promote is not None and promote % step:
        raise ValueError(f"promotion interval {promote} must be a multiple of the instruction's {step} elements")
    k = a.shape[1]
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    partial = np.zeros(total.shape, np.float64)
    for start in range(0, k, step):
        products = a[:, None, start : start + step].astype(np.float64) * b.T[None, :, start : start + step]
        partial = _add_shifted(partial, products, bits)
        if promote is not None and (start + step) % promote == 0:
            total += partial.astype(np.float32)
            partial = np.zeros_like(partial)
    total += partial.astype(np.float32)
    return total


def scaled_matmul(a: Quantised, b: Quantised, *, bits: int | None = 14, promote: int = 128) -> Array:
    """a b with tile scales applied at every promotion, as the CUDA cores do it (figure 7b) [m, n], float32."""
    k = a.values.shape[1]
    total = np.zeros((a.values.shape[0], b.values.shape[1]), np.float32)
    for start in range(0, k, promote):
        piece = accumulate(a.values[:, start : start + promote], b.values[start : start + promote], bits=bits)
        sa = a.scales.repeat(a.tile[0], axis=0)[: total.shape[0], start // a.tile[1]]
        sb = b.scales[start // b.tile[0]].repeat(b.tile[1])[: total.shape[1]]
        total += piece * sa[:, None] * sb[None, :]
    return total


def _add_shifted(partial: Array, products: Array, bits: int | None) -> Array:
    if bits is None:
        exact: Array = partial + products.sum(axis=-1)
        return exact
    top = np.maximum(np.abs(products).max(axis=-1), np.abs(partial))
    _, exponent = np.frexp(top)
    unit = np.ldexp(1.0, exponent - bits)  # weight of the lowest bit kept
    kept = np.trunc(products / unit[..., None]).sum(axis=-1) + np.trunc(partial / unit)
    shifted: Array = kept * unit
    return shifted


def _tile_maxima(x: Array, tile: tuple[int, int]) -> Array:
    if not x.shape[0] % tile[0] and not x.shape[1] % tile[1]:  # no edge tiles: several times faster
        whole: Array = x.reshape(x.shape[0] // tile[0], tile[0], -1, tile[1]).max(axis=(1, 3))
        return whole
    rows = np.maximum.reduceat(x, np.arange(0, x.shape[0], tile[0]), axis=0) if x.size else x[:0]
    maxima: Array = np.maximum.reduceat(rows, np.arange(0, x.shape[1], tile[1]), axis=1) if x.size else rows
    return maxima
