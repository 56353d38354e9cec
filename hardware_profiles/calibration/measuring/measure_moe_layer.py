"""Measure the kernels of a mixture-of-experts layer as plain PyTorch runs it on one GPU, one by one and whole.

    python -m hardware_profiles.calibration.measuring.measure_moe_layer OUT.csv \
        [--budget SECONDS] [--only route,permute,...]

One launch at a time on a rested GPU with L2 flushed (`kernel_spans.py`); of several kernels in a call `us` is the span,
`busy_us` the sum. `op` and `impl` name the PyTorch call; `tokens` x `topk` rows go to `experts`; `load` balanced,
random or skewed (popularity falls with the rank to the power of -0.4), `rows` of every expert where they matter,
`imbalance` the most loaded expert over the mean. `bytes`: the least that must move. m, n, k of GEMMs as in `Gemm`
(`grouped`: m is the sum of rows; `grouped_wgrad`: k is). `host_us`: for what the host waits for, its time with an idle
GPU.

Sections: route (router, softmax, top-k and their backward), sort (argsort, counts, cumsum), permute (rows into the
order of experts and back, both ways), activation (SwiGLU), grouped (forward, input gradient, weight gradient), host
(counts read back), layer (all of it, forward and forward + backward). A random half of the sizes is `held_out`.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from hardware_profiles.calibration.measuring.kernel_spans import TIMES, Call, Case, Row, Table, arguments, guarded
from hardware_profiles.calibration.measuring.torch_kernels import DEVICE, bf16, swiglu

COLUMNS = ["op", "impl", "precision", "form", "backward", "tokens", "hidden", "experts", "topk", "inner", "load"]
COLUMNS += ["imbalance", "m", "n", "k", "groups", "rows", "bytes", "held_out", *TIMES, "host_us"]
SKEW = 0.4


@dataclass(frozen=True)
class Size:
    """A layer: experts, how many each token chooses, widths, and tokens."""

    tokens: int
    hidden: int
    experts: int
    topk: int
    inner: int

    @property
    def total(self) -> int:
        """Rows of all experts."""
        return self.tokens * self.topk


MODELS = ((2048, 128, 8, 768), (2048, 64, 8, 1024), (2048, 64, 6, 1408), (4096, 8, 2, 14336), (2880, 32, 4, 2880),
          (4096, 16, 2, 6400), (7168, 16, 8, 2048), (5120, 160, 6, 1536))  # fmt: skip
TOKENS = ((1024, 4096, 16384), (2048, 8192))
SIZES = [Size(tokens, *model) for at, model in enumerate(MODELS) for tokens in TOKENS[at % 2]]
COMPILED = (2048, 4096)
"""Tokens at which what torch.compile makes is measured too: each size is compiled for itself."""
HELD_OUT = set(random.Random(20261128).sample(SIZES, len(SIZES) // 2))
LOADS = ("balanced", "random", "skewed")
LAYERS = (("balanced", "index_add"), ("balanced", "gather_sum"), ("skewed", "index_add"))


def chosen_experts(load: str, c: Size) -> torch.Tensor:
    """(tokens, topk) experts."""
    torch.manual_seed(c.experts * 1000 + c.tokens)
    if load == "balanced":
        order = torch.arange(c.total, device=DEVICE).view(c.tokens, c.topk) % c.experts
        return order[torch.randperm(c.tokens, device=DEVICE)]
    power = SKEW if load == "skewed" else 0.0
    popularity = -power * torch.log(1.0 + torch.randperm(c.experts, device=DEVICE))
    noise = -torch.log(-torch.log(torch.rand(c.tokens, c.experts, device=DEVICE)))
    return torch.topk(popularity + noise, c.topk, dim=-1).indices


def rows_of(load: str, c: Size) -> list[int]:
    """Tokens per expert."""
    return [int(n) for n in torch.bincount(chosen_experts(load, c).flatten(), minlength=c.experts).tolist()]


def labelled(op: str, impl: str, c: Size, moved: float, backward: int = 0, **more: Any) -> Row:
    """Labels of a row."""
    out: Row = {"op": op, "impl": impl, "backward": backward, "tokens": c.tokens, "hidden": c.hidden}
    out |= {"experts": c.experts, "topk": c.topk, "inner": c.inner, "bytes": int(moved)}
    return out | {"held_out": int(c in HELD_OUT)} | more


def case(op: str, impl: str, c: Size, moved: float, make: Callable[[], Call], **more: Any) -> Case:
    """A case whose time is guessed from its bytes."""
    return Case(labelled(op, impl, c, moved, **more), make, 1e-5 + moved / 1.5e12)


def backward_of(fn: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> Call:
    """The backward of a function for given inputs."""
    wanted = [x.requires_grad_() for x in leaves]
    out = fn(*wanted)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)


def fp32(*shape: int) -> torch.Tensor:
    """Normal random numbers in FP32."""
    return torch.randn(*shape, device=DEVICE)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Over a row."""
    return torch.softmax(x, -1)


