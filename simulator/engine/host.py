"""The host: no kernel starts before its process has issued it.

A rank's host issues all kernels of a step in program order, on all streams. Each takes `stack.host_kernel`,
`host_gemm`, `host_attention` or `host_collective` seconds; an op of other kernels takes `host_call` once besides, and a
call that launches a kernel for each expert `host_expert` for each, and behind the gradients of experts' weights
`host_parameter` for each. It never waits for the GPU; software that reads
results back, such as token counts of dropless experts, waits once for each (`after_reads`). Autograd's pass takes
`host_backward` times as long for each kernel; kernels of a CUDA graph take `host_graph`. Where kernels are shorter than
their issue the GPU idles. In a kernel sequence with durations d_1 .. d_n, issued at H + h_1 <= .. <= H + h_n, the last
one ends at

    max(S + d_1 + .. + d_n, max over i of (H + h_i + d_i + .. + d_n))

if the sequence could start at S. Both engines start it at max(S, H + lead), lead = max over i of (h_i - (d_1 + .. +
d_{i-1})), which gives exactly that end if nothing is concurrent, and puts all idle time before the sequence. Host times
do not depend on the GPU, so H + lead is known when the step is unrolled: it is the task's release time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from simulator.cost.price import launches_of, wait_cost
from simulator.engine.kernel_sequence import ALONE, KernelSequence, Priced, sequence_of
from simulator.engine.program import Program
from simulator.ops import (
    AllToAll,
    Attention,
    Collective,
    DecodeAttention,
    Gemm,
    HostRead,
    Notify,
    Op,
    PointToPoint,
    Wait,
)
from simulator.spec.stack import Stack

Issue = Callable[[KernelSequence], tuple[float, float]]
"""Of a kernel sequence: (earliest start, end of issue) after the host begins to issue it [s]."""


WITHIN_A_CALL = (".amax", ".scale", ".swizzle", ".contiguous", ".eager")
"""Kernels that another op's own call launches: of a cast or GEMM a tensor's largest value, its scale, the order of the
scales (Transformer Engine's quantizer.cpp and gemm.cpp), of attention copies of heads; and calls of PyTorch with no
module around them."""


def seconds(op: Op, stack: Stack, pace: float = 1.0) -> float:
    """Host time of one launch of an op on a processor of this pace [s]."""
    if op.captured:
        return pace * stack.host_graph
    call, each = _call_and_kernel(op, stack)
    if op.launches > 1:  # one module's call, a launch for each expert
        quantised = isinstance(op.work, Gemm) and op.work.precision == "fp8_tensor"
        call, each = call + each, (quantised and stack.host_expert_fp8) or stack.host_expert
    many = max(1, launches_of(op))
    each += call / many
    hooks = op.parameters * stack.host_parameter / many
    return pace * (hooks + each * (1.0 if op.segment.endswith(".F") else stack.host_backward))


def _call_and_kernel(op: Op, stack: Stack) -> tuple[float, float]:
    """Host time of an op's call once, and of each of its kernels [s]."""
    match op.work:
        case Gemm():
            return 0.0, stack.host_gemm
        case Attention() | DecodeAttention():
            return 0.0, stack.host_attention
        case Collective() | AllToAll() | Notify() | PointToPoint():
            return 0.0, stack.host_collective
        case _:
            return 0.0 if op.name.endswith(WITHIN_A_CALL) else stack.host_call, stack.host_kernel


def issuing(stack: Stack, pace: float = 1.0) -> Issue | None:
    """How a stack issues kernel sequences on a processor of this pace, or None where that takes no time."""
    if not stack.host_issues or not pace:
        return None
    memo: dict[int, tuple[KernelSequence, tuple[float, float]]] = {}

    def of(sequence: KernelSequence) -> tuple[float, float]:
        if id(sequence) not in memo:
            memo[id(sequence)] = sequence, _of(sequence, stack, pace)
        return memo[id(sequence)][1]

    return of


def _of(sequence: KernelSequence, stack: Stack, pace: float) -> tuple[float, float]:
    issued = lead = 0.0
    for priced, before in zip(sequence.ops, sequence.cumulative[ALONE], strict=False):
        if isinstance(priced.op.work, (Wait, HostRead)):  # no kernel
            continue
        each, many = seconds(priced.op, stack, pace), launches_of(priced.op)
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


def after_reads(program: Program, issue: Issue | None, began: float | None = None) -> Program:
    """The program with the time in which the GPU waits for kernels that a host issues after a read.

    A host that waits for a result of the GPU has nothing issued ahead when it goes on. From the end of the read on each
    kernel starts when it has been issued, until the host is ahead again. That is reckoned with every sequence alone,
    and added before the sequences that wait, as `wait.host`. A program begins as the one before it ended: with the host
    as far ahead, or not; one before which the host waited for the GPU begins with nothing issued, and the host `began`
    so long after it could [s].
    """
    if issue is None or (began is None and not any(_reads(step.sequence) for step in program.steps)):
        return program
    ahead = 0.0
    for _ in range(2):
        waits, ahead = _waits(program, issue, min(0.0, ahead) if began is None else began)
    steps = tuple(
        replace(step, sequence=late(step.sequence, wait)) if wait > 0.0 else step
        for step, wait in zip(program.steps, waits, strict=True)
    )
    return replace(program, steps=steps)


def _reads(sequence: KernelSequence) -> bool:
    """Whether the host waits for its end."""
    return any(isinstance(priced.op.work, HostRead) for priced in sequence.ops)


def _waits(program: Program, issue: Issue, ahead: float) -> tuple[list[float], float]:
    """How long each step waits for the host, which begins at `ahead` (before 0: it has issued kernels already), and
    when it has issued all, after the end of the last step [s]."""
    free: dict[int, float] = {}
    ends: list[float] = []
    out, now = [], ahead
    for step in program.steps:
        lead, total = issue(step.sequence)
        begun = max([free.get(step.stream, 0.0), *(ends[at] for at in step.waits)])
        wait = max(0.0, now + lead - begun) if total else 0.0
        out.append(wait)
        ends.append(begun + wait + step.sequence.alone)
        free[step.stream] = ends[-1]
        now = max(now + total, ends[-1]) if _reads(step.sequence) else now + total
    return out, now - max(ends, default=0.0)


def late(sequence: KernelSequence, wait: float) -> KernelSequence:
    """The sequence behind a wait for the host [s]."""
    first = sequence.ops[0].op
    work = Wait(seconds=wait)
    op = replace(first, name=f"{first.name}.host", cls="wait.host", work=work, saved=0.0, scales_with_load=False)
    idle = Priced(op=op, cost=wait_cost(work, "host"), durations=(wait,) * 4)
    return sequence_of(sequence.kind, sequence.name, [idle, *sequence.ops])
