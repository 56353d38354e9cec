"""Samples and recipes of GPUs that were measured by others: Blackwells, A100 and H20, and more GEMMs of H100.

The tables `b200_*.csv`, `a100_*.csv` and `{h100,gb200,b300,gb300}_gemm.csv` hold kernel times of SimuMax and
aiconfigurator. They differ in how long the GPU had run: a Blackwell's tensor cores outrun its power most, and after
`BOOST` of GEMMs its clock falls by a quarter. SimuMax runs one kernel in a loop of 100, several such loops and then
a pause, aiconfigurator launches it nine times. `Sample.rested` says which share of a time lies before `BOOST`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import ceil
from statistics import median

from hardware_profiles.calibration import recipes, samples
from hardware_profiles.calibration.evaluate import GPUS
from hardware_profiles.calibration.layers import chunks, recurrent
from hardware_profiles.calibration.recipes import (
    CUBLAS_BF16_TILES,
    CUBLAS_TILES,
    DEEPGEMM_TILES,
    FA2,
    GROUPED_DEEPGEMM_TILES,
    MASKED_TILES,
    Bounds,
    Recipe,
    attention,
    library_gemm,
)
from hardware_profiles.calibration.sample import Row, Sample, merged, rows
from simulator.dtypes import BF16, FP8, NVFP4
from simulator.ops import Attention, Gemm

BOOST = 0.06
"""For so long [s] a rested B200 runs GEMMs at its boost clock: in SimuMax's file the 31 loops that end within 60 ms
of a pause reach 0.52 to 0.66 of the BF16 peak (median 0.62), the 18 that begin later and end within 160 ms 0.32 to 0.60
(median 0.49)."""
SETTLED = 2e-3
"""From this kernel time on [s] a loop averages over the swings of the clock at the power limit; that of a shorter one
catches it anywhere (see `BOOST`)."""
SETTLED_WEIGHT = 3.0
LOOP, LOOP_WARMUP = 100, 25
"""Runs of one of SimuMax's loops, and how many of them it does not time."""
AICONF_RUNS, AICONF_WARMUP, COPIES = 9, 3, 5
"""Rounds of aiconfigurator, those it does not time, and up to how many weights a round goes through so that together
they fill L2."""
TE_STREAMS = 4
"""Streams over which Transformer Engine spreads the GEMMs of a grouped linear, a cuBLAS kernel each."""
TRACED = 15
"""Runs of an attention kernel before the one whose time SimuMax takes: the median of 20 after 5 others."""
SHORTEST = 4e-5
"""Below this time [s] the loops on B200 waited for the host."""
BACKWARD_SHARE = 0.747
"""Of a forward and a backward pass of FlashAttention-2 on A100: 2.5 times the FLOP at 1/1.18 of the rate, as SimuMax's
rows of 64 heads have it."""
QUANT_LAUNCH, QUANT_BANDWIDTH = 3e-6, 0.7 * 8e12
"""The quantisation inside Blackwells' rows of FP8 in blocks and of NVFP4: launch [s]; 2 bytes read per element, the
result written, at this rate [B/s]. That inside their per-tensor rows was measured (table aic_quantize)."""
SMS = {"b200": 148, "a100": 108, "h100": 132, "gb200": 152, "b300": 148, "gb300": 152}
LATER = ("gb200", "b300", "gb300")
"""Blackwells whose dense forward GEMMs were measured; what else a B200 has, they have at their own pace."""
BLACKWELLS = ("b200", *LATER)
CUDNN = ("gb200", "gb300")
"""GPUs whose attention kernels cuDNN-frontend's benchmark timed."""
SIMUMAX = "SimuMax (MooreThreads/SimuMax, Apache-2.0)"
AICONF = "aiconfigurator-core 0.12.0 (NVIDIA, Apache-2.0)"
PCIE = "A100 PCIe 80GB (same SMs, 300 W)"
BLACKWELL_TILES = ((64, 64), (128, 64), (128, 128), (128, 192), (128, 256), (256, 256))
"""Per SM; a pair of SMs works on tiles twice as tall."""


def _before_boost_ends(start: float, end: float) -> float:
    """Share of the time from `start` to `end` [s] after a rest that lies before `BOOST`."""
    return min(max((BOOST - start) / (end - start), 0.0), 1.0)


