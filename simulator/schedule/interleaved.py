"""Interleaved 1F1B: every rank holds ``vpp`` thin stages, which divides the bubble by ``vpp``."""

from simulator.schedule.action import Action, Kind, Row, Schedule
from simulator.schedule.rules import check


def interleaved(ranks: int, microbatches: int, vpp: int) -> Schedule:
    """Megatron-LM's interleaved 1F1B (Narayanan et al. 2021, section 2.2); stage v * ranks + r is on rank r.

    Microbatches go through the stages of a rank in rounds of ``ranks``: so many through its first stage, the
    same through its second, and so on. Rank r runs 2 (ranks - r - 1) + (vpp - 1) ranks forwards ahead.
    """
    check("interleaved", ranks, microbatches, vpp)
    rows = tuple(_row(rank, ranks, microbatches, vpp) for rank in range(ranks))
    return Schedule(name="interleaved", stages=ranks * vpp, microbatches=microbatches, rows=rows)


def _row(rank: int, ranks: int, microbatches: int, vpp: int) -> Row:
    total = microbatches * vpp
    ahead = min(2 * (ranks - rank - 1) + (vpp - 1) * ranks, total)
    forwards = [_visit("F", visit, rank, ranks, vpp) for visit in range(total)]
    backwards = [_visit("B", visit, rank, ranks, vpp) for visit in range(total)]
    in_turn = [action for both in zip(forwards[ahead:], backwards, strict=False) for action in both]
    return (*forwards[:ahead], *in_turn, *backwards[total - ahead :])


def _visit(kind: Kind, visit: int, rank: int, ranks: int, vpp: int) -> Action:
    """The n-th forward or backward of a rank; backwards take its stages from the last to the first."""
    round_, within = divmod(visit, ranks * vpp)
    chunk, microbatch = divmod(within, ranks)
    if kind == "B":
        chunk = vpp - 1 - chunk
    return Action(kind, chunk * ranks + rank, round_ * ranks + microbatch)
