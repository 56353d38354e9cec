"""Stream intervals: which tokens come together, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.serving.request import Request
from tests.replays import Linear, at_once, run
from tests.serving.test_replay_properties import SETTINGS, requests

STEP = 0.01


def _gaps(outputs: int, interval: int, **settings: Any) -> tuple[dict[float, int], Any]:
    """Gaps between messages of one request, in steps, with how often each came."""
    recorder, _, _ = run(at_once((10, outputs)), Linear(step=STEP), stream_interval=interval, **settings)
    found: dict[float, int] = {}
    before = 0.0
    for value, share in recorder.gaps.steps():
        count = round((share - before) * recorder.gaps.count)
        found[round(value / STEP, 1)] = count
        before = share
    return found, recorder


def test_the_first_token_comes_alone_then_so_many_and_the_rest_at_the_end() -> None:
    found, recorder = _gaps(24, 10)  # tokens 1 | 2-11 | 12-21 | 22-24
    assert found == {3.0: 1, 10.0: 2}
    assert recorder.together == 9 + 9 + 2
    assert recorder.itl.count == 23
    assert recorder.itl.quantile(0.5) == 0.0
    assert recorder.itl.mean == pytest.approx(STEP)


def test_a_last_message_that_is_full_is_not_followed_by_an_empty_one() -> None:
    found, recorder = _gaps(21, 10)
    assert found == {10.0: 2}
    assert recorder.together == 18


def test_steps_one_by_one_send_the_same_messages_as_steps_in_one_go() -> None:
    asked = [Request(n, 0.013 * n, 5 + n, 30 + 3 * n) for n in range(8)]
    many, few = (
        run(asked, Linear(step=STEP, ahead=ahead), stream_interval=4, sequences=3)[0] for ahead in (1 << 30, 1)
    )
    assert many.gaps.count == few.gaps.count
    for share in (0.02, 0.05, 0.5, 1.0):
        assert many.gaps.quantile(share) == pytest.approx(few.gaps.quantile(share), rel=1e-3)
    assert many.together == few.together


def test_accepted_drafts_fill_a_message_sooner() -> None:
    _, recorder = _gaps(25, 6, drafts=(1.0,))  # two tokens a step: 1 | 2-7 | 8-13 | 14-19 | 20-25
    assert recorder.gaps.count == 4
    assert recorder.gaps.mean == pytest.approx(3 * STEP)
    assert recorder.together == 20


@given(asked=requests(most=10), settings=SETTINGS, interval=st.integers(1, 40), room=st.integers(0, 3))
def test_an_interval_changes_messages_and_nothing_else(
    asked: list[Request], settings: dict[str, Any], interval: int, room: int
) -> None:
    blocks = -(-max(one.longest for one in asked) // settings["block"]) + room
    plain, sent = (
        run(asked, Linear(step=0.01, cached=1e-6), blocks=blocks, stream_interval=each, **settings)[0]
        for each in (1, interval)
    )
    for name in ("ttft", "tpot", "e2e"):
        assert getattr(plain, name).mean == getattr(sent, name).mean
    assert sent.gaps.total == pytest.approx(plain.gaps.total)  # the same time, in fewer gaps
    assert sent.gaps.count + sent.together == plain.gaps.count
    full = sum((one.output_tokens - 1) // interval for one in asked)
    assert full <= sent.gaps.count <= full + len(asked)
