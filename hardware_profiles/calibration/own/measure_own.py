"""Measure a GPU of one's own: what `foretrain calibrate measure` runs.

The cases of `measure_rested.py`, or some of them, in the order of its sections, then those of `measure_power.py` under
sustained load; rows are on disk as soon as a few cases are through, so that whoever interrupts keeps what there is.
"""

from __future__ import annotations

import csv
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hardware_profiles.calibration.measuring import measure_rested as rested
from hardware_profiles.calibration.measuring.kernel_spans import driver
from hardware_profiles.calibration.own import measure_power, power_rows

SECTIONS = ("gemm", "attention", "streaming", "compiled")
POWER = "sustained"
"""The section under sustained load."""
Cases = dict[str, list[Any]]
"""Of each section the cases: `measure_rested.Case`, under sustained load `power_rows.Case`."""
QUICK = 4
"""Of each section one case in so many, by lot: any regular choice would leave out a layout or a direction."""
CHUNK, CHUNK_SUSTAINED = 24, 6
"""Cases between two lines of progress."""
SECONDS_EACH = {"gemm": 0.05, "attention": 0.2, "streaming": 0.27, "compiled": 1.2}
"""What a case takes on an H200 [s], with the compiler's time; only for the first estimate of what is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a measurement is: cases `done` of `all` in `section`, time used and left [s]."""

    section: str
    done: int
    all: int
    used: float
    left: float


def plan(*, quick: bool, power: bool = True) -> Cases:
    """The cases of every section; `power`: those under sustained load, too."""
    found: Cases = {name: list(rested.SECTIONS[name]()) for name in SECTIONS}
    if quick:
        lot = random.Random(1)
        found = {
            name: [cases[i] for i in sorted(lot.sample(range(len(cases)), len(cases) // QUICK))]
            for name, cases in found.items()
        }
    return found | ({POWER: power_rows.plan(quick=quick)} if power else {})


def estimate(cases: Cases) -> dict[str, float]:
    """How long each section may take [s]."""
    each = SECONDS_EACH | {POWER: measure_power.SECONDS + measure_power.AROUND}
    return {name: each[name] * len(mine) for name, mine in cases.items()}


def header() -> str:
    """The line of a table that says what was measured, with what."""
    gpu, versions = torch.cuda.get_device_name(), f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"# {gpu}, driver {driver()}, {versions}, foretrain calibrate measure, {time.strftime('%Y-%m-%d')}\n"


def measure(cases: Cases, file: Path, show: Callable[[Progress], None]) -> int:
    """Measure, write rows as they are known, and say how many there are."""
    torch.manual_seed(1)
    began, total = time.monotonic(), 0
    with file.open("w", newline="", encoding="utf-8") as out:
        out.write(header())
        writer = csv.DictWriter(out, rested.COLUMNS + measure_power.COLUMNS, restval="")
        writer.writeheader()
        for name, at, part in _chunks(cases):
            rows = _sustained(part, first=at == 0) if name == POWER else _rows(part)
            total += len(rows)
            writer.writerows(rows)
            out.flush()
            used, done = time.monotonic() - began, at + len(part)
            left = _left(cases, name, done)
            show(Progress(section=name, done=done, all=len(cases[name]), used=used, left=left))
    if POWER in cases:
        measure_power.free()
    return total


def _chunks(cases: Cases) -> Iterator[tuple[str, int, list[Any]]]:
    for name, mine in cases.items():
        step = CHUNK_SUSTAINED if name == POWER else CHUNK
        for at in range(0, len(mine), step):
            yield name, at, mine[at : at + step]


def _rows(part: list[rested.Case]) -> list[dict[str, Any]]:
    try:
        return rested.measure(part)
    except RuntimeError as error:
        print(f"{len(part)} cases left out: {str(error)[:200]}", file=sys.stderr, flush=True)
        return []


def _sustained(part: list[power_rows.Case], *, first: bool) -> list[dict[str, Any]]:
    try:
        if first:
            measure_power.warm_up()
        return list(measure_power.measure(part))
    except RuntimeError as error:
        print(f"{len(part)} cases left out: {str(error)[:200]}", file=sys.stderr, flush=True)
        return []


def _left(cases: Cases, section: str, done: int) -> float:
    """Time that is left by the estimate of each section [s]."""
    names, whole = list(cases), estimate(cases)
    mine = whole[section] * (1.0 - done / len(cases[section]))
    return mine + sum(whole[name] for name in names[names.index(section) + 1 :])
