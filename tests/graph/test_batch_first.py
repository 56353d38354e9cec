"""Copies to (batch, sequence) around FlashAttention-2 in Transformer Engine."""

from __future__ import annotations

import pytest

from simulator.graph.layer import dense_layer
from simulator.graph.shapes import shapes_of
from simulator.inputs import load_scenario
from simulator.ops import Streaming

TOKENS, HEADS, KV_HEADS, D = 2048, 32, 8, 128
QUERIES, KEYS = HEADS * D, 2 * KV_HEADS * D


def copies(*changes: str) -> dict[str, float]:
    """Values a token that each copy reads, in a layer of Llama 3 8B."""
    job = ["layout.tp=1", "layout.cp=1", f"batch.sequence_length={TOKENS}", "layout.recompute=none", *changes]
    shapes = shapes_of(load_scenario("llama-3-8b", job))
    found = {}
    for op in dense_layer(shapes).ops():
        if op.name.startswith(("attn.core.prepare", "attn.out.order")):
            assert isinstance(op.work, Streaming)
            assert op.work.read == op.work.written
            found[op.name] = op.work.read / 2 / shapes.tokens
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (("stack.attention=cudnn",), {}),
        (("stack.attention=fa2", "stack.batch_first=false"), {}),
        # rotated queries and keys of one sequence lie as they should; values are a part of the projection
        (("stack.attention=fa2", "batch.microbatch_size=1"), {"attn.core.prepare": KEYS / 2}),
        (
            ("stack.attention=fa2", "batch.microbatch_size=2"),
            {"attn.core.prepare": QUERIES + KEYS, "attn.out.order.fwd": QUERIES, "attn.out.order.bwd": QUERIES},
        ),
    ],
)
def test_what_flash_attention_gets_copied(changes: tuple[str, ...], expected: dict[str, float]) -> None:
    assert copies("stack=nemo-24", *changes) == expected


def test_a_projection_of_as_many_keys_as_queries_without_positions_is_taken_apart_whole() -> None:
    gpt = ("model=gpt3-175b", "stack=nemo-24", "batch.microbatch_size=1", "layout.tp=4", "gpus=32", "layout.pp=1")
    assert copies(*gpt) == {"attn.core.prepare": 3 * 12288 / 4}
    assert copies(*gpt, "stack=torch", "stack.attention=fa2") == {}
