"""Prices of whole layers: ordered by condition, equal ops priced once, what nobody calibrated said in the result."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from simulator.cost.cost import Cost
from simulator.engine import pricing
from simulator.engine.kernel_sequence import ALONE, BANDWIDTH_SHARED, COLLECTIVE, SM_SHARED, Priced
from simulator.engine.lower import price_model
from simulator.engine.power import lagging_pace
from simulator.engine.pricing import pricer
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.ops import AllToAll, Attention, Gemm, Op
from simulator.results.simulate import simulate
from simulator.spec.scenario import Scenario

SLACK = 1 + 1e-12
JOB = "deepseek-v3-pretrain"
VARIANTS: dict[str, tuple[str, ...]] = {
    "published": (),
    "bf16": ("precision.recipe=bf16",),
    "h200": ("hardware=h200",),
    "b200": ("hardware=b200",),
    "nvl72": ("hardware=gb200", "hardware.node.gpus=64"),
    "gemms take all SMs": ("stack.gemm_sms_reserved=false",),
    "co-processor": ("overlap.comm_sms=0",),
    "no node limit": ("model.topk_group=8",),
}


def ops_of(scenario: Scenario) -> dict[str, Op]:
    blocks = build_blocks(shapes_of(scenario))
    return {f"{kind} {op.segment} {op.name} {op.part}": op for kind, block in blocks.items() for op in block.ops()}


def priced(scenario: Scenario, pace: float = 1.0) -> dict[str, Priced]:
    ops = ops_of(scenario)
    all_to_all = next(op for op in ops.values() if isinstance(op.work, AllToAll))
    price = pricer(scenario, all_to_all, pace)
    return {key: price(op) for key, op in ops.items()}


@pytest.mark.parametrize("pace", [1.0, 1.3])
@pytest.mark.parametrize("name", VARIANTS)
def test_alone_is_fastest_and_a_concurrent_all_to_all_is_slowest(name: str, pace: float) -> None:
    found = priced(load_scenario(JOB, VARIANTS[name]), pace)
    assert len(found) > 200
    wrong = {
        key: one.durations
        for key, one in found.items()
        if not one.durations[ALONE] <= one.durations[SM_SHARED] * SLACK <= one.durations[BANDWIDTH_SHARED] * SLACK**2
        or not one.durations[ALONE] <= one.durations[COLLECTIVE] * SLACK
    }
    assert wrong == {}


def test_every_condition_matters_to_some_kernel() -> None:
    """The order above is not one of equals."""
    compute = [one for one in priced(load_scenario(JOB)).values() if one.op.stream == "compute"]
    assert sum(one.durations[ALONE] < one.durations[SM_SHARED] for one in compute) > 3
    assert sum(one.durations[SM_SHARED] < one.durations[BANDWIDTH_SHARED] for one in compute) > 30
    assert sum(one.durations[ALONE] < one.durations[COLLECTIVE] for one in compute) > 60


@pytest.mark.parametrize("name", ["published", "bf16", "h200"])
def test_more_sms_for_all_to_alls_slow_compute_and_speed_all_to_alls_up(name: str) -> None:
    counts = (4, 8, 12, 16, 20, 24, 32, 48, 64)
    steps = [priced(load_scenario(JOB, (*VARIANTS[name], f"overlap.comm_sms={n}"))) for n in counts]
    for fewer, more in pairwise(steps):
        for key, one in fewer.items():
            low, high = (more[key], one) if one.op.stream == "comm" else (one, more[key])
            assert all(a <= b * SLACK for a, b in zip(low.durations, high.durations, strict=True)), key


def test_a_slower_pace_slows_tensor_kernels_only() -> None:
    scenario = load_scenario(JOB)
    usual, slow = priced(scenario), priced(scenario, 1.25)
    for key, one in usual.items():
        kind = type(one.op.work).__name__
        lagging = lagging_pace(1.25, scenario.cluster.gpu.power)
        factor = {"Gemm": 1.25, "Attention": lagging}.get(kind, 1.0)
        gap = scenario.stack.kernel_gap * one.op.count
        for before, after in zip(one.durations, slow[key].durations, strict=True):
            if factor == 1.0:
                assert after == before
            else:
                assert after - gap == pytest.approx(factor * (before - gap))


def test_a_power_model_takes_the_place_of_the_limit_in_the_kernels() -> None:
    """On an H200 a step's GEMMs are the rested ones; without a power model they are priced as in the loops measured."""
    rested = load_scenario(JOB, ("hardware=h200", "precision.recipe=bf16"))
    gpu = replace(rested.cluster.gpu, power=None)
    looped = priced(replace(rested, cluster=replace(rested.cluster, gpu=gpu)))
    gemms = {key: one for key, one in priced(rested).items() if isinstance(one.op.work, Gemm) and "router" not in key}
    assert len(gemms) > 20
    assert all(one.durations[0] < looped[key].durations[0] for key, one in gemms.items())


