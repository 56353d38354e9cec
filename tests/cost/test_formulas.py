"""The formula that `explain` and `kernel` print gives the time, with the numbers printed below it."""

from __future__ import annotations

import pytest

from simulator.cost.attention_cost import attention_cost
from simulator.cost.cost import Cost, Share
from simulator.cost.gemm_cost import gemm_cost, norm4
from simulator.cost.streaming_cost import streaming_cost
from simulator.inputs import load_hardware
from simulator.ops import Attention, Gemm, Streaming

GPUS = ("h800", "h100", "h200", "h20", "b200", "a100")


def worked_out(cost: Cost) -> float:
    """The printed formula, evaluated with the printed terms [s]."""
    terms = {name.removesuffix("_s"): value for name, value in cost.terms}
    return float(eval(cost.formula, {"norm4": norm4, "min": min, "max": max}, terms))


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("sms", [1.0, 0.85])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(4096, 24576, 1536), (256, 512, 16384), (8, 7168, 2048), (4097, 7168, 18432)]
)
def test_gemm(name: str, sms: float, m: int, n: int, k: int) -> None:
    cluster = load_hardware(name)
    share = Share(sms=int(sms * cluster.gpu.sms), partner_traffic=3e11 if sms < 1 else 0.0)
    for cls in cluster.kernels.gemm:
        precision = "fp8_block" if cls.startswith("gemm.fp8") else "bf16"
        work = Gemm(m=m, n=n, k=k, precision=precision)
        cost = gemm_cost(work, cls, cluster.gpu, cluster.kernels, share)
        terms = dict(cost.terms)
        assert worked_out(cost) == pytest.approx(cost.duration)
        assert terms["tile_s"] == pytest.approx(terms["k_steps"] * terms["step_s"] + terms["ends_s"])
        rate = terms.get("loop_rate") or terms["power_rate"]
        assert terms["power_s"] == pytest.approx(2.0 * m * n * k / rate)
        assert terms["memory_s"] >= terms["bytes"] / terms["bandwidth"]


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("seq", "heads", "causal"), [(4096, 128, True), (512, 1, True), (8192, 16, False)])
def test_attention(name: str, backward: bool, seq: int, heads: int, causal: bool) -> None:
    cluster = load_hardware(name)
    work = Attention(
        batch=1, seq_q=seq, seq_kv=seq, heads=heads, kv_heads=heads, d_qk=128, d_v=128, causal=causal, backward=backward
    )
    for cls in cluster.kernels.attention:
        cost = attention_cost(work, cls, cluster.gpu, cluster.kernels, Share(sms=cluster.gpu.sms, partner_traffic=1e11))
        terms = dict(cost.terms)
        assert worked_out(cost) == pytest.approx(cost.duration)
        assert terms["tile_s"] == pytest.approx(terms["key_blocks"] * terms["block_s"] + terms["ends_s"])


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize(("size", "blocks"), [(1e9, 0), (1e9, 131072), (2e6, 264), (1e3, 1)])
def test_streaming(name: str, size: float, blocks: int) -> None:
    cluster = load_hardware(name)
    work = Streaming(read=size / 2, written=size / 2, blocks=blocks)
    for cls in cluster.kernels.stream:
        cost = streaming_cost(work, cls, cluster.gpu, cluster.kernels, Share(sms=cluster.gpu.sms - 20))
        terms = dict(cost.terms)
        assert worked_out(cost) == pytest.approx(cost.duration)
        cached = terms.get("cached_bytes", 0.0)
        gain = terms.get("l2_gain", 1.0)
        assert terms["memory_s"] == pytest.approx((size - cached + cached / gain) / terms["bandwidth"])
        ctas, resident = terms.get("ctas", 0.0), terms.get("resident", 0.0)
        in_turn = max(1.0, ctas / (resident * terms["sms"])) if resident else 1.0
        assert terms["chain_s"] == pytest.approx(terms.get("cta_s", 0.0) * in_turn)