def gate(logits: torch.Tensor, topk: int) -> torch.Tensor:
    """Weights of the chosen experts, as a model computes them."""
    weight = torch.topk(F.softmax(logits.float(), dim=-1), topk, dim=-1).values
    return (weight / weight.sum(-1, keepdim=True)).to(logits.dtype)


def route_cases(c: Size) -> list[Case]:
    """Router and what follows it."""
    t, e, each = c.tokens, c.experts, c.tokens * c.experts

    def router() -> Call:
        x, w = bf16(t, c.hidden), bf16(e, c.hidden)
        return lambda: x @ w.t()

    def on(make: Callable[[int, int], torch.Tensor], fn: Callable[[torch.Tensor], object]) -> Callable[[], Call]:
        def made() -> Call:
            x = make(t, e)
            return lambda: fn(x)

        return made

    def back(make: Callable[[int, int], torch.Tensor], fn: Callable[..., torch.Tensor]) -> Callable[[], Call]:
        return lambda: backward_of(fn, make(t, e))

    top = 4 * each + 12 * c.total
    shape = {"precision": "bf16", "m": t, "n": e, "k": c.hidden}
    whole = partial(gate, topk=c.topk)
    out = [
        case("router", "mm", c, 2 * (t * c.hidden + e * c.hidden + each), router, **shape),
        case("softmax", "fp32", c, 8 * each, on(fp32, softmax)),
        case("softmax", "fp32", c, 12 * each, back(fp32, softmax), backward=1),
        case("topk", "fp32", c, top, on(fp32, lambda x: torch.topk(x, c.topk, -1))),
        case("topk", "fp32", c, top, back(fp32, lambda x: torch.topk(x, c.topk, -1).values), backward=1),
        case("gate", "eager", c, 2 * each + 2 * c.total, on(bf16, whole)),
        case("gate", "eager", c, 4 * each + 2 * c.total, back(bf16, whole), backward=1),
    ]
    if c.tokens in COMPILED:
        out.append(case("gate", "compiled", c, 2 * each + 2 * c.total, on(bf16, torch.compile(whole, dynamic=False))))
    return out


