"""From the tables of measurements to samples: one measured time of one or more kernels, with all the model needs."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import exp, log
from pathlib import Path
from zlib import crc32

from simulator.engine.pricing import collective_of
from simulator.errors import InputError
from simulator.graph.attention import softmax_class
from simulator.inputs import load_hardware
from simulator.ops import Attention, Fixed, Gemm, GemmForm, GemmPrecision, Streaming

TABLES = Path(__file__).parent / "tables"
COMM_TRAFFIC = 3e11
"""Memory traffic of a DeepEP kernel [B/s]: about 1.2 GB (FP8 dispatch of 4096 tokens, staged in buffers of both sides)
in 4 ms, 2.3 GB (BF16 combine) in 6.3 ms."""
MOVER_RATE = 3e10
"""Memory traffic of one SM of the copying neighbour of the contention table [B/s], from its own effect on the norm."""
HELD_OUT_EVERY = 3
FEW_SHAPES = 6
FEW_SAMPLES = 4
Work = Gemm | Attention | Streaming | Fixed
Row = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`seconds` measured for `work` (several: their sum) on `sms` SMs of `hardware` beside `traffic` [B/s];
    `repeat` counts measurements of the same shape in a table; `rested`: the share of the measured time in which the
    GPU, rested before, still ran at its boost clock (1: each launch found it there); `shape`: what the split knows it
    by, where `work` holds more than the table's own shape."""

    hardware: str
    cls: str
    work: tuple[Work, ...]
    seconds: float
    table: str
    label: str = ""
    sms: int = 132
    traffic: float = 0.0
    resolution: float = 2e-7
    weight: float = 1.0
    repeat: int = 0
    rested: float = 0.0
    shape: str = ""