def test_a_network_with_more_bandwidth_slows_no_op() -> None:
    """Except compute concurrent with a collective: one that moves bytes faster takes more of the memory, for a shorter
    time."""
    scenario = load_scenario(JOB)
    usual = priced(scenario)
    for tier in ("nvlink", "nic"):
        link = getattr(scenario.cluster.node, tier)
        faster = replace(link, bandwidth=1.5 * link.bandwidth, peak=1.5 * link.peak)
        cluster = replace(scenario.cluster, node=replace(scenario.cluster.node, **{tier: faster}))
        for key, one in priced(replace(scenario, cluster=cluster)).items():
            durations = zip(one.durations[:COLLECTIVE], usual[key].durations[:COLLECTIVE], strict=True)
            assert all(a <= b * SLACK for a, b in durations), key
            assert one.durations[COLLECTIVE] >= one.durations[ALONE] / SLACK, key


# Equal layers are priced once ---------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[object, ...]]:
    """How often each work was priced, by what it was granted."""
    count: Counter[tuple[object, ...]] = Counter()
    real = pricing.price

    def counting(op: Op, cluster: object, share: object, **rest: object) -> Cost:
        count[op.work, op.cls, op.count, op.stream, share, rest["concurrent"]] += 1
        return real(op, cluster, share, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pricing, "price", counting)
    return count


def test_equal_ops_are_priced_once(asked: Counter[tuple[object, ...]]) -> None:
    price_model(load_scenario(JOB), 16)
    assert max(asked.values()) == 1


def test_more_layers_cost_no_more_prices(asked: Counter[tuple[object, ...]]) -> None:
    """61 layers or 244: the same few hundred calls of a cost function, so a whole graph takes milliseconds."""
    totals = []
    for layers in (61, 244):
        asked.clear()
        price_model(load_scenario(JOB, [f"model.num_hidden_layers={layers}"]), 16)
        totals.append(sum(asked.values()))
    assert totals[0] == totals[1]
    assert totals[0] < 1000


def test_unrolling_a_step_prices_nothing_twice(asked: Counter[tuple[object, ...]]) -> None:
    """120 microbatches on 16 ranks: what the schedule repeats is looked up."""
    simulate(load_scenario(JOB, ["routing.kind=uniform"]), engine="longest-path")
    assert sum(asked.values()) < 1500


# What nobody calibrated ---------------------------------------------------------------------------------------------


def without(scenario: Scenario, kind: str, cls: str) -> Scenario:
    """A scenario whose profile has lost one kernel class."""
    kernels = scenario.cluster.kernels
    table = {name: params for name, params in getattr(kernels, kind).items() if name.partition("@")[0] != cls}
    return replace(scenario, cluster=replace(scenario.cluster, kernels=replace(kernels, **{kind: table})))


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("gemm", "gemm.fp8.wgrad"),
        ("gemm", "gemm.fp8.grouped"),
        ("stream", "quant.token"),
        ("attention", "attn.bwd"),
        ("fixed", "router.weights"),
    ],
)
def test_an_op_without_a_calibrated_class_says_so_in_the_result(tiny: Scenario, kind: str, cls: str) -> None:
    whole = simulate(tiny, engine="longest-path")
    poor = simulate(without(tiny, kind, cls), engine="longest-path")
    assert all(one.calibrated for one in whole.classes if one.cls == cls)
    mine = [one for one in poor.classes if one.cls == cls]
    assert mine
    assert not any(one.calibrated for one in mine)
    assert any(cls in warning and "not calibrated" in warning for warning in poor.warnings)
    assert not any(f" {cls}," in f"{warning}," for warning in whole.warnings if "not calibrated" in warning)


def test_assumed_links_say_so_too(tiny: Scenario) -> None:
    fabric = tiny.cluster.fabric
    loose = {name: replace(params, assumed=True) for name, params in fabric.ep.items()}
    scenario = replace(tiny, cluster=replace(tiny.cluster, fabric=replace(fabric, ep=loose)))
    result = simulate(scenario, engine="longest-path")
    assert not any(one.calibrated for one in result.classes if one.cls in ("comm.dispatch", "comm.combine"))
    assert any("comm.combine" in warning for warning in result.warnings)


