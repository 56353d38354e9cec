"""Measure a GPU of one's own with the cases of `measure_rested.py`: what `foretrain calibrate measure` runs.

Some of its cases, spread evenly over each section, in the order of the sections; rows are on disk as soon as a few
cases are through, so that whoever interrupts keeps what there is.
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

SECTIONS = ("gemm", "attention", "streaming", "compiled")
QUICK = 4
"""Of each section one case in so many, by lot: any regular choice would leave out a layout or a direction."""
CHUNK = 24
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


def plan(*, quick: bool) -> dict[str, list[rested.Case]]:
    """The cases of every section."""
    found = {name: list(rested.SECTIONS[name]()) for name in SECTIONS}
    if not quick:
        return found
    lot = random.Random(1)
    return {
        name: [cases[i] for i in sorted(lot.sample(range(len(cases)), len(cases) // QUICK))]
        for name, cases in found.items()
    }


def estimate(cases: dict[str, list[rested.Case]]) -> float:
    """How long they may take [s]."""
    return sum(SECONDS_EACH[name] * len(mine) for name, mine in cases.items())


def header() -> str:
    """The line of a table that says what was measured, with what."""
    gpu, versions = torch.cuda.get_device_name(), f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"# {gpu}, driver {driver()}, {versions}, foretrain calibrate measure, {time.strftime('%Y-%m-%d')}\n"


def measure(cases: dict[str, list[rested.Case]], file: Path, show: Callable[[Progress], None]) -> int:
    """Measure, write rows as they are known, and say how many there are."""
    torch.manual_seed(1)
    began, total = time.monotonic(), 0
    with file.open("w", newline="", encoding="utf-8") as out:
        out.write(header())
        writer = csv.DictWriter(out, rested.COLUMNS, restval="")
        writer.writeheader()
        for name, at, part in _chunks(cases):
            rows = _rows(part)
            total += len(rows)
            writer.writerows(rows)
            out.flush()
            used, done = time.monotonic() - began, at + len(part)
            show(Progress(section=name, done=done, all=len(cases[name]), used=used, left=_left(cases, name, done)))
    return total


def _chunks(cases: dict[str, list[rested.Case]]) -> Iterator[tuple[str, int, list[rested.Case]]]:
    for name, mine in cases.items():
        for at in range(0, len(mine), CHUNK):
            yield name, at, mine[at : at + CHUNK]


def _rows(part: list[rested.Case]) -> list[dict[str, Any]]:
    try:
        return rested.measure(part)
    except RuntimeError as error:
        print(f"{len(part)} cases left out: {str(error)[:200]}", file=sys.stderr, flush=True)
        return []


def _left(cases: dict[str, list[rested.Case]], section: str, done: int) -> float:
    """Time that is left by the rates of `SECONDS_EACH` [s]."""
    names = list(cases)
    rest = {name: len(cases[name]) for name in names[names.index(section) + 1 :]} | {
        section: len(cases[section]) - done
    }
    return sum(SECONDS_EACH[name] * many for name, many in rest.items())
