"""Dispatch and combine: what binds them, the paper's statement on experts per token, monotony, measured tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.calibration import fit_fabric
from simulator.cost.all_to_all_cost import all_to_all_cost, notify_cost
from simulator.cost.cost import Cost, Share
from simulator.cost.streaming_cost import streaming_cost
from simulator.errors import InputError
from simulator.inputs import load_hardware
from simulator.ops import RECEIVED, SENT, AllToAll, Gate, Notify
from simulator.spec.hardware import Cluster

H800 = fit_fabric.cluster_of("h800", fit_fabric.document("h800"))
H100 = fit_fabric.cluster_of("h100", fit_fabric.document("h100"))
V3 = AllToAll(
    direction="dispatch",
    tokens=4096,
    hidden=7168,
    bytes_per_token=7168 + 56 * 4,
    ranks=64,
    gate=Gate(experts=256, top_k=8, groups=8, node_limit=4),
    cached=True,
)
DECODING = replace(V3, tokens=128, low_latency=True, gate=Gate(experts=256, top_k=8))
COMBINE = replace(V3, direction="combine", bytes_per_token=14336)


def choosing(work: AllToAll, **changes: int) -> AllToAll:
    """The same all-to-all after another gate."""
    return replace(work, gate=replace(work.gate, **changes))


def price(
    work: AllToAll, cluster: Cluster = H800, *, sms: int = 20, busy: bool = False, kernels: str = "deepep"
) -> Cost:
    return all_to_all_cost(
        work, f"comm.{work.direction}", cluster, sms=sms, concurrent_with_compute=busy, dispatcher=kernels
    )


def faster(cluster: Cluster, *, nvlink: float = 1.0, nic: float = 1.0) -> Cluster:
    node = cluster.node
    return replace(
        cluster,
        node=replace(
            node,
            nvlink=replace(node.nvlink, bandwidth=node.nvlink.bandwidth * nvlink),
            nic=replace(node.nic, bandwidth=node.nic.bandwidth * nic),
        ),
    )


# Bandwidths mean what their labels say -----------------------------------------------------------------------------


def test_offloaded_across_nodes_the_nic_runs_at_its_labelled_bandwidth() -> None:
    cost = price(replace(COMBINE, tokens=10**9), sms=0)
    assert cost.nic_bytes / cost.duration == pytest.approx(H800.node.nic.bandwidth, rel=1e-6)
    assert cost.bound_by == "ib"


def test_offloaded_in_a_node_nvlink_runs_at_its_labelled_bandwidth() -> None:
    cost = price(replace(COMBINE, tokens=10**9, ranks=8), sms=0)
    assert cost.nvlink_bytes / cost.duration == pytest.approx(H800.node.nvlink.bandwidth, rel=1e-6)
    assert cost.bound_by == "nvlink"
    assert cost.nic_bytes == 0.0


# What decides ------------------------------------------------------------------------------------------------------


def test_thirteen_experts_cost_the_communication_of_eight() -> None:
    """arXiv 2412.19437, section 3.2.2: 4 nodes x 3.2 experts hide NVLink behind InfiniBand."""
    eight, thirteen, more = (price(choosing(V3, top_k=k), sms=0) for k in (8, 13, 20))
    assert eight.bound_by == thirteen.bound_by == "ib"
    assert thirteen.duration == pytest.approx(eight.duration, rel=0.015)
    assert more.bound_by == "nvlink"
    assert more.duration > 1.2 * eight.duration


def test_nvlink_hides_up_to_the_ratio_of_the_bandwidths() -> None:
    """With one rank per expert and every copy forwarded, the limit is NVLink over NIC copies per node: 3.2."""
    node = H800.node
    assert node.nvlink.bandwidth / node.nic.bandwidth == pytest.approx(3.2)
    slower = faster(H800, nvlink=0.5)  # 1.6 copies per node
    assert price(choosing(V3, top_k=13), slower, sms=0).bound_by == "nvlink"


def test_more_sms_help_until_the_links_bind() -> None:
    few, usual, many = (price(V3, sms=n) for n in (4, 20, 132))
    assert few.bound_by == "sm"
    assert many.bound_by == "ib"
    assert few.duration > usual.duration > many.duration > price(V3, sms=0).duration


def test_concurrent_compute_slows_the_sm_stages_only() -> None:
    assert price(V3, busy=True).duration > price(V3).duration
    assert price(V3, sms=0, busy=True) == price(V3, sms=0)


def test_sending_the_layout_costs_more_than_reusing_it() -> None:
    assert price(replace(V3, cached=False)).duration > price(V3).duration
    assert price(replace(COMBINE, cached=False)).duration == price(COMBINE).duration
    assert price(replace(COMBINE, weighted=True)).duration > price(COMBINE).duration
    assert price(replace(V3, weighted=True)).duration == price(V3).duration


def test_combine_moves_twice_the_bytes_of_an_fp8_dispatch() -> None:
    ratio = price(COMBINE).nic_bytes / price(V3).nic_bytes
    assert ratio == pytest.approx(14336 / 7392)


def test_a_node_limit_saves_nic_traffic() -> None:
    free = choosing(V3, node_limit=0)
    assert price(V3).nic_bytes < 0.8 * price(free).nic_bytes


def test_the_library_pays_for_every_copy() -> None:
    cost = price(V3, kernels="nccl")
    assert cost.nic_bytes == pytest.approx(4096 * 7392 * 8 * 56 / 64)
    assert cost.duration > price(V3).duration


def test_an_all_to_all_lasts_as_long_as_around_the_most_loaded_rank() -> None:
    """Its NVLink carries that much more, its node's NICs an eighth of the excess; a plain all-to-all all of it."""
    even, full = (dict(price(replace(V3, imbalance=imbalance)).terms) for imbalance in (1.0, 1.8))
    assert full["nvlink_s"] == pytest.approx(1.8 * even["nvlink_s"])
    for stage in ("nic_s", "forward_s"):
        assert full[stage] == pytest.approx(1.1 * even[stage])
    assert full["send_s"] == even["send_s"]
    for kernels, work in (("nccl", replace(V3, tokens=10**7)), ("deepep", replace(DECODING, tokens=10**6))):
        assert (
            price(replace(work, imbalance=1.8), kernels=kernels).duration > 1.3 * price(work, kernels=kernels).duration
        )


