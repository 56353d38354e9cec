"""Errors of calibrated classes as files next to this one: a JSON list for programs, a Markdown table for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hardware_profiles.calibration.evaluate import Errors

HERE = Path(__file__).parent
COLUMNS = [
    "| class | GPU | rows | samples | MAPE | worst | bias | MAPE of long ones |",
    "|---|---|---|---|---|---|---|---|",
]


def read(stem: str) -> list[Errors]:
    """Errors as a report stands."""
    return [Errors(**row) for row in json.loads((HERE / f"{stem}.json").read_text(encoding="utf-8"))]


def write(stem: str, head: Sequence[str], report: Sequence[Errors]) -> None:
    """Write `stem.json` and `stem.md`, the latter under the lines `head`."""
    rows = [asdict(e) for e in report]
    (HERE / f"{stem}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (HERE / f"{stem}.md").write_text(markdown(head, report), encoding="utf-8")


def markdown(head: Sequence[str], report: Sequence[Errors]) -> str:
    """The error table."""
    body = [
        f"| {e.cls} | {e.hardware} | {e.part} | {e.count} | {e.mape:.1%} "
        f"| {e.worst:.0%} {e.worst_label} | {e.bias:+.1%} | {_long(e)} |"
        for e in sorted(report, key=lambda e: (e.cls, e.hardware, e.part))
    ]
    return "\n".join([*head, "", *COLUMNS, *body, ""])


def _long(e: Errors) -> str:
    """MAPE and number of the long samples."""
    return f"{e.long_mape:.1%} of {e.long_count}" if e.long_count else ""
