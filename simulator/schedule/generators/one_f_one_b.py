"""The schedules with one stage a rank and whole backwards: GPipe and 1F1B."""

from simulator.schedule.action import Row, Schedule
from simulator.schedule.numbering import number
from simulator.schedule.record import ScheduleRecord


def gpipe(ranks: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards, first in first out (GPipe, Huang et al. 2019, section 2.3)."""
    return GPIPE(ranks, microbatches)


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """Forward and backward in turn once the pipeline is full (PipeDream-Flush; Narayanan et al. 2021, 2.2).

    Rank r starts with ``ranks - r - 1`` forwards, so that at most ``ranks - r`` microbatches are in flight on
    it.
    """
    return ONE_F_ONE_B(ranks, microbatches)


def _gpipe_rows(pp: int, microbatches: int, vpp: int) -> tuple[Row, ...]:
    words = ["F0"] * microbatches + ["B0"] * microbatches
    return tuple(number(words, stages=[rank]) for rank in range(pp))


def _one_f_one_b_rows(pp: int, microbatches: int, vpp: int) -> tuple[Row, ...]:
    return tuple(number(_words(pp - rank - 1, microbatches), stages=[rank]) for rank in range(pp))


def _words(warm_up: int, microbatches: int) -> list[str]:
    ahead = min(warm_up, microbatches)
    return ["F0"] * ahead + ["F0", "B0"] * (microbatches - ahead) + ["B0"] * ahead


def fill(pp: int, f: float, i: float, w: float, pair: float) -> float:
    """One fill of the pipeline, forward and backward; of thin stages, if they are interleaved."""
    return (pp - 1) * (f + (i + w))


GPIPE = ScheduleRecord(
    name="gpipe",
    generate=_gpipe_rows,
    description="all forwards, then all backwards",
    source="GPipe, Huang et al. 2019, arXiv 1811.06965, section 2.3",
    year=2019,
    bubble=fill,
)
ONE_F_ONE_B = ScheduleRecord(
    name="1f1b",
    generate=_one_f_one_b_rows,
    description="a forward and a backward in turn once the pipeline is full",
    source="PipeDream-Flush, Narayanan et al. 2020, arXiv 2006.09503; its bubble: 2021, arXiv 2104.04473, section 2.2",
    year=2020,
    bubble=fill,
)
RECORDS = (GPIPE, ONE_F_ONE_B)
