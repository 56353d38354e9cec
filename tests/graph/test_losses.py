"""Head and loss as software runs them: the same FLOP, other bytes."""

from __future__ import annotations

import pytest

from simulator.graph.block import Block, problems
from simulator.graph.ends import head
from simulator.graph.loss import CHUNKS, chunk_of
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.memory import memory_of_rows
from simulator.memory.temporary import footprints
from simulator.ops import HostRead
from simulator.results.simulate import prepare, simulate
from simulator.spec.model import BlockKind

T, H, VOCAB = 4096, 4096, 128256
JOB = ["gpus=1", "layout.tp=1", "layout.pp=1", "layout.zero=0", "hardware=h200", "stack=torch"]
JOB += ["batch.sequence_length=4096", "batch.microbatch_size=1", "batch.global_batch_size=1"]


def built(loss: str, *changes: str) -> Block:
    return head(shapes_of(load_scenario("llama-3-8b", [*JOB, f"stack.loss={loss}", *changes])))


@pytest.mark.parametrize("loss", ["plain", "fp32", "compiled", "chunked", "fused_linear"])
def test_every_loss_multiplies_alike(loss: str) -> None:
    block = built(loss)
    assert problems(block) == []
    assert [block.flops(part) for part in "FIW"] == pytest.approx([2 * T * H * VOCAB] * 3)


def test_a_fused_head_keeps_two_gradients_and_no_logits() -> None:
    norm, ids = T * H * 2 + T * 4, T * 8
    assert built("fused_linear").saved_bytes == norm + ids + T * H * 2 + VOCAB * H * 2
    assert built("plain").saved_bytes == norm + T * H * 2 + T * VOCAB * 2 + T * 4 + ids


def test_chunks_of_a_fused_head_are_ligers() -> None:
    """16384 tokens, a vocabulary of 248320 and width 2048: 122 parts of 135 tokens, rounded up to a power of two."""
    assert chunk_of(16384, 248320, 2048) == 256
    assert chunk_of(T, VOCAB, H) == 128
    assert chunk_of(100, 2048, 2048) == 100


def peak(loss: str) -> float:
    return memory_of_rows(*prepare(load_scenario("llama-3-8b", [*JOB, f"stack.loss={loss}"]))).peak


def test_less_is_there_at_once() -> None:
    found = [peak(loss) for loss in ("fp32", "chunked", "fused_linear")]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 3
    assert CHUNKS == 8


def test_what_is_reported_of_a_large_vocabulary() -> None:
    """16384 tokens, vocabulary 248320, width 2048 on one H100 (huggingface/trl, pull request 6858): 47.6, 19.7 and
    3.1 GB allocated. The job has a narrow layer too, and gradients that a step adds into: the fused loss's own are the
    only ones there."""
    sizes = {"hidden_size": 2048, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 248320}
    sizes |= {"num_attention_heads": 16, "num_key_value_heads": 2}
    changes = [*(f"model.{key}={value}" for key, value in sizes.items()), "model.tie_word_embeddings=true"]
    changes += ["optimizer.kind=none", *(f"optimizer.{name}=bf16" for name in ("parameters", "gradients", "reduced"))]
    changes += ["batch.sequence_length=16384", "hardware=h100", "layout.recompute=none"]
    for loss, reported in (("fp32", 47.6e9), ("chunked", 19.7e9), ("fused_linear", 3.1e9)):
        scenario = load_scenario("llama-3-8b", [*JOB, *changes, f"stack.loss={loss}"])
        rank = memory_of_rows(*prepare(scenario)).worst
        found = rank.peak - rank.group("context") - rank.group("slack")
        found -= rank.group("gradients") if loss == "fused_linear" else 0.0
        assert abs(found - reported) < 0.1 * reported + 0.5e9


def test_zero_bubble_schedules_run_a_fused_head() -> None:
    changes = ["hardware=h100", "gpus=2", "layout.tp=1", "layout.pp=2", "layout.schedule=zb1p", "stack=torch"]
    changes += ["batch.global_batch_size=4", "batch.sequence_length=1024", "batch.microbatch_size=1"]
    steps = [
        simulate(load_scenario("llama-3-8b", [*changes, f"stack.loss={loss}"])).metrics["step_time_s"]
        for loss in ("fp32", "fused_linear")
    ]
    assert steps[0] != steps[1]


def test_tensor_parallel_ranks_have_no_whole_rows() -> None:
    found = check(load_scenario("llama-3-8b", ["layout.tp=2", "stack.loss=fused_linear"]))
    assert any("needs whole rows of logits" in str(one) for one in found)


@pytest.mark.parametrize(("tp", "forward", "backward"), [(1, 6, 8), (2, 10, 12)])
def test_pytorchs_loss_has_more_at_once_than_it_keeps(tp: int, forward: int, backward: int) -> None:
    """Bytes of a logit beyond the FP32 one that is kept: the BF16 and the FP32 input, and where the vocabulary is split
    logits less their maximum; backward the gradients of both steps, and the exponentials."""
    shapes = shapes_of(load_scenario("llama-3-8b", [*JOB, f"layout.tp={tp}", "gpus=2", "stack.loss=fp32"]))
    blocks = build_blocks(shapes)
    head = footprints(shapes, blocks)[BlockKind.HEAD]
    logits = shapes.tokens * shapes.model.vocab_size // tp
    assert head.temporary["F"] == forward * logits
    assert head.temporary["B"] == backward * logits


def test_megatron_reads_the_loss_of_a_microbatch_before_its_backward() -> None:
    """Twice, for NaN and infinities; not without the check."""
    for checked in (True, False):
        flags = ["stack=megatron-core", "stack.loss=te", f"stack.gradient_check={str(checked).lower()}"]
        scenario = load_scenario("llama-3-8b", flags)
        first = head(shapes_of(scenario)).backward[0].ops
        reads = [op.work.seconds for op in first if isinstance(op.work, HostRead)]
        assert reads == ([2 * scenario.stack.host_read + scenario.stack.host_loss] if checked else [])
