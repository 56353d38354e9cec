"""The schedules with one stage a rank and whole backwards: GPipe and 1F1B."""

from simulator.schedule.action import Schedule
from simulator.schedule.numbering import number
from simulator.schedule.rules import check


def gpipe(ranks: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards, first in first out (GPipe, Huang et al. 2019, section 2.3)."""
    check("gpipe", ranks, microbatches)
    words = ["F0"] * microbatches + ["B0"] * microbatches
    rows = tuple(number(words, stages=[rank]) for rank in range(ranks))
    return Schedule(name="gpipe", stages=ranks, microbatches=microbatches, rows=rows)


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """Forward and backward in turn once the pipeline is full (PipeDream-Flush; Narayanan et al. 2021, 2.2).

    Rank r starts with ``ranks - r - 1`` forwards, so that at most ``ranks - r`` microbatches are in flight on
    it.
    """
    check("1f1b", ranks, microbatches)
    rows = tuple(number(_words(ranks - rank - 1, microbatches), stages=[rank]) for rank in range(ranks))
    return Schedule(name="1f1b", stages=ranks, microbatches=microbatches, rows=rows)


def _words(warm_up: int, microbatches: int) -> list[str]:
    ahead = min(warm_up, microbatches)
    return ["F0"] * ahead + ["F0", "B0"] * (microbatches - ahead) + ["B0"] * ahead
