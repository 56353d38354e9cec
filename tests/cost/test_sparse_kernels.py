"""Kernels of DeepSeek-V3.2's sparse attention on H800, as InferSim's tables have them (Apache-2.0, 2026): compared, not
fitted."""

from __future__ import annotations

import pytest

from simulator.cost.attention_cost import attention_cost
from simulator.cost.cost import Share
from simulator.cost.decode_cost import decode_attention_cost
from simulator.inputs import load_hardware
from simulator.ops import Attention, DecodeAttention

H800 = load_hardware("h800")
ALL = Share(sms=132)


@pytest.mark.parametrize(
    ("keys", "measured_us", "within"), [(8192, 36.21, 0.30), (65536, 205.456, 0.05), (131072, 394.036, 0.05)]
)
def test_the_indexer_of_a_decode_step(keys: int, measured_us: float, within: float) -> None:
    work = DecodeAttention(batch=64, heads=64, kv_heads=1, d_qk=128, d_v=1, kv_len=keys, kv_dtype="fp8")
    found = decode_attention_cost(work, "attn.decode.index@flashmla", H800.gpu, H800.kernels, ALL)
    assert found.duration * 1e6 == pytest.approx(measured_us, rel=within)
    assert not found.calibrated


def test_attention_to_chosen_tokens_in_decode() -> None:
    work = DecodeAttention(batch=64, heads=128, kv_heads=1, d_qk=576, d_v=512, kv_len=2048, latent=True, kv_dtype="fp8")
    found = decode_attention_cost(work, "attn.decode.mla@flashmla", H800.gpu, H800.kernels, ALL)
    assert found.duration * 1e6 == pytest.approx(96.311, rel=0.16)


def test_attention_to_chosen_tokens_of_a_prompt() -> None:
    work = Attention(
        batch=1, seq_q=4096, seq_kv=6144, heads=128, kv_heads=1, d_qk=576, d_v=512, window=2048, cached=2048
    )
    found = attention_cost(work, "attn.fwd.sparse", H800.gpu, H800.kernels, ALL)
    assert found.duration * 1e6 == pytest.approx(3843.789, rel=0.15)
    assert not found.calibrated
