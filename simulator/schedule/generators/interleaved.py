"""Interleaved 1F1B: every rank holds ``vpp`` thin stages, which divides the bubble by ``vpp``."""

from collections.abc import Iterator

from simulator.schedule.action import Action, Kind, Row, Schedule
from simulator.schedule.generators.one_f_one_b import fill
from simulator.schedule.record import ScheduleRecord


def interleaved(ranks: int, microbatches: int, vpp: int) -> Schedule:
    """Megatron-LM's interleaved 1F1B (Narayanan et al. 2021, section 2.2); stage v * ranks + r is on rank r.

    Microbatches go through the stages of a rank in rounds of ``ranks``: so many through its first stage, the
    same through its second, and so on. Rank r runs 2 (ranks - r - 1) + (vpp - 1) ranks forwards ahead.
    """
    return INTERLEAVED(ranks, microbatches, vpp)


def _rows(pp: int, microbatches: int, vpp: int) -> tuple[Row, ...]:
    return tuple(_row(rank, pp, microbatches, vpp) for rank in range(pp))


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


def _several_stages(name: str, pp: int, microbatches: int, vpp: int) -> Iterator[str]:
    if vpp < 2:
        yield f"{name} needs a vpp of at least 2: vpp is {vpp}; for vpp 1 use 1f1b"


def _whole_rounds(name: str, pp: int, microbatches: int, vpp: int) -> Iterator[str]:
    """Megatron-LM takes microbatches through a chunk in rounds of pp (Narayanan et al. 2021, section 2.2)."""
    if microbatches % pp:
        below, above = microbatches // pp * pp, -(-microbatches // pp) * pp
        advice = f"{below} or {above}" if below else f"{above}"
        given = f"pp {pp}, {microbatches} microbatches"
        yield f"{name} needs a multiple of pp microbatches: {given}; {advice} would do"


INTERLEAVED = ScheduleRecord(
    name="interleaved",
    generate=_rows,
    description="1F1B with vpp thin stages on every rank, which divides the bubble by vpp",
    source="Narayanan et al. 2021, arXiv 2104.04473, section 2.2",
    year=2021,
    rules=(_several_stages, _whole_rounds),
    stages=lambda pp, vpp: pp * vpp,
    virtual_stages=True,
    bubble=fill,
)
RECORDS = (INTERLEAVED,)
