"""Lengths of sequences, and how many tokens a step with drafts yields."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.spec.serving import Lengths, Serving, contexts


@given(st.integers(1, 400), st.integers(1, 20_000), st.floats(0.0, 1.2), st.sampled_from(["gamma", "uniform"]))
def test_lengths_of_a_distribution_have_its_mean_and_spread(count: int, mean: int, cv: float, shape: str) -> None:
    serving = Serving(sequences=count, tokens=1, context=Lengths(mean=mean, cv=cv, shape=shape))  # type: ignore[arg-type]
    found = np.array(contexts(serving))
    assert len(found) == count
    assert found.min() >= 0
    if count >= 200 and mean > 500 and cv <= (0.57 if shape == "uniform" else 1.0):  # beyond it uniform ones stop at 0
        assert found.mean() == pytest.approx(mean, rel=0.02)
        assert found.std() / mean == pytest.approx(cv, abs=0.05 * max(cv, 0.1) + 0.01)


def test_any_half_of_the_sequences_is_like_the_whole() -> None:
    found = np.array(contexts(Serving(sequences=256, tokens=1, context=Lengths(mean=4000, cv=0.8))))
    assert found[:128].mean() == pytest.approx(found.mean(), rel=0.03)
    assert found[::2].mean() == pytest.approx(found.mean(), rel=0.03)


def test_a_list_is_taken_in_turn() -> None:
    serving = Serving(sequences=5, tokens=1, context=(10, 20, 60))
    assert contexts(serving) == (10, 20, 60, 10, 20)
    assert serving.total_context == 120
    assert serving.mean_context == 24
    assert serving.longest_context == 60


def test_tokens_of_a_step_with_drafts() -> None:
    """One certain token, and each drafted one if all before it were accepted: by hand."""
    assert Serving(sequences=1, tokens=1).accepted == 1.0
    assert Serving(sequences=1, tokens=1, mtp_depth=1, mtp_acceptance=0.85).accepted == pytest.approx(1.85)
    assert Serving(sequences=1, tokens=1, mtp_depth=3, mtp_acceptance=0.5).accepted == pytest.approx(1.875)
    listed = Serving(sequences=1, tokens=1, mtp_depth=2, mtp_acceptance=(0.9, 0.5))
    assert listed.accepted == pytest.approx(1 + 0.9 + 0.45)


@given(st.integers(0, 8), st.floats(0.0, 1.0))
def test_acceptance_lies_between_one_token_and_all(depth: int, chance: float) -> None:
    found = Serving(sequences=1, tokens=1, mtp_depth=depth, mtp_acceptance=chance).accepted
    assert 1.0 <= found <= 1.0 + depth
