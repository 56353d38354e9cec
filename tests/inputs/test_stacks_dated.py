"""Stacks by release: each says only what differs from the one it extends, with a source of its own."""

from __future__ import annotations

import tomllib
from importlib.resources import files

import pytest

from simulator.inputs import load_scenario, load_stack
from simulator.results.simulate import simulate

FOLDER = files("workloads").joinpath("stacks")
NEW = ("nemo-24", "megatron-core-2026", "megascale", "deepspeed", "maxtext")
NEW += ("torchtitan", "torchtitan-2025", "nanotron", "llm-foundry")


def raw(name: str) -> dict[str, object]:
    return tomllib.loads(FOLDER.joinpath(f"{name}.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NEW)
def test_what_differs_has_its_own_source_and_does_differ(name: str) -> None:
    found = raw(name)
    base, own = load_stack(str(found["extends"])), load_stack(name)
    sources = found["sources"]
    assert isinstance(sources, dict)
    for key, value in found.items():
        if key in ("extends", "sources", "optimizer", "precision"):
            continue
        assert key in sources, key
        assert getattr(own, key) == value
        assert getattr(base, key) != value or own.sources[key] != base.sources[key], (
            f"{key} is as in {found['extends']}"
        )


def step(job: str, stack: str) -> float:
    return simulate(load_scenario(job, (f"stack={stack}",)), engine="longest-path").metrics["step_time_s"]


def test_what_differs_moves_a_forecast_the_way_it_should() -> None:
    """Overlaps and fused attention make MegaScale faster than the Megatron-LM of its time; a compiled program beats
    eager modules that copy their shards."""
    dense = {stack: step("llama-3-8b", stack) for stack in ("megatron-lm", "megascale", "deepspeed", "maxtext")}
    assert dense["megascale"] < dense["megatron-lm"]
    assert dense["maxtext"] < dense["deepspeed"]


def test_a_release_changes_experts_and_attention() -> None:
    assert step("llama-3-8b", "nemo-24") > step("llama-3-8b", "megatron-core")  # FlashAttention-2, not cuDNN's
    old = simulate(load_scenario("deepseek-v3-1f1b", ("stack=nemo-24",)), engine="longest-path")
    new = simulate(load_scenario("deepseek-v3-1f1b", ("stack=megatron-core",)), engine="longest-path")
    classes = {c.cls for c in old.classes} - {c.cls for c in new.classes}
    assert "unpermute.gather_sum" in classes
