"""Make one table of two runs of `measure_rested.py` with the same arguments: of every kernel the faster run.

    python -m hardware_profiles.calibration.faster RUN.csv AGAIN.csv OUT.csv

Runs of a kernel on a rested GPU differ by less than 1 %; where something else was concurrent, one takes up to twice as
long.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from hardware_profiles.calibration.sample import Row, rows
from simulator.errors import InputError

MEASURED = ("us", "us_min", "launches", "kernel")
"""Columns that are results; the others say what was measured."""


def read(path: Path) -> list[Row]:
    """The rows of a run.

    Raises:
        InputError: The file cannot be read, or is no table of `measure_rested.py`.
    """
    try:
        table = rows(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', error)}: must be a CSV table") from None
    if not table or not set(MEASURED) <= table[0].keys():
        raise InputError(f"{path}: must have rows with {', '.join(MEASURED)}, as measure_rested.py writes them")
    return table


def key(row: Row) -> tuple[str, ...]:
    """What was measured."""
    return tuple(value for name, value in row.items() if name not in MEASURED)


def faster(run: list[Row], again: list[Row]) -> list[Row]:
    """Rows of `run`, each replaced by that of `again` where it took less time.

    Raises:
        InputError: The runs have no kernel in common.
    """
    second = {key(row): row for row in again}
    if not second.keys() & {key(row) for row in run}:
        raise InputError("the two runs have no kernel in common: must be measured with the same arguments")
    return [min(row, second.get(key(row), row), key=lambda r: float(r["us"])) for row in run]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "again", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    try:
        best = faster(read(args.run), read(args.again))
        text = io.StringIO()
        text.write(args.run.read_text(encoding="utf-8").partition("\n")[0].rstrip() + "; the faster of two runs\n")
        writer = csv.DictWriter(text, list(best[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(best)
        args.out.write_text(text.getvalue(), encoding="utf-8")
    except (InputError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