def test_settings_that_nobody_measured_say_so_with_their_value(tiny: Scenario) -> None:
    stack = replace(tiny.stack, host_kernel=4e-6, sources={"host_kernel": "assumed: a guess", "norm_fused": "a paper"})
    said = simulate(replace(tiny, stack=stack), engine="longest-path").warnings
    (line,) = [warning for warning in said if "of the software" in warning]
    assert line.endswith(f"(foretrain show stack {stack.name}): host_kernel = 4 µs")
    known = replace(tiny, stack=replace(stack, sources={}))
    assert not any("of the software" in warning for warning in simulate(known, engine="longest-path").warnings)


def test_a_gpu_without_a_power_model_says_so(tiny: Scenario) -> None:
    gpu = replace(tiny.cluster.gpu, power=None)
    scenario = replace(tiny, cluster=replace(tiny.cluster, gpu=gpu))
    assert any("no power model" in warning for warning in simulate(scenario, engine="longest-path").warnings)
    assert not any("no power model" in warning for warning in simulate(tiny, engine="longest-path").warnings)


def norms(whose: str) -> dict[str, Priced]:
    scenario = load_scenario("llama-3-8b", ["stack=torch-compile", f"stack.norm_kernels={whose}"])
    price = pricer(scenario, None)
    return {op.name: price(op) for op in ops_of(scenario).values() if op.cls.startswith("norm.")}


def test_norms_are_those_of_the_software() -> None:
    """torch.compile's kernels have one CTA per row: with a concurrent collective they need no second wave, unlike
    DeepSeek's grids."""
    compiled, fused = norms("compiled"), norms("training")
    assert len(compiled) == len(fused) > 3
    for name, one in compiled.items():
        assert "torch.compile" in one.cost.source
        assert "DeepSeek" in fused[name].cost.source
        assert one.durations[COLLECTIVE] < 1.3 * one.durations[ALONE]
    assert any(one.durations[COLLECTIVE] > 1.5 * one.durations[ALONE] for one in fused.values())


# Releases of libraries ----------------------------------------------------------------------------------------------


def gemms_and_cores(*changes: str) -> dict[str, Priced]:
    scenario = load_scenario("llama-3-8b", ["stack=megatron-core", "hardware=h100", *changes])
    price = pricer(scenario, None)
    return {op.name: price(op) for op in ops_of(scenario).values() if isinstance(op.work, (Gemm, Attention))}


def test_an_earlier_release_lengthens_its_librarys_kernels_alone() -> None:
    now = gemms_and_cores()
    gemms, cores = gemms_and_cores("stack.cublas=12.5"), gemms_and_cores("stack.cudnn=9.2")
    longer = load_scenario("llama-3-8b", ["hardware=h100"]).cluster.kernels.releases
    for name, one in now.items():
        is_gemm = isinstance(one.op.work, Gemm)
        lengthened, same = (gemms, cores) if is_gemm else (cores, gemms)
        known = longer["cublas-12.5" if is_gemm else "cudnn-9.2"].longer
        cls = lengthened[name].op.cls
        factor = known[{"attn.fwd": "attn.fwd@library.causal", "attn.bwd": "attn.bwd@library.causal"}.get(cls, cls)]
        assert lengthened[name].cost.duration == pytest.approx(factor * one.cost.duration)
        assert dict(lengthened[name].cost.terms)["release"] == factor > 1.0
        assert same[name].cost == one.cost
    assert {one.op.cls for one in now.values()} >= {"gemm.bf16", "gemm.bf16.wgrad", "attn.fwd", "attn.bwd"}


def test_a_release_of_attention_kernels_that_do_not_run_changes_nothing() -> None:
    fa2 = gemms_and_cores("stack.attention=fa2")
    assert {name: one.cost for name, one in gemms_and_cores("stack.attention=fa2", "stack.cudnn=9.2").items()} == {
        name: one.cost for name, one in fa2.items()
    }


def test_a_release_that_was_not_measured_on_a_gpu_says_so() -> None:
    changes = ["stack=megatron-core", "stack.cublas=12.5", "layout.tp=1"]
    said, silent = (
        simulate(load_scenario("llama-3-8b", [*changes, f"hardware={gpu}"]), engine="longest-path").warnings
        for gpu in ("b200", "h100")
    )
    assert any("not measured on" in warning and "cublas-12.5" in warning for warning in said)
    assert not any("cublas" in warning for warning in silent)
