"""Activations and parameters held by pipeline schedules, by running them (DeepSeek-V3 section 3.2.1, table 2)."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workloads.reference.claims.claim import Claim
from workloads.reference.claims.plot import COLOURS, draw, labels
from workloads.reference.count import Run
from workloads.reference.init import init_params
from workloads.reference.model import as_tokens
from workloads.reference.parallel.pipeline import run_schedule
from workloads.reference.parallel.schedules import Rows, dualpipe, dualpipev, gpipe, one_f_one_b, zb1p
from workloads.reference.presets import tiny_gqa

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOURCES = {"GPipe": "arXiv 1811.06965", "DualPipeV": "deepseek-ai/DualPipe, README"}


def executed_peak(rows: Rows, stages: int, microbatches: int) -> tuple[list[int], int]:
    """Peak live stage-microbatches per rank and most stages on a rank, from really running the schedule."""
    cfg = replace(tiny_gqa(), num_hidden_layers=stages, hidden_size=8, intermediate_size=8, vocab_size=16)
    batches = [as_tokens(cfg, i, 1, 2) for i in range(microbatches)]
    live = run_schedule(Run(cfg=cfg), init_params(cfg, 0), rows, batches).peak_live
    held = max(len({action.split("F")[0].strip("(") for action in row if "F" in action}) for row in rows)
    return live, held


def memory(out: Path, *, quick: bool) -> list[Claim]:
    """Peak activations by schedule, at the same number of stages P."""
    p = 4 if quick else 8
    m = 5 * p // 2
    cases = {
        "GPipe": (gpipe(p, m), m, 1),
        "1F1B": (one_f_one_b(p, m), p, 1),
        "ZB1P": (zb1p(p, m), p, 1),
        "DualPipe": (dualpipe(p, m), p + 1, 2),
        "DualPipeV": (dualpipev(p // 2, m), p + 1, 2),
    }
    runs = {name: executed_peak(rows, p, m) for name, (rows, _, _) in cases.items()}

    def panel(ax: "Axes") -> None:
        width = 0.8 / len(runs)
        for i, (name, (live, _)) in enumerate(runs.items()):
            ax.bar(np.arange(len(live)) + i * width, live, width, label=name, color=COLOURS[i])
        ax.set_xticks(np.arange(p) + (len(runs) - 1) / 2 * width, [str(r) for r in range(p)])
        top = max(max(live) for live, _ in runs.values())
        ax.set_yticks(range(0, top + 1, 2))
        labels(ax, f"Executed: {p} stages, {m} microbatches", "rank", "most stage-activations alive")

    figure = draw(out / "memory_in_flight.png", [panel])
    return [
        Claim(
            key=f"memory.{name.lower()}",
            claim=f"{name}: peak activations, parameters (P = {p} stages)",
            published=f"{expected} activations, {parameters}x parameters",
            source=SOURCES.get(name, "DeepSeek-V3, 3.2.1, table 2"),
            ours=f"{max(runs[name][0])} activations, {runs[name][1]}x parameters",
            figure=figure,
            values=(("peak", max(runs[name][0])), ("stages_held", runs[name][1])),
            agrees=max(runs[name][0]) == expected and runs[name][1] == parameters,
            remark={
                "GPipe": "Not in the table; all M microbatches, by definition.",
                "DualPipeV": "At the same number of stages on half the ranks.",
            }.get(name, f"{'P + 1' if 'Dual' in name else 'P'} in the table, counted while running."),
        )
        for name, (_, expected, parameters) in cases.items()
    ]
