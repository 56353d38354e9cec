"""What a timeline means: pure functions from spans to numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress

from simulator.engine.kernel_sequence import ALONE
from simulator.engine.tasks import COMPUTE, FROM_HOST, LANES, TO_HOST, Timeline
from simulator.results.intervals import Interval, length, merged, minus
from simulator.results.serving_metrics import serving_metrics
from simulator.spec.job import Job
from simulator.spec.model import ModelSpec
from simulator.spec.scenario import Scenario
from simulator.spec.workload import Workload, WorkloadName
from simulator.units import DAY, HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTimes:
    """One rank's step.

    Parameters
    ----------
    rank : pipeline rank.
    phases : time of each phase [s]; they add up to the step time (see `spec.workload.Training`). `forward`, `backward`
        and `weight` are actions that run alone, with the communication that they expose; a full backward counts as
        `backward`.
    exposed_comm : communication while nothing computes, part of the phases [s].
    compute_busy : time in compute kernels [s].
    """

    rank: int
    phases: dict[str, float]
    exposed_comm: float
    compute_busy: float


def rank_times(timeline: Timeline, workload: Workload) -> list[RankTimes]:
    """Phases of the workload, exposed communication and busy time of every rank."""
    tasks = timeline.tasks
    spans: list[list[Interval]] = [[] for _ in range(tasks.ranks * LANES)]
    for lane, span in zip(tasks.lane, zip(timeline.start, timeline.end, strict=True), strict=True):
        spans[lane].append(span)
    phases = [dict.fromkeys(workload.phases, 0.0) for _ in range(tasks.ranks)]
    covered: list[list[Interval]] = [[] for _ in range(tasks.ranks)]
    for action, (start, end) in zip(tasks.actions, action_spans(timeline), strict=True):
        if action.phase == "optimizer":
            continue
        phases[action.rank][action.phase] += end - start
        covered[action.rank].append((start, end))
    out, step, updates = [], timeline.step_time, _updates(timeline)
    for rank in range(tasks.ranks):
        mine = spans[rank * LANES : (rank + 1) * LANES]
        busy, acted = merged(mine.pop(COMPUTE)), merged(covered[rank])
        moving = merged(chain.from_iterable(mine))
        own = phases[rank]
        if "optimizer" in own:
            own["optimizer"] = length(minus(merged(updates[rank]), acted))
        rest = step - sum(own.values())
        own["bubble"] = max(0.0, rest)
        own["other"] = rest - own["bubble"]
        out.append(
            RankTimes(rank=rank, phases=own, exposed_comm=length(minus(moving, busy)), compute_busy=length(busy))
        )
    return out


def action_spans(timeline: Timeline) -> list[Interval]:
    """Start and end of every action, of its first and last task; copies to the host go on beyond it."""
    tasks, out = timeline.tasks, []
    copied = any(lane % LANES in COPIES for lane in set(tasks.lane))
    for action in tasks.actions:
        mine = slice(action.first, action.last)
        starts, ends = timeline.start[mine], timeline.end[mine]
        if copied:
            kept = [lane % LANES not in COPIES for lane in tasks.lane[mine]]
            starts, ends = list(compress(starts, kept)), list(compress(ends, kept))
        out.append((min(starts, default=0.0), max(ends, default=0.0)))
    return out


COPIES = (TO_HOST, FROM_HOST)
"""Streams on which an action's copies go on while the next action runs."""


def _updates(timeline: Timeline) -> list[list[Interval]]:
    """Times at which gradient sync or the update runs, by rank."""
    spans: list[list[Interval]] = [[] for _ in range(timeline.tasks.ranks)]
    for action in timeline.tasks.actions:
        if action.phase == "optimizer":
            mine = slice(action.first, action.last)
            spans[action.rank] += zip(timeline.start[mine], timeline.end[mine], strict=True)
    return spans


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTime:
    """Ops of one kernel class on a mean rank.

    Parameters
    ----------
    cls : kernel class.
    seconds : their time [s].
    launches : their number.
    bound_by : what limits most of it.
    stream : compute or comm.
    calibrated : whether the class was measured on this GPU.
    """

    cls: str
    seconds: float
    launches: float
    bound_by: str
    stream: str
    calibrated: bool


