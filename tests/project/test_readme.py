"""The README's recorded output is what the program prints today; REWRITE_GOLDEN=1 records it anew."""

from __future__ import annotations

import csv
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import foretrain
from simulator.inputs import load_scenario
from simulator.results.result import Result
from simulator.results.simulate import simulate
from simulator.studies.uncertainty import interval
from simulator.validation.compared import Compared
from simulator.validation.runs import moe_steps, step_parts
from simulator.validation.serving import measured_steps

README = Path(__file__).parents[2] / "README.md"
OWN = README.parent / "docs" / "measured.md"
JOB = "deepseek-v3-pretrain"


def demo() -> str:
    """What `make demo` prints."""
    shown = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(foretrain, ["simulate", JOB, "-q"])
    assert shown.exit_code == 0
    return "\n".join(f"    {line}".rstrip() for line in shown.stdout.rstrip().splitlines())


def _published() -> dict[str, float]:
    """Phases of the published step [s] by our names."""
    text = (files("workloads.facts") / "published.toml").read_text(encoding="utf-8")
    figures = {figure["id"]: figure["value"] for figure in tomllib.loads(text)["figure"]}
    names = {"time_per_step": "step", "phase_1F": "forward", "phase_1B": "backward", "phase_1W": "weight"}
    names |= {"phase_1F1B": "overlapped", "phase_bubble": "bubble", "phase_opt": "optimizer"}
    return {ours: float(figures[f"B.train.mpft.{theirs}"]) for theirs, ours in names.items()}


LABELS = {"weight": "weight gradients", "optimizer": "sync and optimizer"}


def published() -> str:
    """Published phases and ours: mean over ranks and the end rank, and the mean with equal loads."""
    result: Result = simulate(load_scenario(JOB))
    even = simulate(load_scenario(JOB, ["routing.kind=uniform"]))
    mean, equal = ({"step": one.metrics["step_time_s"], **one.breakdown_s} for one in (result, even))
    end = {"step": mean["step"], **result.ranks[0].phases}
    head = "phase [s] | published | foretrain, mean rank | rank 0 | error of the mean | equal loads, mean rank | error"
    rows = [f"| {head} |", "|---|---|---|---|---|---|---|"]
    for name, value in _published().items():
        errors = [f"{ours[name] / value - 1:+.1%}" for ours in (mean, equal)]
        ours = f"{mean[name]:.2f} | {end[name]:.2f} | {errors[0]} | {equal[name]:.2f} | {errors[1]}"
        rows.append(f"| {LABELS.get(name, name)} | {value:.2f} | {ours} |")
    return "\n".join(rows)


def spread() -> str:
    """The interval of the step."""
    scenario = load_scenario(JOB)
    found = interval(scenario, shares=False).scaled_to(simulate(scenario).metrics["step_time_s"])
    between = f"{found.p10_s:.1f} to {found.p90_s:.1f} s, median {found.p50_s:.1f} s"
    return f"In 8 of 10 draws of all that is uncertain the step takes {between} (`--interval`)."


STACKS = {"eager": "torch", "compile": "torch-compile"}
HEAD = "measured [ms] | foretrain [ms] | error |\n|---|---|---|---|"


def _measured(name: str) -> Iterator[dict[str, str]]:
    """Rows of a table of own measurements."""
    text = (files("workloads.facts") / name).read_text(encoding="utf-8")
    yield from csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))


def _compared(what: str, row: dict[str, str], changes: list[str], *, optimizer: bool = True) -> str:
    """A row of a table: what was measured, and what the simulation says, of the step or all before its optimizer."""
    result = simulate(load_scenario("llama-3-8b", changes))
    after = 0.0 if optimizer else result.breakdown_s["optimizer"]
    ours = (result.metrics["step_time_s"] - after) * 1e3
    measured = float(row["step_ms"])
    return f"| {what} | {measured:.1f} | {ours:.1f} | {ours / measured - 1:+.1%} |"


BF16_STATES = [
    *(f"optimizer.{key}=bf16" for key in ("parameters", "gradients", "reduced", "first_moment", "second_moment")),
    "optimizer.masters=none",
]
"""What the programs on one GPU, and of tensor parallelism, keep: `model.to(torch.bfloat16)`, AdamW in that format."""


