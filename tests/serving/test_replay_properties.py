"""What holds of every replay: each request ends once, tokens and blocks add up, order is kept, nothing is by chance."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simulator.serving.engine.kv_tiers import TierRoom
from simulator.serving.request import Request
from tests.replays import Linear, Noted, run

lengths = st.integers(min_value=1, max_value=200)
SETTINGS = st.fixed_dictionaries(
    {
        "prefill": st.sampled_from(["mixed", "first"]),
        "chunked": st.booleans(),
        "step_tokens": st.integers(min_value=8, max_value=300),
        "sequences": st.integers(min_value=1, max_value=8),
        "reserved_output": st.sampled_from([0.0, 0.3, 1.0]),
        "block": st.sampled_from([1, 4, 16]),
        "host_step": st.sampled_from([0.0, 0.004]),
        "host_overlapped": st.booleans(),
        "decided_ahead": st.booleans(),
    }
)


@st.composite
def requests(draw: st.DrawFn, most: int = 25) -> list[Request]:
    """Requests in order of arrival; prompts begin alike in some of them."""
    now, out = 0.0, []
    for number in range(draw(st.integers(min_value=1, max_value=most))):
        now += draw(st.sampled_from([0.0, 0.001, 0.05, 0.3]))
        inputs = draw(lengths)
        names = tuple(draw(st.integers(min_value=0, max_value=2)) * 1000 + at for at in range(inputs // 16))
        out.append(Request(number, now, inputs, draw(lengths), names, 16))
    return out


TIERS = st.none() | st.builds(
    TierRoom,
    host=st.integers(min_value=1, max_value=60),
    disk=st.sampled_from([0, 20]),
    host_seconds=st.sampled_from([1e-4, 2e-3]),
    disk_seconds=st.just(5e-3),
    write_back=st.booleans(),
    by_layer=st.booleans(),
    layers=st.sampled_from([1, 4]),
    links=st.sampled_from([1, 2]),
)


def _run(
    asked: list[Request], settings: dict[str, Any], ahead: int, room: int, tiers: TierRoom | None = None
) -> tuple[Any, Noted, list[Any]]:
    blocks = -(-max(one.longest for one in asked) // settings["block"]) + room
    return run(asked, Linear(step=0.01, cached=1e-6, new=1e-5, ahead=ahead), blocks=blocks, tiers=tiers, **settings)


@given(requests(), SETTINGS, st.integers(min_value=0, max_value=30), TIERS)
def test_every_request_ends_once_and_tokens_add_up(
    asked: list[Request], settings: dict[str, Any], room: int, tiers: TierRoom | None
) -> None:
    recorder, noted, engines = _run(asked, settings, 1 << 30, room, tiers)
    assert sorted(noted.ends) == list(range(len(asked)))
    assert recorder.finished_count == recorder.arrived == len(asked)
    assert recorder.outputs == sum(one.output_tokens for one in asked)
    assert recorder.inputs == sum(one.input_tokens for one in asked)
    assert recorder.itl.count == sum(one.output_tokens - 1 for one in asked)
    passed = sum(noted.ends[one.number] - noted.firsts[one.number] for one in asked)
    assert recorder.itl.total == pytest.approx(passed)
    for one in asked:
        assert one.arrival <= noted.starts[one.number] < noted.firsts[one.number] <= noted.ends[one.number]
    kv = engines[0].kv
    for tier in (kv.tiers.host, kv.tiers.disk) if kv.tiers is not None else ():
        assert tier.held == sum(tier.known.values()) <= tier.most
    assert all(sum(noted.below[number]) <= hits for number, hits in noted.hits.items())
    assert (kv.used, kv.available, kv.users) == (0, kv.blocks, {})
    assert engines[0].load == 0
    assert engines[0].prompts.held == engines[0].prompts.final == 0
    assert engines[0].decoding.context == 0


def _asked(*lengths: tuple[int, int, tuple[int, ...]]) -> list[Request]:
    return [
        Request(number=at, arrival=0.0, input_tokens=i, output_tokens=o, hashes=hashes, hash_tokens=16)
        for at, (i, o, hashes) in enumerate(lengths)
    ]


@example(
    asked=_asked(
        *((36, 126, (1000, 1)), (32, 186, (0, 1)), *[(1, 1, ())] * 4, (160, 1, tuple(range(10))), (1, 3, ())),
        *(*[(1, 1, ())] * 3, (198, 88, tuple(range(12))), *[(1, 1, ())] * 3),
    ),
    settings={
        **{"prefill": "mixed", "chunked": False, "step_tokens": 8, "sequences": 2, "reserved_output": 1.0},
        **{"block": 4, "host_step": 0.0, "host_overlapped": False},
    },
    room=24,
    tiers=None,
)
@example(  # what waits found all but its last tokens in the cache; with less found, a chunk of it fits
    asked=_asked((60, 1, (0, 1, 2)), (1, 1, ()), (1, 22, ()), *[(1, 1, ())] * 10, (49, 1, (0, 1, 2)), (1, 1, ())),
    settings={
        **{"prefill": "mixed", "chunked": True, "step_tokens": 8, "sequences": 2, "reserved_output": 0.0},
        **{"block": 1, "host_step": 0.0, "host_overlapped": False},
    },
    room=0,
    tiers=None,
)
@given(requests(), SETTINGS, st.integers(min_value=0, max_value=30), TIERS)
def test_steps_in_one_go_are_single_steps(
    asked: list[Request], settings: dict[str, Any], room: int, tiers: TierRoom | None
) -> None:
    fast, slow = _run(asked, settings, 1 << 30, room, tiers), _run(asked, settings, 1, room, tiers)
    assert fast[1].order == slow[1].order
    assert fast[1].preemptions == slow[1].preemptions
    for number, end in slow[1].ends.items():
        assert fast[1].ends[number] == pytest.approx(end, abs=1e-9)
    assert fast[0].itl.count == slow[0].itl.count
    assert fast[0].itl.total == pytest.approx(slow[0].itl.total)
    assert fast[0].areas[3:] == pytest.approx(slow[0].areas[3:])  # tokens and busy time
    assert fast[0].steps == slow[0].steps


@given(requests(), SETTINGS)
def test_prompts_begin_in_order_of_arrival(asked: list[Request], settings: dict[str, Any]) -> None:
    _, noted, _ = _run(asked, settings, 1 << 30, 10_000)
    starts = [noted.starts[one.number] for one in asked]
    assert starts == sorted(starts)


@given(
    requests(), st.integers(min_value=2, max_value=4), st.sampled_from(["round-robin", "least-load", "prefix-affinity"])
)
def test_replicas_share_the_requests(asked: list[Request], engines: int, router: Any) -> None:
    recorder, noted, made = run(asked, Linear(step=0.01, new=1e-5), engines=engines, router=router)
    assert sorted(noted.ends) == list(range(len(asked)))
    assert recorder.outputs == sum(one.output_tokens for one in asked)
    assert all(engine.load == 0 for engine in made)


@given(requests(most=10))
def test_more_time_a_step_is_more_time_for_everybody(asked: list[Request]) -> None:
    _, quick, _ = run(asked, Linear(step=0.01, new=1e-5), sequences=1)
    _, slow, _ = run(asked, Linear(step=0.02, new=2e-5), sequences=1)
    assert all(slow.ends[number] > quick.ends[number] for number in quick.ends)
