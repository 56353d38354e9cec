"""DualPipe and DualPipeV step by step, as in the table of DeepSeek's implementation."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.schedule import (
    Action,
    Pair,
    Schedule,
    Step,
    actions_of,
    dualpipe,
    dualpipev,
    rank_of,
    stages_on,
)


def as_words(schedule: Schedule, rank: int, phase_0: int) -> list[str]:
    """A row without microbatches: kinds and phases, ``phase_0`` being the stage of phase 0."""

    def word(step: Step) -> str:
        parts = (f"{part.kind}{int(part.stage != phase_0)}" for part in actions_of(step))
        return "&".join(parts) if isinstance(step, Pair) else next(parts)

    return [word(step) for step in schedule.rows[rank]]


STEPS_8_20 = {
    # rank: times of steps 1 to 8
    0: (6, 1, 3, 3, 3, 1, 3, 1),
    1: (4, 2, 2, 4, 2, 2, 2, 2),
    2: (2, 3, 1, 5, 1, 3, 1, 3),
    3: (0, 4, 0, 6, 0, 4, 0, 4),
}


@pytest.mark.parametrize("rank", range(8))
def test_eight_steps_for_8_ranks_and_20_microbatches(rank: int) -> None:
    nearer = min(rank, 7 - rank)
    words = as_words(dualpipe(8, 20), rank, phase_0=nearer)
    one, two, three, four, five, six, seven, eight = STEPS_8_20[nearer]
    first = ["F0", "B1"] if nearer == 3 else ["F0&B1"]
    backwards = ["B1", "B0"] * six
    backwards[six:] = [word.replace("B", "I") for word in backwards[six:]]
    weights = [word.replace("I", "W") for word in backwards if word[0] == "I"] + ["W0"] * seven
    assert words == [
        *["F0"] * one,
        *["F0", "F1"] * two,
        *["I1", "W1", "F1"] * three,
        *[*first, "F1&B0", *["F0&B1", "F1&B0"] * (four - 1)],
        *["B1", "F1&B0"] * five,
        *backwards,
        *[word for n in range(seven) for word in (weights[n], "I0")],
        *weights[seven:],
    ]
    assert len(weights) - seven == eight


@pytest.mark.parametrize("rank", range(16))
def test_counts_of_the_v3_run(rank: int) -> None:
    """16 ranks, 120 microbatches; in the middle the two halves of the first pair run apart."""
    near, middle = min(rank, 15 - rank), rank in (7, 8)
    kinds = Counter("&" if isinstance(step, Pair) else step.kind for step in dualpipe(16, 120).rows[rank])
    assert kinds["&"] == 97 + near - middle
    assert kinds["F"] == kinds["I"] + kinds["B"] == 23 - near + middle
    assert kinds["I"] == kinds["W"] == 15 - near
    assert kinds["B"] == 8 + middle


def test_where_stages_and_microbatches_are() -> None:
    """The first half of the microbatches finds stage s on rank s, the second half on the mirror rank."""
    schedule = dualpipe(8, 20)
    assert stages_on(schedule) == tuple((min(r, 7 - r), max(r, 7 - r)) for r in range(8))
    assert rank_of(schedule) == {(s, m): s if m < 10 else 7 - s for s in range(8) for m in range(20)}


@given(half=st.integers(1, 5), extra=st.integers(0, 4))
def test_the_two_directions_mirror_each_other(half: int, extra: int) -> None:
    schedule = dualpipe(2 * half, 4 * half + 2 * extra)
    middle = schedule.microbatches // 2

    def mirrored(step: Step) -> Step:
        if isinstance(step, Pair):
            return Pair(*(part._replace(microbatch=(part.microbatch + middle) % (2 * middle)) for part in step))
        return step._replace(microbatch=(step.microbatch + middle) % (2 * middle))

    for rank, row in enumerate(schedule.rows):
        assert tuple(map(mirrored, row)) == schedule.rows[schedule.ranks - 1 - rank]


@given(ranks=st.integers(1, 6), extra=st.integers(0, 5))
def test_dualpipev_is_dualpipe_cut_in_half(ranks: int, extra: int) -> None:
    """The first half of twice as many ranks, its second direction being the way back of the V."""
    microbatches = 2 * ranks + extra
    whole = dualpipe(2 * ranks, 2 * microbatches)

    def folded(step: Step) -> Step:
        if isinstance(step, Pair):
            return Pair(*(part._replace(microbatch=part.microbatch % microbatches) for part in step))
        return step._replace(microbatch=step.microbatch % microbatches)

    cut = dualpipev(ranks, microbatches)
    assert cut.stages == 2 * ranks
    assert cut.rows == tuple(tuple(map(folded, row)) for row in whole.rows[:ranks])


@given(half=st.integers(1, 5), extra=st.integers(0, 4))
def test_weight_parts_run_oldest_first(half: int, extra: int) -> None:
    for row in dualpipe(2 * half, 4 * half + 2 * extra).rows:
        parts = [part for step in row for part in actions_of(step)]
        queued = [part[1:] for part in parts if part.kind == "I"]
        assert queued == [part[1:] for part in parts if part.kind == "W"]


@given(half=st.integers(2, 5), extra=st.integers(0, 4))
def test_only_the_middle_ranks_leave_their_first_pair_apart(half: int, extra: int) -> None:
    """A whole backward stands alone in steps 4 (there only), 5 and 6: one more of them in the middle."""
    schedule = dualpipe(2 * half, 4 * half + 2 * extra)
    alone = [sum(isinstance(step, Action) and step.kind == "B" for step in row) for row in schedule.rows]
    assert alone == [half] * (half - 1) + [half + 1] * 2 + [half] * (half - 1)