def _rested(hardware: str, row: Row, seconds: float) -> float:
    """Share of a GEMM's measured time at the boost clock; 0 for a loop with an unknown start."""
    if hardware not in BLACKWELLS:
        return 0.0
    if row["source"].startswith("aic"):
        width = {"bf16": BF16, "nvfp4": NVFP4}.get(row["precision"], FP8)
        weight = float(row["n"]) * float(row["k"]) * width
        copies = max(1, min(COPIES, ceil(GPUS[hardware].l2_bytes / weight)))
        return _before_boost_ends(AICONF_WARMUP * copies * seconds, AICONF_RUNS * copies * seconds)
    if not row["begin_ms"]:
        return 0.0
    begin = float(row["begin_ms"]) * 1e-3
    return _before_boost_ends(begin + LOOP_WARMUP * seconds, begin + LOOP * seconds)


@cache
def _casts() -> dict[tuple[str, int, int], float]:
    """Time to quantise an operand of m x k to per-tensor FP8 [s], by GPU, m and k."""
    return {
        (row["hardware"], int(row["m"]), int(row["k"])): (float(row["scale_us"]) + float(row["cast_us"])) * 1e-6
        for row in rows("aic_quantize.csv")
    }


def _quantisation(hardware: str, row: Row) -> float:
    """Time of the quantisation inside a row [s]."""
    m, k = int(row["m"]), int(row["k"])
    if row["precision"] == "fp8_tensor":
        return _casts()[hardware, m, k]
    moved = {"bf16": 0.0, "nvfp4": BF16 + NVFP4}.get(row["precision"], BF16 + FP8)
    return QUANT_LAUNCH + moved * m * k / QUANT_BANDWIDTH if moved else 0.0


def _weight(hardware: str, seconds: float) -> float:
    """More for what ran long enough to settle at a Blackwell's power limit."""
    return SETTLED_WEIGHT if hardware in BLACKWELLS and seconds >= SETTLED else 1.0


def _gemm_class(hardware: str, row: Row, seconds: float) -> str | None:
    form, precision = row["form"], row["precision"]
    if precision == "fp8_block":
        return "gemm.fp8@library"
    if precision in ("fp8_tensor", "nvfp4"):
        return f"gemm.{precision}"
    if hardware == "b200" and row["source"] == "simumax" and seconds < SHORTEST:
        return None
    if form != "dense":
        return f"gemm.bf16.{form}"
    if hardware == "h100":
        return "gemm.bf16@aiconfigurator"
    burst = hardware in BLACKWELLS and row["source"].startswith("aic") and seconds < SETTLED
    return "gemm.bf16@burst" if burst else "gemm.bf16"


def _gemm(hardware: str, row: Row, seconds: float) -> Sample | None:
    cls = _gemm_class(hardware, row, seconds)
    if cls is None:
        return None
    m, n, k, groups = (int(row[key]) for key in ("m", "n", "k", "groups"))
    work = Gemm(
        m=m, n=n, k=k, precision=row["precision"], form=row["form"], groups=groups, out_bytes=float(row["out_bytes"])  # type: ignore[arg-type]
    )  # fmt: skip
    rested = _rested(hardware, row, seconds)
    seconds -= _quantisation(hardware, row)
    return Sample(
        hardware=hardware, cls=cls, work=(work,), seconds=seconds, table=f"{hardware}_gemm", label=row["source"],
        sms=SMS[hardware], resolution=1e-6, weight=_weight(hardware, seconds), rested=rested,
    )  # fmt: skip


def _attention(hardware: str, row: Row, seconds: float) -> Sample:
    backward, paged = row["backward"] == "1", row["source"] == "aic_vllm"  # its keys lie in pages
    narrow = row["precision"] == "mxfp8"
    cls = ("attn.bwd" if backward else "attn.fwd@paged" if paged else "attn.fwd") + (".mxfp8" if narrow else "")
    work = Attention(
        batch=int(row["batch"]), seq_q=int(row["seq"]), seq_kv=int(row["seq"]), heads=int(row["heads"]),
        kv_heads=int(row["kv_heads"]), d_qk=int(row["d_qk"]), d_v=int(row["d_v"]), causal=row["causal"] == "1",
        backward=backward, precision="fp8" if narrow else "bf16",
    )  # fmt: skip
    return Sample(
        hardware=hardware, cls=cls, work=(work,),
        seconds=seconds,
        table=f"{hardware}_attention", label=row["source"], sms=SMS[hardware], resolution=1e-6,
        weight=_weight(hardware, seconds), rested=float(hardware in BLACKWELLS and TRACED * seconds < BOOST),
    )  # fmt: skip


