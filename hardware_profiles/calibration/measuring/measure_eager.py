"""Measure what eager PyTorch runs around the GEMMs of a layer, forward and backward, call by call.

    python -m hardware_profiles.calibration.measuring.measure_eager OUT.csv [--budget SECONDS] [--only NAMES]

PyTorch's elementwise kernels read whole vectors where operands are contiguous; of views (the halves of a projection,
heads before tokens) they compute every address, at half the bandwidth. Each call is all kernels that autograd launches
for it, on a rested GPU with L2 flushed (`kernel_spans.py`):

- swiglu: silu(gate) * up, the halves of one projection of (`m`, 2 `n`).
- rope: a, b = halves of each head; (a cos - b sin, b cos + a sin) concatenated; queries or keys are a transposed view
  of one projection: (1, heads, `m`, d). `n` = heads x d.
- split: backward only: the gradient of that projection from those of queries, keys and values.
- heads: the output of attention, (1, heads, `m`, d), as (`m`, `n`): a copy.
- norm: torch.nn.functional.rms_norm of (`m`, `n`); backward with the gradient of its weight.
- loss: cross-entropy of BF16 logits (`m`, `n`) widened to FP32.
- adamw: torch.optim.AdamW(fused=True) on 4 tensors of `m` values in all; `impl` is the format of all states.

Section power goes to OUT_power.csv: what such calls, and attention, draw under sustained load, alone and between GEMMs
(as `measure_fp8_mix.py`: `memory` is the call, `memory_us` the time of all `calls`).

`backward` 1: torch.autograd.grad of the call alone. `bytes`: what one kernel that did it in one pass would move.
`held_out` 1: every second size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from hardware_profiles.calibration.measuring.kernel_spans import TIMES, Call, Case, Row, Table, arguments, guarded
from hardware_profiles.calibration.measuring.measure_fp8_mix import COLUMNS as POWER_COLUMNS
from hardware_profiles.calibration.measuring.measure_fp8_mix import MIXED, keep, multiplication, time_of
from hardware_profiles.calibration.measuring.torch_kernels import DEVICE, bf16, swiglu

COLUMNS = ["op", "impl", "backward", "m", "n", "heads", "kv_heads", "bytes", "held_out", *TIMES]
TOKENS = (1024, 2048, 4096, 8192, 16384)
WIDTHS = {2048: (8192, 16, 16), 4096: (14336, 32, 8), 8192: (28672, 64, 8)}
"""Hidden width -> inner width, heads, heads of keys."""
D = 128


def leaf(x: torch.Tensor) -> torch.Tensor:
    """A tensor to which gradients are asked, laid out as it is."""
    return x.detach().requires_grad_()


def call_of(fn: Callable[..., torch.Tensor], backward: bool, *leaves: torch.Tensor) -> Call:
    """A call, or its backward with a graph that is kept."""
    if not backward:
        return lambda: fn(*leaves)
    out = fn(*leaves)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def activated(rows: int, inner: int, backward: bool) -> Call:
    """SwiGLU."""
    return call_of(swiglu, backward, leaf(bf16(rows, 2 * inner)))


def rotated(tokens: int, heads: int, backward: bool) -> Call:
    """Rotary embedding of heads that lie in a projection."""
    cos, sin = bf16(tokens, D // 2), bf16(tokens, D // 2)

    def rope(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    return call_of(rope, backward, leaf(bf16(1, tokens, heads, D).transpose(1, 2)))


def split(tokens: int, heads: int, kv_heads: int) -> Call:
    """The gradient of the projection that queries, keys and values are parts of."""
    sizes = [heads * D, kv_heads * D, kv_heads * D]
    projection = leaf(bf16(1, tokens, sum(sizes)))
    parts = [part.view(1, tokens, -1, D).transpose(1, 2) for part in projection.split(sizes, dim=-1)]
    grads = [torch.randn(part.shape, device=DEVICE, dtype=part.dtype) for part in parts]
    return lambda: torch.autograd.grad(parts, projection, grads, retain_graph=True)


def heads_last(tokens: int, heads: int) -> Call:
    """The output of attention as rows of tokens."""
    out = bf16(1, heads, tokens, D)
    return lambda: out.transpose(1, 2).reshape(1, tokens, -1)


def normed(rows: int, hidden: int, backward: bool) -> Call:
    """RMSNorm."""
    fn = partial(F.rms_norm, eps=1e-5)
    return call_of(lambda x, w: fn(x, (hidden,), w), backward, leaf(bf16(rows, hidden)), leaf(bf16(hidden)))


def lost(rows: int, vocab: int, backward: bool) -> Call:
    """Cross-entropy."""
    targets = torch.randint(0, vocab, (rows,), device=DEVICE)
    return call_of(lambda x: F.cross_entropy(x.float(), targets), backward, leaf(bf16(rows, vocab)))


def updated(values: int, dtype: torch.dtype) -> Call:
    """A step of AdamW."""
    tensors = [torch.randn(values // 4, device=DEVICE).to(dtype).requires_grad_() for _ in range(4)]
    for one in tensors:
        one.grad = torch.randn_like(one)
    optimizer = torch.optim.AdamW(tensors, lr=1e-6, fused=True)
    optimizer.step()
    step: Call = optimizer.step
    return step


def guess(size: float) -> float:
    """About how long so many bytes take [s]."""
    return 1e-5 + size / 1.5e12


def case(op: str, size: float, at: int, make: Callable[[], Call], **labels: object) -> Case:
    """One case; `at` is the place of its size."""
    head: Row = {"op": op, "impl": "eager", "backward": 0, "bytes": round(size), "held_out": at % 2}
    return Case(head | labels, make, guess(size))


def both(
    op: str, values: int, read: tuple[int, int], at: int, make: Callable[[bool], Call], **labels: int
) -> Iterator[Case]:
    """Forward and backward; `read`: tensors of `values` BF16 numbers that each would read and write in one pass."""
    for backward in (False, True):
        size = 2.0 * values * read[backward]
        yield case(op, size, at, partial(make, backward), **labels, backward=int(backward))


def layer_cases() -> Iterator[Case]:
    """Of every width and number of tokens."""
    for wide, (hidden, (inner, heads, kv)) in enumerate(WIDTHS.items()):
        for place, t in enumerate(TOKENS):
            at, projection = place + wide, t * (heads + 2 * kv) * D
            yield from both("swiglu", t * inner, (3, 5), at, partial(activated, t, inner), m=t, n=inner)
            for many in {heads, kv}:
                n = many * D
                yield from both("rope", t * n, (2, 2), at, partial(rotated, t, many), m=t, n=n, heads=many)
            sizes = {"m": t, "n": projection // t, "heads": heads, "kv_heads": kv, "backward": 1}
            yield case("split", 4.0 * projection, at, partial(split, t, heads, kv), **sizes)
            out = {"m": t, "n": heads * D, "heads": heads}
            yield case("heads", 4.0 * t * heads * D, at, partial(heads_last, t, heads), **out)
            yield from both("norm", t * hidden, (2, 3), at, partial(normed, t, hidden), m=t, n=hidden)


def loss_cases() -> Iterator[Case]:
    """Of several vocabularies."""
    for wide, vocab in enumerate((32000, 50304, 102400, 128256)):
        for place, t in enumerate((2048, 4096, 8192)):
            yield from both("loss", t * vocab, (1, 2), place + wide, partial(lost, t, vocab), m=t, n=vocab)


def adamw_cases() -> Iterator[Case]:
    """Of several sizes, with BF16 and with FP32 states."""
    for dtype, each in ((torch.bfloat16, 2), (torch.float32, 4)):
        for at, values in enumerate((1 << 22, 1 << 24, 1 << 26, 1 << 28, 1 << 29, 1 << 30)):
            labels = {"m": values, "impl": str(dtype).removeprefix("torch.")}
            yield case("adamw", 7.0 * each * values, at, partial(updated, values, dtype), **labels)


def section(cases: Callable[[], Iterator[Case]]) -> Callable[[Table, int], None]:
    """Measures every so-many-th of the cases."""
    return lambda table, every: table.run(list(cases())[::every])


def moves(tokens: int, topk: int, hidden: int) -> dict[str, Call]:
    """Rows selected by index, and added back by index, in a random order."""
    x, rows = bf16(tokens, hidden), bf16(tokens * topk, hidden)
    token = torch.randperm(tokens * topk, device=DEVICE) // topk
    return {
        "index_select": lambda: x.index_select(0, token),
        "index_add": lambda: torch.zeros_like(x).index_add(0, token, rows),
    }


def attention(tokens: int, heads: int, backward: bool) -> Call:
    """The causal core that PyTorch chooses."""
    q, k, v = (leaf(bf16(1, heads, tokens, D)) for _ in range(3))
    return call_of(partial(F.scaled_dot_product_attention, is_causal=True), backward, q, k, v)


def power_calls() -> dict[str, Callable[[], Call]]:
    """What is repeated for some seconds."""
    t, many = 8192, moves(8192, 8, 2048)
    return {
        "swiglu": partial(activated, t, 14336, False), "swiglu_bwd": partial(activated, t, 14336, True),
        "rope": partial(rotated, t, 32, False), "rope_bwd": partial(rotated, t, 32, True),
        "split": partial(split, t, 32, 8), "heads": partial(heads_last, t, 32),
        "norm": partial(normed, t, 8192, False), "norm_bwd": partial(normed, t, 8192, True),
        "loss": partial(lost, t, 32000, False), "loss_bwd": partial(lost, t, 32000, True),
        "adamw": partial(updated, 1 << 28, torch.bfloat16),
        **{name: partial(lambda call: call, call) for name, call in many.items()},
        "attention": partial(attention, t, 32, False), "attention_bwd": partial(attention, t, 32, True),
    }  # fmt: skip


def power(file: str, budget: float) -> None:
    """Power of each call, and of some between GEMMs."""
    table, (m, n, k), makers = Table(file, POWER_COLUMNS, budget), MIXED, power_calls()
    for name, make in makers.items():
        keep(table, {"op": "alone", "memory": name, "calls": 10, "share": 1}, [("memory", make())] * 10, 0.0)
        torch.cuda.empty_cache()
    gemm = multiplication("bf16", m, n, k)
    for name in ("swiglu", "index_add", "adamw"):
        call = makers[name]()
        each = time_of(call) / time_of(gemm)
        for share in (0.2, 0.4, 0.6):
            gemms, calls = max(1, round((1 - share) * each / share)), max(1, round(share / (1 - share) / each))
            labels: Row = {"op": "mix", "precision": "bf16", "m": m, "n": n, "k": k, "memory": name}
            parts = [("gemm", gemm)] * gemms + [("memory", call)] * calls
            keep(table, labels | {"calls": calls, "share": share}, parts, 2.0 * m * n * k * gemms)


SECTIONS = {"layer": section(layer_cases), "loss": section(loss_cases), "adamw": section(adamw_cases)}


def main() -> None:
    """Command line."""
    args = arguments(__doc__ or "", [*SECTIONS, "power"])
    torch.manual_seed(1)
    wanted = args.only.split(",")
    if "power" in wanted:
        power(args.out.replace(".csv", "_power.csv"), args.budget)
    calls = ",".join(name for name in wanted if name in SECTIONS)
    if calls:
        guarded(Table(args.out, COLUMNS, args.budget), SECTIONS, calls, args.every)


if __name__ == "__main__":
    main()
