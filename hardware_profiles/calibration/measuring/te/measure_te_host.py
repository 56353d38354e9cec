"""Measure what Transformer Engine's modules cost the host: median time of a call, forward and backward.

    python -m hardware_profiles.calibration.measuring.te.measure_te_host OUT.csv

Needs transformer_engine with its PyTorch part. Modules are so narrow that the GPU waits for the host. Weight gradients
are added into a `main_grad` of FP32, FP8 weights are cached, as in all but the first microbatch of a step. `recipe`:
none (BF16), delayed, current (tensorwise), block (1x128 and 128x128). `launches`: kernels, copies and fills.
Calls follow each other without a wait. torch.nn.Linear is measured in the same way.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformer_engine.pytorch as te
from transformer_engine.common import recipe as recipes

from hardware_profiles.calibration.measuring.kernel_spans import Table, gpu_events

COLUMNS = ["module", "recipe", "us_forward", "us_backward", "min_forward", "min_backward"]
COLUMNS += ["launches_forward", "launches_backward"]
RUNS, UNSEEN = 60, 10
WIDTH, TOKENS = 512, 256
RECIPES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "delayed": recipes.DelayedScaling,
    "current": recipes.Float8CurrentScaling,
    "block": recipes.Float8BlockScaling,
}
GROUPS = (8, 32, 128)
PARAMS = {"bias": False, "params_dtype": torch.bfloat16, "fuse_wgrad_accumulation": True}
Module = Callable[..., Any]


def precision(recipe: str) -> AbstractContextManager[None]:
    """Around forwards."""
    if recipe == "none":
        return nullcontext()
    fp8: AbstractContextManager[None] = te.fp8_autocast(enabled=True, fp8_recipe=RECIPES[recipe]())
    return fp8


def modules() -> dict[str, tuple[Callable[[], Any], Callable[[], tuple[Any, ...]]]]:
    """Name -> what makes the module, and its inputs."""

    def x(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def flat() -> tuple[Any, ...]:
        return (x(TOKENS, 1, WIDTH),)

    def heads() -> tuple[Any, ...]:
        return tuple(x(TOKENS, 1, 4, 128) for _ in range(3))

    norm = {"normalization": "RMSNorm"}
    out: dict[str, tuple[Callable[[], Any], Callable[[], tuple[Any, ...]]]] = {
        "torch.nn.Linear": (lambda: torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16), flat),
        "Linear": (lambda: te.Linear(WIDTH, WIDTH, **PARAMS), flat),
        "Linear with bias": (lambda: te.Linear(WIDTH, WIDTH, **PARAMS | {"bias": True}), flat),
        "LayerNormLinear": (lambda: te.LayerNormLinear(WIDTH, WIDTH, **PARAMS, **norm), flat),
        "LayerNormMLP": (lambda: te.LayerNormMLP(WIDTH, WIDTH, activation="swiglu", **PARAMS, **norm), flat),
        "RMSNorm": (lambda: te.RMSNorm(WIDTH, dtype=torch.bfloat16), flat),
        "LayerNorm": (lambda: te.LayerNorm(WIDTH, dtype=torch.bfloat16), flat),
        "DotProductAttention": (lambda: te.DotProductAttention(4, 128, attn_mask_type="causal"), heads),
    }
    for groups in GROUPS:
        rows = [max(16, TOKENS * 4 // groups)] * groups
        out[f"GroupedLinear {groups}"] = (
            lambda groups=groups: te.GroupedLinear(groups, WIDTH, WIDTH, **PARAMS),  # type: ignore[misc]
            lambda rows=rows: (x(sum(rows), WIDTH), rows),  # type: ignore[misc]
        )
    return out


def timed(call: Module, inputs: tuple[Any, ...], recipe: str, cached: dict[str, Any]) -> list[tuple[float, float]]:
    """Time of each call [us], forward and backward, that follow each other without a wait."""
    with precision(recipe):
        torch.cuda.synchronize()
        stamps, outs = [time.perf_counter()], []
        for _ in range(RUNS):
            outs.append(call(*inputs, **cached))
            stamps.append(time.perf_counter())
    grad = torch.ones_like(outs[0])
    torch.cuda.synchronize()
    back = [time.perf_counter()]
    for out in outs:
        out.backward(grad)
        back.append(time.perf_counter())
    spans = [[(b - a) * 1e6 for a, b in pairwise(times)] for times in (stamps, back)]
    return list(zip(*spans, strict=True))[UNSEEN:]


def launches(call: Module, inputs: tuple[Any, ...], recipe: str, cached: dict[str, Any]) -> dict[str, int]:
    """Of both directions."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
        with precision(recipe):
            out = call(*inputs, **cached)
        grad = torch.ones_like(out)
        torch.cuda._sleep(10)
        out.backward(grad)
        torch.cuda.synchronize()
    events = [event[2] for event in gpu_events(prof)]
    at = next(i for i, name in enumerate(events) if "spin_kernel" in name)
    return {"launches_forward": at - 1, "launches_backward": len(events) - at - 1}


def of_te(name: str) -> bool:
    """Whether a module has FP8 weights."""
    return name != "torch.nn.Linear" and ("Linear" in name or "MLP" in name)


def measure(name: str, recipe: str, table: Table) -> None:
    """One module."""
    make, given = modules()[name]
    torch.manual_seed(1)
    module, inputs = make().cuda(), given()
    for weight in module.parameters():
        weight.main_grad = torch.zeros_like(weight, dtype=torch.float32)
    keeps = of_te(name)
    timed(module, inputs, recipe, {"is_first_microbatch": True} if keeps else {})
    cached = {"is_first_microbatch": False} if keeps else {}
    times = timed(module, inputs, recipe, cached)
    row: dict[str, Any] = {"module": name, "recipe": recipe}
    for at, way in enumerate(("forward", "backward")):
        row[f"us_{way}"] = round(statistics.median(t[at] for t in times), 2)
        row[f"min_{way}"] = round(min(t[at] for t in times), 2)
    table.add([row | launches(module, inputs, recipe, cached)])


def main() -> None:
    """Every module and recipe."""
    table = Table(sys.argv[1], COLUMNS)
    for name in modules():
        for recipe in RECIPES:
            if recipe != "none" and not of_te(name):
                continue
            try:
                measure(name, recipe, table)
            except Exception as error:
                print(f"left out {name} {recipe}: {type(error).__name__} {str(error)[:300]}", flush=True)
    print(Path(sys.argv[1]).read_text(encoding="utf-8"), flush=True)


if __name__ == "__main__":
    main()
