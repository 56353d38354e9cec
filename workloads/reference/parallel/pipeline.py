"""Running a pipeline schedule for real: ranks with their own weights, messages between them, true gradients."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from workloads.reference.count import Array, Run, Saved, Widths
from workloads.reference.init import Params
from workloads.reference.model import (
    SHARED,
    Losses,
    Waiting,
    add_grads,
    split_stages,
    stage_forward,
    stage_input_grad,
    stage_weight_grad,
)
from workloads.reference.parallel.schedule_text import Action, Grid, Step, read_grid


class DeadlockError(RuntimeError):
    """No rank can go on, though work is left."""


@dataclass(frozen=True, slots=True)
class Message:
    """What travels between ranks: the state a forward needs, or the gradient a backward needs."""

    kind: str  # "F" or "I": what it is an input of
    stage: int
    microbatch: int
    payload: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineResult:
    """What came out of a step: losses and gradients summed over microbatches, and what each rank held and sent."""

    losses: Losses
    grads: Params = field(repr=False)
    peak_live: list[int]  # per rank: most stage-microbatches between the start of F and the end of W (or B)
    peak_kept: list[float]  # per rank: most bytes kept for backward, in declared widths [B]
    messages: list[int]  # per rank: messages sent to other ranks


class Rank:
    """One pipeline rank. It knows its stages' weights, its row and its inbox, nothing of the other ranks."""

    def __init__(self, run: Run, params: Params, grid: Grid, rank: int, batches: Sequence[Array]) -> None:
        self.run, self.rank, self.batches = run, rank, batches
        self.row, self.column = grid.rows[rank], 0
        self.stages = split_stages(run.cfg, grid.stages)
        mine = {a.stage for step in self.row for a in step}
        self.params = _own_weights(params, [unit for stage in sorted(mine) for unit in self.stages[stage]])
        self.inbox: deque[Message] = deque()
        self.arrived: dict[tuple[str, int, int], Array] = {}
        self.saved: dict[tuple[int, int], dict[str, Saved]] = {}
        self.kept: dict[tuple[int, int], float] = {}
        self.waiting: dict[tuple[int, int], Waiting] = {}
        self.losses: Losses = {}
        self.grads: Params = {}
        self.peak_live, self.peak_kept, self.sent = 0, 0.0, 0

    @property
    def done(self) -> bool:
        return self.column == len(self.row)

    def missing(self) -> str | None:
        """Why the next step cannot run yet, None if it can; an overlapped pair starts together."""
        while self.inbox:
            message = self.inbox.popleft()
            self.arrived[message.kind, message.stage, message.microbatch] = message.payload
        for a in self.row[self.column]:
            problem = self._missing_for(a)
            if problem:
                return f"rank {self.rank}, column {self.column}: {_text(self.row[self.column])} waits for {problem}"
        return None

    def step(self) -> list[Message]:
        """Run the next step; its messages leave when all of it is done."""
        out = [m for a in self.row[self.column] for m in self._act(a)]
        self.column += 1
        return out

    def _missing_for(self, a: Action) -> str | None:
        here = (a.stage, a.microbatch)
        if a.kind == "W":
            return None if here in self.waiting else f"its own {a.stage}I{a.microbatch}, which comes later in the row"
        if a.kind == "F":
            ready = a.stage == 0 or ("F", *here) in self.arrived
            return None if ready else f"{a.stage - 1}F{a.microbatch}"
        if here not in self.saved:
            return f"its own {a.stage}F{a.microbatch}"
        ready = a.stage == len(self.stages) - 1 or ("I", *here) in self.arrived
        return None if ready else f"the backward of stage {a.stage + 1}, microbatch {a.microbatch}"

    def _act(self, a: Action) -> list[Message]:
        if a.kind == "F":
            return self._forward(a)
        out = [] if a.kind == "W" else self._input_grad(a)
        if a.kind != "I":
            add_grads(self.grads, stage_weight_grad(self.run, self.waiting.pop((a.stage, a.microbatch))))
            del self.saved[a.stage, a.microbatch], self.kept[a.stage, a.microbatch]
        return out

    def _forward(self, a: Action) -> list[Message]:
        here = (a.stage, a.microbatch)
        out = stage_forward(
            self.run,
            self.params,
            self.stages[a.stage],
            self.arrived.pop(("F", *here), None),
            self.batches[a.microbatch],
        )
        for unit, loss in out.losses.items():
            self.losses[unit] = self.losses.get(unit, 0.0) + loss
        self.saved[here], self.kept[here] = out.saved, _bytes(self.run, out.saved)
        self.peak_live = max(self.peak_live, len(self.saved))
        self.peak_kept = max(self.peak_kept, sum(self.kept.values()))
        last = a.stage == len(self.stages) - 1
        return [] if last else [Message("F", a.stage + 1, a.microbatch, out.state)]

    def _input_grad(self, a: Action) -> list[Message]:
        here = (a.stage, a.microbatch)
        dx, self.waiting[here] = stage_input_grad(
            self.run, self.params, self.stages[a.stage], self.saved[here], self.arrived.pop(("I", *here), None)
        )
        return [] if dx is None else [Message("I", a.stage - 1, a.microbatch, dx)]


def run_schedule(run: Run, params: Params, rows: Sequence[Sequence[str]], batches: Sequence[Array]) -> PipelineResult:
    """Execute the schedule on microbatches, each tokens [B, S + 1 + D]; copies of a stage share their gradient."""
    grid = read_grid(rows)
    if len(batches) != grid.microbatches:
        raise ValueError(f"{len(batches)} microbatches given, the schedule runs {grid.microbatches}")
    ranks = [Rank(run, params, grid, r, batches) for r in range(len(rows))]
    while not all(rank.done for rank in ranks):
        _sweep(ranks, grid)
    losses: Losses = {}
    grads: Params = {}
    for rank in ranks:  # the all-reduce between copies of a stage, and of shared embedding and head
        add_grads(grads, rank.grads)
        for unit, loss in rank.losses.items():
            losses[unit] = losses.get(unit, 0.0) + loss
    return PipelineResult(
        losses=losses,
        grads=grads,
        peak_live=[r.peak_live for r in ranks],
        peak_kept=[r.peak_kept for r in ranks],
        messages=[r.sent for r in ranks],
    )


def _sweep(ranks: list[Rank], grid: Grid) -> None:
    """Let every rank that can take one step; if none can, say what each waits for."""
    reasons, moved = [], False
    for rank in ranks:
        if rank.done:
            continue
        reason = rank.missing()
        if reason:
            reasons.append(reason)
            continue
        moved = True
        for message in rank.step():
            to = grid.holder[message.stage, message.microbatch]
            ranks[to].inbox.append(message)
            rank.sent += to != rank.rank
    if not moved:
        raise DeadlockError("the schedule is stuck:\n  " + "\n  ".join(reasons))


def _own_weights(params: Params, chain: list[str]) -> Params:
    """Copies of the weights a rank holds: its units', and embedding and head where it has an MTP module."""
    borrowed = set(SHARED.values()) if any(unit.startswith("mtp.") for unit in chain) else set()
    return {unit: {name: w.copy() for name, w in params[unit].items()} for unit in {*chain, *borrowed}}


def _bytes(run: Run, saved: dict[str, Saved]) -> float:
    widths = run.counter.widths if run.counter else Widths()
    return sum(array.size * widths.of(*key.split("/", 1)) for unit in saved.values() for key, array in unit.items())


def _text(step: Step) -> str:
    return str(step[0]) if len(step) == 1 else f"({';'.join(map(str, step))})"
