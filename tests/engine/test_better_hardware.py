"""Faster hardware does not make a step slower; where it does, the cause is known."""

from __future__ import annotations

import pytest

from simulator.engine.kernel_sequence import ALONE
from simulator.inputs import load_scenario
from simulator.results.simulate import simulate

REPORTED = (
    "hardware=h800", "precision.recipe=fp8_tensor", "stack=torch", "layout.tp=1", "layout.pp=2", "gpus=64",
    "batch.global_batch_size=128", "model.num_hidden_layers=32", "layout.zero=3", "layout.schedule=zb1p",
    "batch.sequence_length=2048", "overlap.comm_sms=8",
)  # fmt: skip
"""A step of Llama 3 8B that was 3.5 % slower without a gap between kernels."""


def step(job, *overrides, engine="events"):
    return simulate(load_scenario(job, overrides), engine=engine).metrics["step_time_s"]


@pytest.mark.parametrize("engine", ["events", "longest-path"])
def test_smaller_gaps_between_kernels_only_help(engine):
    gaps = ("2e-6", "1e-6", "5e-7", "0.0")
    times = [step("llama-3-8b", *REPORTED, f"stack.kernel_gap={gap}", engine=engine) for gap in gaps]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("change", ["hardware.node.nvlink.bandwidth", "hardware.node.nic.bandwidth"])
@pytest.mark.parametrize("job", ["tiny-1f1b", "tiny-dualpipe"])
def test_more_bandwidth_only_helps(job, change):
    node = load_scenario(job).cluster.node
    link = node.nvlink if "nvlink" in change else node.nic
    times = [step(job, f"{change}={factor * link.bandwidth}") for factor in (1.0, 1.25, 1.5, 2.0)]
    assert times == sorted(times, reverse=True)


def attention(*overrides):
    """Time alone of one kernel that leaves most SMs idle [s]."""
    result = simulate(load_scenario("tiny-1f1b", overrides), engine="longest-path")
    sequences = result.timeline.tasks.sequence
    return next(op.durations[ALONE] for one in sequences for op in one.ops if op.op.name == "attn.core.bwd")


def test_more_sms_at_the_same_peak_are_slower_sms():
    """A kernel that does not fill the GPU waits for its SMs; with as much more peak they are as fast as before."""
    gpu = load_scenario("tiny-1f1b").cluster.gpu
    more = f"hardware.gpu.sms={gpu.sms * 5 // 4}"
    peaks = [f"hardware.gpu.peak.{name}={getattr(gpu.peak, name) * 5 / 4}" for name in ("bf16", "fp8", "fp32")]
    assert attention(more) > attention()
    assert attention(more, *peaks) <= attention() * (1 + 1e-9)
