"""Max-min fair sharing: the textbook cases and its defining property."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine.contention import Flow, component, max_min, oversubscribed


def test_one_link_is_shared_equally() -> None:
    flows = {name: Flow(10.0, (("a", 1.0),)) for name in "xyz"}
    assert max_min(flows, {"a": 15.0}) == pytest.approx({"x": 5.0, "y": 5.0, "z": 5.0})


def test_what_a_capped_flow_leaves_goes_to_the_others() -> None:
    flows = {"small": Flow(2.0, (("a", 1.0),)), "large": Flow(100.0, (("a", 1.0),))}
    assert max_min(flows, {"a": 10.0}) == pytest.approx({"small": 2.0, "large": 8.0})


def test_bertsekas_gallager_example() -> None:
    """One long flow over two links, one short on each; the second link is wider."""
    flows = {
        "long": Flow(99.0, (("a", 1.0), ("b", 1.0))),
        "first": Flow(99.0, (("a", 1.0),)),
        "second": Flow(99.0, (("b", 1.0),)),
    }
    assert max_min(flows, {"a": 1.0, "b": 2.0}) == pytest.approx({"long": 0.5, "first": 0.5, "second": 1.5})


@st.composite
def networks(draw: st.DrawFn) -> tuple[dict[int, Flow], dict[str, float]]:
    capacity = {name: draw(st.floats(1.0, 100.0)) for name in "abcd"}
    flows = {}
    for key in range(draw(st.integers(1, 6))):
        names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
        uses = tuple((name, draw(st.floats(0.1, 3.0))) for name in names)
        flows[key] = Flow(draw(st.floats(0.5, 80.0)), uses)
    return flows, capacity


@given(networks())
@settings(deadline=None)
def test_nothing_is_overfull_and_every_flow_has_a_reason_to_stop(
    network: tuple[dict[int, Flow], dict[str, float]],
) -> None:
    flows, capacity = network
    rates = max_min(flows, capacity)
    load = dict.fromkeys(capacity, 0.0)
    for key, flow in flows.items():
        assert 0.0 < rates[key] <= flow.cap * (1 + 1e-9)
        for name, weight in flow.uses:
            load[name] += weight * rates[key]
    for name, value in load.items():
        assert value <= capacity[name] * (1 + 1e-6)
    for key, flow in flows.items():
        full = any(load[name] >= capacity[name] * (1 - 1e-6) for name, _ in flow.uses)
        assert full or rates[key] == pytest.approx(flow.cap)


def test_components_follow_shared_links() -> None:
    flows = {1: Flow(1.0, (("a", 1.0),)), 2: Flow(1.0, (("a", 1.0), ("b", 1.0))), 3: Flow(1.0, (("c", 1.0),))}
    users = {"a": [1, 2], "b": [2], "c": [3]}
    assert sorted(component(1, flows, users)) == [1, 2]
    assert component(3, flows, users) == [3]
    assert not oversubscribed([1, 2], flows, {"a": 2.0, "b": 1.0})
    assert oversubscribed([1, 2], flows, {"a": 1.9, "b": 1.0})
