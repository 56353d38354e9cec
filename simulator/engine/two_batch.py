"""Two microbatches of a serving step against each other: one computes while the other's tokens travel.

A layer is cut into stages, and both microbatches go through them in turn, the second one `delta` stages behind:

- prefill, delta 0: attention, gate, dispatch | experts, combine | shared experts, sum
- decode, delta 2: projections | attention core, gate | dispatch, shared experts | experts, combine | sum

as DeepSeek describes it (arXiv 2412.19437, section 3.4; its public profile of 2025-02) and SGLang implements it
(sglang/srt/operations_strategy.py, 2025). Each all-to-all is issued where its stage begins it, and waited for where its
result is read; the streams and what they share are the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.engine.program import PlacedSegment, Pricer, Program, assemble
from simulator.engine.tasks import SYNC
from simulator.graph.block import Block, Segment

DECODE = ({"prepare.F"}, {"attn.F"}, {"dispatch.F", "shared.F"}, {"mlp.F", "combine.F"}, {"out.F"})
PREFILL = ({"prepare.F", "attn.F", "dispatch.F"}, {"mlp.F", "combine.F"}, {"shared.F", "out.F"})
DELTA = {"decode": 2, "prefill": 0}


def stages_of(block: Block, workload: str) -> list[tuple[Segment, ...]]:
    """The stages of one block; one without all-to-alls is cut only behind its projections.

    Segments of no stage are one of their own: those before attention (a projection of MTP) first, all others last.
    """
    cuts = DECODE if workload == "decode" else PREFILL
    known = set().union(*cuts)
    names = [segment.name for segment in block.forward]
    begin = next((at for at, name in enumerate(names) if name in known), 0)
    stages = [block.forward[:begin]]
    stages += [tuple(segment for segment in block.forward if segment.name in cut) for cut in cuts]
    stages.append(tuple(segment for segment in block.forward[begin:] if segment.name not in known))
    return [stage for stage in stages if stage]


def order_two(blocks: Sequence[Block], workload: str) -> list[PlacedSegment]:
    """Program order of both microbatches."""
    slots: list[list[tuple[Segment, bool, int]]] = []
    for number, block in enumerate(blocks):
        for at, stage in enumerate(stages_of(block, workload)):
            slots.append([(each, at == 0 and i == 0 and number > 0, number) for i, each in enumerate(stage)])
    delta, out = DELTA[workload], []
    for at in range(len(slots) + delta):
        for microbatch, place in enumerate((at, at - delta)):
            if 0 <= place < len(slots):
                out += [PlacedSegment(each, first, block, microbatch) for each, first, block in slots[place]]
    return out


def two_batch_program(
    blocks: Sequence[Block], workload: str, price: Pricer, imbalance: float, resampled_per_layer: bool
) -> Program:
    """The program of a forward over both microbatches, whose blocks are equal.

    Collectives of one do not queue behind the all-to-alls of the other: they run where compute does, over NVLink, while
    the tokens of the other are under way.
    """
    order = order_two(blocks, workload)
    return assemble(order, price, imbalance, resampled_per_layer, collectives=SYNC)