def split(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples to fit and samples held out.

    Of a class's distinct shapes in a table, every third in the order of a checksum of the shape alone is held out, with
    all measurements of it. With fewer than `FEW_SHAPES` shapes, those of the trace's second layer pair are held out
    where that leaves two to fit; the rest are fitted whole.
    """
    held: set[int] = set()
    for key in {(s.cls, s.table) for s in samples}:
        mine = [s for s in samples if (s.cls, s.table) == key]
        shapes = sorted({s.shape or repr(s.work) for s in mine}, key=lambda r: crc32(r.encode()))
        kept = set(shapes[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
        if len(shapes) >= FEW_SHAPES:
            held |= {id(s) for s in mine if (s.shape or repr(s.work)) in kept}
        elif len(mine) >= FEW_SAMPLES:
            held |= {id(s) for s in mine if s.repeat > 0}
    return [s for s in samples if id(s) not in held], [s for s in samples if id(s) in held]


DISTURBED = 1.5
"""A run that takes so many times as long as another of its shape shared the GPU with something else."""


def merged(samples: list[Sample]) -> list[Sample]:
    """One sample a shape where several runs of it were measured, rested or not: their weighted geometric mean, without
    runs that were disturbed."""
    groups: dict[tuple[object, ...], list[Sample]] = {}
    for s in samples:
        groups.setdefault((s.hardware, s.cls, s.work, s.sms, s.traffic, s.rested > 0.5), []).append(s)
    out = []
    for runs in groups.values():
        same = [s for s in runs if s.seconds < DISTURBED * min(run.seconds for run in runs)]
        weight = sum(s.weight for s in same)
        mean = exp(sum(s.weight * log(s.seconds) for s in same) / weight)
        rested = sum(s.weight * s.rested for s in same) / weight
        out.append(replace(same[0], seconds=mean, weight=1.0, rested=rested))
    return out


def rows(table: str | Path) -> list[Row]:
    """Rows of a table, by name or path; lines that start with # are its header of sources."""
    with open(table if isinstance(table, Path) else TABLES / table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def _int(row: Row, key: str, default: int = 0) -> int:
    return int(float(row[key])) if row.get(key) else default


def _float(row: Row, key: str) -> float:
    return float(row[key]) if row.get(key) else 0.0


def _gemm(
    m: int, n: int, k: int, precision: GemmPrecision, form: GemmForm = "dense", groups: int = 1, out: float = 2.0
) -> Gemm:
    return Gemm(m=m, n=n, k=k, precision=precision, form=form, groups=groups, out_bytes=out)


# --- H800: the training trace ---------------------------------------------------------------------------------------

VARIANTS = {
    "attn.k_pe.bcast": "elem.strided",
    "attn.k_pe.bcast_r": "elem.strided",
    "attn.k_pe.copy": "elem.strided",
    "attn.k_pe.reduce": "elem.reduce",
    "attn.kv_slice.copy": "elem.strided",
    "attn.kv_slice.copy_r": "elem.strided",
    "attn.dkv_a.copy_kv": "elem.strided",
    "attn.dkv_a.copy_pe": "elem.strided",
    "moe.down.quant_g_t": "quant.chan_t.permuted",
    "moe.up_gate.quant_x_t": "quant.chan_t.permuted",
    "moe.up_gate.scale_t": "scale_t.rows",
    "moe.up_gate.scale_t_g": "scale_t.rows",
    "moe.down.scale_t": "scale_t.rows",
    "moe.down.scale_t_g": "scale_t.rows",
    "norm.ffn.fwd_residual": "norm.fwd.residual",
    "norm.kv_lora.fwd": "norm.fwd.narrow",
    "norm.kv_lora.recompute": "norm.fwd.narrow",
    "norm.q_lora.fwd": "norm.fwd.narrow",
    "norm.q_lora.recompute": "norm.fwd.narrow",
    "router.gate.fwd": "gemm.bf16.router",
    "router.gate.dgrad": "gemm.bf16.router",
    "router.gate.wgrad": "gemm.bf16.router",
    "router.top8_of_256": "router.topk",
    "router.topk_2nd(aux loss)": "router.topk",
}
"""Ops whose kernel is another than that of the rest of their class."""

VARIANTS |= {
    f"norm.{norm}.{kernel}": "elem.norm_weight"
    for norm in ("attn", "ffn", "q_lora", "kv_lora")
    for kernel in ("bwd_finalize", "wgrad_acc")
}
NORM_COLUMNS = 32
"""Columns of the weight's gradient that a CTA of the finalize kernel sums up."""
CHOSEN, BALANCE, ALL_AGAIN = 43, 60, 15
"""Numbers of the gate's `small_op`s from which on they work, forward, on the chosen experts' weights and on the sums
for the balance; backward, on all scores again."""


def _trace_share(row: Row, gemm: bool) -> tuple[int, float]:
    if row["op"] == "moe.combine.bwd.quant" and row["period"] == "1":
        return 20, 0.0  # on the communication stream, beside a GEMM that holds 112 SMs
    time = _float(row, "dur_us")
    moving = _float(row, "ov_dispatch") + _float(row, "ov_combine")
    resident = moving + _float(row, "ov_notify")
    sms = 112 if gemm or resident > 0.5 * time else 132
    return sms, COMM_TRAFFIC * min(1.0, moving / time) if time else 0.0


def _norm_weight_bytes(row: Row) -> float:
    """Bytes of the two kernels that finish the weight's gradient of a norm [B]: partial sums of every CTA of its
    backward; the FP32 gradient added to the main one."""
    norm, _, kernel = row["op"].rpartition(".")
    if VARIANTS.get(row["op"]) != "elem.norm_weight":
        return 0.0
    trace = {r["op"]: _int(r, "blocks") for r in rows("h800_trace.csv") if r["op"].startswith(norm)}
    width = NORM_COLUMNS * trace[f"{norm}.bwd_finalize"]
    return 4.0 * width * (trace[f"{norm}.bwd"] + 1 if kernel == "bwd_finalize" else 3)


def _router_part(row: Row) -> str:
    """Class of a small kernel of the gate; none for those of the profile alone."""
    op = row["op"]
    if op in ("router.sigmoid", "router.group_top4"):
        return "router.scores"
    if op == "router.aux_fi":
        return "router.balance"
    if "small_op_" not in op:
        return ""
    number = int(op.rpartition("_")[2])
    if op.startswith("router.bwd."):
        return "router.weights" if number < ALL_AGAIN else "router.scores"
    return "router.scores" if number < CHOSEN else "router.weights" if number < BALANCE else "router.balance"


def _router_scores() -> Iterator[Sample]:
    """The gate's kernels over all scores, FP32 in and out: the mean of those of a phase."""
    mine = [row for row in rows("h800_trace.csv") if _router_part(row) == "router.scores"]
    scores = Streaming(read=4096 * 256 * 4, written=4096 * 256 * 4)
    for phase, period in sorted({(row["phase"], row["period"]) for row in mine}):
        times = [_float(row, "dur_us") for row in mine if (row["phase"], row["period"]) == (phase, period)]
        yield Sample(
            hardware="h800", cls="router.scores", work=(scores,), seconds=1e-6 * sum(times) / len(times),
            table="h800_trace", label=f"router.scores {phase}", resolution=5e-7 / len(times) ** 0.5,
            repeat=int(period),
        )  # fmt: skip


def _trace_work(row: Row) -> Work | None:
    cls, m, n, k = row["cls"], _int(row, "M"), _int(row, "N"), _int(row, "K")
    if cls in ("attn.fwd", "attn.bwd"):
        return Attention(
            batch=1, seq_q=4096, seq_kv=4096, heads=128, kv_heads=128, d_qk=192, d_v=128, backward=cls == "attn.bwd"
        )
    if cls == "gemm.fp8.grouped":
        return _gemm(m, n, k, "fp8_block", "grouped", 4)
    if cls == "gemm.fp8.wgrad":
        return _gemm(m, n, k, "fp8_block", "wgrad", out=4.0)
    if cls == "gemm.fp8":
        return _gemm(m, n, k, "fp8_block")
    if cls == "gemm.bf16":
        wgrad = row["op"] == "router.gate.wgrad"
        return _gemm(m, n, k, "bf16", "wgrad" if wgrad else "dense", out=4.0 if wgrad else 2.0)
    size = _float(row, "bytes") or _norm_weight_bytes(row)
    if row["op"].startswith("router.top"):
        return Streaming(read=4096 * 256 * 4, written=0)
    return Streaming(read=size / 2, written=size / 2, blocks=_int(row, "blocks")) if size else None


def trace() -> list[Sample]:
    """Kernels of the H800 training trace. A weight gradient that shares the GPU with one on the other stream counts
    with the mean of its layer's experts."""
    out: list[Sample] = []
    merged: dict[tuple[str, str], list[Row]] = {}
    for row in rows("h800_trace.csv"):
        work = _trace_work(row)
        if work is None:
            continue
        if row["cls"] == "gemm.fp8.wgrad" and row["op"].startswith("moe."):
            merged.setdefault((row["op"], row["period"]), []).append(row)
            continue
        out.append(_trace_sample(row, work, _float(row, "eff_us")))
    for experts in merged.values():
        work = _trace_work(experts[0])
        assert work is not None
        out.append(_trace_sample(experts[0], work, sum(_float(r, "eff_us") for r in experts) / len(experts)))
    return [*out, *_router_scores()]


def _trace_sample(row: Row, work: Work, microseconds: float) -> Sample:
    sms, traffic = _trace_share(row, row["cls"].startswith("gemm.fp8"))
    cls = VARIANTS.get(row["op"], row["cls"])
    return Sample(
        hardware="h800", cls=cls, work=(work,), seconds=microseconds * 1e-6,
        table="h800_trace", label=row["op"], sms=sms, traffic=traffic, resolution=5e-7,
        repeat=_int(row, "period"),
    )  # fmt: skip


def trace_fixed() -> dict[str, list[float]]:
    """Times of the trace's kernels that have no bytes of note [s], by class."""
    out: dict[str, list[float]] = {}
    for row in rows("h800_trace.csv"):
        cls = _router_part(row) if row["cls"] == "router" else ""
        if row["cls"] == "permute.map":
            cls = row["op"].replace("moe.map", "permute.map")
        if row["op"] == "moe.tensormap.fill":
            cls = "tensormap"
        if cls and cls != "router.scores":
            out.setdefault(cls, []).append(_float(row, "dur_us") * 1e-6)
    return out


# --- InferSim's tables ----------------------------------------------------------------------------------------


ROWS_FROM, ROWS_TO = 0.7, 1.3
"""Each group of InferSim's grouped products has so many times the nominal rows, drawn evenly between these
(kernel_benchmark/deepgemm_grouped_gemm_{contiguous,masked}.py)."""
GPU_COUNTS = (1, 4, 8, 16, 32, 64, 128, 256)
SETS = {"grouped": 1, "masked": 10}
"""Sets of rows that those scripts draw for a product; the last one is timed."""
LEAST_GROUPS = {"grouped": 4, "masked": 1}
SIZES = {
    ("h800", "grouped"): (1024, 4096, 8192, 16384),
    ("h20", "grouped"): (1024, 4096, 8192, 16384, 32768),
    ("h800", "masked"): (16, 32, 64, 128, 256, 512),
    ("h20", "masked"): (16, 32, 64, 128, 256, 512),
}
"""Tokens of a GPU, in the order of the runs."""
Drawn = dict[tuple[int, int, str], tuple[int, ...]]


@cache
def _drawn(hardware: str, form: str, experts: int, top_k: int) -> Drawn:
    """Rows of every group that ran, by GPUs, tokens of each and product: the scripts seed their random numbers with 0,
    so that they can be drawn again, in the order of the runs."""
    rng, out = random.Random(0), {}
    for gpus in GPU_COUNTS:
        groups = experts // gpus
        if experts % gpus or groups < LEAST_GROUPS[form]:
            continue
        for tokens in SIZES[hardware, form]:
            mean = round(tokens * top_k / groups)
            for product in ("up", "down") if mean else ():
                sets = ([int(mean * rng.uniform(ROWS_FROM, ROWS_TO)) for _ in range(groups)] for _ in range(SETS[form]))
                out[gpus, tokens, product] = tuple(list(sets)[-1])
    return out


DIGITS = 5e-4
"""Times of InferSim's tables have four digits."""


def _as_drawn(work: Work, hardware: str, row: Row, product: str, peak: float) -> Work:
    """A grouped product with the rows that ran.

    Their total follows from the utilisation of `peak` [FLOP/s] that stands beside the time. Where the rows drawn again
    have another total, a run of another order, they are spread as they were drawn on average.
    """
    if not isinstance(work, Gemm) or work.form == "dense":
        return work
    mfu, us = row[f"{product}_mfu"], _float(row, f"{product}_proj_us")
    total = float(mfu) * peak * us * 1e-6 / (2.0 * work.n * work.k)
    run = _int(row, "num_gpus"), _int(row, "seq_len_per_gpu") or _int(row, "batch_size_per_gpu"), product
    rows = _drawn(hardware, work.form, _int(row, "num_experts"), _int(row, "topk")).get(run, ())
    rounding = 0.5 * 10.0 ** -len(mfu.partition(".")[2]) / float(mfu) + DIGITS
    if abs(sum(rows) / total - 1.0) > rounding:
        step = (ROWS_TO - ROWS_FROM) / work.groups
        rows = tuple(round(total / work.groups * (ROWS_FROM + step * (i + 0.5))) for i in range(work.groups))
    rows = tuple(max(1, r) for r in rows)
    return replace(work, m=work.m if work.form == "masked" else sum(rows), rows=rows)


def _infersim_row(row: Row) -> Iterator[tuple[str, Work, float]]:
    kind = row["kind"]
    if kind == "gemm_fp8":
        work = _gemm(_int(row, "m"), _int(row, "n"), _int(row, "k"), "fp8_block")
        yield "gemm.fp8@library", work, _float(row, "latency_us")
    elif kind.startswith("grouped_gemm"):
        prefill = kind.endswith("prefill")
        groups, tokens = _int(row, "num_local_experts"), _int(row, "tokens_per_expert")
        hidden, inner = _int(row, "hidden_size"), _int(row, "intermediate_size")
        form: GemmForm = "grouped" if prefill else "masked"
        cls = "gemm.fp8.grouped@library" if prefill else "gemm.fp8.masked"
        m = tokens * groups if prefill else tokens
        yield cls, _gemm(m, 2 * inner, hidden, "fp8_block", form, groups), _float(row, "up_proj_us")
        yield cls, _gemm(m, hidden, inner, "fp8_block", form, groups), _float(row, "down_proj_us")
    elif kind == "mla_prefill":
        seq = _int(row, "seq_len")
        mla = Attention(batch=1, seq_q=seq, seq_kv=seq, heads=128, kv_heads=128, d_qk=192, d_v=128)
        yield "attn.fwd", mla, _float(row, "latency_us")
    elif kind == "mha_prefill":
        seq, heads, dim = _int(row, "seq_len"), _int(row, "heads"), _int(row, "head_dim")
        mha = Attention(batch=1, seq_q=seq, seq_kv=seq, heads=heads, kv_heads=_int(row, "kv_heads"), d_qk=dim, d_v=dim)
        yield "attn.fwd", mha, _float(row, "latency_us")


def _tall(work: Work, sms: int) -> bool:
    """Whether the DeepGEMM of InferSim's tables took tiles of 256 rows for a masked product.

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

    Masked products in tiles of 256 rows are apart: no class stands for them.
    """
    out = []
    for hardware, sms, peak in (("h800", 132, 1979e12), ("h20", 78, 296e12)):
        for row in rows(f"{hardware}_kernels.csv"):
            for (cls, work, us), product in zip(_infersim_row(row), ("up", "down"), strict=False):
                ran = _as_drawn(work, hardware, row, product, peak)
                out.append(
                    Sample(
                        hardware=hardware, cls=f"{cls}@tall" if _tall(work, sms) else cls, work=(ran,),
                        seconds=us * 1e-6, table=f"{hardware}_kernels", label=row["kind"], sms=sms,
                        shape=repr((work,)),
                    )
                )  # fmt: skip
    return out


# --- published figures ----------------------------------------------------------------------------------------------

FORM_CLASS = {"dense": "", "wgrad": ".wgrad", "grouped": ".grouped", "grouped_wgrad": ".grouped_wgrad"}


def _published_gemm(row: Row) -> tuple[str, Work]:
    form: GemmForm = row["form"]  # type: ignore[assignment]
    precision: GemmPrecision = row["precision"]  # type: ignore[assignment]
    out = 4.0 if "wgrad" in form else 2.0
    work = _gemm(_int(row, "m"), _int(row, "n"), _int(row, "k"), precision, form, _int(row, "groups", 1), out)
    if precision == "fp8_block" and row["hardware"] != "h800":
        return f"gemm.fp8{FORM_CLASS[form]}@{row['impl']}", work
    if precision == "fp8_block":
        return ("gemm.fp8.masked" if form == "masked" else f"gemm.fp8{FORM_CLASS[form]}@library"), work
    return f"gemm.{precision}", work


def _published_attention(row: Row) -> Iterator[tuple[str, Attention]]:
    suffix = "@fa2" if row["impl"] == "fa2" and row["hardware"] != "a100" else ""
    for backward in {"0": (False,), "1": (True,), "fwdbwd": (False, True)}[row["backward"]]:
        fp8 = row["precision"] == "fp8"
        yield (
            ("attn.bwd" if backward else "attn.fwd") + (".fp8" if fp8 else "") + suffix,
            Attention(
                batch=_int(row, "batch"), seq_q=_int(row, "seq"), seq_kv=_int(row, "seq"), heads=_int(row, "heads"),
                kv_heads=_int(row, "kv_heads"), d_qk=_int(row, "d_qk"), d_v=_int(row, "d_v"),
                causal=row["causal"] == "1", backward=backward, precision="fp8" if fp8 else "bf16",
            ),
        )  # fmt: skip


def published() -> list[Sample]:
    """Kernel figures published by others: DeepGEMM, aiconfigurator, FlashAttention-2 and -3.

    DeepGEMM's first revision (2025-02-26) is left out: the figures of later ones supersede it.
    """
    out = []
    for row in rows("published_kernels.csv"):
        if ".r0226." in row["id"]:
            continue
        if row["op"] == "gemm":
            cls, work = _published_gemm(row)
            works: tuple[Work, ...] = (work,)
        else:
            pairs = list(_published_attention(row))
            cls, works = pairs[0][0], tuple(a for _, a in pairs)
        out.append(
            Sample(
                hardware=row["hardware"], cls=cls, work=works, seconds=_float(row, "us") * 1e-6,
                table="published_kernels", label=row["id"], sms=108 if row["hardware"] == "a100" else 132,
            )
        )  # fmt: skip
    return out


# --- H200: the older table and our own measurements ------------------------------------------------------------------

STREAM_CLASS = {
    "copy": "elem", "add": "elem", "gelu": "gelu", "rmsnorm": "norm.fwd@library", "cast_fp8": "quant.tensor",
    "transpose": "transpose",
    "swiglu": "swiglu@library", "quant_token": "quant.token@library",
    "loss_fwd_eager": "loss", "loss_bwd_eager": "loss.bwd", "embedding": "embedding", "adam": "optimizer",
    "rmsnorm_compiled": "norm.fwd@compiled", "rmsnorm_residual_compiled": "norm.fwd.residual@compiled",
    "rmsnorm_bwd_compiled": "norm.bwd@compiled",
}  # fmt: skip
VOCABULARY = 16000
"""PyTorch's cross-entropy over fewer classes runs another kernel, half as fast: a small share of a vocabulary that
tensor parallelism splits is priced too fast."""
COMPILED = ("swiglu", "quant_token", "rmsnorm_compiled", "rmsnorm_residual_compiled", "rmsnorm_bwd_compiled")
PRECISION_CLASS = {
    "bf16": "gemm.bf16", "fp8_tensor": "gemm.fp8_tensor", "fp8_row": "gemm.fp8_row", "fp8_block": "gemm.fp8@library",
    "fp8_block_fprop": "gemm.fp8@library", "fp8_block_both": "gemm.fp8.wgrad@library",
}  # fmt: skip


OUT_BYTES = {"wgrad": 4.0, "wgrad_write": 4.0, "grouped_wgrad": 1.0}
"""Bytes of an output of PyTorch's products: its grouped weight gradients are BF16 written once, which counts like FP8
read and written."""


def _h200_precision(text: str) -> GemmPrecision:
    return "fp8_block" if text.startswith("fp8_block") else text  # type: ignore[return-value]


def h200_older() -> list[Sample]:
    """The H200 table measured before (CUDA events, L2 flushed)."""
    out = []
    for row in rows("h200_kernels.csv"):
        op = row["op"]
        if op in ("gemm", "grouped_gemm"):
            grouped = op == "grouped_gemm"
            groups = int(row["name"][1:]) if grouped else 1
            m, n, k = _int(row, "M"), _int(row, "N"), _int(row, "K")
            work: Work = _gemm(m, n, k, _h200_precision(row["prec"]), "grouped" if grouped else "dense", groups)
            pairs = [(PRECISION_CLASS[row["prec"]] + (".grouped" if grouped else ""), work, _float(row, "us"))]
        elif op == "attn":
            pairs = list(_h200_attention(row))
        elif op == "mem":
            size = _float(row, "bytes") / 2
            pairs = [(STREAM_CLASS[row["name"]], Streaming(read=size, written=size), _float(row, "us"))]
        else:
            continue
        out += [
            Sample(
                hardware="h200",
                cls=c,
                work=(w,),
                seconds=t * 1e-6,
                table="h200_kernels",
                label=row["name"] or op,
                weight=2.0,
            )
            for c, w, t in pairs
        ]
    return out


def _h200_attention(row: Row) -> Iterator[tuple[str, Work, float]]:
    suffix = "@library" if row["name"].startswith("CUDNN") else "@fa2"
    for backward, column in ((False, "us_fwd"), (True, "us_bwd")):
        work = Attention(
            batch=_int(row, "B"), seq_q=_int(row, "S"), seq_kv=_int(row, "S"), heads=_int(row, "H"),
            kv_heads=_int(row, "H"), d_qk=_int(row, "dq"), d_v=_int(row, "dv"), causal=True, backward=backward,
        )  # fmt: skip
        yield ("attn.bwd" if backward else "attn.fwd") + suffix, work, _float(row, column)


def _measured_gemm(row: Row) -> tuple[str, Work] | None:
    form = row["form"]
    if form == "wgrad_write":  # written, not accumulated: a plain product with an FP32 output
        cls = {"fp8_block_both": "gemm.fp8.wgrad@library"}.get(row["precision"])
        if cls is None:
            return None
    else:
        cls = PRECISION_CLASS[row["precision"]] + FORM_CLASS[form]
    work = _gemm(
        _int(row, "m"), _int(row, "n"), _int(row, "k"), _h200_precision(row["precision"]),
        "dense" if form == "wgrad_write" else form,  # type: ignore[arg-type]
        _int(row, "groups", 1), OUT_BYTES.get(form, 2.0),
    )  # fmt: skip
    if row["impl"] == "torch_slow":
        return None  # without fast accumulation: a kernel of its own, of a class that no job runs
    if not row.get("rows"):
        return cls, work
    if form != "grouped":
        return None  # a group's share of k is not modelled
    return cls, replace(work, rows=tuple(map(int, row["rows"].split())))


def _measured_attention(row: Row) -> tuple[str, Work] | None:
    # cuDNN's backward without a mask falls to another, four times slower kernel at 192/128
    if row["impl"] == "cudnn" and row["d_qk"] == "192" and row["backward"] == "1" and row["causal"] == "0":
        return None
    backward = row["backward"] == "1"
    attention = Attention(
        batch=_int(row, "batch"), seq_q=_int(row, "seq"), seq_kv=_int(row, "seq"), heads=_int(row, "heads"),
        kv_heads=_int(row, "kv_heads"), d_qk=_int(row, "d_qk"), d_v=_int(row, "d_v"),
        causal=row["causal"] == "1", backward=backward,
    )  # fmt: skip
    suffix = "@library" if row["impl"] == "cudnn" else "@fa2"
    return ("attn.bwd" if backward else "attn.fwd") + suffix, attention


def _measured(row: Row) -> tuple[str, Work] | None:
    op, kernel = row["op"], row.get("kernel", "")
    if op == "gemm":
        return _measured_gemm(row)
    if op == "attention":
        return _measured_attention(row)
    if op == "rmsnorm" and "mode" in row:
        return None  # compiled in `h200_measured`, the first shape in twice its time; eager in the older table
    if kernel.startswith("Memcpy") or (op in COMPILED and kernel and not kernel.startswith("triton")):
        return None  # the driver's own copy, or the compiler gave the shape up
    if op.startswith("loss") and _int(row, "n") < VOCABULARY:
        return None
    cls = softmax_class(_int(row, "n")) if op == "softmax" else STREAM_CLASS.get(op)
    if cls is None or row.get("mode", "cold") != "cold":
        return None
    size = _float(row, "bytes") / 2
    return cls, Streaming(read=size, written=size)


def own_table(path: Path, hardware: str) -> list[Sample]:
    """Rows of a table as `measure_h200.py` writes it, measured on `hardware`.

    Raises:
        InputError: The file cannot be read, or a row lacks a column or names a kernel that is not known.
    """
    out = []
    try:
        table = rows(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', error)}: must be a CSV table") from None
    for number, row in enumerate(table, 1):
        try:
            pair = _measured(row)
            seconds = float(row["us"]) * 1e-6 if pair else 0.0
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: row {number}: {error}: must be as measure_h200.py writes it") from None
        if pair is not None:
            label = f"{row['op']} {row.get('mode', 'rested')}"
            out.append(
                Sample(
                    hardware=hardware, cls=pair[0], work=(pair[1],), seconds=seconds, table=path.stem, label=label,
                )
            )  # fmt: skip
    return out


def h200_measured() -> list[Sample]:
    """What `measure_h200.py` measured."""
    return own_table(TABLES / "h200_measured.csv", "h200")


def h100_measured() -> list[Sample]:
    """What `measure_rested.py` measured on an H100; layouts of operands, and a shape in both tables, count as runs of
    one shape."""
    return merged([s for table in H100_TABLES for s in own_table(TABLES / f"{table}.csv", "h100")])


H100_TABLES = ("h100_measured", "h100_more", "h100_further", "h100_compiled")
"""Measured one after the other: most shapes of each are random ones of its own."""


def h100_unseen() -> list[Sample]:
    """Measured once the form of the model was settled: compared with, never fitted. Shapes that the other tables
    hold, too, are left out."""
    known = {(s.cls, s.work) for s in (*h100_measured(), *deepgemm())}
    new = [*merged(own_table(TABLES / "h100_unseen.csv", "h100")), *deepgemm("h100_deepgemm_unseen")]
    return [s for s in new if (s.cls, s.work) not in known]


DEEPGEMM_CLASS = {
    "dense": "gemm.fp8@deepgemm", "grouped": "gemm.fp8.grouped@library", "masked": "gemm.fp8.masked",
    "wgrad": "gemm.fp8.wgrad@deepgemm",
}  # fmt: skip
DEEPGEMM_TABLE = "h100_deepgemm"


def deepgemm(table: str = DEEPGEMM_TABLE) -> list[Sample]:
    """What `measure_deepgemm.py` measured on an H100."""
    out = []
    for row in rows(f"{table}.csv"):
        form: GemmForm = row["form"]  # type: ignore[assignment]
        work = _gemm(
            _int(row, "expected") or _int(row, "m"), _int(row, "n"), _int(row, "k"), "fp8_block", form,
            _int(row, "groups"), OUT_BYTES.get(form, 2.0),
        )  # fmt: skip
        out.append(
            Sample(
                hardware="h100", cls=DEEPGEMM_CLASS[form], seconds=_float(row, "us") * 1e-6, table=table, label=form,
                work=(replace(work, rows=tuple(map(int, row["rows"].split()))),),
            )
        )  # fmt: skip
    return merged(out)


CONTENTION_CASES: dict[str, tuple[str, Work]] = {
    "gemm_bf16_4096x24576x1536": ("gemm.bf16", _gemm(4096, 24576, 1536, "bf16")),
    "gemm_bf16_4096x1536x7168": ("gemm.bf16", _gemm(4096, 1536, 7168, "bf16")),
    "gemm_fp8_8192c": ("gemm.fp8_tensor", _gemm(8192, 8192, 8192, "fp8_tensor")),
    "attn_4096x128h": (
        "attn.fwd@library",
        Attention(batch=1, seq_q=4096, seq_kv=4096, heads=128, kv_heads=128, d_qk=128, d_v=128),
    ),
    "rmsnorm_4096x7168": ("norm.fwd@library", Streaming(read=4096 * 7168 * 2, written=4096 * 7168 * 2)),
}


def contention() -> list[Sample]:
    """Kernels on an H200 beside one that holds SMs (and moves memory): compared with, not fitted."""
    out = []
    for row in rows("h200_sm_contention.csv"):
        cls, work = CONTENTION_CASES[row["case"]]
        held = _int(row, "held_sms")
        out.append(
            Sample(
                hardware="h200", cls=cls, work=(work,), seconds=_float(row, "us") * 1e-6, table="h200_sm_contention",
                label=row["case"], sms=132 - held, traffic=MOVER_RATE * held * _int(row, "move"), rested=1.0,
            )
        )  # fmt: skip
    return out


BESIDE_CASES = {
    "beside:gemm_bf16_4096x24576x1536": ("gemm.bf16", _gemm(4096, 24576, 1536, "bf16")),
    "beside:gemm_fp8_tensor_8192x8192x8192": ("gemm.fp8_tensor", _gemm(8192, 8192, 8192, "fp8_tensor")),
    "beside:gemm_fp8_block_8192x8192x8192": ("gemm.fp8@library", _gemm(8192, 8192, 8192, "fp8_block")),
}


def beside_traffic() -> list[Sample]:
    """GEMMs on an H200 beside a copy whose own traffic is known."""
    return [
        Sample(
            hardware="h200", cls=BESIDE_CASES[row["op"]][0], work=(BESIDE_CASES[row["op"]][1],),
            seconds=_float(row, "us") * 1e-6, table="h200_measured", label=row["op"],
            sms=132 - _int(row, "held_sms"), traffic=_float(row, "traffic"), rested=1.0,
        )
        for row in rows("h200_measured.csv")
        if row["op"] in BESIDE_CASES
    ]  # fmt: skip


def _overlapped(row: Row) -> tuple[str, Work]:
    op, m, n, k = row["op"], _int(row, "m"), _int(row, "n"), _int(row, "k")
    if op == "gemm":
        return "gemm.bf16", _gemm(m, n, k, "bf16")
    if op == "attention":
        return "attn.fwd@library", Attention(
            batch=1, seq_q=m, seq_kv=m, heads=n, kv_heads=n, d_qk=k, d_v=k, causal=True
        )
    return {"norm": "norm.fwd@library", "add": "elem"}[op], Streaming(read=2.0 * m * n, written=2.0 * m * n)


def beside_collectives() -> list[Sample]:
    """Kernels on an H100 beside NCCL's collectives, which run all the time: compared with, not fitted.

    Beside them, with SMs taken, a loop stays below the power limit (`h100_overlap.csv` has what it takes alone).
    """
    cluster = load_hardware("h100")
    taken = collective_of(cluster)
    out = []
    for row in rows("h100_overlap.csv"):
        if row["us_beside"]:
            cls, work = _overlapped(row)
            out.append(
                Sample(
                    hardware="h100", cls=cls, work=(work,), seconds=_float(row, "us_beside") * 1e-6,
                    table="h100_overlap", label="beside:collective", sms=cluster.gpu.sms - taken.sms,
                    traffic=taken.traffic, rested=1.0,
                )
            )  # fmt: skip
    return out


def everything() -> list[Sample]:
    """All samples of all tables that enter a fit or its held-out part."""
    h200 = merged([*h200_older(), *h200_measured()])
    return [*trace(), *infersim(), *published(), *h200, *h100_measured(), *deepgemm()]
