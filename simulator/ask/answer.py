"""The answer to a question: a cost, and what it says in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from simulator.ask.question import Question
from simulator.ask.works import asked
from simulator.cost.cost import Cost, Share
from simulator.cost.price import price
from simulator.hardware import Cluster
from simulator.ops import Attention, Gemm, Op

SCHEMA = "foretrain.kernel/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one operation costs on `hardware`; `sms` granted (or held by an exchange)."""

    question: Question
    hardware: str
    op: Op
    sms: int
    note: str
    cost: Cost

    @property
    def time_us(self) -> float:
        """Time of one launch [µs], without the gap to the next kernel."""
        return self.cost.duration * 1e6

    @property
    def flops(self) -> float:
        """FLOP of tensor work; a causal mask counts half."""
        return self.op.work.flops if isinstance(self.op.work, (Gemm, Attention)) else 0.0

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
        }


def work_dict(op: Op) -> dict[str, Any]:
    """The work of an op as plain values."""
    out: dict[str, Any] = {"type": type(op.work).__name__}
    for f in fields(op.work):
        value = getattr(op.work, f.name)
        out[f.name] = list(value) if isinstance(value, tuple) else value
    return out


def answer(question: Question, cluster: Cluster) -> Answer:
    """What the operation costs on `cluster`; raises InputError where it cannot be asked."""
    one = asked(question, cluster)
    beside = bool(question.beside)
    traffic = cluster.kernels.comm_traffic if beside and one.op.stream == "compute" else 0.0
    cost = price(
        one.op,
        cluster,
        Share(sms=one.sms or cluster.gpu.sms, partner_traffic=traffic),
        comm_sms=one.sms,
        beside=beside,
        dispatcher=question.dispatcher or "deepep",
    )
    return Answer(question=question, hardware=cluster.name, op=one.op, sms=one.sms, note=one.note, cost=cost)