@given(st.floats(1.0, 8.0), st.floats(1.0, 2.0), st.sampled_from(["dispatch", "combine"]))
def test_a_fuller_rank_is_never_faster(imbalance: float, more: float, direction: str) -> None:
    work = replace(V3, direction=direction, imbalance=imbalance)  # type: ignore[arg-type]
    assert price(work).duration <= price(replace(work, imbalance=imbalance * more)).duration * (1 + 1e-12)


def test_one_rank_moves_nothing() -> None:
    assert price(replace(V3, ranks=1)).duration == 0.0


# Low latency and notify --------------------------------------------------------------------------------------------


def test_decoding_takes_the_low_latency_kernels() -> None:
    throughput = price(replace(DECODING, low_latency=False), sms=4).duration
    assert price(DECODING).duration < throughput * 2
    assert price(DECODING, kernels="deepep_ibrc").duration == pytest.approx(186e-6, rel=0.02)


def test_notify_stays_below_half_a_millisecond() -> None:
    cost = notify_cost(Notify(ranks=64, tokens=4096), "comm.notify", H800)
    assert 0 < cost.duration <= 0.5e-3
    assert not cost.calibrated


def test_layout_of_the_published_trace() -> None:
    assert notify_cost(Notify(ranks=64, tokens=4096), "comm.layout", H800).duration == pytest.approx(74e-6, rel=0.01)


# Monotony ----------------------------------------------------------------------------------------------------------

WORKS = st.builds(
    lambda direction, tokens, nodes, top_k, limit: choosing(
        replace(V3, direction=direction, tokens=tokens, ranks=8 * nodes), top_k=top_k, node_limit=limit
    ),
    st.sampled_from(["dispatch", "combine"]),
    st.integers(0, 20_000),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([1, 4, 8]),
    st.sampled_from([0, 4]),
)
KERNELS = st.sampled_from(["deepep", "deepep_tuned", "nccl"])


@given(work=WORKS, kernels=KERNELS, more=st.integers(0, 20_000))
def test_more_tokens_are_never_faster(work: AllToAll, kernels: str, more: int) -> None:
    longer = replace(work, tokens=work.tokens + more)
    assert price(longer, kernels=kernels).duration >= price(work, kernels=kernels).duration * (1 - 1e-12)


