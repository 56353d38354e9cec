"""Own steps on one H200, kernel by kernel: what kinds of kernels take, measured and forecast. Only compared with.

`workloads/facts/h200_step_parts.csv` has the time of every kernel name of a step that was profiled at the clock of
sustained load, `h200_step_times.csv` the steps themselves (`measure_step_parts.py`). Whole steps may be met by errors
that cancel; their parts may not.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from simulator.inputs import load_scenario
from simulator.results.simulate import simulate
from simulator.validation.figures import fact_rows
from simulator.validation.runs import moe_steps

KINDS = ("GEMMs", "grouped GEMMs", "attention", "optimizer", "by index", "other memory-bound")
_NAMES = (
    ("optimizer", r"fusedoptimizer"),
    ("attention", r"flash|fmha|sdpa|attention|cudnn"),
    ("grouped GEMMs", r"grouped|groupproblemshape"),
    ("GEMMs", r"nvjet|gemm|cutlass|cublas|splitk|gemv|xmma"),
    ("by index", r"sort|topk|radix|histogram|scan|index|gather|scatter"),
)
"""Kinds by what a kernel's name holds, the first that fits; triton's are named by all that they fuse, and are other."""
_CLASSES = (
    ("grouped GEMMs", r"^gemm.*grouped"),
    ("GEMMs", r"^gemm"),
    ("attention", r"^attn"),
    ("optimizer", r"^optimizer"),
    ("by index", r"permute|^sort|topk|^embedding"),
)
DENSE = {
    "8b": (4096, 14336, 8, 32, 8),
    "70b": (8192, 28672, 3, 64, 8),
    "1b": (2048, 8192, 12, 32, 8),
}
"""Models of `measure_step.py`: hidden size, inner size, layers, query heads, key and value heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One program.

    Parameters
    ----------
    name : the program.
    step : the step [s], measured and forecast.
    kinds : kind of kernels -> time [s], measured and forecast.
    """

    name: str
    step: tuple[float, float]
    kinds: Mapping[str, tuple[float, float]]


def kind_of(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    """The kind of a kernel by its name, or of a kernel class."""
    if name.startswith("triton"):
        return KINDS[-1]
    return next((kind for kind, pattern in patterns if re.search(pattern, name.lower())), KINDS[-1])


def overrides_of(program: str) -> tuple[str, ...]:
    """The overrides of `llama-3-8b` that forecast a program."""
    family, *words = program.split()
    if family == "moe":
        keys = ("model", "mode", "variant", "seq", "mbs", "microbatches", "load")
        row = next(r for r in moe_steps.rows() if r["ep"] == "1" and [r[key] for key in keys] == words)
        return moe_steps.overrides_of(row)
    name, mode, seq, mbs, microbatches = words
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return (
        *(f"model.{key}={value}" for key, value in zip(sizes, DENSE[name], strict=True)),
        *(
            f"model.{key}={value}"
            for key, value in (("vocab_size", 32000), ("head_dim", DENSE[name][0] // DENSE[name][3]))
        ),
        *("hardware=h200", "gpus=1", f"stack={'torch' if mode == 'eager' else 'torch-compile'}"),
        *("layout.tp=1", "layout.pp=1", "layout.zero=0", "layout.recompute=none", "stack.gradients_zeroed=true"),
        *(f"batch.sequence_length={seq}", f"batch.microbatch_size={mbs}"),
        f"batch.global_batch_size={int(mbs) * int(microbatches)}",
        *(f"optimizer.{key}=bf16" for key in moe_steps.STATES),
        "optimizer.masters=none",
        *(("precision.recipe=fp8_tensor", "precision.scaling=current") if mode == "fp8" else ()),
    )


def programs() -> list[Parts]:
    """Every program with its forecast."""
    measured: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in fact_rows("h200_step_parts.csv"):
        measured[row["program"]][kind_of(row["kernel"], _NAMES)] += float(row["us"]) * 1e-6
    out = []
    for row in fact_rows("h200_step_times.csv"):
        name = row["program"]
        result = simulate(load_scenario("llama-3-8b", overrides_of(name)), engine="longest-path")
        ours: dict[str, float] = defaultdict(float)
        for one in result.classes:
            ours[kind_of(one.cls, _CLASSES)] += one.seconds
        kinds = {kind: (measured[name][kind], ours[kind]) for kind in KINDS if measured[name][kind] or ours[kind]}
        out.append(Parts(name=name, step=(float(row["step_ms"]) / 1e3, result.metrics["step_time_s"]), kinds=kinds))
    return out
