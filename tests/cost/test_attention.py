"""Attention cost: closed forms, the SM-sharing law, monotone where physics is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.calibration.evaluate import GPUS
from simulator.cost.attention_cost import attention_bytes, attention_cost, rate_of, tiles_of
from simulator.cost.cost import Cost, Share
from simulator.errors import InputError
from simulator.ops import Attention
from simulator.spec.kernel_params import AttentionParams, AttentionRate, Kernels, rested
from tests.cost.profiles import kernels_of

H800 = GPUS["h800"]
MLA = Attention(batch=1, seq_q=4096, seq_kv=4096, heads=128, kv_heads=128, d_qk=192, d_v=128)
PLAIN = AttentionParams(
    block_q=128, block_kv=128, rates=(AttentionRate(d_qk=128, d_v=128, rate=1.0),), tile_time=0.0, launch=0.0,
    power_rate=1e9, bandwidth=1e9, source="test",
)  # fmt: skip


def cost(work: Attention, sms: int = 132, cls: str = "attn.fwd", name: str = "h800") -> Cost:
    return attention_cost(work, cls, GPUS[name], kernels_of(name), Share(sms=sms))


def test_tiles_of_a_backward_are_of_keys() -> None:
    """1,024 queries over 8,192 keys: 8 tiles of queries forward, each over 64 blocks of keys, and 64 of keys backward,
    each over 8 of queries. A square has as many of both."""
    work = replace(MLA, seq_q=1024, seq_kv=8192, causal=False)
    assert tiles_of(work, PLAIN) == (8, 64.0, 64.0)
    assert tiles_of(replace(work, backward=True), PLAIN) == (64, 8.0, 8.0)
    ahead = replace(work, causal=True, cached=7168)  # the last queries of the sequence: 57 to 64 blocks
    assert tiles_of(ahead, PLAIN) == (8, 60.5, 64.0)
    assert tiles_of(replace(ahead, backward=True), PLAIN) == (64, 8 * 60.5 / 64, 8.0)
    assert tiles_of(replace(MLA, backward=True), PLAIN) == tiles_of(MLA, PLAIN)


def test_many_tiles_run_at_the_peak() -> None:
    work = Attention(batch=64, seq_q=8192, seq_kv=8192, heads=128, kv_heads=128, d_qk=128, d_v=128, causal=False)
    kernels = Kernels(name="t", gap=0.0, gap_source="", attention={"attn.fwd": PLAIN})
    ideal = work.flops / H800.peak.bf16
    assert attention_cost(work, "attn.fwd", H800, kernels, Share(sms=132)).duration == pytest.approx(ideal, rel=2e-3)


def test_the_causal_mask_saves_nearly_half() -> None:
    full = cost(replace(MLA, seq_q=16384, seq_kv=16384, causal=False)).duration
    causal = cost(replace(MLA, seq_q=16384, seq_kv=16384)).duration
    assert 0.5 < causal / full < 0.6


def test_backward_costs_more_than_twice_forward() -> None:
    backward = cost(replace(MLA, backward=True), cls="attn.bwd").duration
    assert 2.0 < backward / cost(MLA).duration < 4.0


def test_backward_sums_the_gradients_of_shared_keys_and_values() -> None:
    """Made for 32 query heads, 8 of which share each key: their bytes, `sums` times, at the attained bandwidth."""
    params = replace(PLAIN, bandwidth=0.5, sums=3.0)
    kernels = Kernels(name="t", gap=0.0, gap_source="", attention=dict.fromkeys(("attn.fwd", "attn.bwd"), params))
    shared = Attention(batch=2, seq_q=1024, seq_kv=1024, heads=32, kv_heads=4, d_qk=128, d_v=128, backward=True)

    def added(work: Attention) -> float:
        cls = "attn.bwd" if work.backward else "attn.fwd"
        bare = replace(kernels, attention={cls: replace(params, sums=0.0)})
        first, last = (attention_cost(work, cls, H800, k, Share(sms=132)).duration for k in (bare, kernels))
        return last - first

    expanded = 2 * 1024 * 32 * (128 + 128) * 2.0
    assert added(shared) == pytest.approx(3.0 * expanded / (0.5 * H800.hbm_bandwidth))
    assert added(replace(shared, kv_heads=32)) == 0.0
    assert added(replace(shared, backward=False)) == 0.0


@pytest.mark.parametrize("held", [4, 20, 40, 64])
def test_time_follows_the_sms_left(held: int) -> None:
    work = Attention(batch=1, seq_q=4096, seq_kv=4096, heads=128, kv_heads=128, d_qk=128, d_v=128)
    ratio = (
        cost(work, 132 - held, "attn.fwd@library", "h200").duration
        / cost(work, 132, "attn.fwd@library", "h200").duration
    )
    assert ratio == pytest.approx(132 / (132 - held), rel=0.08)


def test_equal_tiles_run_in_waves_and_unequal_ones_leave_a_tail() -> None:
    """133 tiles on 132 SMs: a second wave; a causal kernel whose last SM trails by its longest tile takes no longer."""
    kernels = Kernels(name="t", gap=0.0, gap_source="", attention={"attn.fwd": replace(PLAIN, tail=1.0)})

    def seconds(heads: int, causal: bool) -> float:
        work = Attention(batch=1, seq_q=128, seq_kv=1280, heads=heads, kv_heads=heads, d_qk=128, d_v=128, causal=causal)
        return attention_cost(work, "attn.fwd", H800, kernels, Share(sms=132)).duration

    tile = seconds(1, False)
    assert [seconds(n, False) for n in (132, 133, 264, 265)] == pytest.approx([tile, 2 * tile, 2 * tile, 3 * tile])
    assert tile < seconds(133, True) <= 2 * tile


def test_passes_before_and_after_a_backward_move_all_its_bytes() -> None:
    work = replace(MLA, backward=True)
    times = []
    for passes in (0.0, 2.0):
        params = replace(PLAIN, bandwidth=0.5, passes=passes)
        kernels = Kernels(name="t", gap=0.0, gap_source="", attention={"attn.bwd": params})
        times.append(attention_cost(work, "attn.bwd", H800, kernels, Share(sms=132)).duration)
    assert times[1] - times[0] == pytest.approx(2.0 * attention_bytes(work) / (0.5 * H800.hbm_bandwidth))


def test_a_loop_runs_below_the_boost_clock_and_a_rested_gpu_at_it() -> None:
    looped = Kernels(name="t", gap=0.0, gap_source="", attention={"attn.fwd": replace(PLAIN, loop_clock=0.8)})
    work = replace(MLA, d_qk=128, causal=False)
    times = [
        attention_cost(work, "attn.fwd", H800, kernels, Share(sms=132)).duration for kernels in (looped, rested(looped))
    ]
    assert times[0] == pytest.approx(1.25 * times[1])


def test_one_tile_cannot_be_spread() -> None:
    work = Attention(batch=1, seq_q=128, seq_kv=65536, heads=1, kv_heads=1, d_qk=128, d_v=128, causal=False)
    assert cost(work, 132).duration == cost(work, 1).duration


def test_rates_are_looked_up_then_interpolated() -> None:
    rates = tuple(AttentionRate(d_qk=d, d_v=d, rate=r) for d, r in ((64, 0.5), (128, 0.7)))
    params = replace(PLAIN, rates=rates)
    assert rate_of(params, 128, 128) == 0.7
    assert rate_of(params, 96, 96) == pytest.approx(0.6)
    assert rate_of(params, 32, 32) == 0.5
    assert rate_of(params, 512, 512) == 0.7


def test_grouped_keys_move_fewer_bytes() -> None:
    assert attention_bytes(replace(MLA, kv_heads=8)) < attention_bytes(MLA)
    assert attention_bytes(MLA) == 2 * 4096 * 128 * (192 + 128) * 2


def test_fp8_attention_of_a_profile_without_it_says_so() -> None:
    near = attention_cost(MLA, "attn.fwd.int8", H800, kernels_of("h800"), Share(sms=132))
    assert not near.calibrated
    assert "attn.fwd.int8" in near.source


@pytest.mark.parametrize("change", [{"heads": 0}, {"seq_q": 0}, {"d_v": -1}])
def test_bad_input(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        cost(replace(MLA, **change))


def test_no_sms() -> None:
    with pytest.raises(InputError, match="SMs"):
        cost(MLA, 0)


SEQ = st.integers(1, 20000)


@settings(max_examples=200, deadline=None)
@given(
    seq=SEQ, kv=SEQ, more=st.integers(0, 3000), heads=st.integers(1, 128), causal=st.booleans(), backward=st.booleans(),
    axis=st.sampled_from(["seq_q", "seq_kv", "heads", "batch", "d_qk", "d_v"]), sms=st.integers(1, 132),
)  # fmt: skip
def test_more_work_is_never_faster(
    seq: int, kv: int, more: int, heads: int, causal: bool, backward: bool, axis: str, sms: int
) -> None:
    small = Attention(
        batch=1, seq_q=seq, seq_kv=kv, heads=heads, kv_heads=1, d_qk=128, d_v=128, causal=causal, backward=backward
    )
    if axis in ("d_qk", "d_v"):
        more = 0  # rates change with head dimensions: wider heads run at a higher rate
    large = replace(small, **{axis: getattr(small, axis) + more})
    cls = "attn.bwd" if backward else "attn.fwd"
    assert cost(small, sms, cls).duration <= cost(large, sms, cls).duration * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(seq=SEQ, heads=st.integers(1, 128), sms=st.integers(2, 132), fewer=st.integers(1, 131))
def test_fewer_sms_are_never_faster(seq: int, heads: int, sms: int, fewer: int) -> None:
    work = Attention(batch=1, seq_q=seq, seq_kv=seq, heads=heads, kv_heads=heads, d_qk=192, d_v=128)
    assert cost(work, max(1, sms - fewer)).duration >= cost(work, sms).duration


def test_wider_heads_cost_more() -> None:
    times = [cost(replace(MLA, d_qk=d, d_v=d)).duration for d in range(32, 512, 16)]
    assert times == sorted(times)
