"""Copies around tensor-parallel collectives that overlap with GEMMs."""

from __future__ import annotations

import pytest

from simulator.graph.layer import dense_layer
from simulator.graph.shapes import shapes_of
from simulator.inputs import load_scenario
from simulator.ops import Collective, Streaming

TOKENS, HIDDEN, TP = 8192, 4096, 4


def copies(*changes: str) -> list[tuple[str, float]]:
    """Copies in and out of the buffers in a layer of Llama 3 8B, with the bytes that each reads and writes a value."""
    sizes = [f"layout.tp={TP}", "layout.cp=1", "batch.sequence_length=8192", "batch.microbatch_size=1"]
    scenario = load_scenario("llama-3-8b", ["layout.recompute=none", *sizes, *changes])
    found = []
    for op in dense_layer(shapes_of(scenario)).ops():
        if op.name.endswith(".copy") and isinstance(op.work, Streaming) and op.cls == "elem":
            assert op.work.read == op.work.written
            found.append((op.name.removesuffix(".copy"), op.work.read / (TOKENS // TP * HIDDEN)))
    return found


FORWARD = ["attn.x", "dense.x"]
BACK = ["dense.g", "dense.x.again", "attn.o_g", "attn.x.again"]
SUMMED = ["dense.dx", "attn.dx"]


@pytest.mark.parametrize(
    ("changes", "names", "each"),
    [
        (["stack=megatron-core"], [*FORWARD, *BACK, *SUMMED], 2),
        (["stack=nemo-24"], BACK, 2),  # norms write to the buffer
        (["stack=nemo-24", "precision.recipe=fp8_tensor"], ["dense.x.again", "attn.x.again"], 1),  # so do casts
        (["stack=torch", "stack.tp_overlap=true"], [*FORWARD, "dense.g", "attn.o_g"], 2),  # nothing is gathered again
        (["stack=megatron-core", "stack.tp_overlap=false"], [], 2),
        (["stack=megatron-core", "layout.sp=false"], [], 2),
    ],
)
def test_a_ranks_own_part_is_copied_to_the_buffer_of_an_overlapped_gather(
    changes: list[str], names: list[str], each: int
) -> None:
    found = copies(*changes)
    assert sorted(name for name, _ in found) == sorted(names)
    assert {size for _, size in found} <= {each}


@pytest.mark.parametrize(
    ("changes", "gathers", "sums"),
    [
        (["stack=torch"], 4, 4),
        (["stack=torch", "stack.projections=separate"], 4, 2),  # input gradients are summed before they are scattered
        (["stack=torch", "precision.recipe=fp8_tensor"], 4, 4),
        (["stack=torch", "precision.recipe=fp8_row"], 0, 4),  # casts by rows stand between gather and GEMM
        (["stack=megatron-core", "precision.recipe=fp8_tensor"], 4, 2),  # those of gradients overlap as a whole
        (["stack=megatron-core"], 4, 0),  # in a pipeline, partial sums go to their rank by kernels
    ],
)
def test_partial_sums_of_pieces_are_added_in_the_end(changes: list[str], gathers: int, sums: int) -> None:
    """One kernel for each reduce-scatter that its GEMM's pieces feed, of all ranks' parts."""
    sizes = [f"layout.tp={TP}", "batch.sequence_length=8192", "batch.microbatch_size=1", "stack.tp_overlap=true"]
    scenario = load_scenario("llama-3-8b", ["layout.recompute=none", *sizes, *changes])
    ops = tuple(dense_layer(shapes_of(scenario)).ops())
    assert sum(op.cls == "comm.tp.all_gather" and op.concurrent_with == "chunks" for op in ops) == gathers
    works = [op.work for op in ops if op.cls == "elem" and op.name.endswith(".sum")]
    assert len(works) == sums
    for work in works:
        assert isinstance(work, Streaming)
        assert (work.read, work.written) == (2.0 * TOKENS * HIDDEN, 2.0 * TOKENS * HIDDEN / TP)


def drains(*changes: str) -> dict[str, tuple[float, int]]:
    """Reduce-scatters of a layer: bytes of each value, and the SMs that their GEMM leaves."""
    sizes = [f"layout.tp={TP}", "layout.cp=1", "batch.sequence_length=8192", "batch.microbatch_size=1"]
    layer = dense_layer(shapes_of(load_scenario("llama-3-8b", ["layout.recompute=none", *sizes, *changes])))
    return {
        op.name: (op.work.bytes / (TOKENS * HIDDEN), op.work.sms)
        for op in layer.ops()
        if isinstance(op.work, Collective) and op.work.kind == "reduce_scatter"
    }


def test_a_pipelines_reduce_scatter_holds_sms_and_may_travel_narrow() -> None:
    forward, back = (
        ("attn.o.reduce_scatter", "dense.reduce_scatter"),
        ("attn.dx.reduce_scatter", "dense.dx.reduce_scatter"),
    )
    sms = ("stack.tp_sms_attention=24", "stack.tp_sms_ffn=8")
    wide = drains("stack=nemo-24", "precision.recipe=fp8_tensor", *sms)
    assert wide == {forward[0]: (2, 24), forward[1]: (2, 8), back[0]: (2, 0), back[1]: (2, 0)}
    narrow = drains("stack=nemo-24", "precision.recipe=fp8_tensor", "stack.tp_reduced=recipe")
    assert narrow == {forward[0]: (1, 16), forward[1]: (1, 16), back[0]: (2, 0), back[1]: (2, 0)}
    in_bf16 = drains("stack=nemo-24", "precision.recipe=bf16", "stack.tp_reduced=recipe")
    assert {each for each, _ in in_bf16.values()} == {2}
    rings = drains("stack=megatron-core", "precision.recipe=fp8_tensor")
    assert {held for _, held in rings.values()} == {0}  # a ring's copies hold none