def sort_cases(c: Size) -> list[Case]:
    """Order and counts."""

    def of(fn: Callable[[torch.Tensor], object]) -> Callable[[], Call]:
        def make() -> Call:
            flat = chosen_experts("random", c).flatten()
            return lambda: fn(flat)

        return make

    def added() -> Call:
        flat, one = chosen_experts("random", c).flatten(), torch.ones(c.total, device=DEVICE, dtype=torch.int64)
        return lambda: torch.zeros(c.experts, device=DEVICE, dtype=torch.int64).scatter_add_(0, flat, one)

    def sums() -> Call:
        counts = torch.ones(c.experts, device=DEVICE, dtype=torch.int64)
        return lambda: counts.cumsum(0).to(torch.int32)

    def inverse() -> Call:
        order = torch.argsort(chosen_experts("random", c).flatten(), stable=True)
        return lambda: torch.argsort(order)

    return [
        case("argsort", "int64_stable", c, 24 * c.total, of(lambda x: torch.argsort(x, stable=True))),
        case("argsort", "int64_inverse", c, 24 * c.total, inverse),
        case("counts", "histc", c, 8 * c.total, of(lambda x: torch.histc(x, bins=c.experts, min=0, max=c.experts))),
        case("counts", "bincount", c, 8 * c.total, of(lambda x: torch.bincount(x, minlength=c.experts))),
        case("counts", "one_hot_sum", c, 8 * c.total, of(lambda x: F.one_hot(x, c.experts).sum(0))),
        case("counts", "scatter_add", c, 16 * c.total, added),
        case("cumsum", "int64", c, 12 * c.experts, sums),
    ]


Moves = dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]
INTO: Moves = {
    "index_select": lambda x, token: x.index_select(0, token),
    "gather": lambda x, token: torch.gather(x, 0, token.view(-1, 1).expand(-1, x.shape[1])),
    "index": lambda x, token: x[token],
}


