"""Every assumed constant has a range with its source, and the tornado and the interval use it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from importlib.resources import files
from operator import attrgetter

import pytest

from simulator.inputs import load_hardware, load_scenario, load_stack
from simulator.studies.known_errors import transferred
from simulator.studies.ranges import carried, stated
from simulator.studies.sensitivity import _numbers, assumed_knobs, knobs

UNTIMED = ("price_per_gpu_hour",)
"""No step time depends on it."""
CHOICES = (
    *("prefill", "chunked", "step_tokens", "sequences", "reserved_output", "block", "prefix_cache"),
    *("captured", "captured_prefill", "host_cache", "disk_cache", "stream_interval"),
)
"""Settings of a scheduler that are copied from an engine: choices, not constants."""


def names(folder: str, package: str) -> list[str]:
    entries = files(package).joinpath(folder).iterdir() if folder else files(package).iterdir()
    return sorted(path.name.removesuffix(".toml") for path in entries if path.name.endswith(".toml"))


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def hardware_constants(name: str) -> Iterator[tuple[str, float, str, str]]:
    """Path, value, source and own name of every assumed number of a cluster but those of kernel classes."""
    cluster = load_hardware(name)
    for path in cluster.assumed:
        if path not in UNTIMED:
            yield path, attrgetter(path)(cluster), cluster.sources[path], ""
    for f in fields(cluster.fabric):
        group = getattr(cluster.fabric, f.name)
        for one in group.values() if isinstance(group, dict) else [group]:
            if getattr(one, "assumed", False):
                yield from ((f"{f.name}.{path}", value, one.source, path) for path, value in _numbers(one))


@pytest.mark.parametrize("name", names("", "hardware_profiles"))
def test_no_assumed_number_of_the_hardware_lacks_a_range(name: str) -> None:
    for path, value, source, own in hardware_constants(name):
        ends = stated(source, value, own)
        assert ends is not None, f"{name}: {path}: {source}"
        assert ends[0] <= value <= ends[1], f"{name}: {path} = {value:g}: {ends}"
        assert ends[0] < ends[1], f"{name}: {path}"


@pytest.mark.parametrize("name", names("stacks", "workloads"))
def test_no_assumed_number_of_a_stack_lacks_a_range(name: str) -> None:
    stack = load_stack(name)
    for path in stack.assumed:
        value = attrgetter(path)(stack)
        if is_number(value) and path.rpartition(".")[2] not in CHOICES:
            ends = stated(stack.sources[path], value)
            assert ends is not None, f"{name}: {path}: {stack.sources[path]}"
            assert ends[0] <= value <= ends[1], f"{name}: {path} = {value:g}: {ends}"


@pytest.mark.parametrize(
    ("source", "name", "wanted"),
    [
        ("assumed: x; range 2 to 6", "", (2.0, 6.0)),
        ("assumed: x; range 6e-1 to 0.2: why", "", (0.2, 0.6)),
        ("assumed: x", "", None),
        ("y; range alpha 1e-5 to 3.2e-4, hop 4e-6 to 3e-5: why", "hop", (4e-6, 3e-5)),
        ("y; range alpha 1e-5 to 3.2e-4, hop 4e-6 to 3e-5; layout_alpha 1 to 2", "protocols.layout_alpha", (1.0, 2.0)),
        ("y; range alpha 1e-5 to 3.2e-4", "step", None),
        ("y; each number 0.5 to 2 times: why", "step", (0.25, 1.0)),
        ("y; each number 0.5 to 3 times: why", "ll.payload", (0.25, 1.0)),
    ],
)
def test_ranges_are_read_from_sources(source: str, name: str, wanted: tuple[float, float] | None) -> None:
    found = stated(source, 0.5, name)
    assert found == (None if wanted is None else pytest.approx(wanted))


def test_what_is_carried_over_is_as_far_off_as_classes_are_elsewhere() -> None:
    low, high = carried(2.0)
    assert low * high == pytest.approx(4.0)
    assert 1.05 < high / 2.0 < 1.0 + 3.0 * transferred()


def test_the_barrier_of_the_all_to_all_has_its_own_range_in_tornado_and_interval() -> None:
    """At most 0.5 ms over 64 ranks, as DeepSeek's trace says; at least three barriers' latencies."""
    scenario = load_scenario("deepseek-v3-pretrain")
    for found in (knobs(scenario), assumed_knobs(scenario)):
        alpha, hop = (next(k for k in found if k.path == f"hardware.fabric.notify.{n}") for n in ("alpha", "hop"))
        assert alpha.high + 6 * hop.high == pytest.approx(0.5e-3)
        assert alpha.low < 0.1 * alpha.value
    classes = [k.path for k in knobs(load_scenario("llama-3-8b")) if "notify" in k.path]
    assert classes == []


def test_every_assumed_knob_of_a_job_states_where_its_range_comes_from() -> None:
    for job, hardware in (("deepseek-v3-pretrain", "h800"), ("llama-3-8b", "gb200"), ("llama-3-8b", "a100")):
        for knob in knobs(load_scenario(job, [f"hardware={hardware}"])):
            if knob.kind == "assumed":
                assert any(word in knob.source for word in (" to ", "no range of its own")), knob.path
                assert knob.low < knob.high
