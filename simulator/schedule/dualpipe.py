"""DualPipe and DualPipeV: forwards and backwards of two directions overlapped in pairs.

The eight steps are those of DeepSeek's published implementation (github.com/deepseek-ai/DualPipe,
dualpipe.py, ``step``); figure 5 of the DeepSeek-V3 report (section 3.2.1) shows them for 8 ranks and 20
microbatches.
"""

from simulator.schedule.action import Row, Schedule
from simulator.schedule.numbering import number
from simulator.schedule.rules import check


def dualpipe(ranks: int, microbatches: int) -> Schedule:
    """Two pipelines in opposite directions on the same ranks: stages r and ranks - 1 - r are on rank r.

    The first half of the microbatches enters on rank 0, the second half on the last rank, where it finds
    stage s on rank ranks - 1 - s.
    """
    check("dualpipe", ranks, microbatches)
    rows = tuple(_dualpipe_row(rank, ranks, microbatches) for rank in range(ranks))
    return Schedule(name="dualpipe", stages=ranks, microbatches=microbatches, rows=rows)


def dualpipev(ranks: int, microbatches: int) -> Schedule:
    """DualPipe cut in half: twice as many stages as ranks, in a V with r and 2 ranks - 1 - r on rank r."""
    check("dualpipev", ranks, microbatches)
    rows = tuple(
        number(_eight_steps(ranks, rank, microbatches), stages=(rank, 2 * ranks - 1 - rank)) for rank in range(ranks)
    )
    return Schedule(name="dualpipev", stages=2 * ranks, microbatches=microbatches, rows=rows)


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
