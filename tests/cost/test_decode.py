"""Decode attention: the cut of the keys, bounds, and measured kernels that no parameter was fitted to."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from hardware_profiles.calibration.evaluate import GPUS, predict
from hardware_profiles.calibration.infersim import infersim, mla_decode
from hardware_profiles.calibration.sample import Sample, split
from hardware_profiles.calibration.samples import decode_attention
from simulator.cost.cost import Cost, Share
from simulator.cost.decode_cost import cut, decode_attention_cost, last_end, parts_of
from simulator.errors import InputError
from simulator.inputs import load_hardware
from simulator.ops import DecodeAttention
from tests.cost.profiles import kernels_of

H800, KERNELS = GPUS["h800"], kernels_of("h800")
MLA, FA2 = KERNELS.decode["attn.decode.mla"], KERNELS.decode["attn.decode@fa2"]
LLAMA = DecodeAttention(batch=64, heads=32, kv_heads=8, d_qk=128, d_v=128, kv_len=4096)
CLASSES = ("attn.decode", "attn.decode@fa2", "attn.decode@fa3", "attn.decode@flashinfer", "attn.decode.mla")


def cost(work: DecodeAttention, cls: str = "attn.decode.mla", sms: int = 132) -> Cost:
    return decode_attention_cost(work, cls, H800, KERNELS, Share(sms=sms))


def measured(cls: str) -> list[Sample]:
    return [s for s in (*decode_attention(), *infersim()) if s.cls == cls and s.hardware != "h100"]


@pytest.mark.parametrize(
    ("cls", "count"),
    [
        ("attn.decode@fa2", 122),
        ("attn.decode@flashinfer", 33),
        ("attn.decode.mla@flashmla", 17),
        ("attn.decode@fa3", 124),
        ("attn.decode.mla@fa3", 212),
        ("attn.decode.fp8@fa3", 77),
        ("attn.decode@fa3_vllm", 77),
        ("attn.decode.fp8@fa3_vllm", 77),
        ("attn.decode@trtllm", 77),
        ("attn.decode.fp8@trtllm", 77),
        ("attn.decode.mla@trtllm", 75),
        ("attn.decode.mla.fp8@trtllm", 75),
    ],
)
def test_measured_kernels_that_no_parameter_was_fitted_to(cls: str, count: int) -> None:
    samples = measured(cls)
    assert len(samples) == count
    _, held = split(samples)
    assert len(held) == count // 2
    off = [abs(predict(s, kernels_of(s.hardware)) / s.seconds - 1.0) for s in held]
    assert mean(off) < (0.09 if cls == "attn.decode@trtllm" else 0.08)


def test_kernels_of_a_gpu_that_no_fit_saw() -> None:
    """FlashAttention-3 on H100, predicted from H200."""
    samples = [s for s in decode_attention() if s.hardware == "h100"]
    assert len(samples) == 105
    assert mean(abs(predict(s, kernels_of("h100")) / s.seconds - 1.0) for s in samples) < 0.08


def test_bytes_and_flops_by_hand() -> None:
    """A latent is read once for all heads; an FP8 cache is half as large; new tokens add FLOP, no cache."""
    mla = mla_decode(128, 4096)
    assert mla.flops == 2 * 128 * 128 * 4096 * (576 + 512)
    assert mla.kv_bytes == 128 * 4096 * 576 * 2
    assert mla.bytes == mla.kv_bytes + 2 * 128 * 128 * (576 + 512)
    assert replace(mla, kv_dtype="fp8").kv_bytes == mla.kv_bytes / 2
    assert replace(mla, kv_dtype="fp8_ds_mla").kv_bytes == pytest.approx(128 * 4096 * 656)
    assert mla_decode(128, 4096, 2).flops == 2 * mla.flops
    assert mla_decode(128, 4096, 2).kv_bytes == mla.kv_bytes
    assert LLAMA.kv_bytes == 64 * 4096 * 8 * 256 * 2


def test_time_by_hand() -> None:
    """128 sequences, 8192 keys: on 66 pairs of SMs, 128 x (128 + 5) key blocks, at most 258 each."""
    one = cost(mla_decode(128, 8192))
    terms = dict(one.terms)
    assert terms["blocks"] == -(-128 * (8192 // 64 + 5) // 66)
    step = MLA.block_time + 2 * 64 * 64 * 1088 / (MLA.rate * H800.peak.bf16 / 132)
    assert terms["block_s"] == pytest.approx(step)
    assert terms["tensor_s"] == pytest.approx(terms["blocks"] * step + MLA.tile_time)
    assert terms["memory_s"] == pytest.approx(2 * (128 * 8192 * 576 + 128 * 128 * 1088) / (MLA.bandwidth * 3.35e12))
    assert terms["tensor_s"] < one.duration - MLA.launch < terms["tensor_s"] + terms["memory_s"]
    assert one.bound_by == "tensor"


def test_flash_attentions_rule_of_parts() -> None:
    """264 CTAs: 128 tiles are cut in two (97 % of a wave), 256 fill it alone, few blocks allow no more parts."""
    assert parts_of(128, 264, 64, 0.8, 0.85, 128) == 2
    assert parts_of(256, 264, 64, 0.8, 0.85, 128) == 1
    assert parts_of(8, 264, 4, 0.8, 0.85, 128) == 4
    assert parts_of(1, 264, 1024, 0.8, 0.85, 128) <= 128


def test_uncut_sequences_run_in_another_kernel() -> None:
    whole, parted = cut(LLAMA, FA2, 132), cut(replace(LLAMA, batch=16), FA2, 132)
    assert (whole.parts, whole.rows, whole.keys) == (1, FA2.whole_q, FA2.whole_kv)
    assert (parted.parts, parted.rows, parted.keys) == (2, FA2.block_q, FA2.block_kv)


def test_fewer_heads_than_a_tile_cost_a_tile_and_twice_as_many_less_than_twice() -> None:
    """One tile of heads is bound by memory, whose latents a second tile reads again for nothing."""
    few, tile, more = (cost(replace(mla_decode(64, 65536), heads=h)).duration for h in (16, 64, 128))
    assert few == pytest.approx(tile, rel=1e-2)
    assert 1.1 * tile < more < 1.8 * tile


@pytest.mark.parametrize("cls", CLASSES)
def test_more_work_never_takes_less_time_where_memory_is_busy(cls: str) -> None:
    """Whole doublings: a rule of parts may make slightly more work faster, a doubling it may not."""
    for batch in (16, 64, 256):
        for keys in (2048, 16384, 65536):
            work = replace(LLAMA, batch=batch, kv_len=keys)
            base = cost(work, cls).duration
            assert base < cost(replace(work, kv_len=2 * keys), cls).duration
            assert base < cost(replace(work, batch=2 * batch), cls).duration
            assert base <= cost(replace(work, q_len=2), cls).duration
            spared = KERNELS.decode[cls].merge + 128 * KERNELS.decode[cls].merge_step  # fewer CTAs, fewer parts
            assert base <= cost(work, cls, sms=66).duration + spared
            assert cost(replace(work, kv_dtype="fp8"), cls).duration <= base


def test_no_faster_than_memory_and_tensor_cores() -> None:
    for cls in CLASSES:
        for work in (LLAMA, replace(LLAMA, batch=1), mla_decode(64, 16384)):
            bound = max(work.bytes / H800.hbm_bandwidth, work.flops / H800.peak.bf16)
            assert cost(work, cls).duration > bound


@pytest.mark.parametrize(
    ("change", "said"),
    [({"kv_len": 0}, "must be at least 1"), ({"kv_heads": 5}, "kv_heads 5: must divide the 32 query heads")],
)
def test_what_cannot_be_is_refused(change: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cost(replace(LLAMA, **change))
    with pytest.raises(InputError, match="granted 0 SMs"):
        cost(LLAMA, sms=0)


@pytest.mark.parametrize("cls", ["attn.decode@fa2", "attn.decode.mla@flashmla"])
def test_lengths_that_are_equal_cost_what_one_number_costs(cls: str) -> None:
    cluster = load_hardware("h200" if cls.endswith("fa2") else "h800")
    heads = (32, 8, 128, 128) if cls.endswith("fa2") else (128, 1, 576, 512)

    def seconds(lengths: tuple[int, ...]) -> float:
        work = DecodeAttention(
            batch=64, heads=heads[0], kv_heads=heads[1], d_qk=heads[2], d_v=heads[3], kv_len=2048, lengths=lengths
        )
        share = Share(sms=cluster.gpu.sms)
        return decode_attention_cost(work, cls, cluster.gpu, cluster.kernels, share).duration

    plain = seconds(())
    assert seconds((2048,) * 64) == pytest.approx(plain, rel=1e-12)
    assert plain <= seconds((1024, 3072) * 32) <= seconds((3072,) * 64) <= 2 * plain
    assert seconds((3072,) * 32 + (1024,) * 32) == pytest.approx(plain, rel=0.1)  # well packed; more parts to merge


def test_the_last_cta_ends_by_hand() -> None:
    """Two SMs, parts of up to 4 blocks: 4, 4 | 2, 3 | 1: the fourth ends at 7, the fifth at 7."""
    assert last_end((8, 2, 3, 1), 1, 4, 2) == 7
    assert last_end((5,), 3, 5, 2) == 10


def test_lengths_must_be_those_of_the_batch() -> None:
    cluster = load_hardware("h800")
    work = DecodeAttention(batch=3, heads=8, kv_heads=8, d_qk=128, d_v=128, kv_len=9, lengths=(4, 5))
    with pytest.raises(InputError, match="lengths of 2 sequences: must be 3"):
        decode_attention_cost(work, "attn.decode@fa3", cluster.gpu, cluster.kernels, Share(sms=132))
