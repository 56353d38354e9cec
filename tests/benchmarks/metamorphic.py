"""Faster hardware must not make a step slower: random jobs, one number improved at a time, every exception explained.

    python tests/benchmarks/metamorphic.py [jobs] [seed]

Prints each perturbed step that got slower, and why. Causes that are no fault of the engine:

* `power`: less waiting draws more power, so that the clock falls.
* `stages`: `layout.stages=balanced` cuts the layers by their times, and another cut happens to run worse.
* `order`: no kernel takes longer by itself, but work that now starts earlier meets other work on a link or on the SMs
  that it missed before. That is the anomaly of list scheduling (Graham, "Bounds on multiprocessing timing anomalies",
  SIAM J. Appl. Math. 17, 1969); real clusters have it, too.
* `price`: a kernel takes longer on the better hardware. Its cost model says why: a larger L2 holds more of what the
  kernel before has written, which a GEMM then waits to see written back.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from simulator.engine.tasks import Timeline
from simulator.errors import ForetrainError
from simulator.inputs import load_scenario
from simulator.results.result import Result
from simulator.results.simulate import simulate

SLOWER = 1e-6
"""Relative growth of a step below which it counts as rounding."""
BETTER = {
    "hardware.node.nvlink.bandwidth": 1.5,
    "hardware.node.nic.bandwidth": 1.5,
    "hardware.gpu.hbm_bandwidth": 1.3,
    "hardware.gpu.l2_bytes": 2.0,
    "hardware.gpu.sms": 1.25,
    "stack.kernel_gap": 0.0,
}
"""What is improved, and by which factor. More SMs come with as much more peak: `gpu.sms` alone divides the same peak
among more SMs, each of which is then slower, and so is a kernel that does not fill them."""
CHOICES = {
    "tiny-1f1b": {"layout.pp": ("2", "4"), "layout.ep": ("4", "8", "16")},
    "tiny-dualpipe": {"layout.ep": ("8", "16")},
    "llama-3-8b": {
        "gpus": ("64",),
        "layout.tp": ("1", "2"),
        "layout.pp": ("2", "4"),
        "batch.global_batch_size": ("128",),
        "batch.sequence_length": ("2048", "4096"),
        "model.num_hidden_layers": ("16", "32"),
    },
}
COMMON = {
    "hardware": ("h800", "h100", "h200"),
    "stack": ("torch", "deepseek", "megatron-core"),
    "precision.recipe": ("bf16", "fp8", "fp8_tensor"),
    "layout.zero": ("0", "1", "2", "3"),
    "layout.schedule": ("1f1b", "zb1p", "gpipe", "dualpipe"),
    "overlap.comm_sms": ("8", "20", "32"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slower:
    """A step that better hardware made slower by the share `by`, and why."""

    job: str
    overrides: tuple[str, ...]
    better: str
    by: float
    cause: str


def jobs(count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Random jobs that can run."""
    draw = random.Random(seed)
    while count:
        job = draw.choice(list(CHOICES))
        overrides = [f"{path}={draw.choice(values)}" for path, values in (COMMON | CHOICES[job]).items()]
        try:
            simulate(load_scenario(job, overrides), engine="longest-path")
        except ForetrainError:
            continue
        count -= 1
        yield job, overrides


def improved(job: str, overrides: list[str]) -> Iterator[tuple[str, Result]]:
    """The job with one number better, one after the other."""
    scenario = load_scenario(job, overrides)
    for path, factor in BETTER.items():
        value: object = scenario.stack if path.startswith("stack.") else scenario.cluster
        for part in path.split(".")[1:]:
            value = getattr(value, part)
        assert isinstance(value, (int, float))
        new = round(value * factor) if isinstance(value, int) else value * factor
        texts = [f"{path}={new}"]
        if path == "hardware.gpu.sms":
            peak = scenario.cluster.gpu.peak
            texts += [f"hardware.gpu.peak.{name}={getattr(peak, name) * factor}" for name in ("bf16", "fp8", "fp32")]
        try:
            after = simulate(load_scenario(job, [*overrides, *texts]))
        except ForetrainError:  # what changes nothing in this job is refused
            continue
        yield path, after


def cause_of(before: Result, after: Result) -> str:
    """Why a step is slower after an improvement."""
    if after.built.pace > before.built.pace * (1 + SLOWER):
        return "power"
    if after.stages != before.stages:
        return "stages"
    longer = [
        name for name, (old, new) in _durations(before.timeline, after.timeline).items() if new > old * (1 + 1e-9)
    ]
    return f"price of {', '.join(sorted(set(longer))[:3])}" if longer else "order"


def _durations(before: Timeline, after: Timeline) -> dict[str, tuple[float, float]]:
    """Every kernel sequence's time alone in both; a name that occurs several times keeps its largest growth."""
    found: dict[str, tuple[float, float]] = {}
    for old, new in zip(before.tasks.sequence, after.tasks.sequence, strict=True):
        pair = old.alone, new.alone
        known = found.get(old.name, (1.0, 0.0))
        if pair[1] - pair[0] >= known[1] - known[0]:
            found[old.name] = pair
    return found


def slower(count: int, seed: int) -> tuple[int, list[Slower]]:
    """How many perturbed steps there were, and those that got slower."""
    tried, found = 0, []
    for job, overrides in jobs(count, seed):
        before = simulate(load_scenario(job, overrides))
        for path, after in improved(job, overrides):
            tried += 1
            by = after.metrics["step_time_s"] / before.metrics["step_time_s"] - 1
            if by > SLOWER:
                found.append(
                    Slower(job=job, overrides=tuple(overrides), better=path, by=by, cause=cause_of(before, after))
                )
                print(f"{by:+.3%} {path}: {found[-1].cause}: {job} {' '.join(overrides)}", flush=True)
    return tried, found


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    tried, found = slower(*[*numbers, *(40, 0)[len(numbers) :]])
    print(f"{len(found)} of {tried} perturbed steps got slower")
