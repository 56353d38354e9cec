"""What can be built: all broken rules at once, each with numbers that would do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScheduleError
from simulator.schedule import SCHEDULES, build, rules, stages_of, validate


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    pp=st.integers(-1, 7),
    microbatches=st.integers(-1, 20),
    vpp=st.integers(0, 3),
)
def test_what_the_rules_allow_is_built_and_valid_and_nothing_else(
    name: str, pp: int, microbatches: int, vpp: int
) -> None:
    broken = rules(name, pp, microbatches, vpp)
    if broken:
        with pytest.raises(ScheduleError) as caught:
            build(name, pp=pp, microbatches=microbatches, vpp=vpp)
        assert str(caught.value) == "; ".join(broken)
    else:
        schedule = build(name, pp=pp, microbatches=microbatches, vpp=vpp)
        validate(schedule)
        assert (schedule.name, schedule.ranks, schedule.microbatches) == (name, pp, microbatches)
        assert schedule.stages == stages_of(name, pp, vpp)


@pytest.mark.parametrize(
    ("name", "pp", "microbatches", "vpp", "expected"),
    [
        ("1f1b", 4, 1, 1, []),
        ("dualpipe", 16, 120, 1, []),
        (
            "dualpipe",
            16,
            20,
            1,
            ["dualpipe needs at least 2 x pp microbatches: pp 16, 20 microbatches; 32 or more would do"],
        ),
        (
            "dualpipe",
            15,
            31,
            1,
            [
                "dualpipe needs an even pp: pp is 15; 14 or 16 would do",
                "dualpipe needs an even number of microbatches: there are 31; 32 would do",
            ],
        ),
        (
            "dualpipe",
            1,
            2,
            1,
            ["dualpipe needs an even pp: pp is 1; 2 would do"],
        ),
        (
            "dualpipev",
            8,
            15,
            1,
            ["dualpipev needs at least 2 x pp microbatches: pp 8, 15 microbatches; 16 or more would do"],
        ),
        (
            "interleaved",
            8,
            20,
            2,
            ["interleaved needs a multiple of pp microbatches: pp 8, 20 microbatches; 16 or 24 would do"],
        ),
        (
            "interleaved",
            8,
            5,
            1,
            [
                "interleaved needs a vpp of at least 2: vpp is 1; for vpp 1 use 1f1b",
                "interleaved needs a multiple of pp microbatches: pp 8, 5 microbatches; 8 would do",
            ],
        ),
        ("zb1p", 4, 8, 2, ["zb1p has no virtual stages: vpp is 2; set vpp to 1, or use interleaved"]),
        (
            "gpipe",
            0,
            -3,
            1,
            [
                "gpipe needs at least one rank: pp is 0",
                "gpipe needs at least one microbatch: microbatches is -3",
            ],
        ),
    ],
)
def test_broken_rules(name: str, pp: int, microbatches: int, vpp: int, expected: list[str]) -> None:
    assert rules(name, pp, microbatches, vpp) == expected


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dualpip", "there is no schedule 'dualpip': did you mean dualpipe?"),
        ("1F1B", "there is no schedule '1F1B': did you mean 1f1b?"),
        ("nonsense", "there is no schedule 'nonsense': choose one of gpipe, 1f1b, interleaved"),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    for ask in (
        lambda: build(name, pp=4, microbatches=8),
        lambda: rules(name, 4, 8),
        lambda: stages_of(name, 4),
    ):
        with pytest.raises(ScheduleError) as caught:
            ask()
        assert hint in str(caught.value)


def test_stages() -> None:
    assert {name: stages_of(name, 4, 3 if name == "interleaved" else 1) for name in SCHEDULES} == {
        "gpipe": 4,
        "1f1b": 4,
        "interleaved": 12,
        "zb1p": 4,
        "zb2p": 4,
        "zb1p-auto": 4,
        "zb2p-auto": 4,
        "zbv": 8,
        "dualpipe": 4,
        "dualpipev": 8,
    }


def test_the_registry_cannot_be_changed_by_accident() -> None:
    with pytest.raises(TypeError):
        SCHEDULES["mine"] = SCHEDULES["1f1b"]  # type: ignore[index]
