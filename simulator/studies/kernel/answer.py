"""The answer to a question: a cost, and what it says in words and numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from simulator.cost.cost import Cost, Share
from simulator.cost.price import price
from simulator.engine.power import alone, slowdown
from simulator.ops import Attention, Gate, Gemm, Op
from simulator.spec.hardware import Cluster
from simulator.spec.kernel_params import rested
from simulator.studies.kernel.question import Question
from simulator.studies.kernel.works import Asked, asked, fewest

SCHEMA = "foretrain.kernel/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class SustainedLoad:
    """A tensor kernel repeated without pause, as in a step.

    Parameters
    ----------
    full_clock : time of a launch at full clock [s].
    demand : power that it would draw at full clock [W].
    limit : power that the GPU holds [W].
    slowdown : how much longer it takes at that power.
    """

    full_clock: float
    demand: float
    limit: float
    slowdown: float

    @property
    def time(self) -> float:
        """Time of one launch under sustained load [s]."""
        return self.full_clock * self.slowdown

    def as_dict(self) -> dict[str, float]:
        """For `--json`."""
        return {
            "time_us": self.time * 1e6,
            "full_clock_us": self.full_clock * 1e6,
            "demand_w": self.demand,
            "limit_w": self.limit,
            "slowdown": self.slowdown,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one operation costs.

    Parameters
    ----------
    question : what was asked.
    hardware : name of the hardware profile.
    op : the op.
    sms : SMs granted, or held by an all-to-all or collective.
    note : what was assumed, in words.
    cost : its cost.
    looped : the class was measured in a benchmark's loop, so its time includes the effect of the power limit there.
    sustained : the same kernel under sustained load; None if it is no tensor kernel or the GPU has no power model.
    """

    question: Question
    hardware: str
    op: Op
    sms: int
    note: str
    cost: Cost
    looped: bool = False
    sustained: SustainedLoad | None = None

    @property
    def time_us(self) -> float:
        """Time of one launch [µs], without the gap to the next kernel."""
        return self.cost.duration * 1e6

    @property
    def flops(self) -> float:
        """FLOP of tensor work; a causal mask counts half."""
        return self.op.flops

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "schema": SCHEMA,
            "op": self.question.op,
            "hardware": self.hardware,
            "class": self.op.cls,
            "work": work_dict(self.op),
            "sms": self.sms,
            "time_us": self.time_us,
            "bound_by": self.cost.bound_by,
            "tflops": self.flops / self.cost.duration / 1e12 if self.cost.duration else 0.0,
            "formula": self.cost.formula,
            "terms": dict(self.cost.terms),
            "nic_bytes": self.cost.nic_bytes,
            "nvlink_bytes": self.cost.nvlink_bytes,
            "source": self.cost.source,
            "calibrated": self.cost.calibrated,
            "note": self.note,
            "benchmark_loop": self.looped,
            "sustained_load": None if self.sustained is None else self.sustained.as_dict(),
        }


def work_dict(op: Op) -> dict[str, Any]:
    """The work of an op as plain values; a gate's fields are added to the others."""
    out: dict[str, Any] = {"type": type(op.work).__name__}
    for f in fields(op.work):
        value = getattr(op.work, f.name)
        if isinstance(value, Gate):
            out |= asdict(value)
        else:
            out[f.name] = list(value) if isinstance(value, tuple) else value
    return out


def answer(question: Question, cluster: Cluster) -> Answer:
    """What the operation costs on `cluster`; raises InputError where it cannot be asked."""
    one = asked(question, cluster)
    cost = _cost(one, question, cluster)
    few = fewest(one, question)
    if few is not None:
        least = _cost(replace(one, op=few), question, cluster)
        if least.duration > cost.duration:
            cost = replace(least, formula=f"no less than low-latency kernels with 128 tokens: {least.formula}")
    return Answer(
        question=question,
        hardware=cluster.name,
        op=one.op,
        sms=one.sms or round(cost.held * cluster.fabric.nvlink.sms),
        note=one.note,
        cost=cost,
        looped="loop_rate" in dict(cost.terms),
        sustained=_sustained(one, question, cluster),
    )


def _cost(one: Asked, question: Question, cluster: Cluster) -> Cost:
    concurrent = bool(question.concurrent)
    traffic = cluster.kernels.comm_traffic if concurrent and one.op.stream == "compute" else 0.0
    return price(
        one.op,
        cluster,
        Share(sms=one.sms or cluster.gpu.sms, partner_traffic=traffic),
        comm_sms=one.sms,
        concurrent=concurrent,
        dispatcher=question.dispatcher or "deepep",
    )


def _sustained(one: Asked, question: Question, cluster: Cluster) -> SustainedLoad | None:
    """The kernel at the clock that the power limit leaves it, as `simulator.engine.power` slows those of a step."""
    gpu = cluster.gpu
    if gpu.power is None or not isinstance(one.op.work, (Gemm, Attention)):
        return None
    cost = _cost(one, question, replace(cluster, kernels=rested(cluster.kernels)))
    watts = alone(one.op, cost, gpu.power)
    return SustainedLoad(full_clock=cost.duration, demand=watts, limit=gpu.power_cap, slowdown=slowdown(watts, gpu, 1))