def others(*, apart: bool = False) -> list[Sample]:
    """Samples of the tables that name a GPU of others; runs of one shape by several collectors count once, unless they
    are wanted `apart`."""
    out: list[Sample] = []
    for hardware in SMS:
        for row in rows(f"{hardware}_gemm.csv"):
            sample = _gemm(hardware, row, float(row["us"]) * 1e-6)
            if sample is not None:
                out.append(sample)
    for hardware in ("b200", "a100", *CUDNN):
        out += [_attention(hardware, row, float(row["us"]) * 1e-6) for row in rows(f"{hardware}_attention.csv")]
    return [replace(s, weight=_weight(s.hardware, s.seconds)) for s in (out if apart else merged(out))]


def halves(both: Sample) -> list[Sample]:
    """A forward and backward pass timed together, as two samples."""
    return [
        replace(
            both, cls="attn.bwd" if work.backward else "attn.fwd", work=(work,),
            seconds=both.seconds * (BACKWARD_SHARE if work.backward else 1.0 - BACKWARD_SHARE),
        )
        for work in both.work
        if isinstance(work, Attention)
    ]  # fmt: skip


def everything() -> list[Sample]:
    """All samples; FlashAttention-2's figures of a forward and backward pass on A100 are taken apart."""
    out: list[Sample] = []
    for s in samples.everything():
        out += halves(s) if s.hardware == "a100" and len(s.work) > 1 else [s]
    return [*out, *recurrent.recurrent(), *chunks.chunks(), *chunks.windows(), *others()]


def _wide(recipe: Recipe, **bounds: tuple[float, float]) -> Recipe:
    """A recipe with other bounds for its free values, or with more of them free."""
    free = dict(recipe.free) | bounds
    fixed = {k: v for k, v in recipe.fixed.items() if k not in bounds}
    return replace(recipe, free=free, fixed=fixed, effort=60)


BLACKWELL = {
    "rate": (0.3, 1.08), "power_rate": (0.4, 1.2), "store_rate": (2e10, 2e12), "load_rate": (1.2e10, 1.5e11),
}  # fmt: skip
MEMORY = {"bandwidth": (0.3, 0.95)}
STARTS = {"group_time": (0.0, 3e-5)}
LIMIT = {"loop_rate": (0.3, 1.0)}
NARROW = {"power_rate": (0.2, 1.2)}
"""Of NVFP4, whose peak is further beyond what power and memory allow; one rate: how long its boost lasts is unknown."""


def _later(gpu: str) -> tuple[Recipe, ...]:
    """Dense GEMMs of another Blackwell: a B200's kernels, at the rates that were measured on this GPU."""
    free = {name: BLACKWELL[name] for name in ("rate", "power_rate")} | LIMIT
    short = f"{AICONF}, on this GPU"

    def own(cls: str, samples: tuple[str, ...], *also: str, free: Mapping[str, Bounds] = free) -> Recipe:
        return Recipe(
            cls=cls, kind="gemm", home=gpu, hardware=(gpu,), samples=samples, source=short, range="M 1024 to 32768",
            effort=40, free=free, like="b200", also=also,
        )  # fmt: skip

    gemms = (
        own("gemm.bf16", ("gemm.bf16", "gemm.bf16@burst")),
        own("gemm.fp8@library", ("gemm.fp8@library",), "gemm.fp8"),
        own("gemm.fp8_tensor", ("gemm.fp8_tensor",), "gemm.fp8_row"),
        own("gemm.nvfp4", ("gemm.nvfp4",), free={"rate": BLACKWELL["rate"]} | NARROW),
    )
    cudnn = [_cudnn(gpu, way, suffix) for suffix in ("", ".mxfp8") for way in ("fwd", "bwd") if gpu in CUDNN]
    return (*gemms, *cudnn)


def _cudnn(gpu: str, way: str, suffix: str) -> Recipe:
    """cuDNN 9.22's attention, which is faster than that of 2025 (B200's)."""
    cls = f"attn.{way}{suffix}"
    dims = ("128:128", "192:128") if cls != "attn.bwd.mxfp8" else ("64:64", "128:128", "192:128")
    fixed = {"block_q": 256} if way == "fwd" else {}
    slow = {f"rate:{dim}": (0.1, 1.0) for dim in dims} if suffix else {}
    return _wide(
        attention(cls, gpu, dims, f"cuDNN 9.22 on this GPU (table {gpu}_attention)",
                  "2048 to 32768 tokens", also=() if suffix else (f"{cls}@library",), fixed=fixed),
        launch=(1e-6, 4e-5), loop_clock=(0.5, 1.0), **slow,
    )  # fmt: skip


