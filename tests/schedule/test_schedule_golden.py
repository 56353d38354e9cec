"""Small schedules that one can read, each a file that holds the schedule and, as comments, its grid.

After a wanted change: ``python tests/schedule/test_schedule_golden.py`` writes them anew.
"""

from pathlib import Path

import pytest

from simulator.schedule import Schedule, build, format_schedule, grid_text, parse_schedule, validate

FOLDER = Path(__file__).parents[1] / "golden" / "schedules"

CASES = {
    "gpipe-4x4": ("gpipe", 4, 4, 1),
    "1f1b-4x8": ("1f1b", 4, 8, 1),
    "interleaved-4x8x2": ("interleaved", 4, 8, 2),
    "zb1p-4x8": ("zb1p", 4, 8, 1),
    "zb2p-4x8": ("zb2p", 4, 8, 1),
    "zb1p-auto-4x8": ("zb1p-auto", 4, 8, 1),
    "zb2p-auto-4x8": ("zb2p-auto", 4, 8, 1),
    "zbv-4x8": ("zbv", 4, 8, 1),
    "dualpipe-4x8": ("dualpipe", 4, 8, 1),
    "dualpipe-8x20": ("dualpipe", 8, 20, 1),
    "dualpipev-4x8": ("dualpipev", 4, 8, 1),
}


def built(case: str) -> Schedule:
    name, pp, microbatches, vpp = CASES[case]
    return build(name, pp=pp, microbatches=microbatches, vpp=vpp)


def golden_text(schedule: Schedule) -> str:
    grid = grid_text(schedule, width=400, detail="label")
    return format_schedule(schedule) + "\n" + "".join(f"# {line}".rstrip() + "\n" for line in grid.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_schedule_and_grid_are_as_recorded(case: str) -> None:
    assert golden_text(built(case)) == (FOLDER / f"{case}.txt").read_text()


@pytest.mark.parametrize("case", CASES)
def test_recorded_file_is_a_schedule_file(case: str) -> None:
    path = FOLDER / f"{case}.txt"
    schedule = parse_schedule(path.read_text(), source=path.name)
    validate(schedule)
    assert schedule == built(case)


def test_every_recorded_file_is_a_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(CASES)


if __name__ == "__main__":
    for each in CASES:
        (FOLDER / f"{each}.txt").write_text(golden_text(built(each)))
