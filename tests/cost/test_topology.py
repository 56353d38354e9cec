"""Cluster networks against the published table, and bandwidth that oversubscription leaves."""

from __future__ import annotations

import csv
from dataclasses import replace
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.topology import attained, build, capacity, hops, latency, pod
from simulator.errors import InputError
from simulator.spec.comm_params import Network

TABLES = files("hardware_profiles") / "calibration" / "tables"
IB = Network(
    kind="fat_tree_3",
    planes=1,
    ports=64,
    oversubscription=1.0,
    pod=0,
    base_latency=2.35e-6,
    hop_latency=4.5e-7,
    collisions=1.0,
    source="test",
)


def rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((TABLES / name).read_text().splitlines()))


@pytest.mark.parametrize("row", rows("fabric_topology.csv"), ids=lambda row: row["kind"])
def test_published_table_of_networks(row: dict[str, str]) -> None:
    network = build(row["kind"], ports=int(row["ports"]))  # type: ignore[arg-type]
    counts = network.endpoints, network.switches, network.links
    assert counts == (int(row["endpoints"]), int(row["switches"]), int(row["links"]))
    assert network.cost == pytest.approx(1e6 * float(row["cost_musd"]), rel=0.01)
    assert network.cost_per_endpoint == pytest.approx(1e3 * float(row["cost_per_endpoint_kusd"]), rel=0.02)


def test_every_port_of_a_fat_tree_is_used() -> None:
    for kind in ("fat_tree_2", "fat_tree_3"):
        network = build(kind, ports=16)
        assert 16 * network.switches == 2 * network.links + network.endpoints


def test_planes_multiply_a_two_layer_tree() -> None:
    one, eight = build("fat_tree_2"), build("multi_plane_fat_tree", planes=8)
    assert eight.endpoints == 8 * one.endpoints
    assert eight.cost_per_endpoint == pytest.approx(one.cost_per_endpoint)


def test_latencies_of_table_5() -> None:
    times = {(row["link"], row["path"]): 1e-6 * float(row["time_us"]) for row in rows("fabric_latency.csv")}
    two_layer = replace(IB, kind="fat_tree_2")
    assert latency(two_layer, same_leaf=True) == pytest.approx(times["ib", "same_leaf"])
    assert latency(two_layer) == pytest.approx(times["ib", "cross_leaf"])
    roce = replace(two_layer, base_latency=2.6e-6, hop_latency=1.0e-6)
    assert latency(roce) == pytest.approx(times["roce", "cross_leaf"])


def test_hops_grow_with_layers() -> None:
    assert hops(IB, same_leaf=True) == 1
    assert hops(replace(IB, kind="fat_tree_2")) == 3
    assert hops(IB) == 5


def test_oversubscription_bites_only_beyond_the_pod() -> None:
    network = replace(IB, oversubscription=2.0, pod=256)
    assert attained(network, 50e9, 256) == 50e9
    assert attained(network, 50e9, 384) == 50e9  # a third leaves, half could
    assert attained(network, 50e9, 1024) == pytest.approx(50e9 * 0.5 / 0.75)


def test_pod_defaults_to_one_leaf_of_each_plane() -> None:
    assert pod(IB) == 32
    assert pod(replace(IB, oversubscription=3.0)) == 48
    assert pod(replace(IB, kind="multi_plane_fat_tree", planes=8)) == 256
    assert attained(replace(IB, oversubscription=3.0), 50e9, 48) == 50e9
    assert attained(replace(IB, oversubscription=3.0), 50e9, 4800) == pytest.approx(50e9 / 3 / 0.99)


def test_colliding_flows_slow_what_leaves_the_pod() -> None:
    ecmp = replace(IB, collisions=0.8)
    assert attained(ecmp, 50e9, 32) == 50e9
    assert attained(ecmp, 50e9, 65536) == pytest.approx(40e9, rel=1e-3)


def test_a_full_network_keeps_the_attainable_bandwidth() -> None:
    assert attained(IB, 50e9, 65536) == 50e9


def test_oversubscribed_leaves_hold_more_endpoints() -> None:
    assert capacity(IB) == 65536
    assert capacity(replace(IB, oversubscription=3.0)) == 98304


@given(over=st.floats(1.0, 8.0), more=st.floats(0.0, 8.0), near=st.integers(1, 512), endpoints=st.integers(1, 4096))
def test_less_network_is_never_faster(over: float, more: float, near: int, endpoints: int) -> None:
    network = replace(IB, oversubscription=over, pod=near)
    thinner = replace(network, oversubscription=over + more)
    assert attained(thinner, 50e9, endpoints) <= attained(network, 50e9, endpoints)
    assert attained(network, 50e9, endpoints + 1) <= attained(network, 50e9, endpoints) <= 50e9


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: build("fat_tree_2", ports=7), "network.ports = 7"),
        (lambda: build("multi_plane_fat_tree", planes=0), "network.planes = 0"),
        (lambda: attained(replace(IB, oversubscription=0.5), 1.0, 8), "oversubscription = 0.5"),
        (lambda: attained(replace(IB, collisions=0.0), 1.0, 8), "collisions = 0.0"),
        (lambda: attained(replace(IB, pod=-1), 1.0, 8), "pod = -1"),
    ],
)
def test_bad_input_is_one_line(call: object, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        call()  # type: ignore[operator]
    assert "\n" not in str(error.value)