@given(work=WORKS, sms=st.integers(1, 132), fewer=st.integers(1, 131))
def test_fewer_sms_are_never_faster(work: AllToAll, sms: int, fewer: int) -> None:
    less = max(1, sms - fewer)
    assert price(work, sms=less).duration >= price(work, sms=sms).duration * (1 - 1e-12)


@given(work=WORKS, kernels=KERNELS, nvlink=st.floats(0.05, 1.0), nic=st.floats(0.05, 1.0))
def test_less_bandwidth_is_never_faster(work: AllToAll, kernels: str, nvlink: float, nic: float) -> None:
    slow = faster(H800, nvlink=nvlink, nic=nic)
    assert price(work, slow, kernels=kernels).duration >= price(work, kernels=kernels).duration * (1 - 1e-12)


@given(work=WORKS, low_latency=st.booleans(), more=st.floats(0, 1e5))
def test_more_bytes_per_token_are_never_faster(work: AllToAll, low_latency: bool, more: float) -> None:
    work = replace(work, low_latency=low_latency)
    wider = replace(work, bytes_per_token=work.bytes_per_token + more)
    assert price(wider).duration >= price(work).duration * (1 - 1e-12)


@given(
    kernels=st.sampled_from(["deepep", "deepep_ibrc"]),
    direction=st.sampled_from(["dispatch", "combine"]),
    tokens=st.integers(0, 512),
    more=st.integers(0, 512),
    nodes=st.sampled_from([1, 2, 4, 8]),
    nic=st.floats(0.05, 1.0),
)
def test_low_latency_kernels_never_gain_from_more_work_or_slower_links(
    kernels: str, direction: str, tokens: int, more: int, nodes: int, nic: float
) -> None:
    base = DECODING if direction == "dispatch" else replace(DECODING, direction="combine", bytes_per_token=14336)
    work = replace(base, tokens=tokens, ranks=8 * nodes)
    usual = price(work, kernels=kernels).duration
    assert usual <= price(replace(work, tokens=tokens + more), kernels=kernels).duration
    assert usual <= price(choosing(work, top_k=9), kernels=kernels).duration
    assert usual <= price(replace(work, ranks=16 * nodes), kernels=kernels).duration * (1 + 1e-12)
    assert usual <= price(work, faster(H800, nvlink=nic, nic=nic), kernels=kernels).duration


def test_low_latency_kernels_do_not_ask_for_sms() -> None:
    assert price(DECODING, sms=4) == price(DECODING, sms=64)


@given(work=WORKS)
def test_links_are_a_lower_bound(work: AllToAll) -> None:
    cost = price(work)
    assert cost.duration >= cost.nic_bytes / H800.node.nic.bandwidth
    assert cost.duration >= cost.nvlink_bytes / H800.node.nvlink.bandwidth


# Measurements ------------------------------------------------------------------------------------------------------

LIMITS = {  # MAPE [%] of fitted and of held-out rows
    "expert kernels, H800": (4.5, 4.5),
    "expert kernels by SMs and nodes, H100": (3.0, 4.5),
    "Hybrid-EP, H100": (8.0, 8.0),
    "low latency over InfiniBand, H800": (1.5, 2.0),
    "low latency with NVLink, H800": (2.0, 9.0),
    "low latency by ranks and tokens, H100": (4.0, 4.0),
    "low latency of pplx, H100": (5.0, 9.0),
}


@pytest.mark.parametrize("name", LIMITS)
def test_measured_kernels(name: str) -> None:
    fit = next(fit for fit in fit_fabric.FITS if fit.name == name)
    rows = fit_fabric.chosen(fit)
    logs = fit_fabric.errors(fit, fit_fabric.document(fit.hardware), rows)
    for use, limit in zip(("fit", "held out"), LIMITS[name], strict=True):
        part = [x for x, row in zip(logs, rows, strict=True) if row["use"] == use]
        assert fit_fabric.mape(part) <= limit


