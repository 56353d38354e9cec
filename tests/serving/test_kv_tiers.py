"""Prefix caches below HBM: times and hits that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.serving.deployment import deploy
from simulator.serving.engine.kv_tiers import Lru, TierRoom
from simulator.serving.load.sources import LoadSpec
from simulator.serving.request import Request
from simulator.serving.serve import serve
from simulator.serving.summary import as_dict
from tests.replays import Linear, Noted, run

ROOM = TierRoom(
    host=64, disk=0, host_seconds=1e-3, disk_seconds=4e-3, write_back=False, by_layer=True, layers=4, links=1
)
"""Two prompts of 512 tokens in the host's memory, a millisecond a token."""
NEW = Linear(new=1e-3)


def _again(*names: int) -> list[Request]:
    """Prompts of 640 tokens, a hundred seconds apart, of which the first 512 have a name."""
    return [Request(at, 100.0 * at, 640, 1, (name,)) for at, name in enumerate(names)]


def _times(requests: list[Request], tiers: TierRoom | None, **settings: Any) -> tuple[list[float], Noted]:
    """Times to the first token; HBM holds one prompt of 40 blocks and half another."""
    _, noted, _ = run(requests, NEW, blocks=60, tiers=tiers, **settings)
    return [noted.firsts[one.number] - one.arrival for one in requests], noted


def test_without_tiers_the_prompt_is_computed_anew() -> None:
    times, noted = _times(_again(1, 2, 1), None)
    assert times == pytest.approx([0.64] * 3)
    assert noted.hits[2] == 0


def test_layers_wait_for_their_part_of_what_is_loaded() -> None:
    times, noted = _times(_again(1, 2, 1), ROOM)
    # 512 ms to load, 128 ms to compute, in four layers: the first is loaded, three more while others compute, the last
    # is computed.
    assert times == pytest.approx([0.64, 0.64, 0.512 + 0.032])
    assert noted.below == {0: (0, 0), 1: (0, 0), 2: (512, 0)}
    faster, _ = _times(_again(1, 2, 1), replace(ROOM, host_seconds=1e-4))
    assert faster[2] == pytest.approx(0.0512 / 4 + 0.128)


def test_a_request_that_is_loaded_first_lets_others_run() -> None:
    requests = [*_again(1, 2, 1), Request(3, 200.0, 64, 1), Request(4, 200.4, 64, 1)]
    times, noted = _times(requests, replace(ROOM, by_layer=False))
    assert times[3:] == pytest.approx([0.064, 0.064])
    assert times[2] == pytest.approx(0.512 + 0.128)
    assert noted.order == [0, 1, 3, 4, 2]


def test_a_link_loads_one_prompt_after_the_other() -> None:
    room = replace(ROOM, by_layer=False, host=96)
    requests = [*_again(1, 2, 3), Request(3, 300.0, 640, 1, (1,)), Request(4, 300.0, 640, 1, (2,))]
    _, noted, _ = run(requests, NEW, blocks=80, tiers=room)
    assert noted.ends[3] - 300.0 == pytest.approx(0.512 + 0.128)
    assert noted.ends[4] - 300.0 == pytest.approx(2 * 0.512 + 0.128)
    # With the layers' loads both prompts are in one step: over one link 1024 ms, over two 512.
    for links, load in ((1, 1.024), (2, 0.512)):
        _, noted, _ = run(requests, NEW, blocks=80, tiers=replace(room, by_layer=True, links=links))
        assert noted.ends[4] - 300.0 == pytest.approx(load + 0.256 / 4)


def test_what_leaves_hbm_is_written_before_the_step_that_needs_the_room() -> None:
    times, noted = _times(_again(1, 2, 1), replace(ROOM, write_back=True))
    # The second prompt pushes the first one out (512 ms), the third the second.
    assert times == pytest.approx([0.64, 0.64 + 0.512, 0.512 + 0.032 + 0.512])
    assert noted.below[2] == (512, 0)
    # What is in the host's memory already need not be written again: the fourth finds 2 there and pushes 1 out.
    times, _ = _times(_again(1, 2, 1, 2), replace(ROOM, write_back=True))
    assert times[3] == pytest.approx(0.512 + 0.032)


