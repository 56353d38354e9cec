"""Attention of one layer as a module: the sum of its ops, held against measurements of the whole."""

from __future__ import annotations

import pytest

from simulator.engine.lower import price_model
from simulator.inputs import load_scenario
from simulator.spec.model import BlockKind
from simulator.validation import grouped, validate
from simulator.validation.serving.attention_modules import attention_module, module_rows


def test_it_is_the_sum_of_the_ops_behind_the_norm():
    figure = next(one for one in module_rows() if one.id == "K.mla_decode.h100.fa3.b16.l4096")
    own = ["model=deepseek-v3", "hardware=h100", "stack=sglang", "precision.recipe=fp8", "serving.sequences=16"]
    own += ["serving.context=4096", "serving.kv_dtype=fp8"]
    built = price_model(load_scenario("llama-3-8b-decode", own), 1)
    times = {op.name: built.price(op).durations[0] for op in built.blocks[BlockKind.DENSE].ops()}
    inside = {"attn.q_b", "attn.core", "attn.w_uk", "attn.w_uv", "attn.o", "rope.qk", "attn.kv.write"}
    assert inside <= set(times)
    mine = sum(t for name, t in times.items() if name.startswith(("attn.", "rope.", "norm.latents")))
    assert attention_module(figure) == pytest.approx(1e6 * mine)
    assert attention_module(figure) > 1e6 * sum(times[name] for name in inside)


def test_how_well_modules_are_met():
    """Not better than this today, and only compared with: short kernels of decode are too slow."""
    groups = {group.name: group for group in grouped(validate(["K"]))}
    assert sum(len(group.outcomes) for group in groups.values()) == len(module_rows()) == 82
    assert {group.use for group in groups.values()} == {"comparison"}
    assert groups["K.mla_prefill"].mape < 0.15
    assert groups["K.mla_decode"].mape < 0.60
