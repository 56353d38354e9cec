"""Own steps of mixture-of-experts models in plain PyTorch, next to their forecasts. Compared with, never fitted.

`workloads/facts/h200_moe_steps.csv` (one H200, ep = 1), `h200x2_` (two, ep = 2) and `h200x4_` (four, ep = 4) hold whole
steps of `measure_moe_step.py`: BF16 parameters, gradients and moments without masters, eager or through torch.compile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from simulator.inputs import load_scenario
from simulator.results.simulate import simulate
from simulator.validation.compared import Compared, allocated, measured_peaks, show
from simulator.validation.figures import fact_rows

TABLES = ("h200_moe_steps.csv", "h200x2_moe_steps.csv", "h200x4_moe_steps.csv")
STATES = ("parameters", "gradients", "reduced", "first_moment", "second_moment")
"""What the program keeps in BF16."""


def rows() -> list[dict[str, str]]:
    """The rows of both tables."""
    return [row for name in TABLES for row in fact_rows(name)]


def model_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """A model of the row's sizes: no norms of heads, no biases."""
    sizes = {
        "hidden_size": row["hidden"],
        "num_hidden_layers": row["layers"],
        "num_attention_heads": row["heads"],
        "num_key_value_heads": row["kv_heads"],
        "head_dim": row["d"],
        "n_routed_experts": row["experts"],
        "num_experts_per_tok": row["topk"],
        "moe_intermediate_size": row["inner"],
        "vocab_size": row["vocab"],
    }
    if int(row["shared"]):
        sizes["shared_expert_intermediate_size"] = row["shared"]
    return ("model=mixtral-8x7b", *(f"model.{key}={value}" for key, value in sizes.items()))


def overrides_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """The overrides of `llama-3-8b` that a row is forecast by."""
    gpus, sequences = int(row["gpus"]), int(row["mbs"]) * int(row["microbatches"]) * int(row["gpus"])
    compiled = row["mode"] == "compile"
    imbalance = float(row["rank_imbalance"])
    skewed = imbalance > 1.0 and int(row["ep"]) > 1
    loads = ("routing.kind=skewed", f"routing.max_over_mean={imbalance}") if skewed else ("routing.kind=uniform",)
    return (
        *model_of(row),
        "hardware=h200",
        f"gpus={gpus}",
        f"stack={'torch-compile' if compiled else 'torch'}",
        "layout.tp=1",
        "layout.pp=1",
        f"layout.ep={row['ep']}",
        "layout.zero=0",
        "layout.recompute=none",
        f"batch.sequence_length={row['seq']}",
        f"batch.microbatch_size={row['mbs']}",
        f"batch.global_batch_size={sequences}",
        *(f"optimizer.{key}=bf16" for key in STATES),
        "optimizer.masters=none",
        *(("stack.permute=gather_sum",) if row["variant"] == "gather" else ()),
        *loads,
    )


def measured_steps(some: Iterable[Mapping[str, str]]) -> list[Compared]:
    """Every row with its forecast."""
    out = []
    for row in some:
        scenario = load_scenario("llama-3-8b", overrides_of(row))
        result = simulate(scenario, engine="longest-path")
        name = f"{row['model']} {row['mode']} {row['mbs']}x{row['seq']}x{row['microbatches']} {row['load']}"
        out.append(
            Compared(
                group=f"MoE, ep = {row['ep']}, {row['mode']}",
                name=f"{name} ep{row['ep']} {row['variant']}",
                measured=float(row["step_ms"]) / 1e3,
                predicted=result.metrics["step_time_s"],
                measured_peaks=measured_peaks(row["peak_gb"]),
                predicted_peaks=allocated(result.memory),
            )
        )
    return out


def main() -> None:
    """Print every step and the errors of each group: `python -m simulator.validation.runs.moe_steps`."""
    show(measured_steps(rows()))


if __name__ == "__main__":
    main()
