"""Colours of phases and resources: one set for tables, traces, figures and pages.

They stay apart for people with deuteranopia, protanopia or tritanopia (tested), after Okabe and Ito, Color Universal
Design, 2008.
"""

from __future__ import annotations

PHASES = {
    "forward": "#0072b2",
    "backward": "#e69f00",
    "weight": "#009e73",
    "overlapped": "#cc79a7",
    "optimizer": "#56b4e9",
    "bubble": "#d9dce1",
    "other": "#454b54",
}
"""Where a rank's step goes; the keys are `simulator.results.metrics.PHASES`."""

COMMUNICATION = "#d55e00"
WAIT = "#454b54"

DIRECTIONS = {"F": PHASES["forward"], "B": PHASES["backward"], "W": PHASES["weight"], "N": WAIT}
"""Ops of an overlapped pair: forward, input gradients, weight gradients, barriers and waits."""

STAGES = {
    "prepare": "#0072b2",
    "attn": "#56b4e9",
    "dispatch": "#d55e00",
    "shared": "#e69f00",
    "mlp": "#009e73",
    "combine": "#cc79a7",
    "out": "#8a8f98",
    "other": "#454b54",
}
"""Stages of a layer in a serving step, by segment."""

BOUNDS = {
    "tensor": "#0072b2",
    "memory": "#009e73",
    "instructions": "#8c6d31",
    "sm": "#cc79a7",
    "nvlink": "#e69f00",
    "ib": "#d55e00",
    "host": "#f0e442",
    "latency": "#454b54",
    "fixed": "#56b4e9",
}
"""What limits a kernel."""

LIMITS = {**BOUNDS, "communication": COMMUNICATION, "idle": PHASES["bubble"]}
"""What limits a serving step: a kernel's limit, communication that nothing hides, or nothing that runs."""

MEMORY = {
    "weights": "#0072b2",
    "gradients": "#56b4e9",
    "optimizer": "#009e73",
    "activations": "#e69f00",
    "temporary": "#d55e00",
    "buffers": "#cc79a7",
    "context": "#8a8f98",
    "slack": "#c9ced6",
}
"""What fills memory; the keys are `simulator.memory.GROUPS`."""

SERVED_MEMORY = {**MEMORY, "kv_cache": MEMORY["activations"]}
"""What fills memory in a serving step."""

SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
"""Bars or lines next to each other, in this order."""


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, 0 (black) to 1 (white) (WCAG 2.2)."""
    red, green, blue = (_linear(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on `colour`."""
    return "#000000" if luminance(colour) > 0.179 else "#ffffff"
