"""Streaming cost: closed forms, exact grids, neighbours, monotone where physics is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.calibration.evaluate import GPUS
from simulator.cost.cost import Share
from simulator.cost.streaming_cost import fixed_cost, streaming_cost
from simulator.errors import InputError
from simulator.graph import linear
from simulator.ops import Fixed, Streaming
from simulator.spec.kernel_params import Kernels, StreamParams
from tests.cost.profiles import kernels_of

H800 = GPUS["h800"]
PLAIN = StreamParams(launch=0.0, bandwidth=1.0, source="test")


def priced(work: Streaming, sms: int = 132, traffic: float = 0.0, **params: Any) -> float:
    stream = replace(PLAIN, **params)
    kernels = Kernels(name="t", gap=0.0, gap_source="", stream={"elem": stream})
    return streaming_cost(work, "elem", H800, kernels, Share(sms=sms, partner_traffic=traffic)).duration


def moved(size: float, blocks: int = 0) -> Streaming:
    return Streaming(read=size / 2, written=size / 2, blocks=blocks)


def test_bytes_over_bandwidth_and_launch() -> None:
    assert priced(moved(3.35e9), launch=2e-6) == pytest.approx(1e-3 + 2e-6)


def test_few_sms_cannot_use_the_memory() -> None:
    assert priced(moved(3.35e9), sms=20, sm_rate=1e10) == pytest.approx(3.35e9 / 2e11, rel=1e-3)


def test_what_fits_in_l2_is_cheaper() -> None:
    """A tenth of L2: nine tenths of the bytes are there and go twice as fast."""
    tenth = H800.l2_bytes / 10
    assert priced(moved(tenth), l2_gain=2.0) == pytest.approx((0.1 + 0.9 / 2) * tenth / 3.35e12)
    assert priced(moved(10 * tenth), l2_gain=2.0) == pytest.approx(10 * tenth / 3.35e12)
    assert priced(moved(1e10), l2_gain=2.0) == pytest.approx(1e10 / 3.35e12)


def test_a_small_grid_takes_as_long_as_one_of_its_ctas() -> None:
    """32 CTAs of 1 MB each, at 1 GB/s a CTA; as long with 100 of them, and never longer than a full tile."""
    assert priced(moved(32e6, 32), cta_rate=1e9) == pytest.approx(1e-3)
    assert priced(moved(1e8, 100), cta_rate=1e9) == pytest.approx(1e-3)
    assert priced(moved(32e6, 32), cta_rate=1e9, cta_time=1e-4) == pytest.approx(1.1e-3)
    assert priced(moved(32e6, 32), cta_rate=1e9, cta_most=4e-4) == pytest.approx(4e-4)


def test_a_large_grid_runs_as_many_ctas_at_a_time_as_fit() -> None:
    """2112 CTAs fit on 132 SMs, 1792 on 112; the memory is idle meanwhile."""
    chain = {"cta_time": 2e-6, "resident": 16}
    assert priced(moved(1e6, 500), **chain) == pytest.approx(2e-6)
    assert priced(moved(1e6, 21120), **chain) == pytest.approx(2e-5)
    assert priced(moved(1e6, 21120), sms=112, **chain) == pytest.approx(2e-5 * 132 / 112)
    assert priced(moved(3.35e9, 21120), **chain) == pytest.approx(1e-3)
    assert priced(moved(1e3), **chain) == pytest.approx(2e-6)


def test_ctas_of_one_wave_are_not_another_wave() -> None:
    """396 small CTAs all fit on 112 SMs, where a persistent grid of 396 needs a second wave."""
    assert priced(moved(3.35e9, 396), sms=112, resident=16) == pytest.approx(1e-3)


@pytest.mark.parametrize(("blocks", "waves"), [(0, 1.0), (396, 1.6), (132, 1.6), (400, 1.0), (112, 1.0), (4096, 1.0)])
def test_an_exact_grid_needs_another_wave(blocks: int, waves: float) -> None:
    alone, shared = (priced(moved(3.35e9, blocks), sms=sms, wave_time=0.6) for sms in (132, 112))
    assert alone == pytest.approx(1e-3)
    assert shared == pytest.approx(waves * 1e-3)


def test_a_neighbour_takes_its_part() -> None:
    assert priced(moved(3.35e9), traffic=3.35e11) == pytest.approx(1.1e-3)
    assert priced(moved(0.0), traffic=3e11, concurrent_delay=3e-6) == pytest.approx(3e-6)


def test_fixed_kernels() -> None:
    kernels = kernels_of("h800")
    cost = fixed_cost(Fixed(launches=10), "router.weights", kernels)
    assert cost.duration == pytest.approx(10 * kernels.fixed["router.weights"].time)
    assert cost.bound_by == "fixed"


def test_bad_input() -> None:
    with pytest.raises(InputError, match="cannot be priced"):
        priced(moved(-1.0))
    with pytest.raises(InputError, match="cannot be priced"):
        priced(moved(1.0), sms=0)
    with pytest.raises(InputError, match="launches"):
        fixed_cost(Fixed(launches=-1), "router", kernels_of("h800"))


def test_an_unknown_class_says_so() -> None:
    cost = streaming_cost(moved(1e8), "quant.int3", H800, kernels_of("h800"), Share(sms=132))
    assert not cost.calibrated
    assert "quant.int3" in cost.source


CLASSES = st.sampled_from(sorted(kernels_of("h800").stream))
BYTES = st.floats(0, 1e10)
WIDTHS = st.integers(1, 256).map(lambda tiles: 128 * tiles)


def of_shape(cls: str, tokens: int, width: int) -> float:
    work = {
        "scale_t": linear.scales(tokens, width),
        "scale_t.rows": linear.row_scales(tokens, width),
        "rope": linear.rotation(tokens * width),
        "elem": linear.elementwise(tokens * width, 4.0, 2.0),
        "elem.strided": linear.elementwise(tokens * width, 2.0, 2.0),
    }[cls]
    return streaming_cost(work, cls, H800, kernels_of("h800"), Share(sms=132)).duration


@settings(max_examples=200, deadline=None)
@given(cls=st.sampled_from(["scale_t", "scale_t.rows", "rope", "elem", "elem.strided"]),
       tokens=st.integers(1, 1 << 17), more=st.integers(0, 1 << 17), width=WIDTHS, wider=WIDTHS)  # fmt: skip
def test_larger_shapes_never_take_less(cls: str, tokens: int, more: int, width: int, wider: int) -> None:
    base = of_shape(cls, tokens, width)
    assert base <= of_shape(cls, tokens + more, width) * (1 + 1e-12)
    assert base <= of_shape(cls, tokens, width + wider) * (1 + 1e-12)


@pytest.mark.parametrize("cls", ["scale_t", "scale_t.rows", "rope", "elem", "elem.strided"])
def test_large_shapes_go_at_a_rate(cls: str) -> None:
    """Sixteen times the bytes of something large take sixteen times as long, below the memory's peak."""
    small, large = of_shape(cls, 1 << 16, 7168), of_shape(cls, 1 << 20, 7168)
    assert large / small == pytest.approx(16, rel=0.1)


