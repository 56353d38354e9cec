"""Measure the short kernels that cutting a model leaves: small tensors, narrow GEMMs, chunks of attention.

    python -m hardware_profiles.calibration.measuring.measure_narrow OUT.csv [--budget SECONDS] [--only NAMES]

`us`, `kernel`: one launch on a rested GPU with L2 flushed (`kernel_spans.py`). `us_graph`: the mean of a chain of 40
such calls in a CUDA graph, operands as the last call left them in L2, as in a program of small kernels; with the gap to
the next kernel. Sections:

- small: memory-bound kernels of 1 KiB to 1 MiB, eager and compiled: `bytes` read and written.
- gemm: GEMMs of a layer cut by tensor parallelism of 2, 4 and 8: forward, input and weight gradients.
- rowwise: norm over a part of the sequence, SwiGLU and rotary embedding over a part of the width.
- chunks: FlashAttention-2 over `seq` queries and `kv_len` keys, without a mask (a chunk that another rank sent) or
  causal to the end of the keys (`causal`), forward and backward; cudnn: the same of cuDNN's, by PyTorch, whose causal
  mask with more keys than queries is another one.
- heads: attention over whole sequences with few heads, as tensor and all-to-all context parallelism leave them.
- merge: what joins two such outputs by their log-sum-exp (`m` tokens, `n` = heads x d), eager and compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from hardware_profiles.calibration.measuring.kernel_spans import (
    TIMES,
    Call,
    Case,
    Row,
    Table,
    arguments,
    guarded,
    in_graph,
)
from hardware_profiles.calibration.measuring.torch_kernels import DEVICE, attention, bf16, norm, swiglu

COLUMNS = [
    "op",
    "impl",
    "m",
    "n",
    "k",
    "form",
    "tp",
    "batch",
    "seq",
    "kv_len",
    "heads",
    "kv_heads",
    "d",
    "d_v",
    "causal",
]
COLUMNS += ["backward", "bytes", *TIMES, "us_graph"]
CHAIN = 40
SIZES = [1 << power for power in range(10, 21)]
LAYERS = {"8b": (4096, 14336, 32, 8), "70b": (8192, 28672, 64, 8), "405b": (16384, 53248, 128, 8)}
"""Hidden and inner width, heads, heads of keys."""


def compiled(fn: Callable[..., object]) -> Callable[..., object]:
    """A kernel of its own for each shape."""
    torch._dynamo.config.recompile_limit = 256
    made: Callable[..., object] = torch.compile(fn, dynamic=False)
    return made


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A residual."""
    return x + y


def cast(x: torch.Tensor) -> torch.Tensor:
    """A copy in FP32."""
    return x.float()


def scale(x: torch.Tensor) -> torch.Tensor:
    """A multiplication by a number."""
    return x * 0.5


def small(table: Table, every: int) -> None:
    """Memory-bound kernels of little work."""
    table.run(list(small_cases())[::every], graphed)


