"""All ops of an action against what the GPU can do."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures.style import new_figure
from reports.views.ops import OpSpan
from reports.views.palette import SERIES
from simulator.spec.hardware import Gpu

KINDS = {
    "gemm.fp8": "FP8 matmul",
    "gemm.bf16": "BF16 matmul",
    "attn": "attention",
}


def roofline_figure(ops: Sequence[OpSpan], gpu: Gpu) -> Figure:
    """Left: tensor work against the roofs. Right: the bandwidth that memory-bound kernels reach, by size."""
    figure = new_figure(3.0)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    compute = [op for op in ops if op.stream == "compute" and op.alone > 0]
    _roofs(left, [op for op in compute if op.flops > 0 and op.bytes > 0], gpu)
    _bandwidth(right, [op for op in compute if not op.flops and op.bytes > 0], gpu)
    return figure


def _roofs(axes: Axes, ops: Sequence[OpSpan], gpu: Gpu) -> None:
    span = (10.0, 2e4)
    for name, peak in (("FP8", gpu.peak.fp8), ("BF16", gpu.peak.bf16)):
        if peak:
            ridge = peak / gpu.hbm_bandwidth
            points = [span[0], ridge, span[1]]
            roof = [min(peak, x * gpu.hbm_bandwidth) / 1e12 for x in points]
            axes.plot(points, roof, color="#6b7280", lw=0.9, zorder=1)
            axes.text(
                span[1], peak / 1e12 * 1.05, f"{name} peak", ha="right", va="bottom", fontsize=6.5, color="#4b5563"
            )
    for (prefix, label), colour, marker in zip(KINDS.items(), SERIES, "os^", strict=False):
        mine = [op for op in ops if op.cls.startswith(prefix)]
        if mine:
            axes.scatter(
                [op.flops / op.bytes for op in mine], [op.flops / op.alone / 1e12 for op in mine],
                s=13, color=colour, marker=marker, label=label, linewidths=0.3, edgecolors="white", zorder=3,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*span)
    axes.set_ylim(top=3.4 * max(gpu.peak.bf16, gpu.peak.fp8) / 1e12 / 2)
    axes.set_xlabel("arithmetic intensity [FLOP/B]")
    axes.set_ylabel("reached [TFLOP/s]")
    axes.set_title("Tensor work, running alone")
    axes.grid(True, which="major")
    axes.legend(loc="lower right")


def _bandwidth(axes: Axes, ops: Sequence[OpSpan], gpu: Gpu) -> None:
    axes.axhline(gpu.hbm_bandwidth / 1e12, color="#6b7280", lw=0.9)
    axes.text(
        0.99, gpu.hbm_bandwidth / 1e12 * 1.01, "memory, displayed", ha="right", va="bottom",
        fontsize=6.5, color="#4b5563", transform=axes.get_yaxis_transform(),
    )  # fmt: skip
    axes.scatter(
        [op.bytes / op.kernels / 1e6 for op in ops], [op.bytes / op.alone / 1e12 for op in ops],
        s=11, color=SERIES[2], linewidths=0.3, edgecolors="white", zorder=3,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(left=max(1e-3, min((op.bytes / op.kernels / 2e6 for op in ops), default=1.0)))
    axes.set_ylim(0, 1.12 * gpu.hbm_bandwidth / 1e12)
    axes.set_xlabel("bytes moved by a kernel [MB]")
    axes.set_ylabel("reached [TB/s]")
    axes.set_title("Memory-bound kernels")
    axes.grid(True, which="major")
