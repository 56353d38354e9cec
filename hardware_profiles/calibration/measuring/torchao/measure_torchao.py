r"""Measure what PyTorch runs of a tensor-parallel Llama layer in FP8, kernel by kernel, and those kernels by size.

    python -m hardware_profiles.calibration.measuring.torchao.measure_torchao OUT.csv [--budget SECONDS] \
        [--only layer,gemm,casts,others,ring]

Needs torchao (0.15). `layer` (OUT_layer.csv): one compiled Transformer layer of torchtitan's with tensor and sequence
parallelism over a process group whose collectives do nothing, with all or some operations recomputed, forward and
backward: every kernel of a round, in order, as the median of three rounds. Collectives are absent; what PyTorch copies
around them is there. recipe: bf16; fp8_tensor and fp8_row are torchao's tensorwise and rowwise, cast behind the gather
(with scales of tensors torchtitan casts before it).

`gemm`: torch._scaled_mm on a rested GPU (`kernel_spans.py`), scales of rows with fast accumulation, scales of tensors
with and without. PyTorch built for CUDA before 12.9 runs CUTLASS's kernel where scales are of rows; later ones
cuBLAS's. To measure the first, preload a library whose cublasLtGetVersion answers 120800 (impl cutlass by the kernel's
name). `casts`: torchao's casts compiled, along rows and along columns. `others`: scales of rows and columns applied to
a GEMM's output as torchao does it, compiled, and sequences put in the order of ranks. `ring` (OUT_ring.csv): kernels of
PyTorch's own ring attention, eager and compiled, collectives absent.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hardware_profiles.calibration.measuring import kernel_spans
from hardware_profiles.calibration.measuring.kernel_spans import TIMES, Call, Case, Row, Table, arguments
from hardware_profiles.calibration.measuring.torch_kernels import bf16, fp8, ones

COLUMNS = ["op", "impl", "m", "n", "k", "bytes", "held_out", *TIMES]
LAYER_COLUMNS = ["model", "tp", "tokens", "recipe", "recompute", "at", "us", "kernel"]
MODELS = {
    "8b": (4096, 32, 8, 14336),
    "70b": (8192, 64, 8, 28672),
    "405b": (16384, 128, 8, 53248),
}
"""Hidden size, query heads, key heads and inner size."""
LAYERS = (
    ("70b", 8, 16, "full", "fp8_row"),
    ("70b", 8, 16, "full", "bf16"),
    ("8b", 8, 12, "selective", "fp8_row"),
    ("70b", 8, 16, "full", "fp8_tensor"),
    ("8b", 1, 1, "selective", "fp8_row"),
    ("405b", 8, 2, "full", "fp8_row"),
    ("8b", 1, 1, "selective", "fp8_tensor"),
    ("8b", 1, 1, "selective", "bf16"),
    ("405b", 8, 2, "full", "fp8_tensor"),
    ("8b", 8, 12, "selective", "fp8_tensor"),
    ("8b", 8, 12, "selective", "bf16"),
    ("405b", 8, 2, "full", "bf16"),
)
"""Model, tensor parallelism, sequences of `LENGTH`, what is recomputed, recipe."""
LENGTH = 8192
LARGEST = 448.0


class Block(nn.Module):  # type: ignore[misc,unused-ignore]
    """A layer as torchtitan writes it, one of `tp` ranks' part: separate projections, complex rotation, repeated keys;
    norms and residuals on its part of the sequence."""

    def __init__(self, hidden: int, width: int, heads: int, kv_heads: int, inner: int, tp: int) -> None:
        super().__init__()
        self.norm_a, self.norm_f = nn.RMSNorm(hidden, eps=1e-5), nn.RMSNorm(hidden, eps=1e-5)
        self.attention = Gathered(Attention(hidden, width, heads, kv_heads), tp)
        self.ffn = Gathered(FeedForward(hidden, inner), tp)

    def forward(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        h = x + self.attention(self.norm_a(x), angles)
        out: torch.Tensor = h + self.ffn(self.norm_f(h))
        return out


class FeedForward(nn.Module):  # type: ignore[misc,unused-ignore]
    """SwiGLU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Attention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Causal attention by what PyTorch chooses (FlashAttention-2 on Hopper, 2025)."""

    def __init__(self, hidden: int, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.width, self.repeats = width, heads // kv_heads
        self.wq, self.wo = (
            nn.Linear(hidden, heads * width, bias=False),
            nn.Linear(heads * width, hidden, bias=False),
        )
        self.wk = nn.Linear(hidden, kv_heads * width, bias=False)
        self.wv = nn.Linear(hidden, kv_heads * width, bias=False)

    def forward(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (w(x).view(batch, length, -1, self.width) for w in (self.wq, self.wk, self.wv))
        q, k = rotated(q, angles), rotated(k, angles)
        k, v = repeated(k, self.repeats), repeated(v, self.repeats)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        y: torch.Tensor = self.wo(out.transpose(1, 2).contiguous().view(batch, length, -1))
        return y


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, in complex numbers."""
    wide = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(wide * angles[: x.shape[1]].view(1, x.shape[1], 1, -1)).flatten(3).type_as(x)