def small_cases() -> Iterator[Case]:
    """Residual, cast, scaling, RMSNorm and SwiGLU of few bytes."""
    for impl in ("eager", "compile"):
        use = compiled if impl == "compile" else as_it_is
        fns = {fn.__name__: use(fn) for fn in (add, cast, scale, swiglu)}
        rms = compiled(norm) if impl == "compile" else None
        for size in SIZES:
            head: Row = {"impl": impl}
            sixth, rows, wide = size // 6, size // 4 // 2048, max(1, size // 6 // 2048)
            yield Case(head | {"op": "add", "bytes": 6 * sixth}, partial(pointwise, fns["add"], 2, sixth))
            yield Case(head | {"op": "cast", "bytes": 6 * sixth}, partial(pointwise, fns["cast"], 1, sixth))
            yield Case(head | {"op": "scale", "bytes": size}, partial(pointwise, fns["scale"], 1, size // 4))
            if rows:
                yield Case(head | {"op": "rmsnorm", "bytes": 8192 * rows}, partial(normed, rms, rows))
                moved = 12288 * wide
                yield Case(head | {"op": "swiglu", "bytes": moved}, partial(activated, fns["swiglu"], wide))


def as_it_is(fn: Callable[..., object]) -> Callable[..., object]:
    """Eager."""
    return fn


def pointwise(fn: Callable[..., object], inputs: int, count: int) -> Call:
    """A kernel over one or two tensors of so many values."""
    operands = [bf16(count) for _ in range(inputs)]
    return lambda: fn(*operands)


def normed(fn: Callable[..., object] | None, rows: int, width: int = 2048) -> Call:
    """RMSNorm of some rows."""
    x, w = bf16(rows, width), bf16(width)
    return (lambda: F.rms_norm(x, (width,), w)) if fn is None else (lambda: fn(x, w))


def activated(fn: Callable[..., object], rows: int, width: int = 2048) -> Call:
    """SwiGLU of some rows."""
    x = bf16(rows, 2 * width)
    return lambda: fn(x)


def graphed(case: Case, row: Row) -> Row:
    """The row, and the mean in a chain."""
    call = case.make()
    call()
    return row | {"us_graph": round(in_graph([call] * CHAIN), 3)}


def gemm(table: Table, every: int) -> None:
    """GEMMs of sharded layers."""
    table.run(list(gemm_cases())[::every])


def gemm_cases() -> Iterator[Case]:
    """Each GEMM of a layer, cut in parts."""
    for hidden, inner, heads, kv in LAYERS.values():
        for tp in (2, 4, 8):
            wide = (heads + 2 * kv) * 128 // tp
            for n, k in ((wide, hidden), (hidden, hidden // tp), (2 * inner // tp, hidden), (hidden, inner // tp)):
                for tokens in (2048, 8192):
                    shapes = {"nt": (tokens, n, k), "nn": (tokens, k, n), "tn": (n, k, tokens)}
                    for form, (rows, columns, depth) in shapes.items():
                        labels: Row = {"op": "gemm", "impl": f"cublas_{form}", "m": rows, "n": columns, "k": depth}
                        guess = 3e-5 + 2.0 * rows * columns * depth / 6e14
                        yield Case(labels | {"tp": tp}, partial(multiplied, form, rows, columns, depth), guess)


def multiplied(form: str, m: int, n: int, k: int) -> Call:
    """Output m x n; nt forward, nn input gradient, tn weight gradient."""
    a = bf16(k, m).t() if form == "tn" else bf16(m, k)
    b = bf16(n, k).t() if form == "nt" else bf16(k, n)
    return lambda: a @ b


def rowwise(table: Table, every: int) -> None:
    """Memory-bound kernels of sharded layers."""
    table.run(list(rowwise_cases())[::every])


def rowwise_cases() -> Iterator[Case]:
    """Norm of a part of the sequence, SwiGLU and rotary embedding of a part of the width."""
    made = compiled(norm), compiled(swiglu), compiled(rotated)
    for hidden, inner, heads, _ in LAYERS.values():
        for tp in (2, 4, 8):
            for tokens in (2048, 8192):
                rows, width = tokens // tp, inner // tp
                size: Row = {"tp": tp, "m": rows, "n": hidden, "bytes": 4 * rows * hidden}
                yield Case(size | {"op": "rmsnorm", "impl": "compile"}, partial(normed, made[0], rows, hidden))
                yield Case(size | {"op": "rmsnorm", "impl": "eager"}, partial(normed, None, rows, hidden))
                size = {"tp": tp, "m": tokens, "n": width, "bytes": 6 * tokens * width}
                yield Case(size | {"op": "swiglu", "impl": "compile"}, partial(activated, made[1], tokens, width))
                yield Case(size | {"op": "swiglu", "impl": "eager"}, partial(activated, swiglu, tokens, width))
                size = {"tp": tp, "m": tokens, "n": heads // tp * 128, "bytes": 4 * tokens * heads // tp * 128}
                yield Case(size | {"op": "rope", "impl": "compile"}, partial(rope, made[2], tokens, heads // tp))
                yield Case(size | {"op": "rope", "impl": "eager"}, partial(rope, rotated, tokens, heads // tp))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of (tokens, heads, d)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rope(fn: Callable[..., object], tokens: int, heads: int) -> Call:
    """Its call."""
    x, cos, sin = bf16(tokens, heads, 128), bf16(tokens, 1, 64), bf16(tokens, 1, 64)
    return lambda: fn(x, cos, sin)


def chunks(table: Table, every: int) -> None:
    """Attention of one chunk of queries to one of keys."""
    table.run(list(chunk_cases())[::every])


def chunk_cases() -> Iterator[Case]:
    """What ring, all-gather and all-to-all context parallelism launch."""
    for seq, kv, causal in (
        *((s, s, c) for s in (1024, 2048, 4096, 8192) for c in (True, False)),
        *((s, s // 2, False) for s in (2048, 4096, 8192, 16384)),
        *((s // 2, s, False) for s in (2048, 4096, 8192, 16384)),
        *((s, many * s, True) for s in (1024, 2048, 4096) for many in (2, 3, 4, 8)),
    ):
        for heads in (8, 32):
            for back in (False, True):
                labels: Row = {"op": "attention", "impl": "flash2", "batch": 1, "seq": seq, "kv_len": kv, "d": 128}
                labels |= {"heads": heads, "causal": int(causal), "backward": int(back)}
                area = seq * kv - (seq * seq / 2 if causal else 0)
                yield Case(labels, partial(chunk, seq, kv, heads, causal, back), 2e-5 + 512 * heads * area / 1.5e14)


def chunk(seq: int, kv: int, heads: int, causal: bool, backward: bool) -> Call:
    """FlashAttention-2's forward or backward alone."""
    q, k, v = bf16(1, seq, heads, 128), bf16(1, kv, heads, 128), bf16(1, kv, heads, 128)
    sizes = (None, None, seq, kv, 0.0, causal)
    ahead, back = torch.ops.aten._flash_attention_forward, torch.ops.aten._flash_attention_backward
    if not backward:
        return lambda: ahead(q, k, v, *sizes, False, scale=128**-0.5)
    out, lse, state, unused, _ = ahead(q, k, v, *sizes, False, scale=128**-0.5)
    grad = torch.randn_like(out)
    return lambda: back(grad, q, k, v, out, lse, *sizes, state, unused, scale=128**-0.5)


CUDNN_SHAPES = ((32, 32, 128, 128), (32, 8, 128, 128), (8, 2, 128, 128), (8, 8, 128, 128), (16, 16, 192, 128))
"""Heads, heads of keys, width of a key and of a value."""


def cudnn(table: Table, every: int) -> None:
    """The chunks of a ring by cuDNN."""
    table.run(list(cudnn_cases())[::every])


def cudnn_cases() -> Iterator[Case]:
    """A rank's own chunk, and what it makes of the others': half of the queries, or of the keys."""
    for s in (2048, 4096, 8192):
        for seq, kv, causal in ((s, s, True), (s, s // 2, False), (s // 2, s, False)):
            for shape in CUDNN_SHAPES:
                yield from fused_cases("cudnn", seq, kv, causal, *shape)


def fused_cases(
    impl: str, seq: int, kv: int, causal: bool, heads: int, kv_heads: int, d: int, d_v: int
) -> Iterator[Case]:
    """Forward and backward of one shape."""
    for back in (False, True):
        labels: Row = {"op": "attention", "impl": impl, "batch": 1, "seq": seq, "kv_len": kv, "heads": heads}
        labels |= {"kv_heads": kv_heads, "d": d, "d_v": d_v, "causal": int(causal), "backward": int(back)}
        flops = (2.5 if back else 1.0) * 2.0 * heads * seq * kv * (d + d_v) * (0.5 if causal else 1.0)
        yield Case(labels, partial(fused, impl, seq, kv, heads, kv_heads, d, d_v, causal, back), 2e-5 + flops / 3e14)


def fused(
    impl: str, seq: int, kv: int, heads: int, kv_heads: int, d: int, d_v: int, causal: bool, backward: bool
) -> Call:
    """Attention through PyTorch's operator, by cuDNN or FlashAttention-2."""
    made = [bf16(1, seq, heads, d), bf16(1, kv, kv_heads, d), bf16(1, kv, kv_heads, d_v)]
    q, k, v = (x.transpose(1, 2).detach().requires_grad_(backward) for x in made)
    backend = SDPBackend.CUDNN_ATTENTION if impl == "cudnn" else SDPBackend.FLASH_ATTENTION
    return attention(q, k, v, backend, causal=causal, backward=backward)


def few_heads(table: Table, every: int) -> None:
    """Attention of one to eight heads over whole sequences."""
    cases = [
        case
        for seq in (4096, 8192, 16384, 32768)
        for heads, kv_heads in ((1, 1), (2, 1), (4, 1), (8, 1), (5, 5))
        for impl in ("cudnn", "flash2")
        for case in fused_cases(impl, seq, seq, True, heads, kv_heads, 128, 128)
    ]
    table.run(cases[::every])


def merge(
    out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, lse_more: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of attention to two sets of keys, in one."""
    both = torch.logaddexp(lse, lse_more)
    old, new = (lse - both).exp().transpose(1, 2)[..., None], (lse_more - both).exp().transpose(1, 2)[..., None]
    return out * old + more.float() * new, both


def merged(fn: Callable[..., object], tokens: int, heads: int) -> Call:
    """The joining of two outputs."""
    out, more = torch.randn(1, tokens, heads, 128, device=DEVICE), bf16(1, tokens, heads, 128)
    lse, lse_more = torch.randn(1, heads, tokens, device=DEVICE), torch.randn(1, heads, tokens, device=DEVICE)
    return lambda: fn(out, lse, more, lse_more)


def merging(table: Table, every: int) -> None:
    """What joins chunks."""
    cases = []
    for impl, fn in (("eager", merge), ("compile", compiled(merge))):
        for tokens in (1024, 2048, 4096, 8192):
            for heads in (8, 32):
                n = tokens * heads * 128
                labels: Row = {"op": "merge", "impl": impl, "m": tokens, "n": heads * 128, "heads": heads}
                cases.append(Case(labels | {"bytes": 10 * n + 12 * tokens * heads}, partial(merged, fn, tokens, heads)))
    table.run(cases[::every])


SECTIONS: dict[str, Callable[[Table, int], None]] = {
    "small": small, "rowwise": rowwise, "merge": merging, "chunks": chunks, "cudnn": cudnn,
    "heads": few_heads, "gemm": gemm,
}  # fmt: skip


def main() -> None:
    """Command line."""
    args = arguments(__doc__ or "", list(SECTIONS))
    torch.manual_seed(1)
    guarded(Table(args.out, COLUMNS, args.budget), SECTIONS, args.only, args.every)


if __name__ == "__main__":
    main()
