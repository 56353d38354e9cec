"""Schedules as text: the same there and back, and errors that say where and what to write."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScheduleError
from simulator.schedule import SCHEDULES, Action, Pair, Schedule, build, format_schedule, parse_schedule


@st.composite
def any_schedule(draw: st.DrawFn) -> Schedule:
    """Whatever can be written down, sensible or not."""
    stages, microbatches = draw(st.integers(1, 40)), draw(st.integers(1, 400))
    place = (st.integers(0, stages - 1), st.integers(0, microbatches - 1))
    action = st.builds(Action, st.sampled_from("FBIW"), *place, st.just(False))
    forward, backward = (
        st.builds(Action, st.just("F"), *place, st.just(False)),
        st.builds(Action, st.sampled_from("BI"), *place, st.just(False)),
    )
    row = st.lists(action | st.builds(Pair, forward, backward), max_size=8).map(tuple)
    rows = draw(st.lists(row, min_size=1, max_size=12).map(tuple))
    name = draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]*", fullmatch=True))
    return Schedule(name=name, stages=stages, microbatches=microbatches, rows=rows)


@pytest.mark.long
@given(any_schedule())
def test_round_trip(schedule: Schedule) -> None:
    text = format_schedule(schedule)
    assert parse_schedule(text, source="memory") == schedule
    assert format_schedule(parse_schedule(text, source="memory")) == text


@pytest.mark.parametrize("name", SCHEDULES)
def test_round_trip_of_generated_schedules(name: str) -> None:
    schedule = build(name, pp=4, microbatches=8, vpp=2 if name == "interleaved" else 1)
    assert parse_schedule(format_schedule(schedule), source="memory") == schedule


def test_steps_print_as_they_are_written() -> None:
    pair = Pair(Action("F", 0, 7), Action("B", 7, 3))
    assert [str(Action("F", 2, 0)), str(Action("W", 12, 34)), str(pair)] == ["2F0", "12W34", "(0F7;7B3)"]


def test_blanks_and_comments_are_ignored() -> None:
    text = "\n# by hand\n# name=mine stages=1 microbatches=2\n\n  0:  0F0 0B0\t0F1 0B1 \n# the end\n"
    assert format_schedule(parse_schedule(text, source="x")) == (
        "# name=mine stages=1 microbatches=2\n0: 0F0 0B0 0F1 0B1\n"
    )


def test_a_name_with_spaces_cannot_be_written() -> None:
    schedule = Schedule(name="my own", stages=1, microbatches=1, rows=((),))
    with pytest.raises(ScheduleError, match="'my own' cannot be written: use letters"):
        format_schedule(schedule)


HEADER = "# name=mine stages=2 microbatches=3\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.txt: there is no schedule in it: begin with '# name=1f1b stages=4 microbatches=8'"),
        (HEADER, "my.txt: there are no ranks in it: write one line a rank, as in '0: 0F0 0B0'"),
        ("0: 0F0\n", "my.txt, line 1: there is no header before the first rank: begin with"),
        ("# name=mine stages=2\n", "my.txt, line 1: '# name=mine stages=2' is no header: write it like"),
        (
            "# name=a/b stages=2 microbatches=3",
            "my.txt, line 1: name=a/b: use letters, digits and . _ + - only",
        ),
        ("# name=a stages=0 microbatches=3", "my.txt, line 1: stages=0: write a whole number of at least 1"),
        ("# name=a stages=2 microbatches=nan", "my.txt, line 1: microbatches=nan: write a whole number"),
        (
            HEADER + "0F0 0B0",
            "my.txt, line 2: '0F0 0B0' is no rank: begin it with number and colon, here '0: '",
        ),
        (HEADER + "0: 0F0\n2: 1F0", "my.txt, line 3: rank 2 stands where rank 1 belongs"),
        (
            HEADER + "0: 0F0 0X1",
            "my.txt, line 2: '0X1' is no step: write stage, F, B, I or W, microbatch, as in 2F0",
        ),
        (HEADER + "0: F0", "my.txt, line 2: 'F0' is no step"),
        (HEADER + "0: -1F0", "my.txt, line 2: '-1F0' is no step"),
        (HEADER + "0: 0F٣", "my.txt, line 2: '0F٣' is no step"),
        (HEADER + "0: 0F" + "9" * 5000, "...' is no step"),
        (HEADER + "0: 2F0", "my.txt, line 2: '2F0': there is no stage 2: the header says 2, so 0 to 1"),
        (HEADER + "0: 1F3", "my.txt, line 2: '1F3': there is no microbatch 3: the header says 3, so 0 to 2"),
        (HEADER + "0: (0F1;1B0", "my.txt, line 2: '(0F1;1B0' is no step"),
        (HEADER + "0: (0F1;1B0;1B1)", "is no step: write stage, F, B, I or W, microbatch"),
        (HEADER + "0: (0F1;7B0)", "my.txt, line 2: '(0F1;7B0)': there is no stage 7"),
        (
            HEADER + "0: (1B0;0F1)",
            "my.txt, line 2: '(1B0;0F1)': a pair is a forward, then a backward (B or I)",
        ),
        (
            HEADER + "0: (0F1;1W0)",
            "my.txt, line 2: '(0F1;1W0)': a pair is a forward, then a backward (B or I)",
        ),
    ],
)
def test_errors_name_file_line_and_token(text: str, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse_schedule(text, source="my.txt")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.text(alphabet="0123:FBIW();# \nname=stages", max_size=60))
def test_any_other_text_is_one_schedule_error(text: str) -> None:
    with suppress(ScheduleError):
        assert parse_schedule(text, source="x").ranks
