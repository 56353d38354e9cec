"""Replays whose answer is known by formula: queues in theory, closed loops, blocks that do not do."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.serving.load.sources import Closed, LoadSpec, open_load
from simulator.serving.request import Request
from tests.replays import Linear, at_once, run

SERVICE = 0.01  # s


def _one_at_a_time(rate: float, inputs: str, *, new: float, step: float) -> tuple[float, float]:
    """Mean wait and mean service [s] of requests with one output token, of which one runs at a time."""
    load = open_load(LoadSpec(requests=f"poisson:{rate}", input_tokens=inputs, output_tokens="1", count=60_000, seed=7))
    recorder, _, _ = run(load, Linear(step=step, new=new), sequences=1)
    assert recorder.finished_count == 60_000
    assert recorder.queue.mean is not None
    assert recorder.ttft.mean is not None
    return recorder.queue.mean, recorder.ttft.mean - recorder.queue.mean


@pytest.mark.parametrize("used", [0.3, 0.6, 0.8])
def test_the_wait_of_equal_requests_is_that_of_m_d_1(used: float) -> None:
    wait, service = _one_at_a_time(used / SERVICE, "100", new=0.0, step=SERVICE)
    assert service == pytest.approx(SERVICE)
    assert wait == pytest.approx(used * SERVICE / (2 * (1 - used)), rel=0.06)


def test_the_wait_of_unequal_requests_is_that_of_pollaczek_and_khinchine() -> None:
    low, high = 100, 1900
    lengths = np.arange(low, high + 1) * 1e-5
    mean, square = lengths.mean(), (lengths**2).mean()
    rate = 0.7 / mean
    wait, service = _one_at_a_time(rate, f"uniform:0.1-1.9x{1000}", new=1e-5, step=0.0)
    assert service == pytest.approx(mean, rel=0.01)
    assert wait == pytest.approx(rate * square / (2 * (1 - 0.7)), rel=0.06)


@pytest.mark.parametrize(("users", "outputs"), [(1, 1), (1, 40), (16, 1), (16, 40)])
def test_a_closed_loop_answers_users_over_their_cycle(users: int, outputs: int) -> None:
    def always(value: int):  # type: ignore[no-untyped-def]
        while True:
            yield value

    load = Closed(users, 20 * users, always(100), always(outputs))
    recorder, _, _ = run(load, Linear(step=0.01, new=1e-5))
    cycle = 0.01 + users * 100 * 1e-5 + (outputs - 1) * 0.01
    assert recorder.finished_count == 20 * users
    assert recorder.end == pytest.approx(20 * cycle)
    assert recorder.finished_count / recorder.end == pytest.approx(users / cycle)


def test_a_cache_that_is_large_enough_puts_nobody_back() -> None:
    _, noted, _ = run(at_once((16, 17), (16, 17)), Linear(step=1.0), blocks=4)
    assert noted.ends == {0: pytest.approx(17.0), 1: pytest.approx(17.0)}
    assert noted.preemptions == {0: 0, 1: 0}


def test_a_cache_too_small_by_one_block_puts_the_later_one_back_once() -> None:
    # Both prompts take a block each in step 1. Step 2 needs a block for each and there is one: the later gives way and
    # begins again when the earlier has ended (1 + 16 s): a step for its prompt and first token, which yields its second
    # token, and 15 more.
    recorder, noted, engines = run(at_once((16, 17), (16, 17)), Linear(step=1.0), blocks=3)
    assert noted.ends == {0: pytest.approx(17.0), 1: pytest.approx(17.0 + 1.0 + 15.0)}
    assert noted.firsts == {0: pytest.approx(1.0), 1: pytest.approx(1.0)}
    assert noted.preemptions == {0: 0, 1: 1}
    assert recorder.itl.highest == pytest.approx(17.0)
    assert engines[0].kv.used == 0


def test_a_scheduler_that_reserves_whole_answers_makes_the_later_one_wait_instead() -> None:
    _, noted, _ = run(at_once((16, 17), (16, 17)), Linear(step=1.0), blocks=3, reserved_output=1.0)
    assert noted.preemptions == {0: 0, 1: 0}
    assert noted.firsts == {0: pytest.approx(1.0), 1: pytest.approx(18.0)}


def test_decodes_go_first_in_mixed_steps_and_wait_where_prompts_go_first() -> None:
    requests = [Request(0, 0.0, 10, 5), Request(1, 1.5, 3000, 1)]
    times = Linear(step=1.0, new=1e-3)
    _, mixed, _ = run(requests, times, step_tokens=1001)
    # Steps of 0: 1.01 | 1.0 | then three with up to 1000 tokens of the prompt next to its own: 2.0 each.
    assert mixed.ends[0] == pytest.approx(1.01 + 1.0 + 3 * 2.0)
    assert mixed.ends[1] == pytest.approx(1.01 + 1.0 + 3 * 2.0)
    _, first, _ = run(requests, times, step_tokens=1000, prefill="first")
    assert first.ends[1] == pytest.approx(1.01 + 1.0 + 3 * 2.0)
    assert first.ends[0] == pytest.approx(1.01 + 1.0 + 3 * 2.0 + 3 * 1.0)


def test_a_prompt_that_may_not_be_cut_takes_a_step_of_its_own() -> None:
    _, noted, _ = run(at_once((600, 1), (600, 1)), Linear(new=1e-3), step_tokens=1000, chunked=False)
    assert noted.ends == {0: pytest.approx(0.6), 1: pytest.approx(1.2)}
    _, noted, _ = run(at_once((600, 1), (600, 1)), Linear(new=1e-3), step_tokens=1000, chunked=True)
    assert noted.ends == {0: pytest.approx(1.0), 1: pytest.approx(1.2)}


def test_host_time_is_added_or_hidden() -> None:
    slow = {"host_step": 0.3, "host_sequence": 0.1}
    _, added, _ = run(at_once((10, 3)), Linear(step=1.0), **slow)
    assert added.ends[0] == pytest.approx(3 * 1.4)
    _, hidden, _ = run(at_once((10, 3)), Linear(step=1.0), **slow, host_overlapped=True)
    assert hidden.ends[0] == pytest.approx(3 * 1.0)
    _, host_bound, _ = run(at_once((10, 3)), Linear(step=0.2), **slow, host_overlapped=True)
    assert host_bound.ends[0] == pytest.approx(3 * 0.4)


def test_the_frontend_comes_before_the_queue() -> None:
    _, noted, _ = run(at_once((10, 1)), Linear(step=1.0), frontend=0.25)
    assert noted.ends[0] == pytest.approx(1.25)


def test_equal_prompts_are_computed_once() -> None:
    hashes = (5, 6, 7)
    requests = [Request(n, 10.0 * n, 1600, 1, hashes) for n in range(3)]
    recorder, noted, _ = run(requests, Linear(new=1e-3))
    assert noted.hits == {0: 0, 1: 1536, 2: 1536}
    assert noted.ends[1] - 10.0 == pytest.approx((1600 - 1536) * 1e-3)
    assert recorder.hits == 2 * 1536


def test_a_prompt_that_is_cached_whole_still_computes_its_last_block() -> None:
    requests = [Request(n, 10.0 * n, 1024, 1, (1, 2)) for n in range(2)]
    _, noted, _ = run(requests, Linear(new=1e-3))
    assert noted.hits[1] == 512
    assert noted.ends[1] - 10.0 == pytest.approx(0.512)


@pytest.mark.parametrize("drafts", [(0.85,), (0.9, 0.7), (1.0, 1.0), (0.0,)])
def test_drafts_yield_one_token_and_those_accepted(drafts: tuple[float, ...]) -> None:
    recorder, noted, _ = run(at_once(*[(10, 2001)] * 20), Linear(step=1.0), drafts=drafts)
    each, chance = 1.0, 1.0
    for accepted in drafts:
        chance *= accepted
        each += chance
    steps = sum(noted.ends[n] - noted.firsts[n] for n in range(20)) / 20
    assert steps == pytest.approx(2000 / each, rel=0.02)
    assert recorder.tpot.mean == pytest.approx(1.0 / each, rel=0.02)


def test_drafts_need_room_for_all_of_them() -> None:
    # 16 + 1 tokens and a draft: a second block at once, where a step without drafts has its token in it, too.
    _, noted, _ = run(at_once((15, 3), (15, 3)), Linear(step=1.0), blocks=3, drafts=(1.0,))
    assert noted.preemptions == {0: 0, 1: 1}
    _, noted, _ = run(at_once((14, 3), (14, 3)), Linear(step=1.0), blocks=3, drafts=(1.0,))
    assert noted.preemptions == {0: 0, 1: 0}


def test_what_a_lost_engine_held_is_computed_anew_by_others() -> None:
    requests = [Request(0, 0.0, 10, 10), Request(1, 0.0, 10, 10)]
    recorder, noted, engines = run(requests, Linear(step=1.0), engines=2, loss=(1, 4.5))
    # Request 1 has five tokens when its engine is gone (at the end of the step, 5 s), and begins anew with the other's
    # sixth step: a step for prompt and sixth token, and four more.
    assert noted.ends == {0: pytest.approx(10.0), 1: pytest.approx(5.0 + 1.0 + 4.0)}
    assert noted.firsts[1] == pytest.approx(1.0)
    assert recorder.finished_count == 2
    assert engines[1].load == 0
    assert engines[1].kv.used == 0


def test_requests_that_wait_at_a_lost_engine_wait_again_elsewhere() -> None:
    requests = [Request(n, 0.0, 10, 4) for n in range(6)]
    _, noted, _ = run(requests, Linear(step=1.0), engines=2, loss=(1, 0.5), sequences=1)
    assert sorted(noted.ends) == list(range(6))
    # 24 tokens, one of which the lost engine made in its only step.
    assert max(noted.ends.values()) == pytest.approx(6 * 4.0 - 1.0)


def test_what_comes_when_the_next_step_is_decided_waits_for_one_more() -> None:
    asked = [Request(0, 0.0, 10, 10), Request(1, 4.5, 10, 3)]  # steps of 1 s; the second comes in the fifth
    _, at_once_, _ = run(asked, Linear(step=1.0))
    assert at_once_.starts[1] == pytest.approx(5.0)
    _, ahead, _ = run(asked, Linear(step=1.0), decided_ahead=True)
    assert ahead.starts[1] == pytest.approx(6.0)
    assert ahead.firsts[1] == pytest.approx(7.0)
    assert ahead.ends[0] == at_once_.ends[0]
    last = [Request(0, 0.0, 10, 5), Request(1, 4.5, 10, 3)]  # nothing else is left to run
    _, alone, _ = run(last, Linear(step=1.0), decided_ahead=True)
    assert alone.starts[1] == pytest.approx(5.0)