def class_times(timeline: Timeline) -> list[ClassTime]:
    """Kernel classes by time, mean over ranks. The time of a kernel sequence is divided among its ops in proportion to
    their times alone."""
    tasks = timeline.tasks
    total: dict[int, float] = defaultdict(float)
    count: dict[int, int] = defaultdict(int)
    sequences = {}
    for sequence, start, end in zip(tasks.sequence, timeline.start, timeline.end, strict=True):
        key = id(sequence)
        sequences[key] = sequence
        total[key] += end - start
        count[key] += 1
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    launches: dict[tuple[str, str], float] = defaultdict(float)
    bounds: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    calibrated: dict[tuple[str, str], bool] = {}
    for key, sequence in sequences.items():
        scale = total[key] / sequence.alone if sequence.alone else 0.0
        for priced in sequence.ops:
            which = (priced.op.cls, priced.op.stream)
            part = priced.durations[ALONE] * scale
            seconds[which] += part
            launches[which] += count[key] * priced.op.count
            bounds[which][priced.cost.bound_by] += part
            calibrated[which] = calibrated.get(which, True) and priced.cost.calibrated
    out = [
        ClassTime(
            cls=which[0],
            stream=which[1],
            seconds=value / tasks.ranks,
            launches=launches[which] / tasks.ranks,
            bound_by=max(bounds[which], key=lambda bound: bounds[which][bound]),
            calibrated=calibrated[which],
        )
        for which, value in seconds.items()
    ]
    return sorted(out, key=lambda item: (-item.seconds, item.cls))


def mean_phases(ranks: Sequence[RankTimes]) -> dict[str, float]:
    """Mean over ranks of each phase [s]; they add up to the step time."""
    return {phase: sum(r.phases[phase] for r in ranks) / len(ranks) for phase in ranks[0].phases}


def throughput(step: float, job: Job, model: ModelSpec, peak_bf16: float) -> dict[str, float]:
    """Tokens per time, and model FLOP against the BF16 peak, with causal and with full attention.

    MFU counts the main model's FLOP (no MTP, no recomputation) and divides by the dense BF16 peak also for FP8 runs,
    as DeepSeek does (arXiv 2505.09343, table 4).
    """
    tokens = job.tokens_per_step
    rate = tokens / step / job.gpus
    seq = job.batch.sequence_length
    causal, full = model.flops_per_token(seq, causal=True), model.flops_per_token(seq, causal=False)
    return {
        "tokens_per_step": float(tokens),
        "tokens_per_day": tokens / step * DAY,
        "tokens_per_s_per_gpu": rate,
        "tflops_per_gpu_causal": rate * causal / 1e12,
        "tflops_per_gpu_full": rate * full / 1e12,
        "mfu_causal": rate * causal / peak_bf16,
        "mfu_full": rate * full / peak_bf16,
        "flops_per_token_causal": causal,
        "flops_per_token_full": full,
    }


def price_of(scenario: Scenario) -> tuple[float, str]:
    """Price of a GPU-hour [USD], and whose it is: the hardware profile's, with its source and date, unless the job
    has one of its own."""
    own, cluster = scenario.job.run.price_per_gpu_hour, scenario.cluster
    if own is not None:
        return own, "of the job"
    source = cluster.sources.get("price_per_gpu_hour", "no source given")
    return cluster.price_per_gpu_hour, f"of the hardware profile {cluster.name} ({source})"


def price_of_run(step: float, scenario: Scenario) -> dict[str, float]:
    """GPU-hours and dollars of the whole run at this step time."""
    job = scenario.job
    hours_per_token = job.gpus * step / HOUR / job.tokens_per_step
    price = price_of(scenario)[0]
    hours = hours_per_token * job.run.tokens
    return {
        "gpu_hours_per_trillion_tokens": hours_per_token * 1e12,
        "run_gpu_hours": hours,
        "run_days": hours / job.gpus / 24.0,
        "run_cost_usd": hours * price,
        "price_per_gpu_hour_usd": price,
    }


def metrics(timeline: Timeline, scenario: Scenario, ranks: Sequence[RankTimes]) -> dict[str, float]:
    """All headline numbers of one step of the scenario's workload."""
    return HEADLINES[scenario.workload.name](timeline, scenario, ranks)


def _serving(timeline: Timeline, scenario: Scenario, ranks: Sequence[RankTimes]) -> dict[str, float]:
    return serving_metrics(timeline, scenario, sum(r.exposed_comm for r in ranks) / len(ranks))


def training_metrics(timeline: Timeline, scenario: Scenario, ranks: Sequence[RankTimes]) -> dict[str, float]:
    """Headline numbers of training: step, throughput, bubbles, and what the whole run costs."""
    step, model = timeline.step_time, scenario.model
    bubbles = [r.phases["bubble"] / step for r in ranks]
    return {
        "step_time_s": step,
        **throughput(step, scenario.job, model, scenario.cluster.gpu.peak.bf16),
        "bubble_ratio": sum(bubbles) / len(bubbles),
        "bubble_ratio_worst": max(bubbles),
        "exposed_comm_s": sum(r.exposed_comm for r in ranks) / len(ranks),
        **price_of_run(step, scenario),
        "model_parameters": float(model.parameters()),
        "activated_parameters": float(model.activated_parameters()),
        "microbatches": float(scenario.job.microbatches),
    }


HEADLINES: Mapping[WorkloadName, Callable[[Timeline, Scenario, Sequence[RankTimes]], dict[str, float]]] = {
    "training": training_metrics,
    "prefill": _serving,
    "decode": _serving,
}
"""Headline numbers by workload."""
