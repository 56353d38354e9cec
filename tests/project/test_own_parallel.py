"""Own steps on several GPUs in docs/measured.md are what the program says today; REWRITE_GOLDEN=1 records them anew.

Pipelines, context parallelism, eager and asynchronous tensor parallelism, and FSDP2 with the peak of every rank. No
parameter was fitted to any of them."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest

from reports.views.calibrating.pages import BF16_STATES, SIZES, STACKS
from simulator.inputs import load_scenario
from simulator.results.result import Result
from simulator.results.simulate import simulate
from simulator.validation.runs import megatron_steps
from simulator.validation.runs.unseen_steps import overrides_of

OWN = Path(__file__).parents[2] / "docs" / "measured.md"
HEAD = "measured [ms] | foretrain [ms] | error | peaks [GB] | foretrain [GB] |\n|---|---|---|---|---|---|"
FIRST = f"measured [ms] | first [ms] | error | {HEAD.removeprefix('measured [ms] | ')}---|---|"
"""Of tables with a forecast from before."""
SCHEDULES = {"1F1B": "1f1b", "Interleaved1F1B": "interleaved", "ZBVZeroBubble": "zbv", "DualPipeV": "dualpipev"}
NOT_ALLOCATED = ("context", "slack")
"""Groups of memory that PyTorch's allocator does not count as allocated."""
NOT_HELD = (*NOT_ALLOCATED, "optimizer")
"""What programs without an optimizer do not have."""


def rows_of(name: str) -> Iterator[dict[str, str]]:
    """Rows of a table of own measurements."""
    text = (files("workloads.facts") / name).read_text(encoding="utf-8")
    yield from csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))


def line(what: str, row: dict[str, str], result: Result, *, optimizer: bool = True) -> str:
    """A row of a table: measured and forecast, of the step or all before its optimizer, and every rank's peak."""
    after = 0.0 if optimizer else result.breakdown_s["optimizer"]
    ours, measured = (result.metrics["step_time_s"] - after) * 1e3, float(row["step_ms"])
    assert result.memory is not None
    without = NOT_ALLOCATED if optimizer else NOT_HELD
    peaks = " ".join(
        f"{sum(item.bytes for item in rank.items if item.group not in without) / 1e9:.1f}"
        for rank in result.memory.ranks
    )
    seen = " ".join(f"{float(one):.1f}" for one in row["peak_gb"].split())
    return f"| {what} | {measured:.1f} | {ours:.1f} | {ours / measured - 1:+.1%} | {seen} | {peaks} |"


def common(row: dict[str, str], gpus: int) -> list[str]:
    """What all jobs share."""
    changes = ["hardware=h200", f"hardware.node.gpus={gpus}", f"gpus={gpus}", f"stack={STACKS.get(row['mode'], '')}"]
    return [*changes, f"batch.sequence_length={row['seq']}", f"batch.microbatch_size={row['mbs']}"]


@cache
def pipelines() -> str:
    """Steps under pipeline schedules."""
    out = [f"| Llama-shaped model on H200, pipeline | {HEAD}"]
    for name in ("h200x2_pipeline.csv", "h200x4_pipeline.csv"):
        for row in rows_of(name):
            changes = [f"model.{ours}={row[theirs]}" for ours, theirs in SIZES.items()]
            changes += [*common(row, int(row["gpus"])), "layout.tp=1", f"layout.pp={row['gpus']}", "layout.zero=0"]
            vpp = 2 if row["schedule"] == "Interleaved1F1B" else 1
            changes += [f"layout.schedule={SCHEDULES[row['schedule']]}", f"layout.vpp={vpp}", "layout.stages=even"]
            changes += [f"batch.global_batch_size={int(row['mbs']) * int(row['microbatches'])}", "model=llama-2-7b"]
            changes += ["layout.recompute=none", "precision.recipe=bf16", *BF16_STATES]
            what = f"{row['gpus']} GPUs, {row['schedule']}, {row['layers']} layers of {row['hidden']}"
            what += f", {row['microbatches']} x {row['mbs']} x {row['seq']} tokens, {row['mode']}"
            out.append(line(what, row, simulate(load_scenario("llama-3-8b", changes))))
    return "\n".join(out)


