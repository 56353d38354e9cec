"""What `foretrain calibrate` writes: a profile, its kernels, the page of errors, and steps next to their forecast."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.views.calibrating.power import power_lines
from simulator.inputs import load_scenario
from simulator.inputs.toml_text import toml_text
from simulator.results.simulate import simulate
from simulator.spec.kernel_params import Kernels

if TYPE_CHECKING:
    from hardware_profiles.calibration.own.own_gpu import OwnFit
    from hardware_profiles.calibration.own.own_power import OwnPower

STEPS = (
    ("8b", "eager", 4096, 1),
    ("8b", "compile", 4096, 1),
    ("1b", "eager", 2048, 4),
    ("1b", "compile", 2048, 4),
)
"""Model, mode, tokens of a sequence and sequences of a microbatch; two microbatches a step."""
STACKS = {"eager": "torch", "compile": "torch-compile"}
BF16_STATES = (
    *(f"optimizer.{key}=bf16" for key in ("parameters", "gradients", "reduced", "first_moment", "second_moment")),
    "optimizer.masters=none",
)
"""What those programs keep: `model.to(torch.bfloat16)`, and AdamW in that format."""
SIZES = {
    "hidden_size": "hidden",
    "intermediate_size": "inner",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "vocab_size": "vocab",
}


def profile_text(name: str, origin: str, measured_on: str, table: Path, power: OwnPower | str | None = None) -> str:
    """The hardware profile as TOML, with [gpu.power] where it was measured."""
    values: dict[str, Any] = {"extends": origin, "kernels": f"./{name}-kernels.toml"}
    others = "memory, power and price"
    if power is not None and not isinstance(power, str) and not power.kept:
        others = "memory and price"
        values["gpu"] = ({"tdp": power.tdp} if power.tdp else {}) | {"power": power.values}
        limit = {"gpu.tdp": f"power limit that the driver enforces ({table.name})"} if power.tdp else {}
        values["sources"] = limit | {f"gpu.power.{key}": text for key, text in power.sources.items()}
    head = (
        f"# {measured_on or name}, calibrated {time.strftime('%Y-%m-%d')} from {table.name} with foretrain calibrate.\n"
    )
    note = f"# Its links, {others} are those of the profile it extends: change them here, with [sources].\n"
    return f"{head}{note}{toml_text(values)}"


def kernels_text(kernels: Kernels, name: str, measured_on: str, table: Path) -> str:
    """The parameters of its kernels as TOML."""
    from hardware_profiles.calibration.toml_text import kernels_toml

    source = f"foretrain calibrate fit, {measured_on or name}, {table.name}"
    return kernels_toml(replace(kernels, name=name, source=source))


def page(
    found: OwnFit,
    name: str,
    origin: str,
    measured_on: str,
    table: Path,
    power: OwnPower | str | None = None,
    *,
    named: bool = True,
) -> str:
    """What was measured, how far off the forecast is, what was carried over; `named`: class by class."""
    lines = [
        f"# {name}",
        "",
        f"Kernels of {measured_on or 'a GPU'} ({table.name}), fitted {time.strftime('%Y-%m-%d')}. Errors are the mean",
        "of |forecast - measured| / measured on shapes that the fit did not see, with the parameters of",
        f"{origin} and with those fitted. *kept*: those of {origin}, which a fit hardly betters on the shapes it sees.",
        "",
        f"| class | shapes fitted | kept out | error as {origin} | error fitted | worst |",
        "|---|---|---|---|---|---|",
    ]
    for one in found.classes:
        worst = one.worst.predicted / one.worst.measured - 1.0
        lines.append(
            f"| {one.cls} | {one.fitted} | {one.held} | {one.before:.1%} |"
            f" {'kept' if one.kept else f'{one.after:.1%}'} | {worst:+.0%}"
            f" ({one.worst.measured * 1e6:.0f} µs) |"
        )
    mean = sum(one.after for one in found.classes) / len(found.classes)
    before = sum(one.before for one in found.classes) / len(found.classes)
    lines += ["", f"Mean of the classes: {before:.1%} as {origin}, {mean:.1%} fitted.", ""]
    if found.few:
        few = ", ".join(f"{cls} ({many})" for cls, many in found.few)
        lines += [f"Measured, but not fitted (too few shapes, or not known on {origin}): {few}.", ""]
    lines += power_lines(power, origin)
    own = power is not None and not isinstance(power, str) and not power.kept
    others = "clocks" if own else "power and clocks"
    lines += [
        f"Carried over from {origin}: memory, links, collectives, {others}, price, and {len(found.carried)}",
        f"classes of kernels: {', '.join(found.carried)}." if named else f"classes of kernels (named in {name}.md).",
    ]
    return "\n".join(lines) + "\n"


def forecast(row: Mapping[str, Any], hardware: str) -> dict[str, float]:
    """The forecast of a step of `workloads/facts/measure_step.py` on a profile."""
    changes = [f"model.{ours}={row[theirs]}" for ours, theirs in SIZES.items()]
    changes += [f"hardware={hardware}", f"stack={STACKS[row['mode']]}", "gpus=1", "layout.tp=1", "layout.pp=1"]
    changes += ["layout.zero=0", f"batch.sequence_length={row['seq']}", f"batch.microbatch_size={row['mbs']}"]
    changes += [f"batch.global_batch_size={int(row['mbs']) * int(row['microbatches'])}", "model=llama-2-7b"]
    changes += ["layout.recompute=none", "precision.recipe=bf16", "stack.gradients_zeroed=true", *BF16_STATES]
    result = simulate(load_scenario("llama-3-8b", changes))
    step, built = result.metrics["step_time_s"] * 1e3, result.built
    out = {"forecast_ms": step, "error": step / float(row["step_ms"]) - 1.0}
    if built.watts is not None:
        out |= {"slowdown": built.pace, "forecast_w": min(built.watts, built.scenario.cluster.gpu.power_cap)}
    return out


def step_table(rows: Sequence[Mapping[str, Any]], name: str, hardware: str) -> str:
    """Measured steps next to their forecasts."""
    lines = [
        f"Steps on {name}, forecast with {hardware} (fitted to none of them). slowdown: how many times as long tensor",
        "kernels last as at full clock, by the power model; power and clock: of the GPU in the last steps.",
        "",
        "| model | measured [ms] | forecast [ms] | error | slowdown | measured [W] | forecast [W] | clock [MHz] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        what = f"{row['layers']} layers of {row['hidden']}, {row['mbs']} x {row['seq']} tokens, {row['mode']}"
        power = " | ".join(
            f"{row[key]:{form}}" if key in row else "-"
            for key, form in (("slowdown", ".3f"), ("power_w", ".0f"), ("forecast_w", ".0f"), ("sm_mhz", ".0f"))
        )
        lines.append(f"| {what} | {row['step_ms']:.1f} | {row['forecast_ms']:.1f} | {row['error']:+.1%} | {power} |")
    mean = sum(abs(row["error"]) for row in rows) / len(rows)
    return "\n".join([*lines, "", f"Mean error, sign dropped: {mean:.1%}."]) + "\n"