@settings(max_examples=200, deadline=None)
@given(size=BYTES, more=BYTES, cls=CLASSES, sms=st.integers(1, 132), fewer=st.integers(0, 131),
       traffic=st.floats(0, 3e12), blocks=st.sampled_from([0, 112, 132, 396, 924, 4096]))  # fmt: skip
def test_monotone(size: float, more: float, cls: str, sms: int, fewer: int, traffic: float, blocks: int) -> None:
    def time(amount: float, on: int, concurrent: float) -> float:
        share = Share(sms=on, partner_traffic=concurrent)
        return streaming_cost(moved(amount, blocks), cls, H800, kernels_of("h800"), share).duration

    base = time(size, sms, traffic)
    assert base <= time(size + more, sms, traffic) * (1 + 1e-12)
    assert base <= time(size, max(1, sms - fewer), traffic) * (1 + 1e-12)
    assert time(size, sms, 0.0) <= base


def test_instructions_decide_where_every_address_is_computed() -> None:
    few, many = replace(moved(3.35e8), values=1e6), replace(moved(3.35e8), values=1e9)
    assert priced(few, value_rate=1e10) == priced(moved(3.35e8)) == pytest.approx(1e-4)
    assert priced(many, value_rate=1e10) == pytest.approx(1e9 / 132e10)
    assert priced(many, sms=66, value_rate=1e10) == pytest.approx(2 * priced(many, value_rate=1e10))
    assert priced(many) == priced(moved(3.35e8))


@pytest.mark.parametrize("op", ["cat_rotary", "mul_half", "silu_half_back"])
def test_halves_cost_more_than_their_bytes(op: str) -> None:
    kernels, share = kernels_of("h200"), Share(sms=132)
    cls = "cat.unvectorized" if op.startswith("cat") else "elem.unvectorized"
    work = linear.unvectorized(8192 * 4096, 2.0, 2.0)
    cost = streaming_cost(work, cls, GPUS["h200"], kernels, share)
    assert cost.bound_by == "instructions"
    plain = streaming_cost(work, "elem", GPUS["h200"], kernels, share)
    assert cost.duration > 2 * plain.duration
