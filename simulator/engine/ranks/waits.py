"""What a mean rank meets at rendezvous: waits for the last rank, and all-to-alls as long as on the slowest links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from simulator.engine.kernel_sequence import KernelSequence, Priced, sequence_of
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
    if flow is not None:
        first, *rest = sequence.ops
        alone, busy = flow
        durations = (alone, busy, busy, alone)
        op: Priced = replace(first, durations=durations)
        sequence = replace_ops(sequence, [op, *rest])
    if wait <= 0.0:
        return sequence
    extra = waiting(wait, sequence.ops[-1].op)
    ops = [extra, *sequence.ops] if sequence.kind in ("collective", "all_to_all") else [*sequence.ops, extra]
    return replace_ops(sequence, ops)


def replace_ops(sequence: KernelSequence, ops: Sequence[Priced]) -> KernelSequence:
    """The same sequence with other ops."""
    return sequence_of(sequence.kind, sequence.name, ops)


def with_rendezvous(program: Program, met_by: Rendezvous) -> Program:
    """A program with what its rank meets at rendezvous."""
    steps = tuple(
        replace(step, sequence=met(step.sequence, wait, flow)) if wait > 0.0 or flow is not None else step
        for step, wait, flow in zip(program.steps, met_by.waits, met_by.flows, strict=True)
    )
    return replace(program, steps=steps)
