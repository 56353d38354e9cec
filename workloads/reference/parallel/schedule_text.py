"""Reading a pipeline schedule: per rank a row of action strings.

`2F0` is stage 2, forward, microbatch 0; B a full backward, I its input gradient, W its weight gradient;
`(0F7;7B3)` a forward and a backward that overlap. The rank is the row's place; a (stage, microbatch) lives on the rank
whose row has its forward.
"""

import re
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass

_ACTION = re.compile(r"(\d+)([FBIW])(\d+)")


@dataclass(frozen=True, slots=True)
class Action:
    """One pass of one microbatch through one stage."""

    stage: int
    kind: str
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


Step = tuple[Action, ...]  # one action, or two that overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A checked schedule: steps per rank, and the rank that holds each (stage, microbatch)."""

    rows: list[list[Step]]
    stages: int
    microbatches: int
    holder: dict[tuple[int, int], int]


def read_grid(rows: Sequence[Sequence[str]]) -> Grid:
    """Parse and check: every microbatch passes every stage once each way, on one rank."""
    steps = [[_read_step(text, rank, column) for column, text in enumerate(row)] for rank, row in enumerate(rows)]
    placed = [(rank, action) for rank, row in enumerate(steps) for step in row for action in step]
    if not placed:
        raise ValueError("the schedule is empty: it needs at least a row such as ['0F0', '0B0']")
    stages = 1 + max(a.stage for _, a in placed)
    microbatches = 1 + max(a.microbatch for _, a in placed)
    twice = [str(a) for a, n in Tally(a for _, a in placed).items() if n > 1]
    if twice:
        raise ValueError(f"the schedule runs {', '.join(twice[:5])} more than once")
    holder = {(a.stage, a.microbatch): rank for rank, a in placed if a.kind == "F"}
    _check_complete({str(a) for _, a in placed}, stages, microbatches)
    for rank, a in placed:
        home = holder[a.stage, a.microbatch]
        if rank != home:
            raise ValueError(
                f"{a} stands on rank {rank}, but its forward on rank {home}: backward needs the activations kept there"
            )
    return Grid(rows=steps, stages=stages, microbatches=microbatches, holder=holder)


def _read_step(text: str, rank: int, column: int) -> Step:
    parts = text[1:-1].split(";") if text.startswith("(") and text.endswith(")") else [text]
    found = [_ACTION.fullmatch(part.strip()) for part in parts]
    if len(parts) > 2 or not all(found):
        raise ValueError(f"rank {rank}, column {column}: {text!r} is no action; write '2F0' or '(0F7;7B3)'")
    return tuple(Action(int(m[1]), m[2], int(m[3])) for m in found if m)


def _check_complete(have: set[str], stages: int, microbatches: int) -> None:
    for stage in range(stages):
        for m in range(microbatches):
            if f"{stage}F{m}" not in have:
                raise ValueError(f"microbatch {m} never passes stage {stage} forward: {stage}F{m} is missing")
            full = f"{stage}B{m}" in have
            halves = (f"{stage}I{m}" in have, f"{stage}W{m}" in have)
            if full + all(halves) != 1 or (full and any(halves)):
                raise ValueError(
                    f"stage {stage}, microbatch {m}: needs either {stage}B{m} or both {stage}I{m} and {stage}W{m}"
                )
