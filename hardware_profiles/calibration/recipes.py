"""Which class is fitted to which samples, with which parameters free and within which bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hardware_profiles.calibration.samples import DEEPGEMM_TABLE, H100_TABLES

Bounds = tuple[float, float]
DEEPSEEK = "DeepSeek profile-data, training trace on H800, first half (2025-02)"
INFERSIM = "InferSim kernel tables, H800 (alibaba/InferSim)"
DEEPGEMM = "DeepGEMM on one rested H100 (table h100_deepgemm)"
H100 = "cuBLAS, cuDNN and PyTorch's kernels on one rested H100 (tables h100_measured, h100_more, h100_further)"
INDUCTOR = "torch.compile's kernels on one rested H100 (tables h100_measured, h100_more, h100_further, h100_compiled)"
H200 = "cuBLAS and cuDNN through PyTorch on one H200 (tables h200_kernels, h200_measured, h200_small_gemm)"
H200_ATTENTION = (
    "cuDNN and FlashAttention-2 through PyTorch on one H200 (tables h200_kernels, h200_measured, h200_narrow,"
    " h200_chunks; backward h200_windows)"
)
FA3 = "FlashAttention-3 figures, arXiv 2407.08608"
FA2 = "FlashAttention-2 repository figures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How class `cls` of GPU `home` (and `also` others) is fitted: to classes `samples` on GPUs `hardware`.

    `tables`: only to samples of these; none: of all. `effort`: generations of each of so many `starts` of the search.
    `like`: what is neither free nor fixed here is as found on that GPU for the same class, or the class `copied`.
    """

    cls: str
    kind: str
    home: str
    hardware: tuple[str, ...]
    samples: tuple[str, ...]
    free: Mapping[str, Bounds]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    source: str
    range: str = ""
    effort: int = 40
    starts: int = 1
    also: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    like: str = ""
    copied: str = ""


TRACE_TILES = ((128, 128),)
MASKED_TILES = ((64, 16), (64, 32), (64, 64), (64, 128), (128, 128), (128, 192))
DEEPGEMM_TILES = (*MASKED_TILES, (256, 128))
"""Of the 60 that DeepGEMM may take, those that cost least for their size: it takes others where they fill a wave
better, and columns that are no multiple of 32 then cost up to a quarter more."""
WGRAD_TILES = ((128, 72), (128, 104), (128, 120), (128, 136), (128, 152))
"""Of 128 rows, as in the names of its kernels."""
GROUPED_DEEPGEMM_TILES = ((128, 64), (128, 128), (128, 192))
"""Its groups are padded to 128 rows."""
CUBLAS_TILES = ((64, 64), (64, 128), (128, 128), (128, 192), (256, 128), (128, 256))
CUBLAS_BF16_TILES = (*CUBLAS_TILES, (256, 192))
ALONE = (
    (64, 32), (64, 64), (64, 96), (64, 128), (128, 64), (128, 96), (128, 112), (128, 128), (128, 144), (128, 168),
)  # fmt: skip
"""Tiles that the warp groups of an SM do not share (no `coop` in the name): of weight gradients cuBLAS runs them only
where one wave is enough (all 22 in the tables)."""
NVJET_TILES = (*ALONE, (192, 192), (256, 128), (128, 256), (128, 320), (128, 192))
"""Of cuBLAS on Hopper, as in the names of its kernels (`nvjet_..._192x128_...`)."""
NVJET_FP8_TILES = (*(tile for tile in NVJET_TILES if tile != (256, 128)), (256, 128))
"""The same, and the last one is what its FP8 kernels keep for large problems."""
SQUARE = ((128, 128),)
"""The only tile of cuBLAS's kernels with scales per row and per block."""
CUTLASS_TILES = ((64, 128), (128, 256))
CUTLASS_FP8_TILES = ((64, 128), (128, 256), (256, 128))
GROUPED: dict[str, Any] = {"few": 128, "by_columns": True}
"""PyTorch's grouped GEMMs (aten/src/ATen/native/cuda/GroupMM.cu, ScaledGroupMM.cu): CUTLASS kernels of two or three
tiles, by the shape of a mean group, in clusters, without swizzling."""
GROUPED_BF16 = GROUPED | {"cluster": (2, 1), "k_block": 64}
GROUPED_FP8 = GROUPED | {"cluster": (2, 2), "cluster_sms": 120, "large": 2048}
"""30 clusters of four fit on an H100 at once (table h100_clusters)."""
LOOP: Mapping[str, Bounds] = {"rate": (0.4, 1.08), "block_time": (0.0, 1.5e-7), "tile_time": (0.0, 6e-6)}
HEAD: Mapping[str, Bounds] = {"launch": (1e-6, 8e-6)}
WHOLE: Mapping[str, Bounds] = {
    **LOOP, **HEAD, "store_rate": (2e10, 5e11), "power_rate": (0.6, 1.2), "load_rate": (1.2e10, 6e10),
    "fill": (0.0, 5e-6),
}  # fmt: skip


def trace_gemm(cls: str, free: Mapping[str, Bounds], text: str) -> Recipe:
    """A GEMM class of the training trace: persistent CUTLASS kernel on 112 SMs, tiles of 128 x 128."""
    return Recipe(
        cls=cls, kind="gemm", home="h800", hardware=("h800",), samples=(cls,), free=free, source=DEEPSEEK,
        range=text + ", 112 SMs",
        fixed={"tiles": TRACE_TILES, "k_block": 128, "store_rate": 1e12, "power_rate": 0.9, "bandwidth": 0.85,
               "fill": 2e-6, "row_align": 128} | ({} if "launch" in free else {"launch": 2.2e-6}),
    )  # fmt: skip


