"""Zero-bubble schedules: the backward is split, and the weight part fills the gaps.

Zero Bubble Pipeline Parallelism (Qi et al. 2023): ZB-H1 and ZB-H2 of section 2, here in closed form rather
than by the search of section 3, and ZB-V of section 6 as its authors handcrafted it for F = I = W.
"""

from simulator.errors import ScheduleError
from simulator.schedule.action import Row, Schedule, actions_of
from simulator.schedule.numbering import number
from simulator.schedule.record import ScheduleRecord, two_stages_a_rank


def zb1p(ranks: int, microbatches: int) -> Schedule:
    """ZB-H1: a third of 1F1B's bubble for F = I = W, with ``ranks`` microbatches in memory on every rank."""
    return ZB1P(ranks, microbatches)


def zb2p(ranks: int, microbatches: int) -> Schedule:
    """ZB-H2: no bubble in a rank's span for F = I = W, with 2 ranks - 1 microbatches in memory on every rank.

    It takes at least 2 ranks - 1 microbatches to fill the pipeline; with fewer it runs, with bubbles.
    """
    return ZB2P(ranks, microbatches)


def _zb1p_rows(pp: int, microbatches: int, vpp: int) -> tuple[Row, ...]:
    return tuple(_handcrafted(rank, pp, microbatches, 1) for rank in range(pp))


def _zb2p_rows(pp: int, microbatches: int, vpp: int) -> tuple[Row, ...]:
    return tuple(_handcrafted(rank, pp, microbatches, 2) for rank in range(pp))


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
    return ZBV(ranks, microbatches)


def _zbv_rows(pp: int, microbatches: int, vpp: int) -> tuple[Row, ...]:
    return tuple(_v_row(rank, pp, microbatches) for rank in range(pp))


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


def _zb1p_bubble(pp: int, f: float, i: float, w: float, pair: float) -> float:
    return (pp - 1) * (f + (i + w) - 2 * w)


def _zb2p_bubble(pp: int, f: float, i: float, w: float, pair: float) -> float:
    return (pp - 1) * (f + (i + w) - 3 * w)


def _zbv_bubble(pp: int, f: float, i: float, w: float, pair: float) -> float:
    if not f == i == w:
        raise ScheduleError(f"zbv has a closed form for f = i = w only: f {f}, i {i}, w {w}")
    return 0.0


ZB1P = ScheduleRecord(
    name="zb1p",
    generate=_zb1p_rows,
    description="1F1B with split backwards: weight gradients fill the drain, in 1F1B's memory (ZB-H1)",
    source="Qi et al. 2023, arXiv 2401.10241, section 2 and table 1",
    year=2023,
    bubble=_zb1p_bubble,
)
ZB2P = ScheduleRecord(
    name="zb2p",
    generate=_zb2p_rows,
    description="split backwards without a bubble in a rank's span, in twice the memory (ZB-H2)",
    source="Qi et al. 2023, arXiv 2401.10241, section 2 and table 1",
    year=2023,
    bubble=_zb2p_bubble,
)
ZBV = ScheduleRecord(
    name="zbv",
    generate=_zbv_rows,
    description="split backwards over stages in a V, without a bubble in a rank's span, in 1F1B's memory (ZB-V)",
    source="Qi et al. 2023, arXiv 2401.10241, section 6",
    year=2023,
    stages=two_stages_a_rank,  # in a V too, but balancing them in pairs brings 0.03 % at most: 7 layouts were tried
    bubble=_zbv_bubble,
)
RECORDS = (ZB1P, ZB2P, ZBV)
