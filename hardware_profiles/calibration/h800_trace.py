"""Samples of the kernels of DeepSeek's training profile on H800 (table h800_trace)."""

from __future__ import annotations

from collections.abc import Iterator

from hardware_profiles.calibration.sample import Row, Sample, Work, gemm, integer, number, rows
from simulator.ops import Attention, Streaming

COMM_TRAFFIC = 3e11
"""Memory traffic of a DeepEP kernel [B/s]: about 1.2 GB (FP8 dispatch of 4096 tokens, staged in buffers of both sides)
in 4 ms, 2.3 GB (BF16 combine) in 6.3 ms."""
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
        return 20, 0.0  # on the communication stream, concurrent with a GEMM that holds 112 SMs
    time = number(row, "dur_us")
    moving = number(row, "ov_dispatch") + number(row, "ov_combine")
    resident = moving + number(row, "ov_notify")
    sms = 112 if gemm or resident > 0.5 * time else 132
    return sms, COMM_TRAFFIC * min(1.0, moving / time) if time else 0.0


def _norm_weight_bytes(row: Row) -> float:
    """Bytes of the two kernels that finish the weight's gradient of a norm [B]: partial sums of every CTA of its
    backward; the FP32 gradient added to the main one."""
    norm, _, kernel = row["op"].rpartition(".")
    if VARIANTS.get(row["op"]) != "elem.norm_weight":
        return 0.0
    trace = {r["op"]: integer(r, "blocks") for r in rows("h800_trace.csv") if r["op"].startswith(norm)}
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
        times = [number(row, "dur_us") for row in mine if (row["phase"], row["period"]) == (phase, period)]
        yield Sample(
            hardware="h800", cls="router.scores", work=(scores,), seconds=1e-6 * sum(times) / len(times),
            table="h800_trace", label=f"router.scores {phase}", resolution=5e-7 / len(times) ** 0.5,
            repeat=int(period),
        )  # fmt: skip


def _trace_work(row: Row) -> Work | None:
    cls, m, n, k = row["cls"], integer(row, "M"), integer(row, "N"), integer(row, "K")
    if cls in ("attn.fwd", "attn.bwd"):
        return Attention(
            batch=1, seq_q=4096, seq_kv=4096, heads=128, kv_heads=128, d_qk=192, d_v=128, backward=cls == "attn.bwd"
        )
    if cls == "gemm.fp8.grouped":
        return gemm(m, n, k, "fp8_block", "grouped", 4)
    if cls == "gemm.fp8.wgrad":
        return gemm(m, n, k, "fp8_block", "wgrad", out=4.0)
    if cls == "gemm.fp8":
        return gemm(m, n, k, "fp8_block")
    if cls == "gemm.bf16":
        wgrad = row["op"] == "router.gate.wgrad"
        return gemm(m, n, k, "bf16", "wgrad" if wgrad else "dense", out=4.0 if wgrad else 2.0)
    size = number(row, "bytes") or _norm_weight_bytes(row)
    if row["op"].startswith("router.top"):
        return Streaming(read=4096 * 256 * 4, written=0)
    return Streaming(read=size / 2, written=size / 2, blocks=integer(row, "blocks")) if size else None


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
        out.append(_trace_sample(row, work, number(row, "eff_us")))
    for experts in merged.values():
        work = _trace_work(experts[0])
        assert work is not None
        out.append(_trace_sample(experts[0], work, sum(number(r, "eff_us") for r in experts) / len(experts)))
    return [*out, *_router_scores()]


def _trace_sample(row: Row, work: Work, microseconds: float) -> Sample:
    sms, traffic = _trace_share(row, row["cls"].startswith("gemm.fp8"))
    cls = VARIANTS.get(row["op"], row["cls"])
    return Sample(
        hardware="h800", cls=cls, work=(work,), seconds=microseconds * 1e-6,
        table="h800_trace", label=row["op"], sms=sms, traffic=traffic, resolution=5e-7,
        repeat=integer(row, "period"),
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
            out.setdefault(cls, []).append(number(row, "dur_us") * 1e-6)
    return out
