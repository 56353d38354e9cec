"""The host: no kernel starts before its process has issued it.

A rank's host issues all kernels of a step in program order, on all streams. Each takes `stack.host_kernel`, `host_gemm`
(GEMMs and attention: a module's call) or `host_collective` seconds. It never waits for the GPU; software that reads
results back, such as token counts of dropless experts, is slower. Where kernels are shorter than their issue the GPU
idles. In a kernel sequence with durations d_1 .. d_n, issued at H + h_1 <= .. <= H + h_n, the last one ends at

    max(S + d_1 + .. + d_n, max over i of (H + h_i + d_i + .. + d_n))

if the sequence could start at S. Both engines start it at max(S, H + lead), lead = max over i of (h_i - (d_1 + .. +
d_{i-1})), which gives exactly that end if nothing is concurrent, and puts all idle time before the sequence. Host times
do not depend on the GPU, so H + lead is known when the step is unrolled: it is the task's release time.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.cost.price import launches_of
from simulator.engine.kernel_sequence import ALONE, KernelSequence
from simulator.engine.program import Program
from simulator.ops import AllToAll, Attention, Collective, DecodeAttention, Gemm, Notify, Op, Wait
from simulator.spec.stack import Stack

Issue = Callable[[KernelSequence], tuple[float, float]]
"""Of a kernel sequence: (earliest start, end of issue) after the host begins to issue it [s]."""


def seconds(op: Op, stack: Stack) -> float:
    """Host time of one launch of an op [s]."""
    if isinstance(op.work, (Gemm, Attention, DecodeAttention)):
        return stack.host_gemm
    return stack.host_collective if isinstance(op.work, (Collective, AllToAll, Notify)) else stack.host_kernel


def issuing(stack: Stack) -> Issue | None:
    """How a stack issues kernel sequences, or None where that takes no time."""
    if not (stack.host_kernel or stack.host_gemm or stack.host_collective):
        return None
    memo: dict[int, tuple[KernelSequence, tuple[float, float]]] = {}

    def of(sequence: KernelSequence) -> tuple[float, float]:
        if id(sequence) not in memo:
            memo[id(sequence)] = sequence, _of(sequence, stack)
        return memo[id(sequence)][1]

    return of


def _of(sequence: KernelSequence, stack: Stack) -> tuple[float, float]:
    issued = lead = 0.0
    for priced, before in zip(sequence.ops, sequence.cumulative[ALONE], strict=False):
        if isinstance(priced.op.work, Wait):  # no kernel
            continue
        each, many = seconds(priced.op, stack), launches_of(priced.op)
        lead = max(lead, issued + each - before)
        issued += each * many
        lead = max(lead, issued - before - priced.durations[ALONE] * (many - 1) / many)
    return lead, issued


def releases(program: Program, issue: Issue) -> tuple[list[float], float]:
    """Earliest start of each step of a program, and the time when all is issued; the host begins at 0 [s]."""
    now, out = 0.0, []
    for step in program.steps:
        lead, total = issue(step.sequence)
        out.append(now + lead)
        now += total
    return out, now
