"""Serving steps that were measured, next to their forecasts. Compared with, never fitted.

`workloads/facts/h200_decode_steps.csv` holds whole steps of plain PyTorch on one H200, `h200x2_decode_steps.csv` those
with tensor parallelism of two, `h200x4_` of four; DeepSeek publishes two profiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from simulator.inputs import load_scenario
from simulator.results.simulate import simulate
from simulator.validation.compared import Compared, allocated, measured_peaks, show
from simulator.validation.figures import fact_rows

TABLES = ("h200_decode_steps.csv", "h200x2_decode_steps.csv", "h200x4_decode_steps.csv")
MODELS: Mapping[str, tuple[str, ...]] = {
    "llama-3-8b": ("model=llama-3-8b",),
    "llama-3-70b": ("model=llama-3-70b",),
    "qwen3-30b-a3b": ("model=qwen3-30b-a3b",),
}
"""The measured models."""
COMPILED = ("stack.rope_fused=true", "stack.swiglu_fused=true", "stack.residual_fused=true")
"""What torch.compile fuses of the eager modules."""
PROFILES: Mapping[str, float] = {"deepseek-v3-decode-ep128": 2325.0, "deepseek-v3-prefill-ep32": 7839.0}
"""Jobs of DeepSeek's public profile (github.com/deepseek-ai/profile-data, 2025-02) -> tokens/s on each GPU that are
quoted for it; recalled, not read in the source."""


def rows() -> list[dict[str, str]]:
    """The rows of all tables."""
    return [row for name in TABLES for row in fact_rows(name)]


def overrides_of(row: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The job and the overrides that a row is forecast by."""
    decodes = row["phase"] == "decode"
    name = row["model"].removesuffix("-whole")
    mode = row["mode"]
    out = [*MODELS[name], f"model.num_hidden_layers={row['layers']}", f"serving.sequences={row['batch']}"]
    out += [f"serving.tokens={row['tokens']}", f"serving.context={row['context']}"]
    out += ["model.max_position_embeddings=1000000", f"serving.cuda_graphs={str('graph' in mode).lower()}"]
    out += COMPILED if "compile" in mode else ()
    out += ["stack.attention=fa2"] if row["attention"] == "flash" and not decodes else []
    if int(row["tp"]) > 1:
        out += [f"gpus={row['tp']}", f"layout.tp={row['tp']}", f"hardware.node.gpus={row['tp']}"]
        out += [f"layout.etp={row['tp']}"] if int(row["experts"]) else []
    return "llama-3-8b-decode" if decodes else "llama-3-8b-prefill", tuple(out)


def measured_steps(some: Iterable[Mapping[str, str]]) -> list[Compared]:
    """Every row with its forecast."""
    out = []
    for row in some:
        job, overrides = overrides_of(row)
        result = simulate(load_scenario(job, overrides), engine="longest-path")
        name = f"{row['model']} {row['mode']} {row['batch']}x{row['context']}+{row['tokens']}"
        group = f"{row['phase']}, {row['mode']}, {row['model'].removesuffix('-whole')}, tp {row['tp']}"
        whole = (
            2.0 * int(row["vocab"]) * int(row["hidden"]) * (1 - 1 / int(row["tp"]))
        )  # the program cuts the head only
        out.append(
            Compared(
                group=group,
                name=name,
                measured=float(row["step_ms"]) / 1e3,
                predicted=result.metrics["step_time_s"],
                measured_peaks=measured_peaks(row["peak_gb"]),
                predicted_peaks=tuple(peak + whole for peak in allocated(result.memory)),
            )
        )
    return out


def published_profiles() -> list[Compared]:
    """The published profiles, as times per token on a GPU [s]."""
    out = []
    for job, rate in PROFILES.items():
        forecast = simulate(load_scenario(job)).metrics["tokens_per_s_per_gpu"]
        out.append(Compared(group="DeepSeek's profiles", name=job, measured=1.0 / rate, predicted=1.0 / forecast))
    return out


def main() -> None:
    """Print every step and the errors of each group: `python -m simulator.validation.serving.measured_steps`."""
    show([*measured_steps(rows()), *published_profiles()])


if __name__ == "__main__":
    main()