def library_gemm(
    cls: str, home: str, tiles: tuple[tuple[int, int], ...], source: str, text: str, *, k_block: int = 128,
    samples: tuple[str, ...] = (), hardware: tuple[str, ...] = (), drop: tuple[str, ...] = (),
    tables: tuple[str, ...] = (), **fixed: Any,
) -> Recipe:  # fmt: skip
    """A GEMM class of a library that chooses its tiles."""
    return Recipe(
        cls=cls, kind="gemm", home=home, hardware=hardware or (home,), samples=samples or (cls,),
        free={k: v for k, v in WHOLE.items() if k not in fixed and k not in drop}, source=source, range=text,
        fixed={"tiles": tiles, "k_block": k_block, "traffic": 0.4, "bandwidth": 0.9, "unusable_sms": 2} | fixed,
        tables=tables, effort=120,
    )  # fmt: skip


BOOST = 1.082
"""Boost clock of an H100 over the one that its peaks are quoted at: 1980 over 1830 MHz. No SM, and not all of them, can
be faster."""
RESTED: Mapping[str, Bounds] = {
    "rate": (0.4, BOOST), "block_time": (0.0, 1.5e-7), "tile_time": (0.0, 8e-6), "store_rate": (8e9, 1e12),
    "launch": (1e-6, 2e-5), "fill": (0.0, 5e-6), "bandwidth": (0.4, 0.95), "reset": (0.0, 8e-6),
    "power_rate": (0.7, BOOST), "l2_writeback": (0.0, 1.0),
}  # fmt: skip
"""The flush before each launch wrote L2, so part of it must be written back when a kernel starts."""
PASSES: dict[str, Bounds] = {"passes": (0.0, 6.0)}
SUMS: dict[str, Bounds] = {"sums": (0.0, 6.0)}
LOOPED: dict[str, Bounds] = {"loop_clock": (0.85, 1.0)}
"""Of older tables, taken in loops; those of chunks are of a rested GPU."""
LIBRARY_DIMS = ("64:64", "96:96", "128:128", "192:128", "256:256")
SHARED: dict[str, Any] = {"unusable_sms": 2, "tiles_per_cta": 2, "traffic": 0.17}
"""Concurrent with others: clusters of two CTAs and the first two waves keep their SMs (table h200_sm_contention), and a
copy's traffic slows by 0.08 to 0.31 of its share of the bandwidth (rows `concurrent_delay` of h200_measured, mean of
nine)."""
NO_LIMIT = 2.0
"""A share of the tensor peak that no kernel reaches: a rested GPU is not held back by its power limit."""


def rested_gemm(cls: str, tiles: tuple[tuple[int, int], ...], text: str, *, k_block: int = 128, **fixed: Any) -> Recipe:
    """A GEMM class of PyTorch's libraries on a rested H100."""
    return Recipe(
        cls=cls, kind="gemm", home="h100", hardware=("h100",), samples=(cls,), tables=H100_TABLES, source=H100,
        free={k: v for k, v in RESTED.items() if k not in fixed}, range=text, effort=250, starts=4,
        fixed={"tiles": tiles, "k_block": k_block} | SHARED | fixed,
    )  # fmt: skip


def deepgemm(cls: str, tiles: tuple[tuple[int, int], ...], text: str, **fixed: Any) -> Recipe:
    """A GEMM class of DeepGEMM on a rested H100. Its kernels need no counter."""
    alike = rested_gemm(cls, tiles, text, reset=0.0, **fixed)
    free = dict(alike.free) | {"load_rate": (1e10, 8e10), "block_time": (0.0, 3e-7)}
    return replace(alike, free=free, tables=(DEEPGEMM_TABLE,), source=DEEPGEMM, effort=120, starts=2)


LOADED: Bounds = (1e-6, 1e-5)
"""Launch of a kernel in tables timed by CUDA events, whose own time (row `empty` of h200_measured) is taken off."""


FEW_ROWS = ("gemm.bf16", "gemm.bf16.grouped", "gemm.fp8_tensor", "gemm.fp8_row", "gemm.fp8_row.grouped")
"""Classes that tables of rested GEMMs on an H200 hold, with few rows, too."""


def loaded_gemm(cls: str, text: str) -> Recipe:
    """The same class on an H200, whose tables were taken in loops that reach the power limit: the H100's kernel.

    What few rows cost is found there too (tables h200_small_gemm and h200_moe_layer, rested).
    """
    free: dict[str, Bounds] = {"launch": LOADED, "loop_rate": (0.4, 1.2)}
    free |= {"bandwidth": (0.4, 0.98), "fill": (0.0, 8e-6)}
    if cls in FEW_ROWS:
        free |= {"l2_writeback": (0.0, 1.0)}
    return Recipe(
        cls=cls, kind="gemm", home="h200", hardware=("h200",), samples=(cls,), free=free, source=H200, range=text,
        like="h100", effort=12 if cls in FEW_ROWS else 40,
    )  # fmt: skip