def test_a_tier_too_small_by_one_block_finds_nothing() -> None:
    _, noted = _times(_again(1, 2, 1), replace(ROOM, host=31))
    assert noted.hits[2] == 0
    _, noted = _times(_again(1, 2, 1), replace(ROOM, host=32))
    assert noted.hits[2] == 0  # the second prompt took the place of the first
    _, noted = _times(_again(1, 2, 1), replace(ROOM, host=64))
    assert noted.hits[2] == 512


def test_what_the_host_gives_up_goes_to_disk() -> None:
    times, noted = _times(_again(1, 2, 1), replace(ROOM, host=32, disk=32))
    assert noted.below[2] == (0, 512)
    assert times[2] == pytest.approx(4 * 0.512 + 0.032)
    # Behind it the first prompt is in the host's memory again, and the second on disk.
    _, noted = _times(_again(1, 2, 1, 3, 1), replace(ROOM, host=64, disk=32))
    assert noted.below[4] == (512, 0)


def test_the_least_recently_used_goes_first() -> None:
    tier = Lru(3)
    assert tier.add(1, 1) == tier.add(2, 1) == tier.add(3, 1) == []
    assert tier.add(1, 1) == []
    assert tier.add(4, 2) == [(2, 1), (3, 1)]
    assert list(tier.known) == [1, 4]
    assert tier.add(5, 4) == [(5, 4)]
    assert (tier.held, tier.evicted) == (3, 2)


SMALL = ("stack=sglang", "model.num_hidden_layers=2")


def _deployed(*more: str) -> Any:
    return deploy(load_scenario("llama-3-8b-decode", [*SMALL, *more], replayed=True))


def test_hits_by_tier_add_up_and_bytes_are_those_of_the_gpu() -> None:
    deployment = _deployed("stack.scheduler.host_cache=1e9", "stack.scheduler.disk_cache=1e9")
    per_token = 2 * 2 * 8 * 128 * 2.0  # layers, keys and values, heads, their size, BF16
    assert deployment.tiers.host == int(1e9 / per_token)
    assert deployment.tiers.host_seconds == pytest.approx(per_token / 52e9)
    assert deployment.tiers.disk_seconds == pytest.approx(per_token / 6.5e9)
    tight = replace(deployment, room=replace(deployment.room, blocks=9000))
    found = as_dict(serve(tight, LoadSpec(requests="chat", count=60), judged=False))
    kv = found["kv_cache"]
    assert kv["tiers"]["host"]["hit_rate"] > 0
    assert sum(tier["hit_rate"] for tier in kv["tiers"].values()) == pytest.approx(kv["prefix_hit_rate"])
    plain = replace(tight, tiers=None)  # shares its step times
    without = as_dict(serve(plain, LoadSpec(requests="chat", count=60), judged=False))
    assert without["kv_cache"]["prefix_hit_rate"] < kv["prefix_hit_rate"]


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (("stack.scheduler.host_cache=1e12",), "host_cache: 1 TB: a GPU has 256 GB of it"),
        (
            ("stack.scheduler.cache_loads=before",),
            "changes nothing: no prefix cache goes on below HBM; set stack.sched",
        ),
        (("stack.scheduler.disk_cache=1e12",), "disk_cache: changes nothing: set host_cache"),
        (
            ("stack.scheduler.host_cache=1e9", "stack.scheduler.prefix_cache=false"),
            "prefix_cache=false nothing is kept",
        ),
        (
            (
                "hardware.node.host.disk_bandwidth=0",
                "stack.scheduler.host_cache=1e9",
                "stack.scheduler.disk_cache=1e9",
            ),
            "does not describe it; set hardware.node.host.disk_bandwidth",
        ),
    ],
)
def test_tiers_that_cannot_be_are_refused(more: tuple[str, ...], error: str) -> None:
    with pytest.raises(InputError, match=error.replace("(", r"\(")):
        _deployed(*more)
