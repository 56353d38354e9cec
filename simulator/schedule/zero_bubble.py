"""Zero-bubble schedules: the backward is split, and the weight part fills the gaps.

Zero Bubble Pipeline Parallelism (Qi et al. 2023): ZB-H1 and ZB-H2 of section 2, here in closed form rather
than by the search of section 3, and ZB-V of section 6 as its authors handcrafted it for F = I = W.
"""

from simulator.schedule.action import Row, Schedule, actions_of
from simulator.schedule.numbering import number
from simulator.schedule.rules import check


def zb1p(ranks: int, microbatches: int) -> Schedule:
    """ZB-H1: a third of 1F1B's bubble for F = I = W, with ``ranks`` microbatches in memory on every rank."""
    check("zb1p", ranks, microbatches)
    rows = tuple(_handcrafted(rank, ranks, microbatches, 1) for rank in range(ranks))
    return Schedule(name="zb1p", stages=ranks, microbatches=microbatches, rows=rows)


def zb2p(ranks: int, microbatches: int) -> Schedule:
    """ZB-H2: no bubble in a rank's span for F = I = W, with 2 ranks - 1 microbatches in memory on every rank.

    It takes at least 2 ranks - 1 microbatches to fill the pipeline; with fewer it runs, with bubbles.
    """
    check("zb2p", ranks, microbatches)
    rows = tuple(_handcrafted(rank, ranks, microbatches, 2) for rank in range(ranks))
    return Schedule(name="zb2p", stages=ranks, microbatches=microbatches, rows=rows)


def _handcrafted(rank: int, ranks: int, microbatches: int, depth: int) -> Row:
    """Forwards to fill ``depth`` pipelines, then I, W, F in turn, without W for the first depth x rank turns.

    The weight parts held back come last: they fill the drain of the pipeline, which is longest on the last
    rank.
    """
    ahead = min(depth * (ranks - rank - 1) + 1, microbatches)
    words = ["F0"] * ahead
    for turn in range(microbatches):
        words.append("I0")
        if turn >= depth * rank:
            words.append("W0")
        if turn < microbatches - ahead:
            words.append("F0")
    words += ["W0"] * (microbatches - words.count("W0"))
    return number(words, stages=[rank])


def zbv(ranks: int, microbatches: int) -> Schedule:
    """ZB-V: stages r and 2 ranks - 1 - r on rank r; no bubble in a rank's span for F = I = W, 1F1B's memory.

    With fewer than 2 ranks - 1 microbatches it is the schedule for so many with the surplus left out.
    """
    check("zbv", ranks, microbatches)
    rows = tuple(_v_row(rank, ranks, microbatches) for rank in range(ranks))
    return Schedule(name="zbv", stages=2 * ranks, microbatches=microbatches, rows=rows)


def _v_row(rank: int, ranks: int, microbatches: int) -> Row:
    full = max(microbatches, 2 * ranks - 1)
    inward = ranks - rank - 1
    turn = ["I0", "W0", "F1", "I1", "W1"]
    words = [
        *["F0"] * (2 * inward + 1),
        *["F1", "F0"] * rank,
        *["F1", "I1", "W1"] * (inward + 1),
        *["F0", *turn] * (full - ranks - inward),
        *turn * inward,
        *["I0", "I1"] * rank,
        *["I0", "W0"] * (inward + 1),
        *["W1"] * rank,
        *["W0"] * rank,
    ]
    row = number(words, stages=[rank, 2 * ranks - 1 - rank])
    return tuple(step for step in row if actions_of(step)[0].microbatch < microbatches)
