"""Number formats and their widths in bytes."""

from __future__ import annotations

from typing import Literal, get_args

Dtype = Literal["fp32", "bf16", "fp16", "fp8", "e5m6", "int32", "int64"]

WIDTH: dict[Dtype, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "e5m6": 1.5,  # DeepSeek-V3's 12-bit format for the attention output (arXiv 2412.19437, section 3.3.3)
    "int32": 4.0,
    "int64": 8.0,
}

FP8_TILE = 128  # elements that share one FP32 scale along K (arXiv 2412.19437, section 3.3.2)

assert set(WIDTH) == set(get_args(Dtype))


def fp8_bytes(elements: float) -> float:
    """Bytes of `elements` values in FP8 with one FP32 scale per 128 of them [B]."""
    return elements * (WIDTH["fp8"] + WIDTH["fp32"] / FP8_TILE)
