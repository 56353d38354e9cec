"""Copies around the collectives of sharded parameters (ZeRO-3), on the compute stream.

FSDP2 gathers the parameters of a layer into one buffer and copies them out into the layer's matrices, before forward
and before backward; after backward it copies the gradients, in the format in which they are summed, into the buffer
that is reduced (PyTorch, torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py: split_with_sizes_copy, chunk_cat).
Seen in a profile of PyTorch 2.11 on two H200: 23 of 450 ms of a step of 16 layers, 9 of them copies out at 3.6 TB/s, 14
copies in at 1.9 TB/s. Both are priced as elementwise kernels, which the second is slower than.

FSDP of PyTorch's first kind shards one flat parameter a block, whose views are the layer's matrices
(`stack.flat_shards`; torch/distributed/fsdp/_flat_param.py and _runtime_utils.py, 2.1): nothing is copied out. Autograd
concatenates the gradients of the views; they are widened to the format in which they are summed, and divided by a part
of the number of ranks before they are (_reduce_grad). The last two run on a stream of their own, next to compute: here
they take their time from it, as kernels do that fill the GPU.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16
from simulator.graph.block import Block, Segment
from simulator.graph.linear import cast
from simulator.graph.parameters import held_by_block
from simulator.graph.shapes import Shapes
from simulator.ops import Op, Part, Streaming


def with_copies(block: Block, s: Shapes) -> Block:
    """The block with its copies, where the software makes them and the parameters are sharded."""
    if not s.copies_shards:
        return block
    values = held_by_block(block.kind, s.model, s.job).total
    if not values:
        return block
    if s.stack.flat_shards:
        return replace(block, backward=_flattened(block.backward, values, s.states.reduced_bytes))
    out, back = cast(values, BF16, BF16), cast(values, BF16, s.states.reduced_bytes)
    forward = _first(block.forward, "shard.copy_out.fwd", out, "F")
    backward = _first(block.backward, "shard.copy_out.bwd", out, "I")
    return replace(block, forward=forward, backward=_last(backward, "shard.copy_in", back))


def _flattened(segments: tuple[Segment, ...], values: float, reduced: float) -> tuple[Segment, ...]:
    """Backward with what is done to the gradients of one flat parameter of so many `values`."""
    segments = _last(segments, "shard.cat", cast(values, BF16, BF16))
    if reduced != BF16:
        segments = _last(segments, "shard.widen", cast(values, BF16, reduced))
    return _last(segments, "shard.scale", cast(values, reduced, reduced))


def _op(segment: Segment, name: str, work: Streaming, part: Part) -> Op:
    return Op(name=name, cls="elem", part=part, segment=segment.name, work=work)


def _first(segments: tuple[Segment, ...], name: str, work: Streaming, part: Part) -> tuple[Segment, ...]:
    """With an op before all others of the compute stream but weight gradients."""
    at = next((i for i, one in enumerate(segments) if one.stream == "compute" and one.direction != "W"), None)
    if at is None:
        return segments
    changed = replace(segments[at], ops=(_op(segments[at], name, work, part), *segments[at].ops))
    return (*segments[:at], changed, *segments[at + 1 :])


def _last(segments: tuple[Segment, ...], name: str, work: Streaming) -> tuple[Segment, ...]:
    """With an op behind all others of the compute stream."""
    at = max(i for i, one in enumerate(segments) if one.stream == "compute")
    changed = replace(segments[at], ops=(*segments[at].ops, _op(segments[at], name, work, "W")))
    return (*segments[:at], changed, *segments[at + 1 :])