B200 = (
    _wide(
        library_gemm("gemm.bf16", "b200", BLACKWELL_TILES, f"{SIMUMAX}, long loops of cuBLAS; {AICONF}, long kernels",
                     "M 1024 to 65536, 40 us and longer", k_block=64,
                     samples=("gemm.bf16", "gemm.bf16@burst")),
        **BLACKWELL, **LIMIT,
    ),
    _wide(
        library_gemm("gemm.bf16.wgrad", "b200", BLACKWELL_TILES, f"{SIMUMAX}, long loops of cuBLAS",
                     "K 2048 to 65536, FP32 accumulation", k_block=64, fill=2e-6),
        **BLACKWELL, **LIMIT, **MEMORY,
    ),
    _wide(
        library_gemm("gemm.bf16.grouped", "b200", BLACKWELL_TILES, f"{SIMUMAX}, Transformer Engine's grouped linear",
                     "20 to 256 groups of 128 to 9832 tokens", k_block=64, fill=2e-6, launch=6e-6, streams=TE_STREAMS),
        **BLACKWELL, **STARTS, **MEMORY,
    ),
    _wide(
        library_gemm("gemm.bf16.grouped_wgrad", "b200", BLACKWELL_TILES,
                     f"{SIMUMAX}, Transformer Engine's grouped linear", "20 to 256 groups of 128 to 9832 tokens",
                     k_block=64, fill=2e-6, launch=6e-6, streams=TE_STREAMS),
        **BLACKWELL, **STARTS, **MEMORY,
    ),
    replace(
        _wide(
            library_gemm("gemm.fp8@library", "b200", BLACKWELL_TILES,
                         f"{AICONF}, DeepGEMM, less a modelled quantisation; short runs", "M 1024 to 32768"),
            **BLACKWELL, **LIMIT,
        ),
        also=("gemm.fp8",),
    ),
    replace(
        _wide(
            library_gemm("gemm.fp8_tensor", "b200", BLACKWELL_TILES,
                         f"{AICONF}, TensorRT-LLM, less a modelled quantisation; short runs", "M 1024 to 32768"),
            **BLACKWELL, **LIMIT,
        ),
        also=("gemm.fp8_row",),
    ),
    _wide(
        library_gemm("gemm.nvfp4", "b200", BLACKWELL_TILES,
                     f"{AICONF}, TensorRT-LLM and FlashInfer's CuTe kernels, less a modelled quantisation",
                     "M 1024 to 32768", k_block=256),
        **BLACKWELL | NARROW,
    ),
    _wide(
        attention("attn.fwd", "b200", ("128:128", "192:128"), f"{SIMUMAX}, Transformer Engine",
                  "4096 to 131072 tokens, causal", also=("attn.fwd@library",), fixed={"block_q": 256}),
        launch=(1e-6, 4e-5), loop_clock=(0.5, 1.0),
    ),
    _wide(
        attention("attn.bwd", "b200", ("128:128", "192:128"), f"{SIMUMAX}, Transformer Engine",
                  "4096 to 131072 tokens, causal", also=("attn.bwd@library",)),
        launch=(1e-6, 4e-5), loop_clock=(0.5, 1.0),
    ),
)  # fmt: skip

