"""Attention over some of the earlier keys: what it computes and what it costs, against counting one by one."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.calibration.sample import rows
from simulator.cost.attention_cost import attention_cost, banded_blocks
from simulator.cost.cost import Share
from simulator.inputs import load_hardware
from simulator.ops import Attention, seen_keys

H100 = load_hardware("h100")
CAUSAL = Attention(batch=1, seq_q=8192, seq_kv=8192, heads=32, kv_heads=8, d_qk=128, d_v=128)
LENGTHS = st.integers(1, 400)


def keys_of(position: int, window: int, chunk: int) -> range:
    """Keys that the query at a position sees."""
    first = position // chunk * chunk if chunk else max(0, position - window + 1) if window else 0
    return range(first, position + 1)


@settings(max_examples=60, deadline=None)
@given(first=st.integers(0, 200), count=LENGTHS, window=st.integers(0, 300), chunk=st.integers(0, 90))
def test_seen_keys_are_those_counted_with_the_diagonal_by_one_half(
    first: int, count: int, window: int, chunk: int
) -> None:
    """A query whose window is full has no half: it loses an older key where it gains its own."""
    window = 0 if chunk else window
    counted = 0.0
    for position in range(first, first + count):
        seen = len(keys_of(position, window, chunk))
        counted += seen - (0.0 if window and position >= window else 0.5)
    assert seen_keys(first, first + count, window, chunk) * count == pytest.approx(counted)


@settings(max_examples=60, deadline=None)
@given(
    end=LENGTHS,
    cached=st.integers(0, 200),
    window=st.integers(1, 200),
    block_q=st.sampled_from([16, 64]),
    chunk=LENGTHS,
)
@pytest.mark.parametrize("chunked", [False, True])
def test_tiles_need_the_blocks_that_hold_a_key_they_see(
    chunked: bool, end: int, cached: int, window: int, block_q: int, chunk: int
) -> None:
    end, block_kv = cached + end, 32
    window, chunk = (0, chunk) if chunked else (window, 0)
    counts = []
    for first in range(cached, end, block_q):
        rows = range(first, min(first + block_q, end))
        blocks = {key // block_kv for row in rows for key in keys_of(row, window, chunk)}
        counts.append(max(blocks) - min(blocks) + 1)
    mean, most = banded_blocks(cached, end, window, chunk, block_q, block_kv)
    assert (mean, most) == (pytest.approx(sum(counts) / len(counts)), max(counts))


def price(work: Attention) -> float:
    cls = "attn.bwd" if work.backward else "attn.fwd"
    return attention_cost(work, cls, H100.gpu, H100.kernels, Share(sms=132)).duration


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("narrow", ["window", "chunk"])
def test_a_narrower_view_computes_and_costs_less(backward: bool, narrow: str) -> None:
    whole = replace(CAUSAL, backward=backward)
    works = [replace(whole, **{narrow: width}) for width in (128, 512, 2048, 4096)]
    assert [w.flops for w in works] == sorted(w.flops for w in works)
    assert [price(w) for w in works] == sorted(price(w) for w in works)
    assert works[-1].flops < whole.flops
    assert price(works[-1]) < price(whole)


@pytest.mark.parametrize("width", [8192, 10_000])
def test_a_view_of_all_tokens_is_no_limit(width: int) -> None:
    for narrow in ({"window": width}, {"chunk": width}):
        wide = replace(CAUSAL, **narrow)
        assert (wide.flops, wide.flops_full, price(wide)) == (CAUSAL.flops, CAUSAL.flops_full, price(CAUSAL))


def test_a_window_by_hand() -> None:
    """128 keys of 8,192: the whole band is 8,192 x 128 pairs, of which half of 128 x 128 lie before the first key."""
    work = replace(CAUSAL, window=128)
    pair = 2.0 * 32 * 256
    assert work.flops_full == pair * 8192 * 128
    assert work.flops == pair * (8192 * 128 - 128 * 128 / 2)


def test_chunks_are_sequences_of_their_own() -> None:
    """8,192 tokens in chunks of 1,024 multiply as eight sequences of 1,024 do."""
    apart = replace(CAUSAL, batch=8, seq_q=1024, seq_kv=1024)
    assert replace(CAUSAL, chunk=1024).flops == apart.flops
    assert replace(CAUSAL, chunk=1024).flops_full == apart.flops_full


def test_a_rank_of_several_has_its_share_of_the_band() -> None:
    """Context parallelism: a rank's queries are spread over the sequence."""
    work = replace(CAUSAL, window=512)
    assert replace(work, seq_q=2048).flops == work.flops / 4


def test_cached_keys_beyond_the_window_count_for_nothing() -> None:
    work = replace(CAUSAL, seq_q=256, window=512)
    near, far = (replace(work, cached=cached, seq_kv=cached + 256) for cached in (512, 4096))
    assert near.flops == far.flops == 2.0 * 32 * 256 * 256 * 512
    assert ceil(near.seq_kv / 128) < ceil(far.seq_kv / 128)


def errors_by_window(backward: bool) -> dict[int, float]:
    """Mean error of FlashAttention-2's kernels on an H200: forward was fitted without windows, backward with half."""
    h200, found = load_hardware("h200"), dict[int, list[float]]()
    for row in rows("h200_windows.csv"):
        if row["backward"] != str(int(backward)):
            continue
        seq, heads, d = int(row["seq"]), int(row["heads"]), int(row["d_qk"])
        work = Attention(
            batch=int(row["batch"]),
            seq_q=seq,
            seq_kv=seq,
            heads=heads,
            kv_heads=heads if backward else int(row["kv_heads"]),
            d_qk=d,
            d_v=d,
            window=int(row["window"]),
            backward=backward,
        )
        cls = "attn.bwd@fa2" if backward else "attn.fwd@fa2"
        cost = attention_cost(work, cls, h200.gpu, h200.kernels, Share(sms=132))
        assert cost.calibrated is (work.window == 0)
        found.setdefault(work.window, []).append(abs(cost.duration * 1e6 / float(row["us"]) - 1.0))
    return {window: sum(each) / len(each) for window, each in found.items()}


@pytest.mark.parametrize(
    ("backward", "most"),
    [
        (False, {0: 0.02, 128: 0.08, 512: 0.21, 1024: 0.23, 4096: 0.22}),
        (True, {0: 0.09, 128: 0.06, 512: 0.08, 1024: 0.09, 4096: 0.11}),
    ],
)
def test_measured_windows_are_as_far_off_as_the_documentation_says(backward: bool, most: dict[int, float]) -> None:
    found = errors_by_window(backward)
    assert found.keys() == most.keys()
    assert all(found[window] < most[window] for window in most), found