EXPERTS = "the experts of SGLang 0.5.10 and vLLM 0.19.0 as modules, aiconfigurator database (table aic_moe)"
CUTLASS_EXPERTS = "the experts of TensorRT-LLM 1.3.0rc20 as modules, aiconfigurator database (table aic_moe)"
TRITON_TILES = ((16, 128), (32, 128), (64, 128), (128, 128))
"""Of tuned configurations (vLLM and SGLang, fused_moe/configs): 16 to 128 rows."""


def engine_experts(cls: str, tiles: tuple[tuple[int, int], ...], source: str, k_block: int) -> Recipe:
    """GEMMs of an engine's experts on an H200, measured in loops, with the sort and the activation around them."""
    free = {name: bounds for name, bounds in RESTED.items() if name not in ("reset", "l2_writeback")}
    return Recipe(
        cls=cls, kind="gemm", home="h200", hardware=("h200",), samples=(cls,), tables=("aic_moe",), source=source,
        free=free | {"tile_time": (0.0, 8e-6), "block_time": (0.0, 4e-7)}, effort=40,
        range="1 to 256 experts, 1 to 4096 tokens", fixed={"tiles": tiles, "k_block": k_block} | SHARED,
    )  # fmt: skip


def attention(cls: str, home: str, dims: tuple[str, ...], source: str, text: str, **settings: Any) -> Recipe:
    """An attention class: a rate for each pair of head dimensions, opening and closing of a tile, tail, launch."""
    free: dict[str, Bounds] = {f"rate:{d}": settings.get("rates", (0.3, 1.0)) for d in dims}
    free |= {"tile_time": (0.0, 2e-5), "launch": (1e-6, 3e-5), "mask_blocks": (0.0, 2.0), "power_rate": (0.6, 1.5)}
    free |= {"tail": (0.0, 1.0)} | settings.get("free", {})
    fixed = {"block_q": 128, "block_kv": 128, "bandwidth": 0.8, "traffic": 0.0} | settings.get("fixed", {})
    return Recipe(
        cls=cls, kind="attention", home=home, hardware=settings.get("hardware", (home,)),
        samples=settings.get("samples", (cls,)), free={k: v for k, v in free.items() if k not in fixed}, fixed=fixed,
        source=source, range=text, effort=60, also=settings.get("also", ()), tables=settings.get("tables", ()),
        like=settings.get("like", ""),
    )  # fmt: skip


FA2_TORCH = "PyTorch's FlashAttention-2 on one H200 (table h200_decode_attention)"
FA2_DECODE: dict[str, Any] = {
    "block_q": 64, "block_kv": 128, "whole_q": 128, "whole_kv": 64, "resident": 2, "full": 0.8, "keep": 0.85,
    "most": 128, "power_rate": 0.9,
}  # fmt: skip
"""Tiles, CTAs on an SM (their shared memory: 80 and 64 kB of 227) and the rule of parts: flash-attention 2.8,
csrc/flash_attn/{flash_api.cpp, src/flash_fwd_launch_template.h}, for heads of 128."""
AIC_DECODE = "aiconfigurator database, SGLang 0.5.14, FlashAttention-3 on H200 (table aic_decode_attention)"
FA3_DECODE: dict[str, Any] = {
    "block_q": 128, "block_kv": 128, "resident": 1, "full": 0.8, "keep": 0.85, "most": 128, "power_rate": 0.9,
}  # fmt: skip
"""FlashAttention-3's rule of parts and its tiles (hopper/{heuristics.h, tile_size.h}): of heads of 128 with packed
groups; MLA's blocks hold 64 keys. One CTA fits on an SM."""
AIC_ENGINES = "aiconfigurator database, engines' decode kernels on H200 (table aic_decode_engines)"
XQA: dict[str, Any] = {"block_q": 64, "block_kv": 64}
"""Tiles of TensorRT-LLM's XQA kernels: assumed as FlashAttention-3's for latents; the rest of the rule, too."""
FLASHINFER_DECODE: dict[str, Any] = {
    "block_q": 64, "block_kv": 64, "resident": 2, "even": True, "rate": 0.6, "block_time": 0.0,
    "merge_step": 0.0, "tile_time": 0.0, "power_rate": 0.9,
}  # fmt: skip
"""FlashInfer 0.2 spreads pages evenly over the CTAs that run at once (include/flashinfer/attention/scheduler.cuh).
Its samples are all bound by memory: they determine launch, merge and bandwidth, the rest is assumed. Calls from Python
hide part of a launch, so it may not exceed 10 us."""
FLASHMLA_DECODE: dict[str, Any] = {
    "block_q": 64, "block_kv": 64, "resident": 1, "even": True, "overhead": 5, "merge_step": 0.0, "bandwidth": 0.9,
}  # fmt: skip
"""deepseek-ai/FlashMLA, csrc: tiles of 64 rows and 64 keys, a new sequence counted as 5 blocks. Bandwidth: 3000 of
3350 GB/s (its README)."""


