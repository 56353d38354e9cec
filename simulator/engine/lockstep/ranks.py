"""A serving step on every rank at once, in program order: arrays over ranks in place of one time.

Tokens of a dispatch come from all ranks of the group: it begins when the last of them sends, and ends on each rank
with the tokens of its own experts. A combine brings back what all ranks made: it ends when the last rank has sent. A
tensor-parallel collective begins when the last rank of its group has come. So each step lasts as long as the most
loaded rank, and ranks without sequences go through it with dummies.

Low-latency kernels hold no SMs while tokens travel, so that the times of one rank follow from its own kernels and these
waits alone. The tasks returned are those of one rank, with its waits as kernels of their own: both engines then show
what it does and how long it waits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.engine.host import releases
from simulator.engine.kernel_sequence import ALONE, KernelSequence, Priced, sequence_of
from simulator.engine.lockstep.durations import Durations
from simulator.engine.lower import PricedModel, host_of
from simulator.engine.program import (
    PlacedSegment,
    Program,
    assemble,
    forward_segments,
    order_alone,
    sequences_of,
    waiting,
)
from simulator.engine.tasks import COMM, COMPUTE, LANES, SYNC, ActionOf, Apart, Tasks
from simulator.engine.two_batch import order_two
from simulator.graph.serving.shapes import serving_of
from simulator.ops import AllToAll, Collective
from simulator.schedule import Action

Array = NDArray[np.float64]


def _placed(built: PricedModel) -> list[PlacedSegment]:
    """All segments of the step in program order."""
    serving, blocks = serving_of(built.scenario), built.blocks_of(0)
    if serving.two_batch_overlap:
        return order_two(blocks, built.scenario.job.workload)
    return order_alone(forward_segments(blocks))


def lock_step(built: PricedModel) -> Tasks:
    """The tasks of the rank in the middle by what it computes, with its waits for the others."""
    order = _placed(built)
    two = serving_of(built.scenario).two_batch_overlap
    program = assemble(order, built.price, 1.0, False, collectives=SYNC if two else COMM)
    durations = Durations(built, built.stages[0])
    own = [
        durations.of(placed, at, sequence)
        for placed in order
        for at, sequence in enumerate(sequences_of(placed.segment, built.price))
    ]
    assert len(own) == len(program.steps)
    ends, waits = _run(built, program, own)
    compute = sum(time for time, step in zip(own, program.steps, strict=True) if step.stream == COMPUTE)
    total = np.asarray(compute)
    middle = int(np.argsort(total, kind="stable")[len(total) // 2])
    waited = np.asarray(sum(waits))
    apart = Apart(
        rank=middle,
        busiest=int(total.argmax()),
        compute=(float(total.mean()), float(total.max())),
        waited=(float(waited.min()), float(waited.mean()), float(waited.max())),
        imbalance=durations.mean_imbalance(),
    )
    return _tasks_of(built, program, own, waits, middle, float(np.max(ends)), apart)


def _run(built: PricedModel, program: Program, own: list[Array]) -> tuple[Array, list[Array]]:
    """End of each rank's step, and how long it waits for others in each sequence [s]."""
    ranks, layout = built.scenario.job.gpus, built.scenario.job.layout
    free = {stream: np.zeros(ranks) for stream in (COMPUTE, COMM, SYNC)}
    late = _released(built, program)
    ends: list[Array] = []
    waits: list[Array] = []
    for step, time, release in zip(program.steps, own, late, strict=True):
        ready = np.maximum(free[step.stream], release)
        for at in step.waits:
            ready = np.maximum(ready, ends[at])
        end = ready + time
        if step.sequence.kind == "all_to_all":
            work = step.sequence.ops[-1].op.work
            assert isinstance(work, AllToAll)
            end = _last(ready, layout.ep) + time if work.direction == "dispatch" else _last(end, layout.ep)
        elif step.sequence.kind == "collective":
            work = step.sequence.ops[-1].op.work
            assert isinstance(work, Collective)
            end = _last(ready, work.ranks) + time
        waits.append(end - time - ready)
        ends.append(end)
        free[step.stream] = end
    return np.maximum.reduce(list(free.values())), waits


def _released(built: PricedModel, program: Program) -> list[float]:
    """Earliest start of each step because of the host [s]."""
    issue = host_of(built.scenario)
    return releases(program, issue)[0] if issue is not None else [0.0] * len(program.steps)


def _last(times: Array, group: int) -> Array:
    """The latest time of each group of consecutive ranks, on all of them."""
    return np.repeat(times.reshape(-1, group).max(axis=1), group)


def _tasks_of(
    built: PricedModel, program: Program, own: list[Array], waits: list[Array], rank: int, end: float, apart: Apart
) -> Tasks:
    """The tasks of one rank, with its waits, until the last rank has ended."""
    node = built.scenario.cluster.node
    tasks = Tasks(ranks=1, nic=node.nic.bandwidth, nvlink=node.nvlink.bandwidth, apart=apart)
    tasks.release.update((at, late) for at, late in enumerate(_released(built, program)) if late)
    done = [0.0] * len(program.steps)
    free = dict.fromkeys((COMPUTE, COMM, SYNC), 0.0)
    for at, step in enumerate(program.steps):
        sequence = _lasting(step.sequence, float(own[at][rank]), float(waits[at][rank]))
        tasks.add(step.stream, sequence, step.waits)
        begin = max([free[step.stream], tasks.release.get(at, 0.0), *(done[one] for one in step.waits)])
        done[at] = free[step.stream] = begin + sequence.alone
    rest = end - max(free.values())
    tails = program.tails
    if rest > 0.0:
        last = program.steps[tails[-1]].sequence
        wait = waiting(rest, last.ops[-1].op)
        wait = replace(wait, op=replace(wait.op, stream="compute"))
        tasks.add(COMPUTE, sequence_of("compute", "wait", [wait]), tails)
    phase = built.scenario.workload.phase_of["F"]
    tasks.actions.append(ActionOf(0, Action("F", 0, 0), phase, 0, len(tasks.lane)))
    assert all(lane // LANES == 0 for lane in tasks.lane)
    return tasks


def _lasting(sequence: KernelSequence, seconds: float, wait: float) -> KernelSequence:
    """The sequence as long as it is on this rank, and what it waits for others."""
    alone = sequence.alone
    ops: list[Priced] = list(sequence.ops)
    if alone and abs(seconds - alone) > 1e-15:
        scale = seconds / alone
        ops = [replace(each, durations=(each.durations[ALONE] * scale,) * 4) for each in ops]
    if wait > 1e-12:
        ops.append(waiting(wait, ops[-1].op))
    return sequence if ops == list(sequence.ops) else sequence_of(sequence.kind, sequence.name, ops)
