"""DualPipe and DualPipeV: forwards and backwards of two directions overlapped in pairs.

The eight steps are those of DeepSeek's published implementation (github.com/deepseek-ai/DualPipe,
dualpipe.py, ``step``); figure 5 of the DeepSeek-V3 report (section 3.2.1) shows them for 8 ranks and 20
microbatches.
"""

from collections.abc import Iterator

from simulator.schedule.action import Row, Schedule
from simulator.schedule.numbering import number
from simulator.schedule.record import ScheduleRecord, two_stages_a_rank


def dualpipe(ranks: int, microbatches: int) -> Schedule:
    """Two pipelines in opposite directions on the same ranks: stages r and ranks - 1 - r are on rank r.

    The first half of the microbatches enters on rank 0, the second half on the last rank, where it finds
    stage s on rank ranks - 1 - s.
    """
    return DUALPIPE(ranks, microbatches)


def dualpipev(ranks: int, microbatches: int) -> Schedule:
    """DualPipe cut in half: twice as many stages as ranks, in a V with r and 2 ranks - 1 - r on rank r."""
    return DUALPIPEV(ranks, microbatches)


def _dualpipe_rows(pp: int, microbatches: int, vpp: int) -> tuple[Row, ...]:
    return tuple(_dualpipe_row(rank, pp, microbatches) for rank in range(pp))


def _dualpipev_rows(pp: int, microbatches: int, vpp: int) -> tuple[Row, ...]:
    return tuple(number(_eight_steps(pp, rank, microbatches), stages=(rank, 2 * pp - 1 - rank)) for rank in range(pp))


def _dualpipe_row(rank: int, ranks: int, microbatches: int) -> Row:
    """Phase 0 of a rank is the direction whose entry is nearer."""
    half = microbatches // 2
    mirror = ranks - 1 - rank
    words = _eight_steps(ranks // 2, min(rank, mirror), half)
    if rank < mirror:
        return number(words, stages=(rank, mirror), first=(0, half))
    return number(words, stages=(mirror, rank), first=(half, 0))


def _eight_steps(depth: int, rank: int, microbatches: int) -> list[str]:
    """The program of one of ``depth`` ranks, counted from the entry, for ``microbatches`` in each phase.

    In the middle (the last of ``depth`` ranks) the very first pair runs apart, which shortens the bubble. Of
    step 6, the first half are whole backwards, and the second half leave their weight parts for steps 7 and
    8.
    """
    inward = depth - rank - 1
    outward = rank + 1
    main = ["F0B1", "F1B0"] * (microbatches - 2 * depth + outward)
    if inward == 0:
        main[:1] = ["F0", "B1"]
    drain = ["B1", "B0"] * outward
    drain[outward:] = [word.replace("B", "I") for word in drain[outward:]]
    return [
        *["F0"] * (2 * inward),
        *["F0", "F1"] * outward,
        *["I1", "W", "F1"] * inward,
        *main,
        *["B1", "F1B0"] * inward,
        *drain,
        *["W", "I0"] * inward,
        *["W"] * outward,
    ]


def _even_ranks(name: str, pp: int, microbatches: int, vpp: int) -> Iterator[str]:
    if pp % 2:
        advice = f"{pp - 1} or {pp + 1}" if pp > 1 else "2"
        yield f"{name} needs an even pp: pp is {pp}; {advice} would do"


def _even_microbatches(name: str, pp: int, microbatches: int, vpp: int) -> Iterator[str]:
    """Half of them enter the pipeline from each end."""
    if microbatches % 2:
        enough = max(microbatches + 1, 2 * pp)
        yield f"{name} needs an even number of microbatches: there are {microbatches}; {enough} would do"


def _full_pipeline(name: str, pp: int, microbatches: int, vpp: int) -> Iterator[str]:
    if microbatches < 2 * pp:
        yield (
            f"{name} needs at least 2 x pp microbatches: pp {pp}, {microbatches} microbatches;"
            f" {2 * pp} or more would do"
        )


def _dualpipe_bubble(pp: int, f: float, i: float, w: float, pair: float) -> float:
    return (pp / 2 - 1) * (pair + (i + w) - 3 * w)


def _dualpipev_bubble(pp: int, f: float, i: float, w: float, pair: float) -> float:
    return (pp - 1) * (pair + (i + w) - 3 * w)


DUALPIPE = ScheduleRecord(
    name="dualpipe",
    generate=_dualpipe_rows,
    description="two pipelines in opposite directions, with forwards and backwards overlapped in pairs",
    source="DeepSeek-V3 report, arXiv 2412.19437, section 3.2.1; github.com/deepseek-ai/DualPipe",
    year=2024,
    rules=(_even_ranks, _even_microbatches, _full_pipeline),
    mirrored=True,
    overlapped_pairs=True,
    bubble=_dualpipe_bubble,
)
DUALPIPEV = ScheduleRecord(
    name="dualpipev",
    generate=_dualpipev_rows,
    description="DualPipe cut in half: two stages a rank in a V, every parameter held once",
    source="Sea AI Lab 2025, hackmd.io/@ufotalent/r1lVXsa9Jg; github.com/deepseek-ai/DualPipe",
    year=2025,
    rules=(_full_pipeline,),
    stages=two_stages_a_rank,
    mirrored=True,
    overlapped_pairs=True,
    bubble=_dualpipev_bubble,
)
RECORDS = (DUALPIPE, DUALPIPEV)