def decode(cls: str, home: str, source: str, text: str, also: str, free: tuple[str, ...], **fixed: Any) -> Recipe:
    """A decode attention class."""
    bounds: dict[str, Bounds] = {
        "launch": (2e-6, 1e-5), "tile_time": (0.0, 8e-6), "block_time": (0.0, 4e-6), "rate": (0.15, 1.0),
        "merge": (0.0, 1.5e-5), "merge_step": (0.0, 5e-7), "power_rate": (0.4, 0.9), "bandwidth": (0.3, 0.97),
        "l2_writeback": (0.0, 1.0),
    }  # fmt: skip
    return Recipe(
        cls=cls, kind="decode", home=home, hardware=(home,), samples=(cls,), source=source, range=text,
        also=(also,) if also else (), free={name: bounds[name] for name in free}, fixed=fixed, effort=150, starts=2,
    )  # fmt: skip


DELAY = 3e-6
"""How much later a kernel starts during an all-to-all [s], where a class has too few samples of its own: as for scale_t
and scale_t.rows, which were measured alone and concurrent with one. (quant.chan_t, too.)"""
SHORT = 1.5e-6
"""Launch [s] where the samples do not determine it: the profile's one-CTA kernels last 1 to 2 us."""
L2_GAIN = 1.7
"""L2 against memory, assumed: some 5.4 over 3.2 TB/s. The fits of quant.token and quant.chan_t find 1.3 and 1.4."""
FULL = 16
"""CTAs of 128 threads on an SM of 2048 threads, up to 32 registers a thread."""


def stream(cls: str, home: str, source: str, *free: str, text: str = "1 MB to 1 GB", **fixed: float) -> Recipe:
    """A memory-bound class; launch and bandwidth are always free. Where the chain of a CTA is, a launch alone may be as
    short as that of an empty kernel in the profile."""
    bounds: dict[str, Bounds] = {
        "launch": (2e-6, 2e-5), "bandwidth": (0.01, 0.95), "sm_rate": (1e10, 1.2e11), "traffic": (0.0, 2.0),
        "l2_gain": (1.0, 3.0), "wave_time": (0.2, 1.0), "concurrent_delay": (0.0, 8e-6),
        "value_rate": (1e8, 1e10), "cta_time": (1e-7, 6e-6), "cta_rate": (1e9, 2e10), "cta_most": (1e-6, 2e-5),
    }  # fmt: skip
    if any(name.startswith("cta_") for name in free):
        bounds["launch"] = (1e-6, 2e-5)
    names = tuple(n for n in ("launch", "bandwidth", *free) if n not in fixed)
    return Recipe(
        cls=cls, kind="stream", home=home, hardware=(home,), samples=(cls,), source=source,
        free={n: bounds[n] for n in names}, fixed=dict(fixed.items()), range=text,
    )  # fmt: skip


SHORT_KERNELS = "PyTorch's and torch.compile's kernels in a replayed CUDA graph on one H200 (table h200_narrow)"
ENGINE_KERNELS = "a decode step's kernels written in Triton, in a CUDA graph on one H200 (table h200_engine_kernels)"
MOE_LAYER = "PyTorch's kernels of a mixture-of-experts layer on one rested H200 (table h200_moe_layer)"


MAPS = "Transformer Engine's kernels in layers of Megatron-Core on one H200 (table h200_te_maps)"
RESCALED = "torchao's scales of rows applied behind a GEMM, compiled, on one rested H200 (table h200_torchao)"
CASTS = "torch.compile's casts to FP8 on one rested H200 (table h200_fp8_casts)"
EAGER = "PyTorch's eager kernels on one rested H200 (table h200_eager)"


def own_stream(cls: str, *free: str, source: str = H200, text: str = "1 MB to 1 GB", **fixed: float) -> Recipe:
    """A memory-bound class measured on an H200."""
    recipe = stream(cls, "h200", source, *free, text=text, traffic=1.0, **fixed)
    bounds = {"launch": (1e-6, 3e-5), "bandwidth": (0.01, 0.95)}
    return replace(recipe, free={name: bounds.get(name, was) for name, was in recipe.free.items()})


def as_on_h100(cls: str, *free: str) -> Recipe:
    """A memory-bound class timed by events on an H200: the H100's kernel, on the same SM, with other memory."""
    recipe = own_stream(cls, *free)
    return replace(recipe, free={n: b for n, b in recipe.free.items() if n != "launch"}, like="h100")


TE = "Transformer Engine 2.10 on one rested H200 (table h200_te_kernels)"
TE_LAYERS = "Megatron-Core 0.15 with Transformer Engine 2.10 on one rested H200 (table h200_te_experts)"
TE_ENDS = "kernels of microbatches of Megatron-Core 0.15 on one H200 (table h200_te_ends)"


def te_stream(cls: str, *free: str, source: str = TE, text: str = "8 MB to 1.4 GB", **fixed: float) -> Recipe:
    """A kernel that memory does not hold back alone: a copy reaches 0.9 of its bandwidth, what it lacks is its SMs'."""
    recipe = own_stream(cls, *(free or ("sm_rate",)), source=source, text=text, bandwidth=0.9, **fixed)
    return replace(recipe, free={n: (5e8, 1.2e11) if n == "sm_rate" else b for n, b in recipe.free.items()})


SPLIT = "PyTorch's FP8 GEMMs without fast accumulation on one H200 (tables h200_fp8_accumulation, h200_fp8_split)"