@cache
def context() -> str:
    """Forward and backward under context parallelism."""
    out = [f"| 8 layers as of Llama 3 8B on H200, context parallelism | {HEAD}"]
    for row in rows_of("h200x2_cp.csv"):
        kind = {"ring": "ring", "allgather": "all_gather", "ulysses": "all_to_all", "none": ""}[row["how"]]
        gpus = int(row["gpus"])
        many = gpus if kind else 1
        changes = ["model=llama-3-8b", f"model.num_hidden_layers={row['layers']}", "model.vocab_size=1024"]
        changes += [*common(row, many), "layout.tp=1", "layout.pp=1", "layout.zero=0", "layout.recompute=none"]
        length = int(row["seq"]) if kind else int(row["seq"]) // gpus
        changes += [f"layout.cp={many}", f"batch.sequence_length={length}", f"batch.global_batch_size={row['mbs']}"]
        changes += [f"layout.cp_kind={kind}"] if kind else []
        changes += ["stack.attention=fa2"] if kind in ("ring", "all_gather") else []
        result = simulate(load_scenario("llama-3-8b", [*changes, *BF16_STATES]))
        what = f"{gpus} GPUs, {row['how']}, {row['seq']} tokens, {row['mode']}"
        out.append(line(what, row, result, optimizer=False))
    return "\n".join(out)


@cache
def tensor_modes() -> str:
    """Forward and backward under eager and asynchronous tensor parallelism."""
    out = [f"| Llama-shaped layers on H200, tensor parallelism | {HEAD}"]
    for row in rows_of("h200x2_tp.csv"):
        tp = int(row["tp"])
        overlapped = row["mode"] == "async"
        changes = [f"model=llama-3-{row['model']}", f"model.num_hidden_layers={row['layers']}", "model.vocab_size=1024"]
        mode = "compile" if overlapped else row["mode"]
        changes += [*common(row | {"mode": mode}, tp), f"layout.tp={tp}", "layout.pp=1"]
        changes += ["layout.zero=0", "layout.recompute=none", f"batch.global_batch_size={row['mbs']}", *BF16_STATES]
        changes += ["stack.tp_overlap=true"] if overlapped else []
        what = f"{tp} GPUs, {row['mode']}, {row['layers']} layers as of {row['model'].upper()}"
        what += f", {row['mbs']} x {row['seq']} tokens"
        out.append(line(what, row, simulate(load_scenario("llama-3-8b", changes)), optimizer=False))
    return "\n".join(out)


@cache
def sharded_peaks() -> str:
    """FSDP2 with the peak of every rank."""
    out = [f"| Llama 3 8B on H200, FSDP2, sequences of 8192 | {HEAD}"]
    for row in rows_of("h200x2_fsdp.csv"):
        many = int(row["gpus"])
        kernels = {"flash2": "fa2"}.get(row["attention"], "cudnn")
        recompute = {"op": "selective"}.get(row["recompute"], row["recompute"])
        changes = [*common(row, many), "layout.tp=1", "layout.pp=1", "layout.zero=3", f"stack.attention={kernels}"]
        changes += [f"layout.recompute={recompute}", f"model.num_hidden_layers={row['layers']}"]
        changes += [f"batch.global_batch_size={many * int(row['mbs'])}"]
        what = f"{many} GPUs, {row['layers']} layers, {row['mbs']} a GPU, recompute {recompute}, {kernels}"
        what += f", {row['mode']}"
        out.append(line(what, row, simulate(load_scenario("llama-3-8b", changes))))
    return "\n".join(out)


def with_first(what: str, row: dict[str, str], changes: Sequence[str]) -> str:
    """A row of a table that also has the forecast from before the step ran."""
    words = line(what, row, simulate(load_scenario("llama-3-8b", changes))).split(" | ")
    measured, first = float(row["step_ms"]), float(row["first_ms"])
    words[2:2] = [f"{first:.1f}", f"{first / measured - 1:+.1%}"]
    return " | ".join(words)


@cache
def unseen() -> str:
    """Steps of shapes drawn by lot, with the forecast from before they ran."""
    rows = (with_first(row["program"], row, overrides_of(row)) for row in rows_of("h200_unseen_steps.csv"))
    return "\n".join((f"| H200, plain PyTorch | {FIRST}", *rows))


@cache
def megatron() -> str:
    """Steps of Megatron-Core with Transformer Engine, with the forecast from before they ran."""
    rows = (with_first(row["step"], row, megatron_steps.overrides(row)) for row in rows_of("h200_megatron_steps.csv"))
    return "\n".join((f"| one H200, Megatron-Core | {FIRST}", *rows))


BLOCKS = (pipelines, context, tensor_modes, sharded_peaks, unseen, megatron)


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_recorded_steps_are_todays(block: Callable[[], str]) -> None:
    text = OWN.read_text(encoding="utf-8")
    pattern = rf"(<!-- begin {block.__name__} -->\n).*?(<!-- end {block.__name__} -->)"
    assert re.search(pattern, text, flags=re.S)
    fresh = re.sub(pattern, lambda m: f"{m[1]}{block()}\n{m[2]}", text, flags=re.S)
    if os.environ.get("REWRITE_GOLDEN"):
        OWN.write_text(fresh, encoding="utf-8")
    assert OWN.read_text(encoding="utf-8") == fresh, "record anew: REWRITE_GOLDEN=1 pytest tests/project"
