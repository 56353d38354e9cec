"""Samples of InferSim's kernel tables on H800 and H20 (tables h800_kernels, h20_kernels)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from hardware_profiles.calibration.sample import Row, Sample, Work, gemm, integer, number, rows
from simulator.ops import Attention, DecodeAttention, Gemm, GemmForm

ROWS_FROM, ROWS_TO = 0.7, 1.3
"""Each group of InferSim's grouped GEMMs has so many times the nominal rows, sampled uniformly between these
(kernel_benchmark/deepgemm_grouped_gemm_{contiguous,masked}.py)."""
GPU_COUNTS = (1, 4, 8, 16, 32, 64, 128, 256)
SETS = {"grouped": 1, "masked": 10}
"""Sets of rows that those scripts sample for a GEMM; the last one is timed."""
LEAST_GROUPS = {"grouped": 4, "masked": 1}
SIZES = {
    ("h800", "grouped"): (1024, 4096, 8192, 16384),
    ("h20", "grouped"): (1024, 4096, 8192, 16384, 32768),
    ("h800", "masked"): (16, 32, 64, 128, 256, 512),
    ("h20", "masked"): (16, 32, 64, 128, 256, 512),
}
"""Tokens of a GPU, in the order of the runs."""
Sampled = dict[tuple[int, int, str], tuple[int, ...]]


@cache
def _sampled_rows(hardware: str, form: str, experts: int, top_k: int) -> Sampled:
    """Tokens per group that ran, by GPUs, tokens of each and GEMM: the scripts seed their random numbers with 0, so
    they can be sampled again in the order of the runs."""
    rng, out = random.Random(0), {}
    for gpus in GPU_COUNTS:
        groups = experts // gpus
        if experts % gpus or groups < LEAST_GROUPS[form]:
            continue
        for tokens in SIZES[hardware, form]:
            mean = round(tokens * top_k / groups)
            for projection in ("up", "down") if mean else ():
                for _ in range(SETS[form]):
                    sampled = tuple(int(mean * rng.uniform(ROWS_FROM, ROWS_TO)) for _ in range(groups))
                out[gpus, tokens, projection] = sampled
    return out


DIGITS = 5e-4
"""Times of InferSim's tables have four digits."""


def _as_sampled(work: Work, hardware: str, row: Row, projection: str, peak: float) -> Work:
    """A grouped GEMM with the rows that ran.

    Their total follows from the utilisation of `peak` [FLOP/s] that is given with the time. Where the rows sampled
    again have another total, since the order of runs differed, they are spread as on average.
    """
    if not isinstance(work, Gemm) or work.form == "dense":
        return work
    mfu, us = row[f"{projection}_mfu"], number(row, f"{projection}_proj_us")
    total = float(mfu) * peak * us * 1e-6 / (2.0 * work.n * work.k)
    run = integer(row, "num_gpus"), integer(row, "seq_len_per_gpu") or integer(row, "batch_size_per_gpu"), projection
    sampled = _sampled_rows(hardware, work.form, integer(row, "num_experts"), integer(row, "topk")).get(run, ())
    rounding = 0.5 * 10.0 ** -len(mfu.partition(".")[2]) / float(mfu) + DIGITS
    if abs(sum(sampled) / total - 1.0) > rounding:
        step = (ROWS_TO - ROWS_FROM) / work.groups
        sampled = tuple(round(total / work.groups * (ROWS_FROM + step * (i + 0.5))) for i in range(work.groups))
    sampled = tuple(max(1, r) for r in sampled)
    return replace(work, m=work.m if work.form == "masked" else sum(sampled), rows=sampled)


HOST_BOUND = 40.0
"""FlashInfer's decode kernels were timed by calls from Python one after the other, without a graph
(kernel_benchmark/flashinfer_mha_decode.py): below 40 us the table shows the host (27 to 37 us for any shape)."""


def mla_decode(batch: int, keys: int, q_len: int = 1) -> DecodeAttention:
    """Absorbed attention of DeepSeek-V3's 128 heads over a BF16 cache of 576 entries a token."""
    return DecodeAttention(batch=batch, heads=128, kv_heads=1, d_qk=576, d_v=512, kv_len=keys, q_len=q_len, latent=True)


