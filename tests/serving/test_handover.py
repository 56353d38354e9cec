"""Prompts on some engines, the rest on others: who takes blocks when, what travels, and that nothing gets lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limited
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.serving.deployment import Deployment, deploy, disaggregated
from simulator.serving.engine.engine import Engine
from simulator.serving.handover import Handover, KvLink
from simulator.serving.load.sources import Stream
from simulator.serving.recorder import Recorder
from simulator.serving.replay import Fleet, replay
from simulator.serving.request import Request
from simulator.serving.routers import router_of
from simulator.spec.scheduler import KvHandover
from tests.replays import PLAIN, Linear, Noted, at_once
from tests.serving.test_replay_properties import SETTINGS, requests

FREE = KvLink(sending=0.0, receiving=0.0, latency=0.0, layers=1)


def _apart(
    asked: list[Request],
    link: KvLink,
    *,
    blocks: int = 1000,
    room: int = 1000,
    prefillers: int = 1,
    decoders: int = 1,
    times: Linear | None = None,
    **settings: Any,
) -> tuple[Noted, Recorder]:
    """Prompts on some engines with `room` blocks, the rest on others with `blocks`."""
    noted, steps, scheduler = Noted(), times or Linear(step=1.0), replace(PLAIN, **settings)
    recorder = Recorder(answered=(noted,))
    after = [Engine(steps, scheduler, blocks, recorder) for _ in range(decoders)]
    handover = Handover(recorder, link, after)
    before = [Engine(steps, scheduler, room, handover) for _ in range(prefillers)]
    for one in before:
        one.keeps = link.handover == "pull"
    fleet = Fleet(engines=before, router=router_of("round-robin"), decoders=after, handover=handover)
    replay(Stream(iter(asked), None), fleet, recorder)
    assert all(one.kv.used == one.load == one.prompts.held == one.prompts.final == 0 for one in (*before, *after))
    assert not any(one.prompts.kept or one.prompts.promised for one in (*before, *after))
    return noted, recorder


def test_a_cache_travels_between_the_first_token_and_the_second() -> None:
    # 100 tokens of 0.01 s each take 1 s, of which all but a tenth travels while the prompt is computed (1 s); then
    # 0.25 s pass until the first byte is there, and four steps.
    noted, recorder = _apart(at_once((100, 5)), KvLink(sending=0.01, receiving=0.005, latency=0.25, layers=10))
    assert noted.firsts[0] == pytest.approx(1.0)
    assert noted.ends[0] == pytest.approx(1.0 + 0.25 + 0.1 + 4.0)
    assert recorder.gaps.count == 4
    assert recorder.gaps.highest == pytest.approx(1.35)


@pytest.mark.parametrize(
    ("handover", "behind"),
    [
        ("layers", 2.0 - 3.0 * 0.9 + 0.9),  # a tenth of 2 s is left, as 3 s of computing hide the rest
        ("chunks", 2.0 * 30 / 100),  # the last chunk of 30 tokens
        ("pull", 2.0),  # all of it
    ],
)
def test_what_shows_of_a_transfer_is_what_no_computation_hides(handover: KvHandover, behind: float) -> None:
    link = KvLink(sending=0.02, receiving=0.0, latency=0.0, layers=10, handover=handover)
    noted, _ = _apart(at_once((100, 2)), link, step_tokens=35)  # chunks of 35, 35 and 30 tokens
    assert noted.firsts[0] == pytest.approx(3.0)
    assert noted.ends[0] == pytest.approx(3.0 + behind + 1.0)


def test_a_link_takes_one_cache_after_the_other_at_both_ends() -> None:
    sends = KvLink(sending=0.05, receiving=0.0, latency=0.0, layers=1)
    noted, _ = _apart(at_once((100, 2), (100, 2)), sends)
    # Both prompts are done at 1 s; the caches arrive at 6 and 11 s.
    assert noted.ends == {0: pytest.approx(7.0), 1: pytest.approx(12.0)}
    two: dict[str, Any] = {"prefillers": 2, "decoders": 2}
    noted, _ = _apart(at_once((100, 2), (100, 2)), sends, **two)
    assert noted.ends == {0: pytest.approx(7.0), 1: pytest.approx(7.0)}
    gets = KvLink(sending=0.0, receiving=0.05, latency=0.0, layers=1)
    noted, _ = _apart(at_once((100, 2), (100, 2)), gets, prefillers=2)
    assert sorted(noted.ends.values()) == [pytest.approx(7.0), pytest.approx(12.0)]


def test_pushed_prompts_wait_for_blocks_where_they_go() -> None:
    noted, recorder = _apart(at_once((32, 9), (32, 9)), FREE, blocks=3)
    assert noted.ends[0] == pytest.approx(9.0)
    assert noted.firsts[1] == pytest.approx(9.0 + 1.0)  # its prefill begins when the first has ended
    assert noted.ends[1] == pytest.approx(9.0 + 1.0 + 8.0)
    assert recorder.queue.highest == pytest.approx(9.0)
    one, _ = _apart(at_once((32, 1)), FREE)
    assert one.ends[0] == pytest.approx(1.0)  # the first token is all: nothing travels


def test_pulled_prompts_are_computed_and_stay_until_there_is_room() -> None:
    pull = replace(FREE, handover="pull")
    asked = at_once((32, 9), (32, 9), (32, 9))
    noted, _ = _apart(asked, pull, blocks=3)
    assert [noted.firsts[n] for n in range(3)] == [pytest.approx(1.0)] * 3
    assert [noted.ends[n] for n in range(3)] == [pytest.approx(9.0), pytest.approx(17.0), pytest.approx(25.0)]
    noted, _ = _apart(asked, pull, blocks=3, room=4)  # two prompts at a time, and the second stays until 9 s
    assert [noted.firsts[n] for n in range(3)] == [pytest.approx(1.0), pytest.approx(1.0), pytest.approx(2.0)]
    noted, _ = _apart(asked, pull, blocks=3, room=3)  # one at a time: the next begins when the last one was fetched
    assert [noted.firsts[n] for n in range(3)] == [pytest.approx(1.0), pytest.approx(2.0), pytest.approx(10.0)]


LINKS = st.builds(
    KvLink,
    sending=st.sampled_from([0.0, 1e-4]),
    receiving=st.sampled_from([0.0, 3e-4]),
    latency=st.sampled_from([0.0, 0.01]),
    layers=st.sampled_from([1, 8]),
    handover=st.sampled_from(["layers", "chunks", "pull"]),
)


@limited(max_examples=40)
@given(
    asked=requests(most=8),
    settings=SETTINGS,
    link=LINKS,
    spare=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    engines=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_every_request_ends_once_and_steps_in_one_go_are_single_steps(
    asked: list[Request], settings: dict[str, Any], link: KvLink, spare: tuple[int, int], engines: tuple[int, int]
) -> None:
    least = -(-max(one.longest for one in asked) // settings["block"])
    found = []
    for ahead in (1, 1 << 30):
        noted, recorder = _apart(
            asked,
            link,
            blocks=least + spare[0],
            room=least + spare[1],
            prefillers=engines[0],
            decoders=engines[1],
            times=Linear(step=0.01, cached=1e-6, new=1e-5, ahead=ahead),
            **settings,
        )
        assert sorted(noted.ends) == list(range(len(asked)))
        assert recorder.outputs == sum(one.output_tokens for one in asked)
        assert recorder.gaps.count == recorder.outputs - len(asked)
        found.append(noted)
    for number in found[0].ends:
        assert found[0].firsts[number] == pytest.approx(found[1].firsts[number])
        assert found[0].ends[number] == pytest.approx(found[1].ends[number])


def _deployed(model: str, tp: int, *more: str) -> Deployment:
    own = ("stack=sglang", f"model={model}", f"gpus={tp}", f"layout.tp={tp}", "model.num_hidden_layers=2", *more)
    return deploy(load_scenario("llama-3-8b-decode", own, replayed=True))


@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (1, 4), (4, 1), (2, 8)])
def test_heads_are_cut_anew_and_the_side_with_more_on_a_gpu_sets_the_pace(prefill: int, decode: int) -> None:
    before, after = _deployed("llama-3-8b", prefill), _deployed("llama-3-8b", decode)
    link = disaggregated(after, before).link
    assert link is not None
    whole, bandwidth = 2 * 2 * 8 * 128 * 2, after.scenario.cluster.node.nic.bandwidth  # layers, K and V, heads, BF16
    assert link.sending == pytest.approx(whole / prefill / bandwidth)
    assert link.receiving == pytest.approx(whole / decode / bandwidth)


def test_latents_go_whole_to_every_gpu_so_that_few_senders_send_them_several_times() -> None:
    moe = ("layout.etp=8", "layout.ep=1", "precision.recipe=fp8", "model.first_k_dense_replace=2")
    wide, narrow = (_deployed("deepseek-v3", tp, f"layout.etp={tp}", *moe[1:]) for tp in (8, 2))
    latents = 2 * (512 + 64) * 2 / wide.scenario.cluster.node.nic.bandwidth
    link = disaggregated(wide, narrow).link
    assert link is not None
    assert (link.sending, link.receiving) == (pytest.approx(4 * latents), pytest.approx(latents))
    link = disaggregated(narrow, wide).link
    assert link is not None
    assert (link.sending, link.receiving) == (pytest.approx(latents / 4), pytest.approx(latents))


def test_a_rack_of_nvlink_joins_both_sides_and_formats_must_agree() -> None:
    one = _deployed("llama-3-8b", 8, "hardware=gb200", "stack.serving.all_reduce=nccl")
    rack = disaggregated(replace(one, engines=6), replace(one, engines=3), "nvlink")
    assert rack.gpus == 72
    assert rack.link is not None
    node, slow = one.scenario.cluster.node, disaggregated(one, one).link
    assert slow is not None
    assert rack.link.receiving / slow.receiving == pytest.approx(node.nic.bandwidth / node.nvlink.bandwidth)
    with pytest.raises(InputError, match="80 GPUs: NVLink joins the 72 of a node"):
        disaggregated(replace(one, engines=7), replace(one, engines=3), "nvlink")
    with pytest.raises(InputError, match=r"serving.kv_dtype: fp8 cannot go on from a KV cache in bf16"):
        disaggregated(_deployed("llama-3-8b", 1, "serving.kv_dtype=fp8"), _deployed("llama-3-8b", 1))
