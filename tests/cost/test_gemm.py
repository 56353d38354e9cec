"""GEMM cost: closed forms, monotone where physics is, and errors that teach."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.calibration.evaluate import GPUS
from simulator.cost.cost import Share
from simulator.cost.gemm_cost import busy_groups, gemm_bytes, gemm_cost, norm4
from simulator.errors import InputError, UncalibratedError
from simulator.ops import Gemm
from simulator.spec.kernel_params import GemmParams, Kernels, rested
from tests.cost.profiles import kernels_of

H800 = GPUS["h800"]
PLAIN = GemmParams(
    tiles=((128, 128),), k_block=128, rate=1.0, block_time=0.0, tile_time=0.0, store_rate=1e30, launch=0.0,
    power_rate=1e9, bandwidth=1e9, source="test",
)  # fmt: skip


def one_class(params: GemmParams, cls: str = "gemm.fp8") -> Kernels:
    return Kernels(name="test", gap=0.0, gap_source="", gemm={cls: params})


def fp8(m: int, n: int, k: int) -> Gemm:
    return Gemm(m=m, n=n, k=k, precision="fp8_block")


def seconds(work: Gemm, sms: int = 132, cls: str = "gemm.fp8", name: str = "h800") -> float:
    return gemm_cost(work, cls, GPUS[name], kernels_of(name), Share(sms=sms)).duration


def test_one_full_wave_runs_at_the_peak() -> None:
    work = fp8(128, 128 * 132, 4096)
    cost = gemm_cost(work, "gemm.fp8", H800, one_class(PLAIN), Share(sms=132))
    assert cost.duration == pytest.approx(work.flops / H800.peak.fp8)


@pytest.mark.parametrize("tiles", [1, 112, 113, 224, 225, 1000])
def test_time_is_waves_times_tile(tiles: int) -> None:
    cost = gemm_cost(fp8(128, 128 * tiles, 1024), "gemm.fp8", H800, one_class(PLAIN), Share(sms=112))
    tile = 2 * 128 * 128 * 1024 / (H800.peak.fp8 / 132)
    assert cost.duration == pytest.approx(ceil(tiles / 112) * tile)
    assert dict(cost.terms)["waves"] == ceil(tiles / 112)


def test_ragged_edges_cost_whole_tiles() -> None:
    kernels, share = one_class(PLAIN), Share(sms=132)
    ragged = gemm_cost(fp8(4000, 576, 500), "gemm.fp8", H800, kernels, share)
    whole = gemm_cost(fp8(4096, 640, 512), "gemm.fp8", H800, kernels, share)
    assert ragged.duration == pytest.approx(whole.duration)


def test_groups_are_padded_each() -> None:
    rows = (1, 129, 0, 256)
    work = Gemm(m=386, n=128 * 132, k=512, precision="fp8_block", form="grouped", groups=4, rows=rows)
    cost = gemm_cost(work, "gemm.fp8", H800, one_class(PLAIN), Share(sms=132))
    assert dict(cost.terms)["waves"] == 1 + 2 + 0 + 2


def test_a_group_without_rows_needs_no_weights() -> None:
    work = Gemm(m=256, n=512, k=512, precision="fp8_block", form="grouped", groups=4, rows=(256, 0, 0, 0))
    assert gemm_bytes(work) == 256 * 512 + 512 * 512 + 2 * 256 * 512


def test_a_masked_gemm_has_rows_in_every_group() -> None:
    few = Gemm(m=4, n=512, k=512, precision="fp8_block", form="masked", groups=64)
    assert busy_groups(few) == 64
    assert busy_groups(replace(few, form="grouped")) == 4  # m is the total there


def test_masked_counts_valid_rows_of_every_group() -> None:
    work = Gemm(m=100, n=128, k=128, precision="fp8_block", form="masked", groups=8)
    assert gemm_bytes(work) == 8 * (100 * 128 + 128 * 128 + 2 * 100 * 128)
    assert work.flops == 8 * 2 * 100 * 128 * 128


def test_a_weight_gradient_reads_and_writes_its_output() -> None:
    work = Gemm(m=128, n=128, k=128, precision="bf16", form="wgrad", out_bytes=4)
    assert gemm_bytes(work) == 2 * 2 * 128 * 128 + 2 * 4 * 128 * 128


def test_small_m_is_bound_by_memory() -> None:
    cost = gemm_cost(fp8(16, 36864, 7168), "gemm.fp8@library", H800, kernels_of("h800"), Share(sms=132))
    assert cost.bound_by == "memory"
    assert cost.duration > 36864 * 7168 / H800.hbm_bandwidth


def test_large_is_bound_by_the_tensor_cores() -> None:
    cost = gemm_cost(fp8(4096, 7168, 16384), "gemm.fp8", H800, kernels_of("h800"), Share(sms=112))
    assert cost.bound_by == "tensor"
    assert cost.calibrated
    assert "profile-data" in cost.source


def test_a_neighbours_traffic_slows() -> None:
    work, kernels = fp8(4096, 7168, 4096), kernels_of("h800")
    alone = gemm_cost(work, "gemm.fp8.grouped", H800, kernels, Share(sms=112))
    concurrent = gemm_cost(work, "gemm.fp8.grouped", H800, kernels, Share(sms=112, partner_traffic=3e11))
    assert alone.duration < concurrent.duration < 1.3 * alone.duration


def test_a_single_wave_jumps_when_it_no_longer_fits() -> None:
    work = Gemm(m=4096, n=1536, k=7168, precision="bf16")
    assert seconds(work, 120, "gemm.bf16", "h200") > 1.4 * seconds(work, 132, "gemm.bf16", "h200")


def test_two_waves_run_alone_and_three_behind_a_counters_reset() -> None:
    kernels, tile = one_class(replace(PLAIN, reset=5e-6)), 2 * 128 * 128 * 1024 / (H800.peak.fp8 / 132)
    times = [
        gemm_cost(fp8(128, 128 * 132 * waves, 1024), "gemm.fp8", H800, kernels, Share(sms=132)).duration
        for waves in (2, 3)
    ]
    assert times == pytest.approx([2 * tile, 3 * tile + 5e-6])


def test_a_few_tiles_are_cut_along_k() -> None:
    """16 tiles and 32 steps of K on 132 SMs: up to 8 parts each, which a second kernel adds up."""
    work, step = fp8(512, 512, 4096), 2 * 128 * 128 * 128 / (H800.peak.fp8 / 132)
    for split, steps in ((1, 32), (2, 16), (8, 4), (64, 4)):
        kernels = one_class(replace(PLAIN, split=split, reset=1e-7))
        cost = gemm_cost(work, "gemm.fp8", H800, kernels, Share(sms=132))
        assert cost.duration == pytest.approx(steps * step + (1e-7 if split > 1 else 0.0))


def test_a_cta_without_an_sm_keeps_its_tiles_for_another_round() -> None:
    """264 tiles, two to each of 132 CTAs: with 131 SMs left the last CTA's two come after the others'."""
    kernels, tile = one_class(replace(PLAIN, tiles_per_cta=2)), 2 * 128 * 128 * 1024 / (H800.peak.fp8 / 132)
    times = [
        gemm_cost(fp8(128, 128 * 264, 1024), "gemm.fp8", H800, kernels, Share(sms=sms)).duration for sms in (132, 131)
    ]
    assert times == pytest.approx([2 * tile, 4 * tile])


def test_rested_kernels_know_no_limit_of_a_loop() -> None:
    limited = one_class(replace(PLAIN, loop_rate=0.5))
    work = fp8(128, 128 * 132, 4096)
    slow, quick = (
        gemm_cost(work, "gemm.fp8", H800, kernels, Share(sms=132)).duration for kernels in (limited, rested(limited))
    )
    assert quick == pytest.approx(work.flops / H800.peak.fp8)
    assert slow > 2 * quick


def test_a_library_with_a_kernel_for_each_group_starts_them_one_after_the_other() -> None:
    """80 groups of one tile on four streams: 20 rounds of a tile each, though 132 SMs could take all in one wave."""
    work = Gemm(m=80 * 128, n=128, k=1024, precision="fp8_block", form="grouped", groups=80)
    tile = 2 * 128 * 128 * 1024 / (H800.peak.fp8 / 132)
    for change, time in (({}, tile), ({"streams": 4}, 20 * tile), ({"group_time": 1e-5}, 8e-4)):
        kernels = one_class(replace(PLAIN, **change))
        cost = gemm_cost(work, "gemm.fp8", H800, kernels, Share(sms=132))
        assert cost.duration == pytest.approx(time, rel=1e-3)


def test_masked_groups_of_unequal_rows_cost_their_own_tiles() -> None:
    work = Gemm(m=128, n=128, k=1024, precision="fp8_block", form="masked", groups=132)
    uneven = replace(work, rows=(100,) * 66 + (156,) * 66)
    even, drawn = (gemm_cost(w, "gemm.fp8", H800, one_class(PLAIN), Share(sms=132)).duration for w in (work, uneven))
    assert drawn == pytest.approx(2 * even)  # 198 tiles instead of 132: a second wave


def test_a_masked_gemm_has_ctas_for_the_rows_expected() -> None:
    """100 tiles expected, one CTA each; 20 groups of more rows make 120, which 132 SMs would have room for."""
    work = Gemm(m=128, n=128, k=1024, precision="fp8_block", form="masked", groups=100)
    uneven = replace(work, rows=(156,) * 20 + (100,) * 80)
    assert [terms_of(w, grid_from_expected_m=True)["waves"] for w in (work, uneven)] == [1, 2]
    assert terms_of(uneven)["waves"] == 1
    assert uneven.flops == 2.0 * (156 * 20 + 100 * 80) * 128 * 1024
    assert gemm_bytes(uneven) == 100 * 128 * 1024 + (156 * 20 + 100 * 80) * (1024 + 2 * 128)


def test_what_others_left_in_l2_is_written_back() -> None:
    """Half of L2 must be written back: a few bytes evict half as many, many bytes half of L2, and memory takes that
    longer."""
    few, many = fp8(16, 512, 512), fp8(8192, 8192, 65536)
    assert terms_of(few, l2_writeback=0.5)["written_back_bytes"] == pytest.approx(0.5 * gemm_bytes(few), rel=0.01)
    assert terms_of(many, l2_writeback=0.5)["written_back_bytes"] == pytest.approx(0.5 * H800.l2_bytes, rel=0.01)
    assert "written_back_bytes" not in terms_of(few)
    slow = {"bandwidth": 1e-3}
    longer = terms_of(many, l2_writeback=0.5, **slow)["memory_s"] - terms_of(many, **slow)["memory_s"]
    assert longer == pytest.approx(0.5 * H800.l2_bytes / (1e-3 * H800.hbm_bandwidth), rel=0.01)


def grouped(rows: tuple[int, ...], n: int = 128 * 132, k: int = 1024) -> Gemm:
    return Gemm(m=sum(rows), n=n, k=k, precision="fp8_block", form="grouped", groups=len(rows), rows=rows)


def terms_of(work: Gemm, **changes: Any) -> dict[str, float]:
    return dict(gemm_cost(work, "gemm.fp8", H800, one_class(replace(PLAIN, **changes)), Share(sms=132)).terms)


def test_a_group_fills_its_clusters_up() -> None:
    """Groups of one, two and three row tiles in pairs: 2, 2 and 4; 33 column tiles in pairs: 34."""
    rows = (100, 256, 300)
    assert terms_of(grouped(rows))["tiles"] == (1 + 2 + 3) * 132
    assert terms_of(grouped(rows), cluster=(2, 1))["tiles"] == (2 + 2 + 4) * 132
    assert terms_of(grouped(rows, n=128 * 33), cluster=(2, 2))["tiles"] == (2 + 2 + 4) * 34
    equal = Gemm(m=3 * 128, n=128, k=1024, precision="fp8_block", form="grouped", groups=3)
    assert terms_of(equal, cluster=(2, 1))["tiles"] == 3 * 2


def test_a_library_that_goes_by_the_rows_of_a_group_takes_its_last_tile_for_many() -> None:
    tiles = {"tiles": ((64, 128), (128, 256)), "few": 128, "tile_time": 1e-3}
    for rows, tile in ((64, 64.0), (129, 128.0)):
        work = grouped((rows,) * 4, n=128, k=128) if rows == 64 else grouped((rows,) * 4, n=512, k=128)
        assert terms_of(work, **tiles)["tile_m"] == tile
    assert terms_of(grouped((129,) * 4, n=128, k=128), **tiles)["tile_m"] == 64.0  # few columns


def test_between_few_rows_and_large_groups_it_has_one_tile_more() -> None:
    """Large is what has two of rows, columns and depth of `large` at least: of 256, 1536 and 2048 only the depth."""
    tiles = {"tiles": ((64, 128), (128, 256), (256, 128)), "few": 128, "large": 2048, "cluster": (2, 2)}
    middle, large = (terms_of(grouped((256,) * 4, n=n, k=2048), **tiles) for n in (1536, 2048))
    assert (middle["tile_m"], middle["tile_n"]) == (128, 256)
    assert (large["tile_m"], large["tile_n"]) == (256, 128)


def test_some_tiles_run_only_where_one_wave_is_enough() -> None:
    narrow = {"tiles": ((128, 64), (128, 128)), "one_wave": 1}
    assert terms_of(fp8(128, 64 * 132, 1024), **narrow)["tile_n"] == 64
    assert terms_of(fp8(128, 64 * 133, 1024), **narrow)["tile_n"] == 128


def test_walking_down_columns_reads_rows_again_that_l2_does_not_hold() -> None:
    """132 row tiles a column, so that each of 24 columns needs all rows; those of the small problem stay in L2."""
    rows, k = 128 * 132, 8192
    work = Gemm(m=2 * rows, n=128 * 24, k=k, precision="fp8_block", form="grouped", groups=2)
    missed = 1.0 - H800.l2_bytes / 2 / (rows * k)
    assert terms_of(work, by_columns=True)["read_again_bytes"] == pytest.approx(2 * 23 * rows * k * missed)
    assert "read_again_bytes" not in terms_of(replace(work, k=1024), by_columns=True)
    assert "read_again_bytes" not in terms_of(work)
    half = replace(work, m=rows)  # two columns at a time
    assert terms_of(half, by_columns=True)["read_again_bytes"] == pytest.approx(
        2 * 11 * rows / 2 * k * (1.0 - H800.l2_bytes / 2 / (rows / 2 * k))
    )


def test_norm4() -> None:
    assert norm4(0.0, 0.0) == 0.0
    assert norm4(3.0, 0.0) == pytest.approx(3.0)
    assert norm4(1.0, 1.0) == pytest.approx(2**0.25)


def test_an_unknown_class_says_so() -> None:
    cost = gemm_cost(fp8(128, 128, 128), "gemm.int4", H800, kernels_of("h800"), Share(sms=132))
    assert not cost.calibrated
    assert "no class 'gemm.int4'" in cost.source


def test_an_empty_profile_is_an_error() -> None:
    with pytest.raises(UncalibratedError, match=r"gemm\.fp8"):
        gemm_cost(fp8(1, 1, 1), "gemm.fp8", H800, Kernels(name="x", gap=0.0, gap_source=""), Share(sms=1))


@pytest.mark.parametrize(("m", "n", "k", "sms"), [(0, 1, 1, 1), (1, -1, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)])
def test_bad_input(m: int, n: int, k: int, sms: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        gemm_cost(fp8(m, n, k), "gemm.fp8", H800, kernels_of("h800"), Share(sms=sms))


SIZES = st.integers(1, 40000)
CLASSES = st.sampled_from(sorted(kernels_of("h200").gemm))


@settings(max_examples=300, deadline=None)
@given(
    m=SIZES,
    n=SIZES,
    k=SIZES,
    more=st.integers(0, 5000),
    axis=st.sampled_from("mnk"),
    cls=CLASSES,
    sms=st.integers(8, 132),
)
def test_more_work_is_never_faster(m: int, n: int, k: int, more: int, axis: str, cls: str, sms: int) -> None:
    small: dict[str, Any] = {"m": m, "n": n, "k": k}
    large = small | {axis: small[axis] + more}
    times = [seconds(Gemm(**size, precision="fp8_block"), sms, cls, "h200") for size in (small, large)]
    assert times[0] <= times[1] * (1 + 1e-12)


@settings(max_examples=300, deadline=None)
@given(m=SIZES, n=SIZES, k=SIZES, sms=st.integers(2, 132), fewer=st.integers(1, 131), cls=CLASSES)
def test_fewer_sms_are_never_faster(m: int, n: int, k: int, sms: int, fewer: int, cls: str) -> None:
    work = Gemm(m=m, n=n, k=k, precision="bf16")
    assert seconds(work, max(1, sms - fewer), cls, "h200") >= seconds(work, sms, cls, "h200") * (1 - 1e-12)


@settings(max_examples=100, deadline=None)
@given(m=SIZES, n=SIZES, k=SIZES, traffic=st.floats(0, 3e12), more=st.floats(0, 1e12), cls=CLASSES)
def test_more_concurrent_traffic_is_never_faster(m: int, n: int, k: int, traffic: float, more: float, cls: str) -> None:
    work, gpu, kernels = fp8(m, n, k), GPUS["h200"], kernels_of("h200")
    some = gemm_cost(work, cls, gpu, kernels, Share(sms=112, partner_traffic=traffic))
    most = gemm_cost(work, cls, gpu, kernels, Share(sms=112, partner_traffic=traffic + more))
    assert some.duration <= most.duration


GROUPED = {"gemm.fp8.grouped": "h800", "gemm.bf16.grouped": "h100", "gemm.fp8_row.grouped": "h100"}
ROWS = st.lists(st.integers(0, 3000), min_size=1, max_size=16) | st.lists(
    st.integers(9000, 40000), min_size=1, max_size=4
)


def in_groups(rows: list[int], cls: str, n: int, k: int) -> Gemm:
    precision = "bf16" if "bf16" in cls else "fp8_block"
    return Gemm(m=sum(rows), n=n, k=k, precision=precision, form="grouped", groups=len(rows), rows=tuple(rows))  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    rows=ROWS,
    at=st.integers(0, 15),
    more=st.tuples(st.integers(0, 500), st.integers(0, 3000), st.integers(0, 3000)),
    cls=st.sampled_from(sorted(GROUPED)),
    sms=st.integers(16, 132),
    fewer=st.integers(0, 15),
)
def test_more_work_in_groups_on_fewer_sms_is_never_faster(
    rows: list[int], at: int, more: tuple[int, int, int], cls: str, sms: int, fewer: int
) -> None:
    rows[0] += 1
    larger = list(rows)
    larger[at % len(rows)] += more[0]
    small, large = in_groups(rows, cls, 4096, 7168), in_groups(larger, cls, 4096 + more[1], 7168 + more[2])
    quick, slow = (seconds(small, sms, cls, GROUPED[cls]), seconds(large, sms - fewer, cls, GROUPED[cls]))
    assert quick <= slow * (1 + 1e-12)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.integers(1, 2000), min_size=1, max_size=16),
    expected=st.integers(1, 2000),
    at=st.integers(0, 15),
    more=st.tuples(st.integers(0, 500), st.integers(0, 3000), st.integers(0, 3000)),
    sms=st.integers(16, 132),
    fewer=st.integers(0, 15),
)
def test_more_masked_rows_on_fewer_sms_are_never_faster(
    rows: list[int], expected: int, at: int, more: tuple[int, int, int], sms: int, fewer: int
) -> None:
    larger = list(rows)
    larger[at % len(rows)] += more[0]
    small = Gemm(
        m=expected, n=4096, k=7168, precision="fp8_block", form="masked", groups=len(rows), rows=tuple(rows)
    )  # fmt: skip
    large = replace(small, n=4096 + more[1], k=7168 + more[2], rows=tuple(larger))
    quick, slow = (
        seconds(w, s, "gemm.fp8.masked", name="h100") for w, s in ((small, sms), (large, sms - fewer))
    )  # fmt: skip
    assert quick <= slow * (1 + 1e-12)