RECIPES = (
    trace_gemm("gemm.fp8", {**LOOP, **HEAD, "traffic": (0.0, 1.0)}, "M 4096, N 512 to 32768, K 512 to 32768"),
    trace_gemm("gemm.fp8.grouped", {**LOOP, "traffic": (0.0, 1.5)}, "4 groups, 31 to 35 thousand tokens"),
    trace_gemm("gemm.fp8.wgrad", {**LOOP, "traffic": (0.0, 1.0)}, "K 4096 to 8672, FP32 accumulation"),
    library_gemm(
        "gemm.bf16.router", "h800", TRACE_TILES, DEEPSEEK, "router GEMMs, 256 experts, K 256 to 7168", k_block=64,
        block_time=0.0, store_rate=1e12, fill=0.0, power_rate=1.0, unusable_sms=0, launch=2.5e-6, traffic=0.0,
    ),
    library_gemm(
        "gemm.fp8.grouped@library", "h800", GROUPED_DEEPGEMM_TILES, INFERSIM,
        "1 to 256 groups, 128 to 32768 tokens per expert", tables=("h800_kernels",), row_align=128, fill=2e-6,
    ),
    deepgemm("gemm.fp8@deepgemm", DEEPGEMM_TILES, "M 16 to 32768"),
    deepgemm("gemm.fp8.grouped@library", GROUPED_DEEPGEMM_TILES, "1 to 256 groups, 64 to 32768 tokens", row_align=128),
    deepgemm("gemm.fp8.masked", MASKED_TILES, "1 to 256 groups of 2 to 2048 tokens", grid_from_expected_m=True),
    replace(
        deepgemm("gemm.fp8.wgrad@deepgemm", WGRAD_TILES, "K 512 to 16384, FP32 accumulation", l2_writeback=0.0),
        also=("gemm.fp8.grouped_wgrad@deepgemm",),
    ),
    rested_gemm("gemm.bf16", NVJET_TILES, "M 64 to 16384", k_block=64, split=8),
    rested_gemm("gemm.bf16.wgrad", NVJET_TILES, "K 512 to 16384, FP32 accumulation", k_block=64, one_wave=len(ALONE)),
    rested_gemm("gemm.bf16.grouped", CUTLASS_TILES, "1 to 128 groups of 16 to 32768 tokens", **GROUPED_BF16),
    rested_gemm("gemm.bf16.grouped_wgrad", CUTLASS_TILES, "1 to 128 groups of 64 to 32768 tokens", **GROUPED_BF16),
    rested_gemm("gemm.fp8_tensor", NVJET_FP8_TILES, "M 64 to 16384"),
    rested_gemm("gemm.fp8_row", SQUARE, "M 64 to 16384"),
    rested_gemm("gemm.fp8_row.grouped", CUTLASS_FP8_TILES, "1 to 128 groups of 16 to 32768 tokens", **GROUPED_FP8),
    rested_gemm("gemm.fp8@library", SQUARE, "M 64 to 16384, cuBLAS"),
    rested_gemm("gemm.fp8.wgrad@library", ((64, 32), (64, 64), *SQUARE), "K 512 to 16384, FP32 output, cuBLAS"),
    loaded_gemm("gemm.bf16", "M 1 to 129280"),
    loaded_gemm("gemm.bf16.wgrad", "K 1024 to 16384, FP32 accumulation"),
    loaded_gemm("gemm.bf16.grouped", "4 to 160 groups of 1 to 32768 tokens"),
    loaded_gemm("gemm.bf16.grouped_wgrad", "4 to 160 groups"),
    loaded_gemm("gemm.fp8_tensor", "M 1 to 129280"),
    replace(
        loaded_gemm("gemm.fp8_tensor", "M 1024 to 57344"), cls="gemm.fp8_tensor.split",
        samples=("gemm.fp8_tensor.split",), also=("gemm.fp8_tensor.wgrad",), source=SPLIT,
        free={"rate": (0.4, 1.2), "loop_rate": (0.4, 1.2), "store_rate": (8e9, 1e12), "fill": (0.0, 8e-6)},
        copied="gemm.fp8_tensor",
    ),
    loaded_gemm("gemm.fp8_row", "M 1 to 16384"),
    loaded_gemm("gemm.fp8_row.grouped", "8 to 160 groups of 1 to 64 tokens"),
    loaded_gemm("gemm.fp8@library", "M 64 to 16384"),
    loaded_gemm("gemm.fp8.wgrad@library", "K 1024 to 16384, FP32 output"),
    engine_experts("gemm.fp8.grouped@triton", TRITON_TILES, EXPERTS, 128),
    engine_experts("gemm.bf16.grouped@triton", TRITON_TILES, EXPERTS, 64),
    engine_experts("gemm.fp8.grouped@cutlass", ((64, 128), (128, 128)), CUTLASS_EXPERTS, 128),
    engine_experts("gemm.bf16.grouped@cutlass", CUTLASS_TILES, CUTLASS_EXPERTS, 64),
    attention("attn.fwd", "h800", ("64:64", "128:128", "192:128", "256:256"), f"{DEEPSEEK}; {FA3}; {INFERSIM}",
              "512 to 16384 tokens", hardware=("h800", "h100")),
    attention("attn.bwd", "h800", ("64:64", "128:128", "192:128"), f"{DEEPSEEK}; {FA3}", "2048 to 8192 tokens",
              hardware=("h800", "h100"),
              fixed={"tile_time": 4e-6, "launch": 8e-6, "mask_blocks": 0.5, "power_rate": 1.0, "tail": 0.25}),
    attention("attn.fwd.fp8", "h100", ("256:256",), FA3, "4096 to 16384 tokens",
              fixed={"launch": 5e-6, "mask_blocks": 0.5, "power_rate": 1.0, "tail": 0.25}),
    *(
        attention(cls, "h100", dims, H100, "512 to 32768 tokens", rates=(0.15, 1.0), tables=H100_TABLES,
                  fixed={"power_rate": NO_LIMIT}, free=more)
        for cls, dims, more in (
            ("attn.fwd@library", LIBRARY_DIMS, {}), ("attn.bwd@library", LIBRARY_DIMS, PASSES | SUMS),
            ("attn.fwd@fa2", ("64:64", "128:128"), {}), ("attn.bwd@fa2", ("64:64", "128:128"), PASSES | SUMS),
        )
    ),
    attention("attn.fwd@library", "h200", ("64:64", "128:128", "192:128", "256:256"), H200_ATTENTION,
              "512 to 32768 tokens", free=LOOPED),
    attention("attn.bwd@library", "h200", ("64:64", "128:128", "192:128", "256:256"), H200, "512 to 16384 tokens",
              free=PASSES, like="h100", tables=("h200_kernels", "h200_measured")),
    attention("attn.fwd@fa2", "h200", ("64:64", "128:128"), H200_ATTENTION, "512 to 32768 tokens", rates=(0.15, 0.9),
              free=LOOPED, tables=("h200_kernels", "h200_measured", "h200_narrow", "h200_chunks")),
    attention("attn.bwd@fa2", "h200", ("64:64", "128:128"), H200_ATTENTION, "512 to 32768 tokens", rates=(0.15, 0.9),
              free=PASSES | LOOPED, like="h100"),
    attention("attn.fwd", "a100", ("64:64", "128:128"), FA2 + " (forward and backward together: one rate for both)",
              "512 to 16384 tokens", samples=("attn.fwd", "attn.bwd"), also=("attn.bwd",), fixed={"power_rate": 1.5}),
    decode("attn.decode@fa2", "h200", FA2_TORCH, "heads of 128, groups of 4 to 8, 512 to 131072 keys",
           "attn.decode",
           ("launch", "tile_time", "block_time", "rate", "merge", "merge_step", "bandwidth", "l2_writeback"),
           **FA2_DECODE),
    decode("attn.decode@fa3", "h200", AIC_DECODE, "heads of 128, groups of 1 to 12, 512 to 131072 keys", "",
           ("launch", "tile_time", "block_time", "rate", "merge", "merge_step", "bandwidth", "l2_writeback"),
           **FA3_DECODE),
    decode("attn.decode.mla@fa3", "h200", AIC_DECODE, "16 to 128 heads, 512 to 131072 keys", "attn.decode.mla",
           ("launch", "tile_time", "block_time", "rate", "merge", "merge_step", "bandwidth", "power_rate",
            "l2_writeback"), **FA3_DECODE | {"block_q": 64, "block_kv": 64}),
    *(
        replace(
            decode(cls, "h200", AIC_ENGINES, "16 to 128 heads, 512 to 65536 keys", "",
                   ("launch", "tile_time", "block_time", "rate", "merge", "merge_step", "bandwidth", "l2_writeback"),
                   **FA3_DECODE | fixed),
            effort=60, starts=1,
        )
        for cls, fixed in (
            ("attn.decode.fp8@fa3", {}), ("attn.decode@fa3_vllm", {}), ("attn.decode.fp8@fa3_vllm", {}),
            ("attn.decode@trtllm", XQA), ("attn.decode.fp8@trtllm", XQA),
            ("attn.decode.mla@trtllm", XQA), ("attn.decode.mla.fp8@trtllm", XQA),
        )
    ),
    decode("attn.decode@flashinfer", "h800", f"{INFERSIM}, FlashInfer", "heads of 128, kernels of more than 40 us",
           "attn.decode", ("launch", "merge", "bandwidth"), **FLASHINFER_DECODE),
    decode("attn.decode.mla@flashmla", "h800", f"{INFERSIM}, FlashMLA of 2025", "128 heads, 1024 to 131072 keys, BF16",
           "attn.decode.mla", ("launch", "tile_time", "block_time", "rate", "merge", "power_rate"), **FLASHMLA_DECODE),
    stream("quant.token", "h800", DEEPSEEK, "sm_rate", "traffic", "l2_gain", "concurrent_delay"),
    stream("quant.chan_t", "h800", DEEPSEEK, "traffic", "l2_gain", concurrent_delay=DELAY),
    stream("quant.chan_t.permuted", "h800", DEEPSEEK, launch=4e-6),
    stream("quant.special", "h800", DEEPSEEK, traffic=1.0, launch=4e-6),
    stream("scale_t", "h800", DEEPSEEK, "concurrent_delay", "cta_rate", "cta_most", traffic=0.0, resident=3,
           bandwidth=0.9, text="4096 rows, 4 to 256 columns of scales"),
    stream("scale_t.rows", "h800", DEEPSEEK, "concurrent_delay", "cta_time", traffic=0.0, resident=FULL, bandwidth=0.9),
    stream("weight_t", "h800", DEEPSEEK, "traffic", "l2_gain"),
    stream("dequant", "h800", DEEPSEEK, traffic=1.0),
    stream("norm.fwd", "h800", DEEPSEEK, "wave_time", "traffic", launch=3e-6, concurrent_delay=DELAY),
    stream("norm.fwd.narrow", "h800", DEEPSEEK, "cta_rate", traffic=0.0, wave_time=0.55, concurrent_delay=DELAY,
           bandwidth=0.9, launch=SHORT),
    stream("norm.fwd.residual", "h800", DEEPSEEK, traffic=1.0, launch=3e-6, wave_time=0.6),
    stream("norm.bwd", "h800", DEEPSEEK, "wave_time", traffic=1.0),
    stream("rope", "h800", DEEPSEEK, "cta_time", concurrent_delay=DELAY, traffic=0.0, resident=FULL, bandwidth=0.9),
    stream("kvcopy", "h800", DEEPSEEK, "traffic"),
    stream("permute.expand", "h800", DEEPSEEK, traffic=1.0, launch=4e-6),
    stream("permute.reduce", "h800", DEEPSEEK, "traffic", launch=4e-6),
    stream("swiglu", "h800", DEEPSEEK, "traffic"),
    stream("elem", "h800", DEEPSEEK, "cta_time", concurrent_delay=DELAY, l2_gain=L2_GAIN, traffic=1.0, resident=FULL),
    stream("elem.strided", "h800", DEEPSEEK, "concurrent_delay", "cta_time", traffic=0.0, resident=FULL, bandwidth=0.9),
    stream("elem.reduce", "h800", DEEPSEEK, traffic=1.0, launch=2e-6),
    stream("elem.norm_weight", "h800", DEEPSEEK, l2_gain=L2_GAIN, traffic=1.0, bandwidth=0.9, text="6 kB to 4 MB"),
    stream("attn.bwd_aux", "h800", DEEPSEEK, traffic=1.0, launch=4e-6),
    stream("router.scores", "h800", DEEPSEEK, l2_gain=L2_GAIN, traffic=1.0, launch=SHORT),
    stream("router.topk", "h800", DEEPSEEK, traffic=0.0, launch=4e-6),
    *(
        stream(cls, "h100", H100, "l2_gain", traffic=1.0)
        for cls in (
            "elem", "gelu", "norm.fwd@library", "swiglu@library", "quant.token@library", "quant.tensor", "transpose",
            "embedding", "optimizer", "softmax", "softmax.wide", "softmax.long", "loss", "loss.bwd",
        )
    ),
    replace(
        stream("norm.fwd@compiled", "h100", INDUCTOR, "l2_gain", traffic=1.0, resident=FULL),
        also=("norm.fwd.narrow@compiled",),
    ),
    stream("norm.fwd.residual@compiled", "h100", INDUCTOR, "l2_gain", traffic=1.0, resident=FULL),
    stream("norm.bwd@compiled", "h100", INDUCTOR, "l2_gain", traffic=1.0, resident=FULL),
    *(
        own_stream(cls)
        for cls in (
            "norm.fwd@library", "swiglu@library", "quant.token@library", "quant.tensor", "transpose", "softmax",
            "softmax.wide", "loss", "loss.bwd",
        )
    ),
    own_stream("optimizer", "value_rate", source=f"{H200}, {EAGER}"),
    own_stream("elem.unvectorized", "value_rate", source=EAGER, bandwidth=0.9),
    own_stream("cat.unvectorized", "value_rate", source=EAGER, bandwidth=0.9),
    *(
        own_stream(cls, source=CASTS)
        for cls in ("quant.amax@compiled", "quant.tensor@compiled", "quant.row@compiled")
    ),
    own_stream("quant.turned@compiled", "value_rate", source=CASTS, bandwidth=0.9),
    own_stream("quant.column@compiled", "value_rate", source=CASTS, bandwidth=0.9),
    own_stream("quant.rescale@compiled", "value_rate", source=RESCALED, text="100 MB to 4 GB", bandwidth=0.9),
    own_stream("swiglu.bwd@compiled", "value_rate", source=MOE_LAYER, text="1024 to 32768 rows", bandwidth=0.9),
    *(
        own_stream(cls, "value_rate", source=MAPS, text="8 to 128 experts, 4096 to 8192 tokens", bandwidth=0.9)
        for cls in ("permute.map.chunks", "permute.map.rows")
    ),
    replace(own_stream("quant.turned.experts", source=MAPS, text="16384 and 65536 rows of 768 to 16384"),
            free={"launch": (1e-6, 1e-4), "bandwidth": (0.01, 0.95)}),
    own_stream("permute.pad", source=MAPS, text="16384 and 65536 rows", launch=3e-6),
    *(
        te_stream(f"norm.{direction}{kind}@te", wave_time=wave)
        for direction, wave, more in (("fwd", 0.56, ()), ("bwd", 0.87, (".wide", ".layer.wide")))  # as DeepSeek's grids
        for kind in ("", ".layer", ".general", ".layer.general", *more)
    ),
    *(te_stream(f"norm.{which}.narrow@te", source=TE_LAYERS, text="heads of 128") for which in ("fwd", "bwd")),
    *(
        replace(te_stream(f"norm.sums.{which}@te", source=TE_ENDS, text=text), free={"launch": (1e-6, 1e-4)},
                fixed={"bandwidth": 0.9, "traffic": 1.0})
        for which, text in (("general", "6144 values"), ("narrow", "heads of 128"))
    ),
    *(te_stream(cls) for cls in ("quant.tensor@te", "quant.turned@te", "quant.block@te", "quant.amax@te")),
    te_stream("rope@te", "value_rate"),
    te_stream("swiglu@te", source=TE_LAYERS, text="4096 and 8192 x 14336", launch=3e-6),
    te_stream("swiglu.bwd@te", "value_rate", source=TE_LAYERS, text="4096 and 8192 x 14336", launch=3e-6),
    te_stream("copy.heads", source=TE_LAYERS, text="8 to 134 MB"),
    *(
        te_stream(cls, source=TE_ENDS, text="4096 x 12288", launch=3e-6)
        for cls in ("gelu@te", "gelu.bwd@te", "norm.fwd.layer.wide@te")
    ),
    *(te_stream(cls, source=TE_ENDS) for cls in ("loss.te", "loss.te.write", "elem.mixed")),
    replace(te_stream("embedding.bwd.table", source=TE_ENDS, text="4096 to 16384 tokens"),
            free={"launch": (1e-6, 1e-4), "sm_rate": (5e8, 1.2e11)}),
    *(
        replace(own_stream(cls, source=SHORT_KERNELS, text="1 KiB to 1 MiB, operands in L2"), starts=2)
        for cls in ("elem.small", "swiglu.small", "norm.small", "norm.small@compiled")
    ),
    *(
        replace(own_stream(cls, source=ENGINE_KERNELS, text="1 KB to 1 MB, operands in L2"), starts=2)
        for cls in ("quant.small", "rope.small", "kvcopy.small", "permute.small")
    ),
    as_on_h100("elem", "l2_gain"),
    replace(own_stream("embedding"), free={"bandwidth": (0.01, 0.95)}, fixed={"launch": SHORT, "traffic": 1.0}),
    *(
        own_stream(cls, *more, source=MOE_LAYER, text="1024 to 16384 tokens, 2 to 8 experts a token")
        for cls, more in (
            ("permute.index_select", ("l2_gain",)), ("permute.index_add", ()), ("unpermute.index_add", ()),
            ("unpermute.index_add.bwd", ()), ("unpermute.gather_sum", ()), ("unpermute.gather_sum.bwd", ()),
            ("router.topk@torch", ()), ("router.gate@torch", ()),
            ("router.gate.bwd@torch", ()),
        )
    ),
)  # fmt: skip

