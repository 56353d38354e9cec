"""Make one table of two runs of `measure_rested.py` with the same arguments: of every kernel the faster run.

    python -m hardware_profiles.calibration.faster RUN.csv AGAIN.csv OUT.csv

Runs of a kernel on a rested GPU differ by less than 1 %; where something else ran beside, one is up to twice as long.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

MEASURED = ("us", "us_min", "launches", "kernel")
"""Columns that are results; the others say what was measured."""
Row = dict[str, str]


def read(path: Path) -> tuple[str, list[Row]]:
    """The line that names the source, and the rows."""
    source, *rest = path.read_text(encoding="utf-8").splitlines()
    return source, list(csv.DictReader(rest))


def key(row: Row) -> tuple[str, ...]:
    """What was measured."""
    return tuple(value for name, value in row.items() if name not in MEASURED)


def faster(run: list[Row], again: list[Row]) -> list[Row]:
    """Rows of `run`, each replaced by that of `again` where it took less time."""
    second = {key(row): row for row in again}
    return [min(row, second.get(key(row), row), key=lambda r: float(r["us"])) for row in run]


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    one, two, out = map(Path, sys.argv[1:])
    (source, run), (_, again) = read(one), read(two)
    rows = faster(run, again)
    with out.open("w", newline="", encoding="utf-8") as file:
        file.write(f"{source}; the faster of two runs\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