@cache
def sharded() -> str:
    """Our own measured steps under FSDP2, and the simulation."""
    rows = [f"| Llama 3 8B, FSDP2, sequences of 8192 | {HEAD}"]
    for gpu, row in ((name, row) for name in ("h200", "h100") for row in _measured(f"{name}_fsdp.csv")):
        kernels = {"flash2": "fa2"}.get(row["attention"], "cudnn")
        recompute = {"op": "selective"}.get(row["recompute"], row["recompute"])
        many = int(row["gpus"])
        changes = [f"hardware={gpu}", f"hardware.node.gpus={many}", f"gpus={many}"]
        changes += ["layout.tp=1", "layout.pp=1", "layout.zero=3"]
        changes += [f"stack={STACKS[row['mode']]}", f"stack.attention={kernels}", f"layout.recompute={recompute}"]
        changes += [f"model.num_hidden_layers={row['layers']}", f"batch.sequence_length={row['seq']}"]
        changes += [f"batch.microbatch_size={row['mbs']}", f"batch.global_batch_size={many * int(row['mbs'])}"]
        what = f"{many} {gpu.upper()}, {row['layers']} layers, {row['mbs']} a GPU, recompute {recompute}, {kernels}"
        rows.append(_compared(f"{what}, {row['mode']}", row, changes))
    return "\n".join(rows)


@cache
def tensor() -> str:
    """Our own measured forwards and backwards under tensor parallelism, and the simulation."""
    rows = [f"| Llama-shaped layers on H200, tensor parallelism | {HEAD}"]
    for row in _measured("h200_tp.csv"):
        changes = [f"model=llama-3-{row['model']}", f"model.num_hidden_layers={row['layers']}", "model.vocab_size=1024"]
        changes += ["hardware=h200", f"hardware.node.gpus={row['tp']}", f"gpus={row['tp']}", f"layout.tp={row['tp']}"]
        changes += ["stack=torch-compile", "layout.pp=1", "layout.zero=0", "layout.recompute=none"]
        changes += [f"batch.sequence_length={row['seq']}", f"batch.microbatch_size={row['mbs']}"]
        changes += [f"batch.global_batch_size={row['mbs']}", *BF16_STATES]
        what = (
            f"{row['tp']} GPUs, {row['layers']} layers as of {row['model'].upper()}, {row['mbs']} x {row['seq']} tokens"
        )
        rows.append(_compared(what, row, changes, optimizer=False))
    return "\n".join(rows)


