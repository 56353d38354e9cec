"""Collectives and point-to-point messages: closed forms, labels of bandwidths, monotony, measured tables."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.calibration import fit_fabric
from simulator.cost import nccl_tuner
from simulator.cost.collective_cost import collective_cost
from simulator.cost.message_cost import p2p_cost, spread
from simulator.errors import InputError
from simulator.inputs import list_names
from simulator.ops import Collective, CollectiveKind, PointToPoint
from simulator.spec.comm_params import Fabric
from simulator.spec.hardware import Cluster, Link

H200 = fit_fabric.cluster_of("h200", fit_fabric.document("h200"))
H800 = fit_fabric.cluster_of("h800", fit_fabric.document("h800"))
H100 = fit_fabric.cluster_of("h100", fit_fabric.document("h100"), sharp=True)
KINDS = st.sampled_from(get_args(CollectiveKind))
HUGE = 1e13  # [B] fixed times are negligible


def seconds(cluster: Cluster, kind: str, size: float, ranks: int, per_node: int = 8) -> float:
    work = Collective(kind=kind, bytes=size, ranks=ranks, per_node=per_node)  # type: ignore[arg-type]
    return collective_cost(work, cluster).duration


def with_link(cluster: Cluster, tier: str, factor: float) -> Cluster:
    node = cluster.node
    if tier == "nvlink":
        return replace(cluster, node=replace(node, nvlink=scaled(node.nvlink, factor)))
    return replace(cluster, node=replace(node, nic=scaled(node.nic, factor)))


def scaled(link: Link, factor: float) -> Link:
    return replace(link, bandwidth=link.bandwidth * factor)


# Bandwidths mean what their labels say -----------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [H800, H100], ids=["h800", "h100"])
@pytest.mark.parametrize("tier", ["nvlink", "nic"])
def test_a_long_message_attains_exactly_the_labelled_bandwidth(cluster: Cluster, tier: str) -> None:
    cost = p2p_cost(PointToPoint(bytes=HUGE, tier=tier), cluster)  # type: ignore[arg-type]
    assert HUGE / cost.duration == pytest.approx(getattr(cluster.node, tier).bandwidth, rel=1e-4)


def test_a_large_ring_moves_its_bytes_at_the_attainable_bandwidth() -> None:
    nvlink = seconds(H800, "all_reduce", HUGE, 8)
    assert 2 * HUGE * 7 / 8 / nvlink == pytest.approx(H800.node.nvlink.bandwidth, rel=1e-4)
    nic = seconds(H800, "all_reduce", HUGE, 16, per_node=1)
    assert 2 * HUGE * 15 / 16 / nic == pytest.approx(H800.node.nic.bandwidth, rel=1e-4)
    direct = seconds(H800, "all_to_all", HUGE, 64)
    assert HUGE * 56 / 64 / direct == pytest.approx(H800.node.nic.bandwidth, rel=1e-4)


@pytest.mark.parametrize("name", list_names("fabric"))
def test_nothing_in_a_fabric_derates_the_link_of_large_messages(name: str) -> None:
    doc = fit_fabric.document(name)
    for tier in ("nvlink", "nic"):
        assert doc[tier]["protocols"]["simple"]["payload"] == 1.0
        assert all(0 < p["payload"] <= 1.0 for p in doc[tier]["protocols"].values())
    keys = {field.name for field in dataclasses.fields(Fabric)}
    assert not {key for key in keys if "efficiency" in key or "bandwidth" in key}


def test_the_peak_is_for_reports_only() -> None:
    shiny = replace(H800, node=replace(H800.node, nvlink=replace(H800.node.nvlink, peak=9e12)))
    assert seconds(shiny, "all_reduce", 1e9, 8) == seconds(H800, "all_reduce", 1e9, 8)


# Closed forms ------------------------------------------------------------------------------------------------------


def test_one_rank_moves_nothing() -> None:
    assert seconds(H800, "all_reduce", 1e9, 1) == 0.0


def test_all_reduce_is_reduce_scatter_and_all_gather_for_large_buffers() -> None:
    parts = seconds(H800, "reduce_scatter", 1e12, 8) + seconds(H800, "all_gather", 1e12, 8)
    own_shards = 2 * 1e12 / 8 / H800.fabric.nvlink.local_copy  # an all-reduce in place copies none
    assert seconds(H800, "all_reduce", 1e12, 8) == pytest.approx(parts - own_shards, rel=1e-3)


def test_hierarchy_puts_a_gth_of_the_buffer_on_each_nic() -> None:
    cost = collective_cost(Collective(kind="all_gather", bytes=64e6, ranks=64, per_node=8), H800)
    assert cost.nvlink_bytes == pytest.approx(64e6 * 7 / 8)
    assert cost.nic_bytes == pytest.approx(8e6 * 7 / 8)


@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter"])
def test_a_ring_over_nodes_steps_through_all_ranks(kind: str) -> None:
    """7 steps over NVLink in each of N nodes and N - 1 between them, in the protocol that makes their sum least."""
    node, fabric = H800.node, H800.fabric
    for nodes in (2, 8, 64):
        least = min(
            fabric.nvlink.protocols[name].alpha
            + far.alpha
            + 7 * nodes * fabric.nvlink.protocols[name].step * node.nvlink.latency
            + (nodes - 1) * far.step * node.nic.latency
            for name, far in fabric.nic.protocols.items()
        )
        assert seconds(H800, kind, 0.0, 8 * nodes) == pytest.approx(least)


def test_switches_sum_up_in_trees_between_nodes() -> None:
    """An inner node of a tree sends its part twice; of two nodes each sends a half in either direction."""
    for nodes, times in ((2, 1.0), (4, 2.0), (32, 2.0)):
        inside = H100.node.nvlink.bandwidth * H100.fabric.nvlink.protocols["sharp"].payload
        tree = HUGE * max(times / 8 / H100.node.nic.bandwidth, 1 / inside)
        ring = 2 * HUGE * max(7 / 8 / H100.node.nvlink.bandwidth, (nodes - 1) / nodes / 8 / H100.node.nic.bandwidth)
        assert seconds(H100, "all_reduce", HUGE, 8 * nodes) == pytest.approx(min(tree, ring), rel=1e-3)


def test_a_ring_needs_a_protocol_of_both_tiers() -> None:
    nic = replace(H800.fabric.nic, protocols={"other": H800.fabric.nic.protocols["simple"]})
    with pytest.raises(InputError, match="have none in common for a ring"):
        seconds(replace(H800, fabric=replace(H800.fabric, nic=nic)), "all_gather", 1e6, 16)


def test_small_buffers_take_the_protocol_of_low_latency() -> None:
    small = collective_cost(Collective(kind="all_reduce", bytes=8, ranks=8, per_node=8), H100)
    large = collective_cost(Collective(kind="all_reduce", bytes=1e9, ranks=8, per_node=8), H100)
    assert "/ll" in small.formula
    assert small.bound_by == "latency"
    assert "sharp/sharp" in large.formula
    assert large.bound_by == "nvlink"


def test_sharp_needs_the_switch() -> None:
    plain = replace(H100, node=replace(H100.node, nvlink_sharp=False))
    assert seconds(plain, "all_reduce", 1e9, 8) > 1.2 * seconds(H100, "all_reduce", 1e9, 8)
    assert seconds(plain, "all_gather", 1e9, 8) == seconds(H100, "all_gather", 1e9, 8)


def test_trees_beat_rings_across_many_nodes_when_small() -> None:
    cost = collective_cost(Collective(kind="all_reduce", bytes=1e4, ranks=256, per_node=1), H800)
    assert "tree" in cost.formula


def test_oversubscription_slows_what_crosses_it() -> None:
    thin = replace(H800.fabric.network, oversubscription=4.0)
    cluster = replace(H800, fabric=replace(H800.fabric, network=thin))
    wide = seconds(cluster, "all_reduce", 1e9, 4096, 1)
    assert wide > 3 * seconds(H800, "all_reduce", 1e9, 4096, 1)
    assert seconds(cluster, "all_reduce", 1e9, 8) == seconds(H800, "all_reduce", 1e9, 8)


# Monotony ----------------------------------------------------------------------------------------------------------


@given(kind=KINDS, size=st.floats(0, 1e11), more=st.floats(0, 1e11), nodes=st.integers(1, 16))
def test_more_bytes_are_never_faster(kind: str, size: float, more: float, nodes: int) -> None:
    small, large = (seconds(H100, kind, b, 8 * nodes) for b in (size, size + more))
    assert large >= small * (1 - 1e-12)


@given(kind=KINDS, size=st.floats(0, 1e11), per_node=st.sampled_from([1, 8]))
def test_more_ranks_on_the_same_tier_are_never_faster(kind: str, size: float, per_node: int) -> None:
    counts = range(2, 9) if per_node == 8 else (2, 3, 4, 8, 16, 64, 256)
    times = [seconds(H100, kind, size, ranks, per_node) for ranks in counts]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(times))


@given(
    kind=KINDS,
    size=st.floats(0, 1e11),
    factor=st.floats(0.05, 1.0),
    tier=st.sampled_from(["nvlink", "nic"]),
    nodes=st.integers(1, 8),
)
def test_less_bandwidth_is_never_faster(kind: str, size: float, factor: float, tier: str, nodes: int) -> None:
    slow = with_link(H100, tier, factor)
    assert seconds(slow, kind, size, 8 * nodes) >= seconds(H100, kind, size, 8 * nodes) * (1 - 1e-12)


@given(size=st.floats(0, 1e12), more=st.floats(0, 1e12), tier=st.sampled_from(["nvlink", "nic"]))
def test_longer_messages_are_never_faster(size: float, more: float, tier: str) -> None:
    short, long = (p2p_cost(PointToPoint(bytes=b, tier=tier), H800) for b in (size, size + more))  # type: ignore[arg-type]
    assert long.duration >= short.duration


# Measurements ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fitted", "held_out"),
    [
        ("NVLink collectives, 8 H100", 2.5, 2.5),
        ("NCCL, 2 and 4 H200", 5.0, 6.0),
        ("NCCL on 2 to 32 nodes of 8 H100, EFA", 11.0, 12.5),
    ],
)
def test_measured_collectives(name: str, fitted: float, held_out: float) -> None:
    fit = next(fit for fit in fit_fabric.FITS if fit.name == name)
    rows = fit_fabric.chosen(fit)
    logs = fit_fabric.errors(fit, fit_fabric.document(fit.hardware), rows)
    for use, limit in (("fit", fitted), ("held out", held_out)):
        part = [x for x, row in zip(logs, rows, strict=True) if row["use"] == use]
        assert fit_fabric.mape(part) <= limit


@pytest.mark.parametrize("name", ["all_gather", "all_reduce", "all_to_all", "broadcast", "reduce_scatter"])
def test_no_operation_of_nccl_is_far_off_on_sizes_kept_out(name: str) -> None:
    fit = next(fit for fit in fit_fabric.FITS if fit.table == "nccl")
    rows = [row for row in fit_fabric.chosen(fit) if row["use"] == "held out" and row["op"] == name]
    assert len(rows) > 10
    assert fit_fabric.mape(fit_fabric.errors(fit, fit_fabric.document("h200"), rows)) <= 7.0


@pytest.mark.parametrize("ranks", fit_fabric.MEASURED_RANKS)
def test_the_tuner_chooses_what_nccl_says_it_chose(ranks: int) -> None:
    rows = [row for row in fit_fabric.rows_of(f"h200x{ranks}_collectives") if row["algorithm"] and not row["other"]]
    known = [pair for pair in nccl_tuner.PAIRS if "sharp" not in pair]  # multicast was off
    assert len(rows) > 20
    for row in rows:
        found = nccl_tuner.chosen(row["op"], float(row["bytes"]), ranks, 371e9, known)
        assert found == (row["algorithm"].lower(), row["protocol"].lower()), row


def test_the_tuner_takes_switches_where_they_reduce_and_never_trees_to_gather() -> None:
    every = nccl_tuner.PAIRS
    assert nccl_tuner.chosen("all_reduce", 1e9, 8, 371e9, every) == ("sharp", "sharp")
    assert nccl_tuner.chosen("all_reduce", 1e9, 2, 371e9, every)[0] == "ring"
    assert nccl_tuner.chosen("broadcast", 1e9, 8, 371e9, every)[0] == "ring"
    assert nccl_tuner.estimate("all_gather", 1e6, 8, 371e9, ("tree", "ll")) == float("inf")


def message(size: float, *, both_ways: bool = False) -> float:
    work = PointToPoint(bytes=size, tier="nvlink", both_ways=both_ways)
    return p2p_cost(work, H200).duration


@given(size=st.floats(1, 1e11), more=st.floats(1, 1e11))
def test_both_ways_is_never_faster_than_one(size: float, more: float) -> None:
    assert message(size, both_ways=True) >= message(size) * (1 - 1e-12)
    assert message(size + more) >= 0.8 * message(size)  # twice the channels make a little more than 256 MiB faster


def test_a_message_is_spread_over_more_channels_when_large() -> None:
    channels = H200.fabric.p2p_nvlink.channels
    assert channels is not None
    assert [spread(size * 2**20, 2, channels) for size in (1, 256, 257, 4096)] == [16, 16, 32, 32]
    assert [spread(2**20, ranks, channels) for ranks in (4, 8, 64)] == [8, 4, 1]


def concurrent(row: dict[str, str]) -> tuple[float, float]:
    """Two operations at once between two H200: (forecast by shares of the link, measured) [s]."""
    costs = []
    for op in (row["op"], row["other"]):
        size = float(row["bytes"])
        if op == "exchange":
            costs.append(p2p_cost(PointToPoint(bytes=size, tier="nvlink", both_ways=True), H200))
        else:
            costs.append(collective_cost(Collective(kind=op, bytes=size, ranks=2, per_node=2), H200))  # type: ignore[arg-type]
    link = sum(cost.nvlink_bytes for cost in costs) / H200.node.nvlink.bandwidth
    return max(
        link + max(dict(cost.terms).get("nvlink_fixed_s", 0.0) for cost in costs), *(c.duration for c in costs)
    ), (float(row["graph_us"]) * 1e-6)


def test_two_collectives_at_once_share_the_link() -> None:
    """From 64 MiB on, where the link decides: each pair takes as long as the bytes of both over one link."""
    rows = [r for r in fit_fabric.rows_of("h200x2_collectives") if r["other"] and float(r["bytes"]) >= 2**26]
    errors = [ours / measured - 1 for ours, measured in map(concurrent, rows)]
    assert len(errors) > 20
    assert sum(map(abs, errors)) / len(errors) < 0.16


def test_pipeline_message_of_deepseek_v3() -> None:
    cost = p2p_cost(PointToPoint(bytes=4096 * 7168 * 2, tier="nic"), H800)
    assert cost.duration == pytest.approx(58.72e6 / 50e9, rel=0.03)
    assert (cost.nic_bytes, cost.nvlink_bytes) == (58720256, 0.0)


# Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "per_node", "size", "says"),
    [(12, 8, 1.0, "do not fill nodes of 8"), (0, 8, 1.0, "at least 1"), (8, 8, -1.0, "negative")],
)
def test_bad_input_is_one_line(ranks: int, per_node: int, size: float, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        seconds(H800, "all_reduce", size, ranks, per_node)
    assert "\n" not in str(error.value)


def test_what_nobody_measured_says_so() -> None:
    assert not p2p_cost(PointToPoint(bytes=1.0, tier="nic"), H800).calibrated
    assert collective_cost(Collective(kind="all_gather", bytes=1.0, ranks=8, per_node=8), H100).calibrated


# SMs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "per_node", "held"),
    [(8, 8, 1.0), (2, 2, 1.0), (64, 8, 16 / 24), (64, 4, 8 / 24), (8, 1, 2 / 24), (1, 1, 0.0)],
)
def test_a_collective_holds_an_sm_for_each_channel(ranks: int, per_node: int, held: float) -> None:
    """Within a node 24 on H100, across nodes two for each NIC that the group has there."""
    cost = collective_cost(Collective(kind="all_gather", bytes=1e8, ranks=ranks, per_node=per_node), H100)
    assert cost.held == pytest.approx(held)


# All-reduces of serving engines ------------------------------------------------------------------------------------


def direct(size: float, ranks: int, kernels: str = "vllm", cluster: Cluster = H100) -> float:
    work = Collective(kind="all_reduce", bytes=size, ranks=ranks, per_node=8, kernels=kernels)
    return collective_cost(work, cluster).duration


def test_one_shot_and_two_shot_by_hand() -> None:
    """8 ranks: 7 x 128 KiB in one shot, 2 x 7/8 of 1 MiB in two."""
    p = H100.fabric.all_reduce["vllm"]
    assert direct(131072, 8) == pytest.approx(p.one_alpha + 6 * p.one_peer + 7 * 131072 / p.one_rate)
    assert direct(2**20, 8) == pytest.approx(p.two_alpha + 6 * p.two_peer + 1.75 * 2**20 / p.two_rate)


@pytest.mark.parametrize(("ranks", "limit"), [(4, 512 * 1024), (8, 256 * 1024)])
def test_vllm_goes_to_two_shots_at_its_published_sizes(ranks: int, limit: int) -> None:
    def formula(size: float) -> str:
        work = Collective(kind="all_reduce", bytes=size, ranks=ranks, per_node=8, kernels="vllm")
        return collective_cost(work, H100).formula

    assert formula(limit - 16).endswith("one-shot")
    assert formula(limit).endswith("two-shot")


@pytest.mark.parametrize("kernels", ["vllm", "sglang", "trtllm"])
def test_small_all_reduces_are_several_times_as_fast_as_nccls(kernels: str) -> None:
    for ranks in (2, 4, 8):
        assert 2 * direct(16384, ranks, kernels) < seconds(H100, "all_reduce", 16384, ranks)


def test_what_they_do_not_do_is_left_to_nccl() -> None:
    assert direct(16e6, 8) == seconds(H100, "all_reduce", 16e6, 8)  # too large
    assert direct(16384, 16) == seconds(H100, "all_reduce", 16384, 16)  # two nodes
    other = Collective(kind="all_gather", bytes=16384, ranks=8, per_node=8, kernels="vllm")
    assert collective_cost(other, H100).duration == seconds(H100, "all_gather", 16384, 8)
    with pytest.raises(InputError, match=r"no kernels 'x' in fabric.all_reduce; the hardware profile has nccl, sglang"):
        direct(16384, 8, "x")


def test_they_are_no_faster_than_nvlink() -> None:
    for kernels in ("vllm", "sglang", "trtllm"):
        for size in (1024, 2**18, 2**23):
            assert direct(size, 2, kernels, H800) >= size / H800.node.nvlink.bandwidth


@pytest.mark.parametrize("fit", [f for f in fit_fabric.FITS if f.table == "fabric_all_reduce"], ids=lambda f: f.name)
def test_measured_all_reduces_of_engines(fit: fit_fabric.Fit) -> None:
    rows = fit_fabric.chosen(fit)
    logs = fit_fabric.errors(fit, fit_fabric.document(fit.hardware), rows)
    held = [x for x, row in zip(logs, rows, strict=True) if row["use"] == "held out"]
    assert len(rows) == 42
    assert fit_fabric.mape(held) < 6.0
