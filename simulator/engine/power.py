"""Power: what a step draws, and how far the power limit slows tensor kernels.

A benchmark of a few launches runs at full clock; a step that keeps the tensor cores busy for hours does not. Measured
on an H200 (`hardware_profiles/calibration/tables/h200_sustained.csv`): a GEMM alone demands 1.4 times the cap and takes
1.2 times as long as after idle time; mixed with enough memory-bound work it runs at full clock. Mean power at full
clock is the time-weighted mean over the kinds of work, and over pauses up to `Power.pause`: behind longer ones the
clock is down again before more is gained (`h200_pauses.csv`). Above the cap, tensor kernels take (demand /
cap)^exponent times as long, and memory-bound kernels do not change. Attention, which unlike GEMMs reaches the highest
clock at rest, lasts `Power.attention_lag` times longer still (`h200_clock.csv`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import compress
from math import hypot
from statistics import NormalDist

from simulator.cost.cost import Cost
from simulator.engine.kernel_sequence import ALONE, Priced
from simulator.engine.tasks import COMPUTE, LANES, Timeline
from simulator.ops import Attention, DecodeAttention, Gemm, HostRead, Op, Scan, Wait
from simulator.spec.hardware import Gpu, Power
from simulator.spec.scenario import Scenario, amax_ranks
from simulator.spec.stack import LIBRARY

DRAW = {
    "elem.unvectorized": "unvectorized",
    "cat.unvectorized": "unvectorized",
    "permute.index_add": "scatter",
    "unpermute.index_add": "scatter",
    "optimizer": "update",
}
"""Kernel class -> field of `Power`: memory-bound kernels that draw less than most, as their units wait."""


def draw(op: Op, power: Power) -> float:
    """Power of one kind of work at full clock [W]."""
    if isinstance(op.work, Gemm):
        return power.split if op.work.split and power.split else power.tensor
    if isinstance(op.work, Attention):
        return power.attention_mixed or power.attention
    if isinstance(op.work, (DecodeAttention, Scan)):
        return power.attention
    if isinstance(op.work, (Wait, HostRead)):
        return power.idle
    own: float = getattr(power, DRAW.get(op.cls, "memory"))
    return own or power.memory


def demand(timeline: Timeline, power: Power, *, waiting_gemms: bool = False) -> float:
    """Mean power that a step would draw at full clock, over all ranks and the time that counts (`paused`) [W].

    `waiting_GEMMs`: GEMMs that wait for memory draw what memory-bound kernels do, as most of a decode step's
    are; a training step has hardly any.
    """
    tasks = timeline.tasks
    computing = list(compress(tasks.sequence, [lane % LANES == COMPUTE for lane in tasks.lane]))
    keys = list(map(id, computing))
    sequences = dict(zip(keys, computing, strict=True))
    energy = busy = 0.0
    for key, times in Counter(keys).items():
        for priced in sequences[key].ops:
            seconds = times * priced.durations[ALONE]
            watts = among_others(priced.op, priced.cost, power) if waiting_gemms else draw(priced.op, power)
            energy += seconds * watts
            busy += seconds
    total = timeline.step_time * tasks.ranks - paused(timeline, power, around=True)
    return (energy + max(0.0, total - busy) * power.idle) / total if total else power.idle


class Pauses:
    """By how much pauses of compute streams are longer than those that count, taken down by one pass over a step.

    `pause` : see `Power.pause` [s]; `beyond` : of all streams so far, between what they compute [s].
    """

    def __init__(self, pause: float) -> None:
        self.pause, self.beyond = pause, 0.0
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}

    def computes(self, stream: int, start: float, end: float) -> None:
        """A stream computes from `start` to `end` [s], after what was taken down of it before."""
        self.waits(start - self.last.get(stream, start))
        self.first.setdefault(stream, start)
        self.last[stream] = end

    def waits(self, seconds: float) -> None:
        """A stream does not compute for so long."""
        self.beyond += max(0.0, seconds - self.pause)

    def around(self, step: float) -> float:
        """All of them [s], also those from the last kernel of a step of this length to the first of the next."""
        ends = ((self.first[stream], self.last[stream]) for stream in self.first)
        return self.beyond + sum(max(0.0, first + step - last - self.pause) for first, last in ends)


def paused(timeline: Timeline, power: Power, *, around: bool) -> float:
    """By how much pauses of compute streams are longer than `Power.pause`, over all ranks [s].

    `around`: the pause from a step's last kernel to the first of the next step counts too.
    """
    if not power.pause:
        return 0.0
    pauses = Pauses(power.pause)
    for lane, start, end in zip(timeline.tasks.lane, timeline.start, timeline.end, strict=True):
        if lane % LANES == COMPUTE:
            pauses.computes(lane, start, end)
    return pauses.around(timeline.step_time) if around else pauses.beyond


def among_others(op: Op, cost: Cost, power: Power) -> float:
    """Power of one kernel among others at full clock [W].

    A GEMM that waits for memory or for its launch draws as much as memory-bound kernels: its tensor cores idle.
    """
    return draw(op, power) if cost.bound_by == "tensor" else power.memory


def alone(op: Op, cost: Cost, power: Power) -> float:
    """Power that one GPU would draw at full clock with this kernel over and over [W]."""
    tensor = cost.bound_by == "tensor" and isinstance(op.work, Attention)
    return power.attention if tensor else among_others(op, cost, power)


LAGS_FROM = 1.02
"""Slowdown of GEMMs from which on attention lags behind in full: the clock falls by a tenth before GEMMs lose 3 %
(`h200_clock.csv`)."""


LAGGING = ("swiglu.bwd", "rope", "quant.row")
"""Kernels that follow the clock as attention does where their instructions decide: casts by row (`h200_clock.csv`),
rotations, and SwiGLU's backward, which were timed rested and in layers at 1.27 times less than the highest clock
(`workloads/facts/h200_te_layers.csv`, `h200_megatron_parts.csv`). Kernels without vectors and by index do as GEMMs."""


def lags(op: Op, cost: Cost) -> bool:
    """Whether an op follows the clock more than GEMMs do."""
    return isinstance(op.work, Attention) or (cost.bound_by == "instructions" and op.cls.startswith(LAGGING))


def lagging_pace(pace: float, power: Power | None) -> float:
    """How much longer such ops last where GEMMs last `pace` times as long."""
    if power is None:
        return pace
    if pace >= LAGS_FROM:
        return pace * power.attention_lag
    return 1.0 + (pace - 1.0) * (LAGS_FROM * power.attention_lag - 1.0) / (LAGS_FROM - 1.0)


def highest_demand(gpus: int) -> float:
    """Standard deviations by which the highest demand of `gpus` GPUs is expected to exceed the mean (Blom, 1958)."""
    return NormalDist().inv_cdf((gpus - 0.375) / (gpus + 0.25)) if gpus > 1 else 0.0


def energy_above_idle(ops: Iterable[Priced], power: Power) -> float:
    """Energy that these ops take above that of an idle GPU, each alone at full clock [J]."""
    every = list(ops)
    once = {id(priced): priced for priced in every}  # those of equal layers come again
    above = {key: draw(priced.op, power) - power.idle for key, priced in once.items()}
    return sum(priced.durations[ALONE] * above[id(priced)] for priced in every)


def at_the_limit(
    gpu: Gpu, gpus: int, pass_at_full_clock: Callable[[Power], float], meeting: int = 1
) -> tuple[float, float | None]:
    """(how much longer tensor kernels last, mean power demanded at full clock [W] or None without a power model).

    `pass_at_full_clock` executes the step quickly at full clock and returns the mean power of a GPU [W]; `gpus`
    wait for the slowest of them; `meeting`: see `meeting_ranks`.
    """
    if gpu.power is None:
        return 1.0, None
    watts = pass_at_full_clock(gpu.power)
    return slowdown(watts, gpu, gpus, meeting), watts


def meeting_ranks(scenario: Scenario) -> int:
    """Ranks that wait for each other within every microbatch of a training step: those of tensor and context
    parallelism, those whose tokens travel while nothing else runs (NCCL's dispatchers), and those that agree on the
    largest values of tensors."""
    layout = scenario.job.layout
    if scenario.workload.serves:
        return 1
    experts = layout.ep if scenario.model.is_moe and scenario.stack.dispatcher in LIBRARY else 1
    return max(layout.tp * layout.cp * experts, amax_ranks(scenario.job, scenario.stack, scenario.formats))


def slowdown(watts: float, gpu: Gpu, gpus: int, meeting: int = 1) -> float:
    """How much longer tensor kernels last when a mean GPU demands `watts` at full clock (>= 1).

    All GPUs of a job wait for the slowest: the one that needs the most power for the same work.
    """
    return slowdown_above(watts, gpu, highest_demand(gpus), meeting)


def slowdown_above(watts: float, gpu: Gpu, above: float, meeting: int = 1) -> float:
    """The same where the slowest GPU demands `above` standard deviations more than the mean.

    At the limit the governor moves each GPU's clock up and down, and ranks that meet within that time wait for the one
    that is slowest just then; but no clock rises above its highest, so that it moves less near the limit. Both
    deviations are independent, so that their squares add up.
    """
    if gpu.power is None:
        return 1.0
    usual, worst = (
        float(max(1.0, demand / gpu.power_cap) ** gpu.power.exponent)
        for demand in (watts, watts * (1.0 + gpu.power.spread * above))
    )
    late = min(gpu.power.dither * highest_demand(meeting), worst - 1.0)
    if not late:
        return worst
    lead = worst / usual - 1.0
    return usual * (1.0 + hypot(max(0.0, lead), late) + min(0.0, lead))
