"""What a mean rank meets at rendezvous: waits for the last rank, and all-to-alls as long as on the slowest links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from simulator.engine.kernel_sequence import ALONE, KernelSequence, Priced
from simulator.engine.program import Program, waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Of each step of a program, or of each task of a step.

    Parameters
    ----------
    waits : time for which a mean rank waits for the last one [s].
    flows : durations of an all-to-all alone and concurrent with compute [s]; None: no all-to-all.
    """

    waits: Sequence[float]
    flows: Sequence[tuple[float, float] | None]


def met(sequence: KernelSequence, wait: float, flow: tuple[float, float] | None) -> KernelSequence:
    """A sequence of a mean rank as its group makes it.

    A barrier holds its SMs while it waits; a collective does not begin to move data before.
    """
    ops, at = sequence.ops, sequence.cumulative
    if flow is not None:
        alone, busy = flow
        first = Priced(op=ops[0].op, cost=ops[0].cost, durations=(alone, busy, busy, alone))
        ops, at = (first, *ops[1:]), ()
    if wait > 0.0:
        extra = waiting(wait, ops[-1].op)
        if sequence.kind in ("collective", "all_to_all"):
            ops, at = (extra, *ops), ()
        else:
            ops = (*ops, extra)
            at = tuple([(*times, times[-1] + wait) for times in at])
    if ops is sequence.ops:
        return sequence
    at = at or _cumulative(ops)
    return KernelSequence(
        kind=sequence.kind,
        name=sequence.name,
        ops=ops,
        cumulative=at,
        nic=sequence.nic,
        nvlink=sequence.nvlink,
        held=sequence.held,
        sensitive=at.count(at[ALONE]) < len(at),
    )


def _cumulative(ops: Sequence[Priced]) -> tuple[tuple[float, ...], ...]:
    """Time at which each op starts, and the end of the last, by condition [s]."""
    each = zip(*[one.durations for one in ops], strict=True)
    return tuple([tuple(accumulate(durations, initial=0.0)) for durations in each])


def with_rendezvous(program: Program, met_by: Rendezvous) -> Program:
    """A program with what its rank meets at rendezvous."""
    steps = tuple(
        replace(step, sequence=met(step.sequence, wait, flow)) if wait > 0.0 or flow is not None else step
        for step, wait, flow in zip(program.steps, met_by.waits, met_by.flows, strict=True)
    )
    return replace(program, steps=steps)
