"""Which steps `measure_megatron_steps.py` runs: five public models at their own widths, cut to a few layers.

Two sequence lengths each, in BF16 and in FP8 as Transformer Engine scales it. `gpt-3-175b tp4` is what one of four
tensor-parallel ranks computes, of which `measure_te_layers.py` had measured the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["bf16", "delayed", "tensorwise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One training step. `seconds`: how long it is repeated under sustained load."""

    model: str
    layers: int
    precision: Precision
    seq: int
    mbs: int
    microbatches: int
    seconds: float = 15.0

    @property
    def name(self) -> str:
        """As the tables name it."""
        return f"{self.model} {self.precision} {self.mbs}x{self.seq}x{self.microbatches}"


LONG, SHORT = (8192, 1, 4), (2048, 4, 4)
_SHAPES: dict[str, tuple[int, tuple[int, int, int], tuple[int, int, int], float]] = {
    "llama-3-8b": (8, LONG, SHORT, 15.0),
    "gpt-3-175b": (2, (2048, 2, 4), (1024, 2, 8), 15.0),
    "nemotron-4-15b": (4, (4096, 2, 4), (2048, 2, 8), 15.0),
    "mixtral-8x7b": (2, (4096, 2, 4), (8192, 1, 4), 15.0),
    "qwen3-30b-a3b": (4, (4096, 2, 4), (2048, 4, 4), 8.0),
    "gpt-3-175b tp4": (2, (2048, 2, 8), (2048, 2, 8), 15.0),
}
"""Layers, two shapes (tokens of a sequence, sequences, microbatches), seconds; the host decides Qwen3's step."""


def _steps() -> list[Step]:
    """BF16 at both lengths; FP8 delayed at the first, with current scaling at the second."""
    out = []
    for model, (layers, first, second, seconds) in _SHAPES.items():
        precisions: tuple[Precision, ...] = ("bf16", "delayed", "tensorwise")
        for precision in precisions:
            shapes = (first, second) if precision == "bf16" else (first,) if precision == "delayed" else (second,)
            for seq, mbs, microbatches in dict.fromkeys(shapes):
                sizes = {"seq": seq, "mbs": mbs, "microbatches": microbatches, "seconds": seconds}
                out.append(Step(model=model, layers=layers, precision=precision, **sizes))  # type: ignore[arg-type]
    return out


STEPS = _steps()
