"""From the table of recurrent layers' kernels on one H200 to samples, and which class is fitted how.

Each run of `measure_mixers.py` had three or four of the configurations that the autotuner of flash-linear-attention's
kernels tries (all of mamba_ssm's), compiled beforehand; of a shape that several runs hold, each kernel counts with its
fastest time, as the autotuner would choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hardware_profiles.calibration.recipes import Recipe, own_stream
from hardware_profiles.calibration.sample import Row, Sample, integer, number, rows
from simulator.dtypes import BF16, FP32
from simulator.graph.mixers import scans
from simulator.graph.mixers.scans import Chunks, Kernel
from simulator.ops import Scan, Streaming
from simulator.spec.mixer import StateShape

TABLE = "h200_recurrent"
TAPS = 4
AGAIN = r"recompute_w_u|fwd_kernel_h|Memcpy|_cumsum_fwd|_bmm_chunk_fwd|_chunk_state_fwd|_state_passing_fwd"
"""Kernels of a backward that make again what the forward made."""
FORWARD = {
    "delta": {"kkt": r"Fil|kkt_solve", "wu": "recompute_w_u", "state": "fwd_kernel_h", "scan": "chunk_fwd_kernel_o"},
    "kda": {"kkt": r"Fil|intra_token|inter_solve", "wu": "recompute_w_u", "state": "fwd_kernel_h", "scan": "gla_fwd"},
    "ssd": {
        "state": "_chunk_state_fwd", "pass": "_state_passing_fwd", "cb": "_bmm_chunk_fwd", "scan": "_chunk_scan_fwd",
    },
}  # fmt: skip
BACKWARD = {
    "delta": {"dv": "dv_local", "state": "bwd_kernel_dhu", "scan": "bwd_kernel_dqkwg", "wu": "prepare_wy_repr_bwd"},
    "kda": {"dv": "bwd_kernel_dAv", "state": "bwd_kernel_dhu", "scan": "wy_dqkg_fused", "kkt": "bwd_kernel_intra"},
    "ssd": {
        "dstates": "bwd_dstates", "pass": "_state_passing_bwd", "dx": "bwd_dx", "db": "bwd_db", "dc": "bwd_dc_",
        "dcb": "bwd_dcb", "cb": "_bmm_chunk_bwd", "decays": "ddAcs_stable", "sums": "at::native|_cumsum_bwd",
    },
}  # fmt: skip
"""Op of a row -> name of a kernel in `scans` -> pattern of the names of its kernels."""


def state_of(row: Row) -> StateShape:
    """The state of a row: as many heads of keys as of values under the delta rule, groups of heads in Mamba-2."""
    heads, kind = integer(row, "heads"), row["op"].partition(".")[0]
    delta = kind != "ssd"
    return StateShape(
        heads=heads, key_heads=heads if delta else integer(row, "kv_heads"), key_dim=integer(row, "d_qk"),
        value_dim=integer(row, "d_v"), conv_kernel=TAPS, conv_bias=False, chunk=integer(row, "chunk", 64), numbers=0,
        vectors=0, norms=0, gain=0, is_delta=delta, rank=int(kind == "kda"),
    )  # fmt: skip


def chunks_of(row: Row) -> Chunks:
    """The sizes of a row."""
    batch, seq = integer(row, "batch"), integer(row, "seq")
    return Chunks(tokens=batch * seq, length=seq, sequences=batch, r=state_of(row))


def parts(row: Row) -> list[tuple[str, float]]:
    """Name and time [s] of each kernel of a row."""
    pairs = (part.rsplit("=", 1) for part in row["kernels"].split(" ; "))
    return [(name, float(time) * 1e-6) for name, time in pairs]


def token_sample(row: Row) -> Sample:
    """A decode step of all heads, as `simulator.graph.serving.recurrent` counts its bytes."""
    r, batch = state_of(row), integer(row, "batch")
    kept = batch * r.state_values * FP32
    read, written = batch * (2 * r.heads * r.key_dim + r.inner) * BF16, batch * r.inner * BF16
    kind = row["op"].partition(".")[0]
    seconds = sum(time for name, time in parts(row) if "vectorized" not in name)
    work = Streaming(read=kept + read, written=kept + written)
    return _sample(row, "scan.token" if kind == "delta" else f"scan.token@{kind}", work, seconds)


def conv_sample(row: Row) -> Sample:
    """The convolution by causal_conv1d."""
    form = row["op"].split(".")[1].partition("@")[0]
    tokens, channels = integer(row, "batch") * integer(row, "seq"), integer(row, "heads")
    size = float(tokens * channels * BF16)
    if form == "token":
        moved = size * TAPS
        return _sample(row, "conv.token", Streaming(read=moved, written=moved), number(row, "us") * 1e-6)
    back = form == "backward"
    work = Streaming(read=2 * size if back else size, written=size)
    seconds = sum(time for _, time in parts(row))
    return _sample(row, "conv.bwd" if back else "conv", work, seconds)


def _sample(row: Row, cls: str, work: Scan | Streaming, seconds: float) -> Sample:
    label = f"{row['op']} {row['batch']} x {row['seq']} x {row['heads']} {row['chunk']}".strip()
    return Sample(
        hardware="h200", cls=cls, work=(work,), seconds=seconds, table=TABLE, label=label, rested=1.0,
        resolution=2.5e-7,
    )  # fmt: skip


def _found(row: Row) -> Iterator[Sample]:
    """Samples of the kernels of a row."""
    kind, form = row["op"].split(".")
    c, delta = chunks_of(row), kind != "ssd"
    ahead = scans.delta_forward(c) if delta else scans.ssd_forward(c)
    if form == "backward":
        yield from _named(row, scans.delta_states(c) if delta else scans.ssd_states(c), FORWARD[kind], again=True)
        yield from _named(row, scans.delta_backward(c) if delta else scans.ssd_backward(c), BACKWARD[kind], again=False)
    else:
        yield from _named(row, ahead, FORWARD[kind], again=None)


def _named(row: Row, kernels: tuple[Kernel, ...], patterns: dict[str, str], *, again: bool | None) -> Iterator[Sample]:
    for kernel in kernels:
        pattern = patterns.get(kernel.name)
        if pattern:
            times = [
                time
                for name, time in parts(row)
                if re.search(pattern, name) and again in (None, bool(re.search(AGAIN, name)))
            ]
            yield _sample(row, kernel.cls, kernel.work, sum(times) / kernel.many)


def recurrent() -> list[Sample]:
    """All samples, the fastest of each shape; every second shape of a class held out."""
    best: dict[tuple[str, object], Sample] = {}
    for row in rows(f"{TABLE}.csv"):
        if row["op"].endswith("@triton"):
            continue  # compared with: the convolution of flash-linear-attention
        form = row["op"].split(".")[1]
        if row["op"].startswith("conv"):
            found = [conv_sample(row)]
        else:
            found = [token_sample(row)] if form == "token" else list(_found(row))
        for one in found:
            key = one.cls, one.work
            if key not in best or one.seconds < best[key].seconds:
                best[key] = one
    seen: dict[str, int] = {}
    out = []
    for one in best.values():
        seen[one.cls] = seen.get(one.cls, 0) + 1
        out.append(replace(one, held=seen[one.cls] % 2 == 0))
    return out


TEXT = "8 to 128 heads, 2048 to 16384 tokens"
CHUNKED = (
    "scan.kkt", "scan.wu", "scan.out", "scan.dv", "scan.out.bwd", "scan.wu.bwd", "scan.kkt@kda", "scan.wu@kda",
    "scan.out@kda", "scan.dv@kda", "scan.out.bwd@kda", "scan.kkt.bwd@kda",
)  # fmt: skip
SERIAL = ("scan.state", "scan.state.bwd", "scan.state@kda", "scan.state.bwd@kda")
MAMBA = (
    "scan.chunk_state", "scan.cb", "scan.out@ssd", "scan.dstates", "scan.dx", "scan.db", "scan.dc", "scan.dcb",
    "scan.cb.bwd", "scan.decays.bwd",
)  # fmt: skip
PASSED = ("scan.pass", "scan.pass.bwd", "scan.sums")
TOKENS = ("scan.token", "scan.token@kda", "scan.token@ssd")
CONV = ("conv", "conv.bwd", "conv.token")


def _scan(cls: str, library: str, free: tuple[str, ...], **fixed: Any) -> Recipe:
    """A class of kernels in chunks. Heads of all rows are equally wide: FLOP, bytes and CTAs go together, so where
    chunks are, too, the bandwidth is that of other kernels in Triton, and only keeps a forecast above what must move.
    """
    bounds = {
        "rate": (0.002, 0.8), "bandwidth": (0.3, 0.95), "step_time": (1e-8, 3e-5), "launch": (1e-6, 2e-5),
        "wide": (1.0, 2.0),
    }  # fmt: skip
    return Recipe(
        cls=cls, kind="scan", home="h200", hardware=("h200",), samples=(cls,),
        free={name: bounds[name] for name in free}, fixed=fixed,
        source=f"{library} on one rested H200 (table {TABLE})", range=TEXT, effort=80, starts=2,
    )  # fmt: skip


FLA, SSM, CUDA = "flash-linear-attention 0.6.0", "mamba_ssm 2.3.2", "causal_conv1d 1.6.1"
RECIPES = (
    *(
        _scan(cls, FLA, ("rate", "step_time", "launch"), bandwidth=0.85, resident=8 if "scan.kkt" in cls else 2)
        for cls in CHUNKED
    ),
    *(
        _scan(cls, FLA, ("bandwidth", "step_time", "wide"), rate=0.8, launch=4e-6, resident=1)
        for cls in SERIAL
    ),
    *(_scan(cls, SSM, ("rate", "bandwidth", "step_time", "launch")) for cls in MAMBA),
    *(
        replace(recipe, free=dict(recipe.free) | {"launch": (1e-6, 1e-4)})
        for recipe in (own_stream(cls, source=f"{SSM} on one rested H200 (table {TABLE})", text=TEXT) for cls in PASSED)
    ),
    *(
        own_stream(cls, source=f"{library} on one rested H200 (table {TABLE})", text="1 to 256 sequences")
        for cls, library in zip(TOKENS, (FLA, FLA, SSM), strict=True)
    ),
    *(own_stream(cls, source=f"{CUDA} on one rested H200 (table {TABLE})", text="2560 to 12288 channels")
      for cls in CONV),
)  # fmt: skip