def merged(impl: str, c: Size, order: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The weighted sum of each token's rows."""
    token = order // c.topk
    inverse = torch.argsort(order) if impl == "gather_sum" else order

    def index_add(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(c.tokens, c.hidden, device=DEVICE, dtype=rows.dtype)
        return out.index_add(0, token, rows * weight.index_select(0, order).unsqueeze(1))

    def scatter_add(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(c.tokens, c.hidden, device=DEVICE, dtype=rows.dtype)
        weighted = rows * weight.index_select(0, order).unsqueeze(1)
        return out.scatter_add(0, token.view(-1, 1).expand(-1, c.hidden), weighted)

    def gather_sum(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        back = rows.index_select(0, inverse).view(c.tokens, c.topk, c.hidden)
        return (back * weight.view(c.tokens, c.topk, 1)).sum(1)

    return {"index_add": index_add, "scatter_add": scatter_add, "gather_sum": gather_sum}[impl]


def permute_cases(c: Size) -> list[Case]:
    """Rows into the order of experts, and back."""
    wide, narrow = 2 * c.total * c.hidden, 2 * c.tokens * c.hidden
    out = []

    def order() -> torch.Tensor:
        return torch.argsort(chosen_experts("random", c).flatten(), stable=True)

    for impl, fn in INTO.items():

        def ahead(fn: Callable[..., torch.Tensor] = fn) -> Call:
            x, token = bf16(c.tokens, c.hidden), order() // c.topk
            return lambda: fn(x, token)

        def back(fn: Callable[..., torch.Tensor] = fn) -> Call:
            token = order() // c.topk
            return backward_of(lambda x: fn(x, token), bf16(c.tokens, c.hidden))

        out.append(case("permute", impl, c, narrow + wide + 8 * c.total, ahead))
        out.append(case("permute", impl, c, narrow + wide + 8 * c.total, back, backward=1))
    for impl in ("index_add", "scatter_add", "gather_sum"):

        def joined(impl: str = impl, compiled: bool = False) -> Call:
            fn = merged(impl, c, order())
            call: Any = torch.compile(fn, dynamic=False) if compiled else fn
            rows, weight = bf16(c.total, c.hidden), bf16(c.total)
            return lambda: call(rows, weight)

        def parted(impl: str = impl) -> Call:
            return backward_of(merged(impl, c, order()), bf16(c.total, c.hidden), bf16(c.total))

        out.append(case("unpermute", impl, c, narrow + wide + 2 * c.total, joined))
        out.append(case("unpermute", impl, c, narrow + 2 * wide + 2 * c.total, parted, backward=1))
        if impl == "gather_sum" and c.tokens in COMPILED:
            moved = narrow + wide + 2 * c.total
            out.append(case("unpermute", "gather_sum_compiled", c, moved, partial(joined, compiled=True)))
    return out


def activation_cases(c: Size) -> list[Case]:
    """SwiGLU of all experts' rows."""
    each = 2 * c.total * c.inner
    compiled = torch.compile(swiglu, dynamic=False)

    def ahead(fn: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        x = bf16(c.total, 2 * c.inner)
        return lambda: fn(x)

    def back(fn: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        return backward_of(fn, bf16(c.total, 2 * c.inner))

    size = {"m": c.total, "n": 2 * c.inner}
    ways = {"eager": swiglu} | ({"compiled": compiled} if c.tokens in COMPILED else {})
    out = []
    for name, fn in ways.items():
        out.append(case("swiglu", name, c, 3 * each, partial(ahead, fn), **size))
        out.append(case("swiglu", name, c, 5 * each, partial(back, fn), backward=1, **size))
    return out


def grouped_cases(c: Size) -> list[Case]:
    """The grouped GEMMs and their gradients."""
    out = []
    for load in LOADS:
        rows = rows_of(load, c)
        for name, n, k in (("up", 2 * c.inner, c.hidden), ("down", c.hidden, c.inner)):
            for kind in ("forward", "dgrad", "wgrad"):

                def make(rows: list[int] = rows, n: int = n, k: int = k, kind: str = kind) -> Call:
                    ends = torch.tensor(rows, device=DEVICE).cumsum(0).to(torch.int32)
                    x, w, y = bf16(c.total, k), bf16(c.experts, n, k), bf16(c.total, n)
                    if kind == "forward":
                        return lambda: torch._grouped_mm(x, w.transpose(-2, -1), offs=ends)
                    if kind == "dgrad":
                        return lambda: torch._grouped_mm(y, w, offs=ends)
                    return lambda: torch._grouped_mm(y.t(), x, offs=ends)

                m, wide, deep = {"forward": (c.total, n, k), "dgrad": (c.total, k, n), "wgrad": (n, k, c.total)}[kind]
                moved = 2 * (c.total * (n + k) + c.experts * n * k)
                more: Row = {"precision": "bf16", "form": "grouped_wgrad" if kind == "wgrad" else "grouped"}
                more |= {"m": m, "n": wide, "k": deep, "groups": c.experts, "rows": " ".join(map(str, rows))}
                more |= {"load": load, "imbalance": round(max(rows) * c.experts / c.total, 3)}
                labels = labelled(f"grouped_{name}_{kind}", "torch", c, moved, int(kind != "forward"), **more)
                out.append(Case(labels, make, 3e-5 + 2.0 * c.total * n * k / 5e14))
    return out


def layer_call(c: Size, load: str, merge: str, compiled: bool, backward: bool) -> Call:
    """The whole layer."""
    chosen = chosen_experts(load, c)
    bias = torch.zeros(c.tokens, c.experts, device=DEVICE).scatter_(1, chosen, 20.0)
    x = bf16(c.tokens, c.hidden).requires_grad_(backward)
    router = (0.02 * bf16(c.experts, c.hidden)).requires_grad_(backward)
    up = (0.02 * bf16(c.experts, 2 * c.inner, c.hidden)).requires_grad_(backward)
    down = (0.02 * bf16(c.experts, c.hidden, c.inner)).requires_grad_(backward)

    def moe(
        x: torch.Tensor, router: torch.Tensor, up: torch.Tensor, down: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        weight, chosen = torch.topk(F.softmax(F.linear(x, router).float() + bias, dim=-1), c.topk, dim=-1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype).flatten()
        flat = chosen.flatten()
        order = torch.argsort(flat, stable=True)
        ends = torch.histc(flat, bins=c.experts, min=0, max=c.experts).cumsum(0).to(torch.int32)
        rows = torch._grouped_mm(x.index_select(0, order // c.topk), up.transpose(-2, -1), offs=ends)
        rows = torch._grouped_mm(swiglu(rows), down.transpose(-2, -1), offs=ends)
        return merged(merge, c, order)(rows, weight)

    run: Any = torch.compile(moe, dynamic=False) if compiled else moe
    if not backward:
        return lambda: run(x, router, up, down, bias)
    grad = bf16(c.tokens, c.hidden)
    return lambda: torch.autograd.grad(run(x, router, up, down, bias), (x, router, up, down), grad)


def layer_cases(c: Size, load: str, merge: str, compiled: bool) -> list[Case]:
    """A whole layer, forward, and forward and backward."""
    rows = rows_of(load, c)
    out = []
    for backward in (False, True):
        impl = merge + ("_compiled" if compiled else "")
        more = {"precision": "bf16", "load": load, "imbalance": round(max(rows) * c.experts / c.total, 3)}
        labels = labelled("layer", impl, c, 6 * c.experts * c.hidden * c.inner, int(backward), **more)
        flops = 6.0 * c.total * c.hidden * c.inner * (3 if backward else 1)
        make = partial(layer_call, c, load, merge, compiled, backward)
        out.append(Case(labels, make, min(8e-3, 3e-4 + flops / 4e14)))
    return out


def of_sizes(cases_of: Callable[[Size], list[Case]]) -> Callable[[Table, int], None]:
    """A section that measures the cases of all sizes."""

    def section(table: Table, every: int) -> None:
        table.run([one for c in SIZES[::every] for one in cases_of(c)])

    return section


def waited(fn: Callable[[torch.Tensor], object], counts: torch.Tensor) -> float:
    """Time of the host for a call that waits for an idle GPU [us]."""
    times = []
    for _ in range(40):
        torch.cuda.synchronize()
        a = time.perf_counter()
        fn(counts)
        times.append((time.perf_counter() - a) * 1e6)
    return statistics.median(times[10:])


def pinned(x: torch.Tensor) -> None:
    """Into page-locked memory, waited for."""
    kept = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    kept.copy_(x, non_blocking=True)
    torch.cuda.synchronize()


WAYS: dict[str, Callable[[torch.Tensor], object]] = {
    "tolist": lambda x: x.tolist(), "cpu": lambda x: x.cpu(), "item_of_sum": lambda x: x.sum().item(), "pinned": pinned,
}  # fmt: skip


def host(table: Table, every: int) -> None:
    """Counts of experts read by the host, which waits."""
    cases = []
    for experts in (8, 16, 64, 128, 256):
        counts = torch.ones(experts, device=DEVICE, dtype=torch.int64)
        for name, fn in WAYS.items():
            row: Row = {"op": "to_host", "impl": name, "experts": experts, "bytes": 8 * experts}
            row["host_us"] = round(waited(fn, counts), 3)
            cases.append(Case(row, partial(partial, fn, counts)))
    table.run(cases[::every])


def layer(table: Table, every: int) -> None:
    """Whole layers, eager; compiled of a few sizes only."""
    plan = [(c, load, merge, False) for c in SIZES for load, merge in LAYERS if load == "balanced" or c.tokens < 16384]
    plan += [(c, "balanced", "index_add", True) for c in SIZES if c.tokens == COMPILED[1]][:3]
    table.run([one for args in plan[::every] for one in layer_cases(*args)])


def main() -> None:
    """All sections."""
    sections = {
        "route": of_sizes(route_cases), "sort": of_sizes(sort_cases), "permute": of_sizes(permute_cases),
        "activation": of_sizes(activation_cases), "grouped": of_sizes(grouped_cases), "host": host, "layer": layer,
    }  # fmt: skip
    args = arguments(__doc__ or "", list(sections))
    torch._dynamo.config.recompile_limit = 256  # one kernel a shape, as in training
    torch.manual_seed(1)
    guarded(Table(args.out, COLUMNS, args.budget), sections, args.only, args.every)


if __name__ == "__main__":
    main()