SAME_SM = "measured there, carried over: same SM"
CARRIED = (
    ("h800", "h200", f"H200: {SAME_SM}", False),
    ("h100", "h800", f"H800: {SAME_SM}", False),
    ("h800", "h100", f"H100: {SAME_SM}", False),
    ("h100", "h200", f"H200: {SAME_SM}", False),
    ("h200", "h800", f"H800: {SAME_SM}", False),
    ("h200", "h100", f"H100: {SAME_SM}", False),
)
"""(to, from, why, assumed): classes carried between GPUs with the same SM."""
RENAMED = (
    tuple(
        ("h800", f"{cls}@library", "h100", f"{cls}@deepgemm", f"H100: {SAME_SM}")
        for cls in ("gemm.fp8", "gemm.fp8.wgrad", "gemm.fp8.grouped_wgrad")
    )
    + tuple(
        (gpu, cls, gpu, "gemm.fp8_tensor", "Blackwell's tensor cores add up in FP32: nothing is split")
        for gpu in ("b200", "gb200", "b300", "gb300")
        for cls in ("gemm.fp8_tensor.split", "gemm.fp8_tensor.wgrad")
    )
    + tuple(("b200", cls, "gb200", cls, f"GB200: {SAME_SM}") for cls in ("attn.fwd.mxfp8", "attn.bwd.mxfp8"))
)
STREAMS = 4
"""Streams on which Transformer Engine runs one cuBLAS GEMM after another for the experts
(transformer_engine/common/gemm/cublaslt_gemm.cu, multi-stream grouped GEMM, 2025)."""
STREAMED = {
    "gemm.bf16.grouped@streams": "gemm.bf16",
    "gemm.bf16.grouped_wgrad@streams": "gemm.bf16.wgrad",
    "gemm.fp8_tensor.grouped@streams": "gemm.fp8_tensor",
    "gemm.fp8_tensor.grouped.split@streams": "gemm.fp8_tensor.split",
    "gemm.fp8_tensor.grouped_wgrad@streams": "gemm.fp8_tensor.wgrad",
}
BLACKWELL_STREAMED = {
    "gemm.mxfp8.grouped@streams": "gemm.fp8_tensor",
    "gemm.mxfp8.grouped_wgrad@streams": "gemm.fp8_tensor",
    "gemm.nvfp4.grouped@streams": "gemm.nvfp4",
    "gemm.nvfp4.grouped_wgrad@streams": "gemm.nvfp4",
}
"""Classes of experts' GEMMs that are one cuBLAS GEMM for each -> the class of one; the second ones where the tensor
cores scale blocks (MXFP8: not measured, as one scale a tensor)."""
"""(to, class, from, its class there, why): on H800 the library is DeepGEMM, on H100 and H200 cuBLAS."""
NOT_MEASURED = "A100: not measured, the same shares of peak and bandwidth assumed"
MEASURED = ("h200", "h800", "h100")
"""GPUs whose measured classes stand in for those of others, the first that has one."""
ASSUMED = tuple(("a100", origin, NOT_MEASURED, True) for origin in MEASURED)
