"""Serving steps that were measured, next to their forecasts. Compared with, never fitted.

`workloads/facts/h200_decode_steps.csv` holds whole steps of plain PyTorch on one H200; DeepSeek publishes two profiles.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from statistics import mean

from simulator.inputs import load_scenario
from simulator.results.simulate import simulate

TABLE = "h200_decode_steps.csv"
MODELS: Mapping[str, tuple[str, ...]] = {
    "llama-3-8b": ("model=llama-3-8b",),
    "llama-3-70b": ("model=llama-3-70b",),
    "qwen3-30b-a3b": (
        "model=qwen3-235b-a22b",
        "model.hidden_size=2048",
        "model.num_attention_heads=32",
        "model.moe_intermediate_size=768",
        "model.vocab_size=151936",
    ),
}
"""The measured models; Qwen3-30B-A3B as its larger sister with the sizes that the table gives."""
COMPILED = ("stack.rope_fused=true", "stack.swiglu_fused=true", "stack.residual_fused=true")
"""What torch.compile fuses of the eager modules."""
PROFILES: Mapping[str, float] = {"deepseek-v3-decode-ep128": 2325.0, "deepseek-v3-prefill-ep32": 7839.0}
"""Jobs of DeepSeek's public profile (github.com/deepseek-ai/profile-data, 2025-02) -> tokens/s on each GPU that are
quoted for it; recalled, not read in the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A measured step time and its forecast [s]."""

    group: str
    name: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1.0


def rows() -> list[dict[str, str]]:
    """The rows of the table."""
    text = resources.files("workloads.facts").joinpath(TABLE).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def overrides_of(row: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The job and the overrides that a row is forecast by."""
    decodes = row["phase"] == "decode"
    name = row["model"].removesuffix("-whole")
    mode = row["mode"]
    out = [*MODELS[name], f"model.num_hidden_layers={row['layers']}", f"serving.sequences={row['batch']}"]
    out += [f"serving.tokens={row['tokens']}", f"serving.context={row['context']}"]
    out += ["model.max_position_embeddings=1000000", f"serving.cuda_graphs={str('graph' in mode).lower()}"]
    out += COMPILED if "compile" in mode else ()
    return "llama-3-8b-decode" if decodes else "llama-3-8b-prefill", tuple(out)


def measured_steps(some: Iterable[Mapping[str, str]]) -> list[Compared]:
    """Every row with its forecast."""
    out = []
    for row in some:
        job, overrides = overrides_of(row)
        step = simulate(load_scenario(job, overrides), engine="longest-path").metrics["step_time_s"]
        name = f"{row['model']} {row['mode']} {row['batch']}x{row['context']}+{row['tokens']}"
        group = f"{row['phase']}, {row['mode']}, {row['model'].removesuffix('-whole')}"
        out.append(Compared(group=group, name=name, measured=float(row["step_ms"]) / 1e3, predicted=step))
    return out


def published_profiles() -> list[Compared]:
    """The published profiles, as times per token on a GPU [s]."""
    out = []
    for job, rate in PROFILES.items():
        forecast = simulate(load_scenario(job)).metrics["tokens_per_s_per_gpu"]
        out.append(Compared(group="DeepSeek's profiles", name=job, measured=1.0 / rate, predicted=1.0 / forecast))
    return out


def summary(found: Sequence[Compared]) -> dict[str, tuple[int, float, float]]:
    """Group -> number of steps, bias, mean absolute error."""
    groups = dict.fromkeys(one.group for one in found)
    errors = {group: [one.error for one in found if one.group == group] for group in groups}
    return {group: (len(each), mean(each), mean(map(abs, each))) for group, each in errors.items()}


def main() -> None:
    """Print every step and the errors of each group: `python -m simulator.validation.serving.measured_steps`."""
    found = [*measured_steps(rows()), *published_profiles()]
    for one in found:
        print(f"{one.name:55s} {one.measured * 1e3:9.3f} ms {one.predicted * 1e3:9.3f} ms {one.error:+7.1%}")
    print()
    for group, (count, bias, mape) in summary(found).items():
        print(f"{group:45s} {count:3d} steps  bias {bias:+6.1%}  MAPE {mape:5.1%}")


if __name__ == "__main__":
    main()
