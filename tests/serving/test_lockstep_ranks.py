"""Data-parallel ranks in lock-step: every step lasts as long as on the rank with most to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.serving.request import Request
from tests.replays import Linear, at_once, run


def test_a_step_lasts_as_long_as_on_the_rank_with_most_sequences() -> None:
    # Five sequences on four ranks: two on the first. Contexts are 10, 11, 12 tokens in the steps behind the first.
    _, noted, _ = run(at_once(*[(10, 4)] * 5), Linear(step=1.0, cached=1e-3), ranks=4)
    assert noted.ends[0] == pytest.approx(4.0 + 1e-3 * 2 * (10 + 11 + 12))
    _, even, _ = run(at_once(*[(10, 4)] * 4), Linear(step=1.0, cached=1e-3), ranks=4)
    assert even.ends[0] == pytest.approx(4.0 + 1e-3 * (10 + 11 + 12))


def test_prompts_take_as_long_as_on_the_rank_with_most_of_their_tokens() -> None:
    requests = at_once((100, 1), (300, 1), (50, 1), (20, 1))  # ranks 0, 1, 0, 1
    _, noted, _ = run(requests, Linear(new=1e-3), ranks=2)
    assert noted.ends[3] == pytest.approx(0.32)


def test_a_rank_has_its_own_tokens_of_a_step() -> None:
    # Of 200 tokens a step each of two ranks has 100: the first prompt takes three steps, the others go to the second.
    requests = at_once((250, 1), (30, 1), (40, 1))  # the third is rank 0's turn, which is full
    _, noted, _ = run(requests, Linear(new=1e-3), ranks=2, step_tokens=200)
    assert [noted.ends[number] for number in range(3)] == pytest.approx([0.25, 0.1, 0.1])


def test_ranks_stay_uneven_where_sequences_end_unless_new_ones_go_to_the_emptiest() -> None:
    # Ranks 0 and 1 have two each; those of rank 1 end after two tokens. The fifth comes next.
    requests = [*at_once((10, 40), (10, 2), (10, 40), (10, 2)), Request(4, 5.5, 10, 3)]
    times = Linear(step=1.0, new=0.0, cached=1e-3)
    _, turn, _ = run(requests, times, ranks=2)
    _, balanced, _ = run(requests, times, ranks=2, balanced=True)
    assert turn.ends[4] - turn.firsts[4] > balanced.ends[4] - balanced.firsts[4] > 2.0
    # In turn it is the third of rank 0, else the first of rank 1, where rank 0 has two: 3 : 2 of what contexts add.
    assert (turn.ends[4] - turn.firsts[4] - 2.0) / (balanced.ends[4] - balanced.firsts[4] - 2.0) == pytest.approx(
        1.5, rel=1e-3
    )


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=20),
    st.integers(1, 5),
    st.booleans(),
)
def test_ranks_empty_at_the_end_and_are_never_quicker_than_even_ones(
    lengths: list[tuple[int, int]], ranks: int, balanced: bool
) -> None:
    times = Linear(step=1.0, cached=1e-3, new=1e-2)
    recorder, noted, engines = run(at_once(*lengths), times, ranks=ranks, balanced=balanced)
    assert sorted(noted.ends) == list(range(len(lengths)))
    assert engines[0].decoding.on_rank == [0] * ranks
    one, _, _ = run(at_once(*lengths), times)
    assert recorder.end <= one.end * (1 + 1e-9)  # each rank has a part of what one had
    share = sum(new for new, _ in lengths) / ranks * 1e-2
    assert recorder.end >= share
