"""Which collectives parameters and gradients need, and in which order: what engines execute and the estimate adds up.

Every rank has one stream for them. Without ZeRO gradients are all-reduced at the end of a step. ZeRO-1 reduce-scatters
them and gathers the updated parameters. ZeRO-2 reduces after every backward, ZeRO-3 also gathers the parameters of
each block before its forward and its backward (arXiv 1910.02054, section 5; PyTorch FSDP's prefetch).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from simulator.ops import CollectiveKind
from simulator.schedule import Step, halves
from simulator.spec.scenario import Scenario

T = TypeVar("T", int, float)
"""A place in an action: a step of its program, or a time [s]."""

Due = tuple[int, int, T]
"""(stage, block, place in the action) of one block's collectives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncOrder:
    """The order of one layout.

    Parameters
    ----------
    zero : ZeRO stage.
    updates : the step ends with an update, after which parameters are gathered.
    by_block : gradients are reduced block by block, overlapped with the backward of earlier blocks; otherwise all of a
        stage together after all compute.
    behind_stage : those of a stage wait for the end of its last backward, though they are reduced block by block.
    gathers_overlapped : parameters that are gathered once a step arrive during the first forwards; otherwise after the
        update.
    """

    zero: int
    updates: bool
    by_block: bool
    gathers_overlapped: bool
    behind_stage: bool = False

    @property
    def reduction(self) -> CollectiveKind:
        """How gradients are summed."""
        return "reduce_scatter" if self.zero else "all_reduce"

    @property
    def gathers_once(self) -> bool:
        """Whether parameters are gathered once a step; without ZeRO they need not be, with ZeRO-3 each action does."""
        return self.updates and self.zero in (1, 2)

    @property
    def gathers_before(self) -> bool:
        """Whether they are gathered before, and overlapped with, the first forwards."""
        return self.gathers_once and self.gathers_overlapped

    @property
    def gathers_behind(self) -> bool:
        """Whether they are gathered after the update."""
        return self.gathers_once and not self.gathers_overlapped

    @property
    def gathers_in_actions(self) -> bool:
        """Whether every action gathers the parameters of its blocks."""
        return self.zero >= 3

    @property
    def reduces_in_actions(self) -> bool:
        """Whether every backward reduces the gradients of its blocks."""
        return self.zero >= 2

    def complete(self, block: int, wgrad_end: Sequence[T]) -> T:
        """Where the reduction of a block may begin; `wgrad_end`: where gradients of its stage's blocks are complete."""
        return max(wgrad_end) if self.behind_stage else wgrad_end[block]

    def gathers(self, step: Step, forward_start: Sequence[T], backward_start: Sequence[T]) -> list[Due[T]]:
        """What an action gathers, in order, and the place before which it is needed.

        `forward_start`, `backward_start` are the places at which each block's forward and backward begin (below 0: it
        has none).
        """
        ahead, back = halves(step)
        found: list[Due[T]] = []
        if self.gathers_in_actions and ahead.kind == "F":
            found += [(ahead.stage, block, at) for block, at in enumerate(forward_start)]
        if self.gathers_in_actions and back.kind in ("B", "I"):
            found += [(back.stage, block, at) for block, at in reversed(list(enumerate(backward_start)))]
        return [due for due in found if due[2] >= 0]

    def reduces(self, step: Step, wgrad_end: Sequence[T]) -> list[Due[T]]:
        """What an action reduces, in order, and the place after which each block's gradients are complete,
        `wgrad_end`."""
        _, back = halves(step)
        if not self.reduces_in_actions or back.kind not in ("B", "W"):
            return []
        return [(back.stage, block, at) for block, at in reversed(list(enumerate(wgrad_end)))]

    def reductions(self, blocks: Mapping[int, int]) -> Iterator[tuple[int, int | None]]:
        """What a rank reduces at the end of a step, in order: (stage, block), or (stage, None) for all of it in one.

        `blocks` is how many blocks each of its stages has, those first whose backward ends first. The block whose
        gradients are complete first is reduced first.
        """
        for stage in blocks:
            if self.by_block:
                yield from ((stage, block) for block in reversed(range(blocks[stage])))
            else:
                yield stage, None


def sync_order(scenario: Scenario) -> SyncOrder:
    """The order in which a scenario's layout and software sync."""
    stack = scenario.stack
    return SyncOrder(
        zero=scenario.job.layout.zero,
        updates=scenario.states.updates,
        by_block=stack.grad_sync_overlap,
        gathers_overlapped=stack.param_gather_overlap,
        behind_stage=stack.stage_reduced and scenario.job.layout.pp > 1 and scenario.job.layout.zero == 1,
    )
