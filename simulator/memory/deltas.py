"""When an action allocates and frees memory: with the first and last kernel sequence of each block, not all at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.engine.lower import PricedModel, Programs
from simulator.engine.program import Program, filled_and_rest, sequences_of
from simulator.graph.stage import build_blocks
from simulator.memory.memory_report import MADE
from simulator.memory.overload import most_loaded
from simulator.memory.temporary import Footprint, footprints, temporary
from simulator.schedule import Pair, Step
from simulator.spec.model import BlockKind

FOR_WEIGHTS = "for weight gradients"


@dataclass(frozen=True, slots=True)
class Change:
    """`delta` [B] under `label`, at the start of the program's step `at` or at its end."""

    at: int
    starts: bool
    label: str
    delta: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Program and changes of one action, `temporary` bytes [B], and the changes by `copies` to the host and back."""

    program: Program
    changes: tuple[Change, ...]
    temporary: float
    copies: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class _Half:
    """One half of an action: the kind of action and its blocks in the order that they run."""

    action: str
    kinds: tuple[BlockKind, ...]

    @property
    def forward(self) -> tuple[BlockKind, ...]:
        """The blocks in the order of forward."""
        return self.kinds if self.action == "F" else tuple(reversed(self.kinds))


class Usages:
    """Usage of every step of a plan's schedule; equal steps share one.

    `gradients` : of each kind of block, those that its backward makes [B]; none where they are held all the time.
    """

    def __init__(self, built: PricedModel, gradients: Mapping[BlockKind, float] | None = None) -> None:
        self.built, self.gradients = built, gradients or {}
        self.programs = Programs(built)
        shapes = most_loaded(built.shapes, built.scenario)
        blocks = built.blocks if shapes is built.shapes else build_blocks(shapes)
        self.prints: dict[BlockKind, Footprint] = footprints(shapes, blocks)
        self.heads: dict[tuple[BlockKind, bool], tuple[str, ...]] = {}
        self.made: dict[int, Usage] = {}

    def of(self, step: Step) -> Usage:
        """The usage of a step."""
        program = self.programs.of(step)
        if id(program) not in self.made:
            self.made[id(program)] = self.made_of(step, program, self.built.stages, self.gradients)
        return self.made[id(program)]

    def made_of(
        self,
        step: Step,
        program: Program,
        stages: Sequence[tuple[BlockKind, ...]],
        gradients: Mapping[BlockKind, float],
    ) -> Usage:
        """The usage of a step whose program is known, for these stages, where backward makes these gradients."""
        if isinstance(step, Pair):
            halves = [
                _Half("F", stages[step.forward.stage]),
                _Half("B", tuple(reversed(stages[step.backward.stage]))),
            ]
        elif step.kind == "F":
            halves = [_Half("F", stages[step.stage])]
        else:
            halves = [_Half(step.kind, tuple(reversed(stages[step.stage])))]
        needs = [temporary(half.action, [(kind, self.prints[kind]) for kind in half.forward]) for half in halves]
        overlapped = self.built.scenario.stack.overlaps_pairs
        copies = tuple(change for half in halves for change in self._copied(program, half))
        changes = [change for half in halves for change in self._changes(program, half, gradients)]
        if not isinstance(step, Pair) and step.kind == "I" and step.filled:
            changes += self._filled(program, halves[0])
        return Usage(program, (*changes, *copies), sum(needs) if overlapped else max(needs), copies)

    def _changes(self, program: Program, half: _Half, gradients: Mapping[BlockKind, float]) -> list[Change]:
        """Changes of all blocks of one half."""
        found = spans(program, half.action == "F", [self._heads(kind, half.action == "F") for kind in half.kinds])
        out: list[Change] = []
        for kind, span in zip(half.kinds, found, strict=True):
            if span is not None:
                out += self._of_block(kind, half.action, *span)
                if kind in gradients and half.action == self._last_action(kind, half.action):
                    out.append(Change(span[1], False, MADE, gradients[kind]))
        return out

    def _last_action(self, kind: BlockKind, action: str) -> str:
        """The kind of action that makes a block's weight gradients, where input gradients may be taken apart."""
        if action == "B":
            return "B"
        return "W" if any(segment.direction == "W" for segment in self.built.blocks[kind].backward) else "I"

    def _filled(self, program: Program, half: _Half) -> list[Change]:
        """What a filled input gradient frees of the earlier microbatch whose weight gradients it computes: all of a
        block but where the W behind it has some of them."""
        kinds = half.forward
        left = {placed.block for placed in filled_and_rest([self.built.blocks[kind] for kind in kinds])[1]}
        found = spans(program, False, [self._heads(kind, False) for kind in half.kinds])
        out = []
        for place, (kind, span) in enumerate(zip(half.kinds, found, strict=True)):
            if span is not None and len(kinds) - 1 - place not in left:
                out.append(Change(span[1], False, f"{kind}, {FOR_WEIGHTS}", -self.prints[kind].for_weights))
        return out

    def _copied(self, program: Program, half: _Half) -> list[Change]:
        """What copies to the host free at their end, and copies back take from their start."""
        away = self.built.scenario.job.offload.activations
        kinds = half.forward
        if half.action == "F":
            return [
                Change(at, False, kinds[block], -away * self.prints[kinds[block]].saved)
                for block, at in program.offloads.items()
            ]
        return [
            Change(at, True, kinds[block], away * self.prints[kinds[block]].saved)
            for block, at in program.reloads.items()
        ]

    def _heads(self, kind: BlockKind, forward: bool) -> tuple[str, ...]:
        """The ops that kernel sequences of a block begin with."""
        if (kind, forward) not in self.heads:
            block = self.built.blocks[kind]
            segments = block.forward if forward else block.backward
            sequences = [sequence for segment in segments for sequence in sequences_of(segment, self.built.price)]
            self.heads[kind, forward] = tuple(sequence.ops[0].op.name for sequence in sequences)
        return self.heads[kind, forward]

    def _of_block(self, kind: BlockKind, action: str, begun: int, ended: int) -> list[Change]:
        """A forward allocates when it begins; the last action of a microbatch frees when it ends."""
        one = self.prints[kind]
        late = Change(ended, False, f"{kind}, {FOR_WEIGHTS}", one.for_weights)
        if action == "F":
            return [Change(begun, True, kind, one.saved)]
        if action == "B":
            return [Change(ended, False, kind, -one.saved)]
        if action == "I":
            return [Change(ended, False, kind, -one.saved), late]
        if not any(segment.direction == "B" for segment in self.built.blocks[kind].backward):
            return [Change(ended, False, kind, -one.saved)]  # no input gradient: kept from F until W
        return [Change(ended, False, late.label, -one.for_weights)]


def spans(program: Program, forward: bool, heads: Sequence[tuple[str, ...]]) -> list[tuple[int, int] | None]:
    """First and last step of each block in one half of a program; None for a block that has none.

    `heads` are the first ops of the runs of each block, in the order the blocks run. Op names are unique in a block,
    so the n-th sequence that begins with an op is that of the n-th block with such a sequence. What a stage adds to its
    blocks (`simulator.graph.precision.amax`) keeps nothing.
    """
    holders: dict[str, list[int]] = defaultdict(list)
    for place, names in enumerate(heads):
        for name in names:
            holders[name].append(place)
    found: list[tuple[int, int] | None] = [None] * len(heads)
    seen: dict[str, int] = defaultdict(int)
    for at, step in enumerate(program.steps):
        if step.forward is not forward or step.sequence.kind == "copy":
            continue
        name = step.sequence.first.name
        if name not in holders:  # a stage's own, of no block
            continue
        place = holders[name][seen[name]]
        seen[name] += 1
        first = found[place]
        found[place] = (at if first is None else first[0], at)
    return found