def test_more_sms_help_until_a_link_is_full() -> None:
    """H100: over 4 nodes InfiniBand is full from some 12 SMs on, over 2 nodes not even at 24; a combine needs more."""

    def times(work: AllToAll, ranks: int) -> list[float]:
        one = choosing(replace(work, ranks=ranks), groups=ranks // 8, node_limit=0)
        return [price(one, H100, sms=sms).duration for sms in (8, 12, 16, 24)]

    two, four, combine = times(V3, 16), times(V3, 32), times(COMBINE, 32)
    assert two == sorted(two, reverse=True)
    assert four == sorted(four, reverse=True)
    assert four[2] / four[3] < 1.05 < 1.3 < two[2] / two[3]
    assert combine[0] / combine[3] > four[0] / four[3]


def test_what_a_combine_sums_takes_sms_only_across_nodes() -> None:
    plain = replace(H100.fabric.ep["deepep"], reduce=1.0)
    other = replace(H100, fabric=replace(H100.fabric, ep={"deepep": plain}))
    for ranks, same in ((8, True), (16, False)):
        work = choosing(replace(COMBINE, ranks=ranks), groups=0, node_limit=0)
        assert (price(work, H100, sms=16).duration == price(work, other, sms=16).duration) is same


def test_training_trace_within_eight_percent() -> None:
    fit = next(fit for fit in fit_fabric.FITS if fit.name == "expert kernels, H800")
    rows = [row for row in fit_fabric.chosen(fit) if row["id"].startswith("trace.")]
    logs = fit_fabric.errors(fit, fit_fabric.document("h800"), rows)
    assert len(rows) == 8
    assert max(abs(x) for x in logs) < 0.08


@pytest.mark.parametrize("fit", fit_fabric.FITS, ids=lambda fit: fit.name)
def test_profiles_hold_what_the_fit_finds(fit: fit_fabric.Fit) -> None:
    found, kept = fit_fabric.solve(fit), fit_fabric.document(fit.hardware)
    for paths in fit.free:
        for path in paths:
            assert fit_fabric.get(kept, path) == pytest.approx(fit_fabric.get(found, path), rel=0.02), path


def test_no_row_of_the_tables_is_a_training_step() -> None:
    for table in ("fabric_ep", "fabric_low_latency", "fabric_collective"):
        times = [float(row["time_us"]) for row in fit_fabric.rows_of(table)]
        assert max(times) < 60_000  # kernels take microseconds to milliseconds, steps take seconds


# Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "sms", "kernels", "says"),
    [
        (replace(V3, tokens=-1), 20, "deepep", "must not be negative"),
        (V3, -1, "deepep", "sms = -1"),
        (V3, 20, "deepspeed", "no kernels 'deepspeed' in fabric.ep; the hardware profile has deepep, deepep_tuned"),
        (replace(V3, ranks=12), 20, "deepep", "does not fill nodes"),
    ],
)
def test_bad_input_is_one_line(work: AllToAll, sms: int, kernels: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        price(work, sms=sms, kernels=kernels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("direction", ["dispatch", "combine"])
@pytest.mark.parametrize("tokens", [16, 64, 128])
def test_copies_apart_and_the_flight_make_up_the_measured_time(
    direction: Literal["dispatch", "combine"], tokens: int
) -> None:
    """Kernels at both ends, as ops of their own, take nothing from what was measured of the whole."""
    cluster = load_hardware("h800")
    size = 7392.0 if direction == "dispatch" else 14336.0
    gate = Gate(experts=256, top_k=8)
    whole = AllToAll(
        direction=direction,
        tokens=tokens,
        hidden=7168,
        bytes_per_token=size,
        ranks=128,
        gate=gate,
        low_latency=True,
    )
    flight = replace(whole, copies_apart=True)
    share = Share(sms=cluster.gpu.sms)
    ends = sum(
        streaming_cost(moved, cls, cluster.gpu, cluster.kernels, share).duration
        for cls, moved in ((SENT, whole.sent), (RECEIVED, whole.received))
    )
    times = [
        all_to_all_cost(one, f"comm.{direction}", cluster, sms=0, concurrent_with_compute=False).duration
        for one in (whole, flight)
    ]
    assert times[1] + ends == pytest.approx(times[0])
    assert whole.sent.read == tokens * (7168 * 2 if direction == "dispatch" else 8 * 14336)
    assert whole.received.bytes == tokens * (2 * 8 * 7392 if direction == "dispatch" else 8 * 14336 + 14336)