def repeated(x: torch.Tensor, times: int) -> torch.Tensor:
    """Keys or values once for each query head."""
    batch, length, heads, width = x.shape
    wide = x.unsqueeze(3).expand(batch, length, heads, times, width)
    return wide.reshape(batch, length, heads * times, width) if times > 1 else x


class Gathered(nn.Module):  # type: ignore[misc,unused-ignore]
    """A module between a gather and a reduce-scatter of its input's and output's second dimension over `tp` ranks."""

    def __init__(self, inner: nn.Module, tp: int) -> None:
        super().__init__()
        self.inner, self.tp = inner, tp

    def forward(self, x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(_gather(x), *more) if self.tp > 1 else self.inner(x, *more)
        return _scatter(out) if self.tp > 1 else out


def _gather(x: torch.Tensor) -> torch.Tensor:
    """The whole sequence."""
    import torch.distributed._functional_collectives as collectives

    return collectives.all_gather_tensor_autograd(x, gather_dim=1, group=torch.distributed.group.WORLD)


def _scatter(x: torch.Tensor) -> torch.Tensor:
    """This rank's part of the sequence, summed."""
    import torch.distributed._functional_collectives as collectives

    return collectives.reduce_scatter_tensor_autograd(x, "sum", scatter_dim=1, group=torch.distributed.group.WORLD)


def recomputing(block: nn.Module, how: str) -> nn.Module:
    """The block, recomputed as a whole, or all but attention, scatters, maxima and every second GEMM."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    if how == "full":
        return checkpoint_wrapper(block, preserve_rng_state=False)
    aten = torch.ops.aten
    kept = {
        aten.mm.default,
        aten._scaled_dot_product_flash_attention.default,
        torch.ops._c10d_functional.reduce_scatter_tensor.default,
        aten.max.default,
    }

    def contexts() -> Any:
        count = {"forward": 0, "recompute": 0}

        def policy(ctx: Any, op: Any, *_: Any, **__: Any) -> Any:
            if op == aten.mm.default:
                count["recompute" if ctx.is_recompute else "forward"] += 1
            even = op == aten.mm.default and count["recompute" if ctx.is_recompute else "forward"] % 2 == 0
            return CheckpointPolicy.MUST_SAVE if op in kept and not even else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(policy)

    return checkpoint_wrapper(block, context_fn=contexts, preserve_rng_state=False)


def prepared(model: str, tp: int, recipe: str, recompute: str) -> Callable[..., Any]:
    """The compiled layer."""
    hidden, heads, kv_heads, inner = MODELS[model]
    block = Block(hidden, hidden // heads, heads // tp, kv_heads // tp, inner // tp, tp)
    block = block.to(device="cuda", dtype=torch.bfloat16)
    if recipe != "bf16":
        from torchao.float8 import (  # type: ignore[import-not-found,unused-ignore]
            Float8LinearConfig,
            convert_to_float8_training,
        )

        name = "rowwise" if recipe == "fp8_row" else "tensorwise"
        convert_to_float8_training(block, config=Float8LinearConfig.from_recipe_name(name))
        torch._inductor.config.emulate_precision_casts = recipe == "fp8_row"
    out: Callable[..., Any] = torch.compile(recomputing(block, recompute), fullgraph=True)
    return out


def rounds(call: Callable[[], None], many: int = 3) -> list[tuple[float, str]]:
    """Median time [us] and name of each kernel of a call."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    found = []
    for _ in range(many):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
            call()
            torch.cuda.synchronize()
        found.append(kernel_spans.gpu_events(prof))
    if len({len(one) for one in found}) > 1:
        found = [found[-1]]
    return [(statistics.median(e[1] - e[0] for e in same), same[0][2]) for same in zip(*found, strict=True)]


def layer(path: str, last: float) -> None:
    """Kernels of whole layers."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(LAYER_COLUMNS)
        for model, tp, batch, recompute, recipe in LAYERS:
            if time.time() > last:
                return
            torch._dynamo.reset()
            torch.cuda.empty_cache()
            began = time.time()
            labels = (model, tp, batch * LENGTH, recipe, recompute)
            try:
                for at, (us, kernel) in enumerate(rounds(step(model, tp, recipe, recompute, batch))):
                    name = kernel.removeprefix("void ").replace(",", ";")[: kernel_spans.NAME]
                    out.writerow([*labels, at, round(us, 2), name])
            except Exception as error:
                print("failed", labels, type(error).__name__, str(error)[:600], flush=True)
            file.flush()
            print(labels, f"{time.time() - began:.0f} s", flush=True)
    torch.distributed.destroy_process_group()


def step(model: str, tp: int, recipe: str, recompute: str, batch: int) -> Callable[[], None]:
    """Forward and backward of the layer."""
    block, hidden = prepared(model, tp, recipe, recompute), MODELS[model][0]
    width = hidden // MODELS[model][1]
    x = bf16(batch, LENGTH // tp, hidden).requires_grad_()
    angles = torch.polar(ones(LENGTH, width // 2), ones(LENGTH, width // 2))
    gradient = bf16(batch, LENGTH // tp, hidden)

    def run() -> None:
        out = block(x, angles)
        out.backward(gradient)
        x.grad = None
        for p in block.parameters():  # type: ignore[attr-defined]
            p.grad = None

    return run


def multiplication(impl: str, m: int, n: int, k: int) -> Call:
    """A GEMM of FP8 operands."""
    a, b = fp8(m, k), fp8(n, k)
    sa, sb = (ones(m, 1), ones(1, n)) if impl == "row" else (ones(1).squeeze(), ones(1).squeeze())
    fast = impl != "tensor_split"
    return lambda: torch._scaled_mm(a, b.t(), scale_a=sa, scale_b=sb, out_dtype=torch.bfloat16, use_fast_accum=fast)


def shapes() -> list[tuple[int, int, int]]:
    """Forward GEMMs of the models' layers over tensor-parallel ranks."""
    out = []
    for hidden, heads, kv, inner in MODELS.values():
        width = hidden // heads
        for tp in (1, 8):
            for n, k in ((hidden // tp, hidden), (kv * width // tp, hidden), (hidden, hidden // tp),
                         (inner // tp, hidden), (hidden, inner // tp)):  # fmt: skip
                out += [(m, n, k) for m in (2048, 16384, 98304) if 2.0 * m * n * k < 8e12]
    return list(dict.fromkeys(out))


def gemm_cases() -> list[Case]:
    """Every shape, each kind."""
    out = []
    for at, (m, n, k) in enumerate(shapes()):
        for impl in ("row", "tensor", "tensor_split"):
            labels: Row = {"op": "gemm", "impl": impl, "m": m, "n": n, "k": k, "held_out": at % 2}
            out.append(Case(labels, partial(multiplication, impl, m, n, k), 2e-5 + 2.0 * m * n * k / 8e14))
    return out


def cast(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """torchao's cast with a scale a row (dim -1) or a column (dim 0): a power of two."""
    largest = x.abs().amax(dim, keepdim=True).to(torch.float64)
    scale = torch.exp2(torch.floor(torch.log2((LARGEST / largest.clamp(min=1e-12)).float())))
    y = (x.float() * scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return (y.t().contiguous() if dim == 0 else y), scale


def cast_cases() -> list[Case]:
    """Casts by size."""
    out = []
    wide = [(m, n) for m in (8192, 98304, 131072) for n in (128, 1024, 3584, 8192)] + [(16384, 6656), (16384, 16384)]
    for at, (m, n) in enumerate(wide):
        for name, dim in (("cast_row", -1), ("cast_column", 0)):
            made = torch.compile(partial(cast, dim=dim), dynamic=False)
            labels: Row = {"op": name, "impl": "compiled", "m": m, "n": n, "bytes": 3 * m * n, "held_out": at % 2}

            def make(fn: Callable[..., Any] = made, m: int = m, n: int = n) -> Call:
                return partial(fn, bf16(m, n))

            out.append(Case(labels, make, 1e-5 + 3 * m * n / 1e12))
    return out


def rounded(largest: torch.Tensor) -> torch.Tensor:
    """torchao's scale of a row or column whose largest value this is, as it computes it: in FP64, a power of two."""
    scale = (LARGEST / largest.to(torch.float64).clamp(min=1e-12)).to(torch.float32)
    return torch.exp2(torch.floor(torch.log2(scale)))


def rescale(y: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The output of a GEMM without scales, times those of its rows and columns, whose largest values are given."""
    return (y * (rounded(rows).reciprocal() * rounded(columns).reciprocal())).to(torch.bfloat16)


def gathered(x: torch.Tensor) -> torch.Tensor:
    """What ranks sent, one behind the other, in the order of the sequence (the second dimension)."""
    return torch.cat(x.chunk(8, dim=0), dim=1)


def scattered(x: torch.Tensor) -> torch.Tensor:
    """The sequence's parts of ranks, one behind the other."""
    return torch.cat(x.chunk(8, dim=1), dim=0)


def summed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A sum, in the order of ranks."""
    return scattered(a + b)


def summed_three(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The same of three."""
    return scattered(a + b + c)


def other_cases() -> list[Case]:
    """Rescaling and putting in order, by size; torch.compile with precision casts emulated, as torchtitan sets it for
    scales of rows."""
    out = []
    wide = ((8192, 3584), (16384, 4096), (16384, 16384), (32768, 3584), (98304, 1792), (98304, 4096), (131072, 8192))
    for at, (m, n) in enumerate(wide):
        labels: Row = {"op": "rescale", "impl": "compiled", "m": m, "n": n, "bytes": 4 * m * n, "held_out": at % 2}

        def make(m: int = m, n: int = n) -> Call:
            fn = torch.compile(rescale, dynamic=False)
            return partial(fn, bf16(m, n), ones(m, 1) * 3, ones(1, n) * 5)

        out.append(Case(labels, make, 1e-5 + m * n / 1.5e11))
    for at, (batch, hidden) in enumerate(((2, 4096), (2, 16384), (12, 4096), (16, 8192))):
        size = batch * LENGTH * hidden
        whole, sent = (batch, LENGTH, hidden), (8 * batch, LENGTH // 8, hidden)
        every: tuple[tuple[str, Any, int, tuple[int, ...]], ...] = (
            ("gather_order", gathered, 1, sent),
            ("scatter_order", scattered, 1, whole),
            ("sum_order", summed, 2, whole),
            ("sum3_order", summed_three, 3, whole),
        )
        for name, fn, many, shape in every:
            labels = {"op": name, "impl": "compiled", "m": batch * LENGTH, "n": hidden, "held_out": at % 2}

            def placed(fn: Any = fn, many: int = many, shape: tuple[int, ...] = shape) -> Call:
                return partial(torch.compile(fn, dynamic=False), *(bf16(*shape) for _ in range(many)))

            out.append(Case(labels | {"bytes": 2 * (many + 1) * size}, placed, 1e-5 + size / 4e11))
    return out


def ring(path: str, ranks: int, compiled: bool) -> None:
    """Kernels of PyTorch's own ring attention, forward and backward, of one of so many ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=ranks)
    mesh = init_device_mesh("cuda", (ranks,))
    q, k, v = (bf16(1, 32, 32768, 128).requires_grad_() for _ in range(3))

    def attend() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    fn = torch.compile(attend) if compiled else attend

    def run() -> None:
        with (
            sdpa_kernel([SDPBackend.FLASH_ATTENTION]),
            context_parallel(mesh, buffers=[ones(1024)], buffer_seq_dims=[0]),
        ):
            out = fn()
            out.sum().backward()

    try:
        with open(path, "a", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            for at, (us, kernel) in enumerate(rounds(run, 1)):
                out.writerow([ranks, int(compiled), at, round(us, 2), kernel.replace(",", ";")[: kernel_spans.NAME]])
    except Exception as error:
        print("failed", ranks, compiled, type(error).__name__, str(error)[:500], flush=True)
    torch.distributed.destroy_process_group()


def main() -> None:
    """All sections."""
    args = arguments(__doc__ or "", ["layer", "gemm", "casts", "others", "ring"])
    torch._dynamo.config.recompile_limit = 256
    torch.manual_seed(1)
    began, wanted = time.time(), args.only.split(",")
    last = began + args.budget
    table = Table(args.out, COLUMNS, args.budget)
    if "gemm" in wanted:
        table.run(gemm_cases()[:: args.every])
    print(f"gemm {time.time() - began:.0f} s", flush=True)
    if "casts" in wanted:
        table.run(cast_cases()[:: args.every])
    print(f"casts {time.time() - began:.0f} s", flush=True)
    if "others" in wanted:
        torch._inductor.config.emulate_precision_casts = True
        table.run(other_cases()[:: args.every])
        torch._inductor.config.emulate_precision_casts = False
    print(f"others {time.time() - began:.0f} s", flush=True)
    if "ring" in wanted:
        for ranks, compiled in ((2, False), (4, False), (4, True)):
            torch._dynamo.reset()
            ring(args.out.replace(".csv", "_ring.csv"), ranks, compiled)
    if "layer" in wanted:
        layer(args.out.replace(".csv", "_layer.csv"), last)


if __name__ == "__main__":
    main()
