"""Number formats and their widths in bytes."""

from __future__ import annotations

from typing import Literal, get_args

Dtype = Literal["fp32", "bf16", "fp16", "fp8", "fp8_ds_mla", "e5m6", "int32", "int64"]

WIDTH: dict[Dtype, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_ds_mla": 656 / 576,  # 512 values in FP8, 4 FP32 scales, 64 in BF16 (deepseek-ai/FlashMLA, README, 2025-09)
    "e5m6": 1.5,  # DeepSeek-V3's 12-bit format for the attention output (arXiv 2412.19437, section 3.3.3)
    "int32": 4.0,
    "int64": 8.0,
}

BF16, FP8, FP32 = WIDTH["bf16"], WIDTH["fp8"], WIDTH["fp32"]
"""Widths of one value [B]."""

FP8_TILE = 128  # elements that share one FP32 scale along K (arXiv 2412.19437, section 3.3.2)

assert set(WIDTH) == set(get_args(Dtype))


FP8_SCALED = FP8 + FP32 / FP8_TILE
"""Bytes of one activation in FP8 with its part of an FP32 scale per tile of 1 x 128 (the same section) [B]."""
FP8_MATRIX = FP8 + FP32 / FP8_TILE**2
"""Bytes of one weight in FP8 with its part of an FP32 scale per block of 128 x 128 (the same section) [B]."""

MX_BLOCK = 32
"""Values of MXFP8 that share a scale of one byte, E8M0 (OCP Microscaling Formats specification 1.0, section 5.2)."""
NV_BLOCK = 16
"""Values of NVFP4 that share a scale of one byte, E4M3 (arXiv 2509.25149, section 2)."""
MXFP8, NVFP4 = FP8 + 1.0 / MX_BLOCK, FP8 / 2 + 1.0 / NV_BLOCK
"""Bytes of one value with its part of a scale [B]."""
MXFP4 = 0.5 + 1.0 / 32
"""Bytes of one weight in MXFP4: 4 bits, and an exponent for each 32 of them (OCP Microscaling Formats, version 1.0,
section 5.2, 2023) [B]."""


def fp8_bytes(elements: float) -> float:
    """Bytes of `elements` values in FP8 with one FP32 scale per 128 of them [B]."""
    return elements * FP8_SCALED