A100 = (
    _wide(
        library_gemm("gemm.bf16", "a100", CUBLAS_BF16_TILES, f"{AICONF}, cuBLAS on A100 SXM", "M 1024 to 32768",
                     k_block=32)
    ),
    _wide(
        library_gemm("gemm.bf16.wgrad", "a100", CUBLAS_BF16_TILES, f"{SIMUMAX}, cuBLAS on {PCIE}",
                     "K 4096 to 33024, FP32 accumulation", k_block=32, fill=2e-6)
    ),
    _wide(
        library_gemm("gemm.bf16.grouped", "a100", CUBLAS_TILES,
                     f"{SIMUMAX}, Transformer Engine's grouped linear, {PCIE}", "20, 40 groups of 616, 1232 tokens",
                     k_block=32, fill=2e-6, launch=6e-6, load_rate=3e10, store_rate=1e11, power_rate=0.75,
                     streams=TE_STREAMS),
        **STARTS,
    ),
    _wide(
        library_gemm("gemm.bf16.grouped_wgrad", "a100", CUBLAS_TILES,
                     f"{SIMUMAX}, Transformer Engine's grouped linear, {PCIE}", "20, 40 groups of 616, 1232 tokens",
                     k_block=32, fill=2e-6, launch=6e-6, load_rate=3e10, store_rate=1e11, power_rate=0.75,
                     streams=TE_STREAMS),
        **STARTS,
    ),
    attention("attn.fwd", "a100", ("64:64", "128:128", "192:128"),
              f"FlashAttention-2: {SIMUMAX}, {PCIE}; {FA2}", "512 to 16384 tokens",
              also=("attn.fwd@library", "attn.fwd@fa2")),
    attention("attn.bwd", "a100", ("64:64", "128:128", "192:128"), f"FlashAttention-2: {SIMUMAX}, {PCIE}; {FA2}",
              "512 to 16384 tokens", also=("attn.bwd@library", "attn.bwd@fa2"), fixed={"power_rate": 1.5}),
)  # fmt: skip

INFERSIM_H20 = "InferSim kernel tables, H20 (alibaba/InferSim)"
H20 = (
    replace(
        library_gemm("gemm.fp8@library", "h20", DEEPGEMM_TILES, f"{INFERSIM_H20}, DeepGEMM", "M 16 to 32768, all SMs"),
        also=("gemm.fp8",),
    ),
    replace(
        library_gemm("gemm.fp8.grouped@library", "h20", GROUPED_DEEPGEMM_TILES, f"{INFERSIM_H20}, DeepGEMM",
                     "4 to 128 groups, 256 to 9830 tokens per expert", row_align=128, fill=2e-6),
        also=("gemm.fp8.grouped",),
    ),
    library_gemm("gemm.fp8.masked", "h20", MASKED_TILES, f"{INFERSIM_H20}, DeepGEMM",
                 "4 to 128 groups, 4 to 154 tokens per expert", grid_from_expected_m=True),
    attention("attn.fwd", "h20", ("256:256",), f"{INFERSIM_H20}, FlashAttention-3", "1024 to 32768 tokens, 16 heads",
              also=("attn.fwd@library",), fixed={"tail": 0.25}),
)  # fmt: skip

RECIPES = (
    *(r for r in recipes.RECIPES if r.home != "a100"),
    *recurrent.RECIPES,
    *B200,
    *A100,
    *H20,
    *(recipe for gpu in LATER for recipe in _later(gpu)),
)
NOT_MEASURED = "{}: not measured, the same shares of peak and bandwidth assumed"
ENERGY = "{}: not {}, the same shares of peak and bandwidth and the same energy per FLOP assumed"
ASSUMED = (
    *recipes.ASSUMED,
    *(("b200", origin, NOT_MEASURED.format("B200"), True) for origin in recipes.MEASURED),
    *(("h20", origin, ENERGY.format("H20", "measured"), True) for origin in recipes.MEASURED),
    ("b300", "gb300", ENERGY.format("B300", "measured"), True),
    *(
        (gpu, "b200", f"{gpu.upper()}: not measured, the same shares of the peaks assumed, at this GPU's power", True)
        for gpu in LATER
    ),
    *((name, origin, NOT_MEASURED.format(name.upper()), True) for name in LATER for origin in recipes.MEASURED),
)
"""As `recipes.CARRIED`; what a GPU of the same architecture gives comes first."""
LASTING = 1e-2
"""Kernels of aiconfigurator from so long on [s] ran for a tenth of a second before they were timed, or longer."""


@cache
def sustained(gpu: str) -> float:
    """Share of the BF16 peak that a later Blackwell sustains over that of a B200: the same lasting dense GEMMs, each
    collector's by itself (median); 1 for other GPUs."""
    if gpu not in LATER:
        return 1.0
    long = [s for s in others(apart=True) if s.cls == "gemm.bf16" and s.seconds >= LASTING]
    there = {(s.work, s.label): s.seconds for s in long if s.hardware == "b200"}
    paces = [there[s.work, s.label] / s.seconds for s in long if s.hardware == gpu and (s.work, s.label) in there]
    return median(paces) * GPUS["b200"].peak.bf16 / GPUS[gpu].peak.bf16


KIN = dict.fromkeys(LATER, "b200")
"""GPUs that have every class of another: the same kernels run on both."""