@cache
def steps() -> str:
    """Our own measured steps on one GPU, and the simulation."""
    rows = [f"| Llama-shaped model on one GPU | {HEAD}"]
    for gpu, row in ((name, row) for name in ("h200", "h100") for row in _measured(f"{name}_steps.csv")):
        stack = STACKS[row["mode"]]
        sizes = {"hidden_size": "hidden", "intermediate_size": "inner", "num_hidden_layers": "layers"}
        sizes |= {"num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "vocab_size": "vocab"}
        changes = [f"model.{ours}={row[theirs]}" for ours, theirs in sizes.items()]
        changes += [f"hardware={gpu}", f"stack={stack}", "gpus=1", "layout.tp=1", "layout.pp=1", "layout.zero=0"]
        changes += [f"batch.sequence_length={row['seq']}", f"batch.microbatch_size={row['mbs']}"]
        changes += [f"batch.global_batch_size={int(row['mbs']) * int(row['microbatches'])}"]
        changes += ["model=llama-2-7b", "layout.recompute=none", "precision.recipe=bf16", "stack.gradients_zeroed=true"]
        changes += BF16_STATES
        size = f"{row['layers']} layers of {row['hidden']}, {row['mbs']} x {row['seq']} tokens"
        what = f"{gpu.upper()}, {size}, {row['mode']}"
        rows.append(_compared(what, row, changes))
    return "\n".join(rows)


@cache
def experts() -> str:
    """Our own measured steps of mixture-of-experts models, and the simulation."""
    return "\n".join(
        with_peaks("mixture of experts on H200, plain PyTorch", moe_steps.measured_steps(moe_steps.rows()))
    )


@cache
def serving() -> str:
    """Our own measured steps of serving with tensor parallelism, and the simulation."""
    some = [row for row in measured_steps.rows() if int(row["tp"]) > 1]
    found = measured_steps.measured_steps(some)
    named = [replace(one, name=f"{one.name}, {one.group.split(',')[0]}, {one.group.rsplit(', ')[-1]}") for one in found]
    return "\n".join(with_peaks("serving on H200, tensor parallelism, plain PyTorch", named))


def with_peaks(what: str, found: Sequence[Compared]) -> list[str]:
    """Rows of times and of the most loaded rank's peak."""
    head = "measured [ms] | foretrain [ms] | error | peak [GB] | foretrain [GB] |"
    rows = [f"| {what} | {head}", "|---|---|---|---|---|---|"]
    for one in found:
        times = f"{one.measured * 1e3:.1f} | {one.predicted * 1e3:.1f} | {one.error:+.1%}"
        peaks = f"{max(one.measured_peaks) / 1e9:.1f} | {max(one.predicted_peaks) / 1e9:.1f}"
        rows.append(f"| {one.name} | {times} | {peaks} |")
    return rows


def parts() -> str:
    """What kinds of kernels take in our own steps, and in the simulation."""
    rows = [
        f"| measured / foretrain [ms] | step | {' | '.join(step_parts.KINDS)} |",
        "|---|---|" + "---|" * len(step_parts.KINDS),
    ]
    for one in step_parts.programs():
        cells = [one.step, *(one.kinds.get(kind, (0.0, 0.0)) for kind in step_parts.KINDS)]
        shown = [f"{measured * 1e3:.1f} / {ours * 1e3:.1f}" if measured or ours else "" for measured, ours in cells]
        rows.append(f"| {one.name} | {' | '.join(shown)} |")
    return "\n".join(rows)


def own() -> str:
    """How far off the three kinds of own steps are, by what they ran through."""
    rows = [
        "| own steps on H200 and H100 | configurations | mean error, sign dropped | from | to |",
        "|---|---|---|---|---|",
    ]
    tables = {"one GPU": steps(), "FSDP2, 2 and 4 GPUs": sharded(), "tensor parallelism 2 and 4": tensor()}
    tables["mixture of experts, 1, 2 and 4 GPUs"] = experts()
    for label, table in tables.items():
        for mode in ("eager", "compile"):
            found = [line for line in table.splitlines()[2:] if ("eager" in line) is (mode == "eager")]
            errors = [float(re.findall(r"\| ([+-][\d.]+)% \|", line)[0]) for line in found]
            if errors:
                mean = sum(map(abs, errors)) / len(errors)
                rows.append(
                    f"| {label}, {mode} | {len(errors)} | {mean:.1f}% | {min(errors):+.1f}% | {max(errors):+.1f}% |"
                )
    return "\n".join(rows)


BLOCKS = [(README, block) for block in (demo, published, own)]
BLOCKS += [(OWN, block) for block in (steps, sharded, tensor, experts, serving, parts)]
PARAMS = [pytest.param(file, block, id=block.__name__) for file, block in BLOCKS]
PARAMS.append(pytest.param(README, spread, id="spread", marks=pytest.mark.slow))


@pytest.mark.long
@pytest.mark.parametrize(("file", "block"), PARAMS)
def test_recorded_output_is_todays(file: Path, block: Callable[[], str]) -> None:
    text = file.read_text(encoding="utf-8")
    pattern = rf"(<!-- begin {block.__name__} -->\n).*?(<!-- end {block.__name__} -->)"
    fresh = re.sub(pattern, lambda m: f"{m[1]}{block()}\n{m[2]}", text, flags=re.S)
    if os.environ.get("REWRITE_GOLDEN"):
        file.write_text(fresh, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == fresh, "record anew: REWRITE_GOLDEN=1 pytest tests/test_readme.py"


def test_every_command_in_the_readme_exists() -> None:
    text = README.read_text(encoding="utf-8")
    verbs = set(re.findall(r"^    foretrain (\w+)", text, flags=re.M))
    assert {"simulate", "compare"} <= verbs
    for verb in verbs:
        run = CliRunner().invoke(foretrain, [verb, "--help"])
        assert (run.exit_code, run.stdout[:6]) == (0, "Usage:"), verb
