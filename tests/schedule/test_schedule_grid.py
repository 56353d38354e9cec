"""The grid on the terminal: in width, complete, and the same in colour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScheduleError
from simulator.schedule import SCHEDULES, build, dualpipe, grid_rich, grid_text, one_f_one_b, uniform_times


def test_one_can_read_it() -> None:
    assert grid_text(one_f_one_b(3, 3)) == (
        "1f1b: 3 ranks, 3 stages, 3 microbatches; 15 slots, 40.0% idle\n"
        "        0              5              10\n"
        "rank 0  F0 F1 F2 .  .  .  .  B0--- .  B1--- .  B2---\n"
        "rank 1  .  F0 F1 .  .  B0--- F2 B1--- .  B2--- .  .\n"
        "rank 2  .  .  F0 B0--- F1 B1--- F2 B2--- .  .  .  .\n"
        "F forward  B backward  . idle\n"
    )


def test_stages_of_one_rank_are_distinguished_by_a_letter() -> None:
    text = grid_text(build("interleaved", pp=2, microbatches=2, vpp=2), width=100, detail="label")
    assert "rank 0  F0a F1a F0b F1b" in text
    text = grid_text(build("dualpipev", pp=2, microbatches=4), width=200)
    assert "rank 0  F0a F1a F2a F0b" in text


def test_pairs_are_marked() -> None:
    assert "F3&B5---" in grid_text(dualpipe(4, 8), width=120)
    assert "&&&" in grid_text(dualpipe(8, 20))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("width", [40, 80, 131])
@pytest.mark.parametrize("wrap", [False, True])
def test_fits_the_terminal(name: str, width: int, wrap: bool) -> None:
    schedule = build(name, pp=16, microbatches=32, vpp=2 if name == "interleaved" else 1)
    for line in grid_text(schedule, width=width, wrap=wrap).splitlines()[1:]:
        assert len(line) <= width


@given(width=st.integers(40, 200), name=st.sampled_from(sorted(SCHEDULES)))
def test_wrapped_rows_hold_all_slots(width: int, name: str) -> None:
    """Letters of a rank over all panels are its steps in time order."""
    schedule = build(name, pp=4, microbatches=8, vpp=2 if name == "interleaved" else 1)
    slots = round(uniform_times(schedule, f=1, i=1, w=1).makespan)
    text = grid_text(schedule, width=width, detail="letter", wrap=True)
    drawn = "".join(line[8:] for line in text.splitlines() if line.startswith("rank 2"))
    length = {"F": 1, "I": 1, "W": 1, "B": 2}
    assert len(drawn) == slots
    for kind, size in length.items():
        count = sum(not hasattr(step, "forward") and step[0] == kind for step in schedule.rows[2])
        assert drawn.count(kind) == count * size


def test_a_window_says_what_it_leaves_out() -> None:
    schedule = dualpipe(16, 120)
    text = grid_text(schedule, start=100)
    assert text.splitlines()[-1] == "slots 100 to 170 of 374"
    assert "100" in text.splitlines()[1]
    assert "slots" not in grid_text(schedule, width=400).splitlines()[-1]


def test_windows_and_the_whole_show_the_same() -> None:
    whole = grid_text(one_f_one_b(4, 8), width=200, detail="label").splitlines()
    part = grid_text(one_f_one_b(4, 8), width=80, detail="label", start=7).splitlines()
    for rank in range(2, 6):
        columns = whole[rank][8 + 7 * 3 : 8 + 7 * 3 + 72]
        assert part[rank][8:] == columns.rstrip()


def test_given_times() -> None:
    """Slots of a tenth: a forward of 0.3 is three columns, a backward of 0.5 five."""
    schedule = one_f_one_b(2, 2)
    text = grid_text(schedule, times=uniform_times(schedule, f=0.3, i=0.3, w=0.2), slot=0.1, detail="letter")
    assert "rank 0  FFFFFF.....BBBBB...BBBBB\n" in text
    assert "rank 1  ...FFFBBBBBFFFBBBBB.....\n" in text


def test_given_times_without_a_slot_take_the_shortest_step() -> None:
    schedule = one_f_one_b(2, 2)
    doubled = uniform_times(schedule, f=2, i=2, w=2)
    assert grid_text(schedule, times=doubled) == grid_text(schedule)


@pytest.mark.parametrize("name", SCHEDULES)
def test_colour_changes_no_text(name: str) -> None:
    schedule = build(name, pp=4, microbatches=8, vpp=2 if name == "interleaved" else 1)
    drawn = grid_rich(schedule, width=80)
    plain = "\n".join(line.rstrip() for line in drawn.plain.splitlines()) + "\n"
    assert plain == grid_text(schedule, width=80)


def test_colours_follow_the_kind() -> None:
    drawn = grid_rich(dualpipe(4, 8), width=120)
    styles = {str(span.style) for span in drawn.spans if drawn.plain[span.start : span.end].startswith("F0 ")}
    assert styles == {"white on #0072b2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 20}, "width 20: a schedule needs at least 40 columns"),
        ({"start": 33}, "start 33: the schedule has slots 0 to 32"),
        ({"start": -1}, "start -1: the schedule has slots 0 to 32"),
        ({"slot": 0.0}, "slot 0.0: the time a slot stands for is above zero"),
        ({"slot": float("nan")}, "slot nan: the time a slot stands for is above zero"),
    ],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        grid_text(one_f_one_b(4, 8), **options)  # type: ignore[arg-type]
