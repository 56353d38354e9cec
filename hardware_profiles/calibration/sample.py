"""Samples: measured times of kernels with all the model needs; which of them a fit sees; rows of the tables."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path
from zlib import crc32

from simulator.ops import Attention, DecodeAttention, Fixed, Gemm, GemmForm, GemmPrecision, Scan, Streaming

TABLES = Path(__file__).parent / "tables"
HELD_OUT_EVERY = 3
HALVED = "attn.decode"
"""Classes that start so have every second shape held out: their tables are grids, in which a third is soon learnt."""
FEW_SHAPES = 6
FEW_SAMPLES = 4
Work = Gemm | Attention | DecodeAttention | Scan | Streaming | Fixed
Row = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`seconds` measured for `work` (several: their sum) on `sms` SMs of `hardware`, concurrent with `traffic` [B/s];
    `repeat` counts measurements of the same shape in a table; `rested`: the share of the measured time in which the
    GPU, rested before, still ran at its boost clock (1: each launch found it there); `shape`: what the split knows it
    by, where `work` holds more than the table's own shape; `held`: whether its table keeps it out of fits (None: the
    split decides)."""

    hardware: str
    cls: str
    work: tuple[Work, ...]
    seconds: float
    table: str
    label: str = ""
    sms: int = 132
    traffic: float = 0.0
    resolution: float = 2e-7
    weight: float = 1.0
    repeat: int = 0
    rested: float = 0.0
    shape: str = ""
    held: bool | None = None


def split(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples to fit and samples held out.

    Of a class's distinct shapes in a table, every third (of decode attention: every second) in the order of a checksum
    of the shape alone is held out, with all measurements of it. With fewer than `FEW_SHAPES` shapes, those of the
    trace's second layer pair are held out where that leaves two to fit; the rest are fitted whole.
    """
    held: set[int] = {id(s) for s in samples if s.held}
    for key in {(s.cls, s.table) for s in samples if s.held is None}:
        mine = [s for s in samples if (s.cls, s.table) == key and s.held is None]
        shapes = sorted({s.shape or repr(s.work) for s in mine}, key=lambda r: crc32(r.encode()))
        every = 2 if key[0].startswith(HALVED) else HELD_OUT_EVERY
        kept = set(shapes[every - 1 :: every])
        if len(shapes) >= FEW_SHAPES:
            held |= {id(s) for s in mine if (s.shape or repr(s.work)) in kept}
        elif len(mine) >= FEW_SAMPLES:
            held |= {id(s) for s in mine if s.repeat > 0}
    return [s for s in samples if id(s) not in held], [s for s in samples if id(s) in held]


DISTURBED = 1.5
"""A run that takes so many times as long as another of its shape shared the GPU with something else."""


def merged(samples: list[Sample]) -> list[Sample]:
    """One sample a shape where several runs of it were measured, rested or not: their weighted geometric mean, without
    runs that were disturbed."""
    groups: dict[tuple[object, ...], list[Sample]] = {}
    for s in samples:
        groups.setdefault((s.hardware, s.cls, s.work, s.sms, s.traffic, s.rested > 0.5), []).append(s)
    out = []
    for runs in groups.values():
        same = [s for s in runs if s.seconds < DISTURBED * min(run.seconds for run in runs)]
        weight = sum(s.weight for s in same)
        mean = exp(sum(s.weight * log(s.seconds) for s in same) / weight)
        rested = sum(s.weight * s.rested for s in same) / weight
        out.append(replace(same[0], seconds=mean, weight=1.0, rested=rested))
    return out


def rows(table: str | Path) -> list[Row]:
    """Rows of a table, by name or path; lines that start with # are its header of sources."""
    with open(table if isinstance(table, Path) else TABLES / table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def integer(row: Row, key: str, default: int = 0) -> int:
    """A whole number of a row; a default where the cell is empty."""
    return int(float(row[key])) if row.get(key) else default


def number(row: Row, key: str) -> float:
    """A number of a row; 0 where the cell is empty."""
    return float(row[key]) if row.get(key) else 0.0


def gemm(
    m: int, n: int, k: int, precision: GemmPrecision, form: GemmForm = "dense", groups: int = 1, out: float = 2.0
) -> Gemm:
    return Gemm(m=m, n=n, k=k, precision=precision, form=form, groups=groups, out_bytes=out)