def _mha_decode(row: Row) -> DecodeAttention:
    heads, kv_heads, dim = (int(x) for x in row["heads"].split("-"))
    return DecodeAttention(
        batch=integer(row, "batch_size"), heads=heads, kv_heads=kv_heads, d_qk=dim, d_v=dim,
        kv_len=integer(row, "kv_len"),
    )  # fmt: skip


def _infersim_row(row: Row) -> Iterator[tuple[str, Work, float]]:
    kind = row["kind"]
    if kind == "gemm_fp8":
        work = gemm(integer(row, "m"), integer(row, "n"), integer(row, "k"), "fp8_block")
        yield "gemm.fp8@library", work, number(row, "latency_us")
    elif kind.startswith("grouped_gemm"):
        prefill = kind.endswith("prefill")
        groups, tokens = integer(row, "num_local_experts"), integer(row, "tokens_per_expert")
        hidden, inner = integer(row, "hidden_size"), integer(row, "intermediate_size")
        form: GemmForm = "grouped" if prefill else "masked"
        cls = "gemm.fp8.grouped@library" if prefill else "gemm.fp8.masked"
        m = tokens * groups if prefill else tokens
        yield cls, gemm(m, 2 * inner, hidden, "fp8_block", form, groups), number(row, "up_proj_us")
        yield cls, gemm(m, hidden, inner, "fp8_block", form, groups), number(row, "down_proj_us")
    elif kind == "mla_prefill":
        seq = integer(row, "seq_len")
        mla = Attention(batch=1, seq_q=seq, seq_kv=seq, heads=128, kv_heads=128, d_qk=192, d_v=128)
        yield "attn.fwd", mla, number(row, "latency_us")
    elif kind == "mla_decode":
        yield (
            "attn.decode.mla@flashmla",
            mla_decode(integer(row, "batch_size"), integer(row, "kv_len")),
            number(row, "latency_us"),
        )
    elif kind == "mha_decode" and number(row, "latency_us") > HOST_BOUND:
        yield "attn.decode@flashinfer", _mha_decode(row), number(row, "latency_us")
    elif kind == "mha_prefill":
        seq, heads, dim = integer(row, "seq_len"), integer(row, "heads"), integer(row, "head_dim")
        mha = Attention(
            batch=1, seq_q=seq, seq_kv=seq, heads=heads, kv_heads=integer(row, "kv_heads"), d_qk=dim, d_v=dim
        )
        yield "attn.fwd", mha, number(row, "latency_us")


def _tall(work: Work, sms: int) -> bool:
    """Whether the DeepGEMM of InferSim's tables took tiles of 256 rows for a masked GEMM.

    It took, of tiles not wider than 160 columns, those with the fewest waves, then with the most in the last one
    (csrc/jit_kernels/heuristics/common.hpp of 2025). Groups of more rows than expected then cost a whole tile more;
    later versions take at most 128 rows.
    """
    if not isinstance(work, Gemm) or work.form != "masked":
        return False
    tiles = [(m, n) for m in (64, 128, 256) for n in (*range(16, 129, 16), 144, 160) if m <= 128 or n <= 128]

    def rank(tile: tuple[int, int]) -> tuple[int, int, int]:
        count = -(-work.m // tile[0]) * -(-work.n // tile[1]) * work.groups
        return -(-count // sms), -(count % sms or sms), tile[0]

    return min(tiles, key=rank)[0] == 256


def infersim() -> list[Sample]:
    """InferSim's tables (DeepGEMM, FlashAttention-3) on all SMs of H800 and H20.

    Masked GEMMs in tiles of 256 rows are apart: no class stands for them.
    """
    out = []
    for hardware, sms, peak in (("h800", 132, 1979e12), ("h20", 78, 296e12)):
        for row in rows(f"{hardware}_kernels.csv"):
            for (cls, work, us), projection in zip(_infersim_row(row), ("up", "down"), strict=False):
                ran = _as_sampled(work, hardware, row, projection, peak)
                out.append(
                    Sample(
                        hardware=hardware, cls=f"{cls}@tile256" if _tall(work, sms) else cls, work=(ran,),
                        seconds=us * 1e-6, table=f"{hardware}_kernels", label=row["kind"], sms=sms,
                        shape=repr((work,)),
                    )
                )  # fmt: skip
    return out
