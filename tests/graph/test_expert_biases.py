"""Biases of experts and the bound of their activation, as Megatron-Core's calls of PyTorch compute them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from simulator.engine.host import seconds
from simulator.engine.lower import PricedModel
from simulator.engine.program import sequences_of
from simulator.errors import InputError
from simulator.graph.block import Block, problems
from simulator.inputs import load_scenario
from simulator.ops import HostRead, Op, Streaming
from simulator.results.simulate import prepare

ROWS, EXPERTS, WIDTH = 1024 * 4, 16, 2880
"""Rows and experts of a rank (1,024 tokens, four experts each), and the width of their inputs, outputs and insides."""
ON_BLACKWELL = ("hardware=b200", "precision.recipe=mxfp8")


@cache
def built(*changes: str) -> PricedModel:
    """gpt-oss-120B on eight ranks."""
    cut = ("model=gpt-oss-120b", "hardware=h200", "gpus=8", "layout.tp=1", "layout.pp=1", "layout.ep=8")
    batch = ("batch.sequence_length=1024", "batch.microbatch_size=1", "batch.global_batch_size=8")
    own = ("stack=megatron-core", "layout.recompute=none", "routing.kind=uniform")
    return prepare(load_scenario("llama-3-8b", (*cut, *batch, *own, *changes)))[0]


def layer(*changes: str) -> Block:
    return next(block for kind, block in built(*changes).blocks.items() if kind.is_moe)


def own_ops(block: Block) -> dict[str, Op]:
    return {op.name: op for op in block.ops() if op.name.endswith(".eager") or op.name.startswith("moe.offset")}


def moved(ops: Iterator[Op]) -> float:
    return sum(op.count * op.work.bytes for op in ops if isinstance(op.work, Streaming))


@pytest.mark.parametrize(("dispatcher", "ahead", "behind"), [("nccl", 12, 16), ("hybrid_ep", 28, 40)])
def test_bytes_of_the_biases(dispatcher: str, ahead: int, behind: int) -> None:
    """By hand, in bytes a value. BF16 weights: b p writes 2; the sum reads 2 + 2 and writes 2; the concatenation moves
    4. Backward: dy p and dy b move 4 each, their sums read 2 each, the concatenation of dt moves 4. FP32 weights make
    those tensors FP32 and add a cast forward (4 + 2), and backward two: of all (2 + 4) and by expert (4 + 2)."""
    block = layer(f"stack.dispatcher={dispatcher}")
    assert problems(block) == []
    biases = {name: op for name, op in own_ops(block).items() if ".bias." in name}
    forward = moved(op for op in biases.values() if op.segment == "mlp.F")
    backward = moved(op for op in biases.values() if op.segment == "mlp.B")
    assert forward == pytest.approx(ahead * ROWS * WIDTH)
    assert backward == pytest.approx(behind * ROWS * WIDTH)


def test_a_few_kernels_for_each_expert() -> None:
    biases = [op for name, op in own_ops(layer()).items() if ".bias." in name]
    assert sum(op.count for op in biases if op.segment == "mlp.F") == 2 * EXPERTS + 1
    assert sum(op.count for op in biases if op.segment == "mlp.B") == 4 * EXPERTS + 1


def test_bytes_of_the_bound() -> None:
    """Halves read and written, and joined; backward the gradient and what was bounded, written, and joined."""
    clamps = [op for name, op in own_ops(layer()).items() if ".clamp." in name]
    assert moved(op for op in clamps if op.segment == "mlp.F") == 2 * ROWS * WIDTH * (4 + 4)
    assert moved(op for op in clamps if op.segment == "mlp.B") == 2 * ROWS * WIDTH * (6 + 4)
    kept = sum(op.saved for op in clamps)
    assert kept == 2 * ROWS * WIDTH * 2
    again = layer('layout.recompute=["moe_act"]')
    names = [op.name for op in again.ops()]
    assert {"moe.offset.read.again", "moe.clamp.cat.again.eager"} <= set(names)
    assert sum(op.saved for op in again.ops() if ".clamp." in op.name) == 0


def test_the_host_waits_before_the_activation() -> None:
    """A number that is copied to the GPU blocks: what follows is issued by a host with nothing ahead."""
    model = built()
    block = layer()
    experts = next(segment for segment in block.forward if segment.name == "mlp.F")
    parts = [[one.op.name for one in sequence.ops] for sequence in sequences_of(experts, model.price)]
    assert [names[-1] for names in parts[:-1]] == ["moe.offset.read"]
    assert parts[-1][0] == "moe.swiglu.fwd"


def test_software_that_fuses_them_runs_none() -> None:
    names = {op.name for op in layer("stack.expert_biases=fused").ops()}
    assert not [name for name in names if name.endswith(".eager") or name.startswith("moe.offset")]
    assert not own_ops(layer("model.swiglu_limit=0.0")).keys() & {"moe.offset.read", "moe.clamp.cat.eager"}
    reads = [op for op in layer("stack.expert_biases=fused").ops() if isinstance(op.work, HostRead)]
    assert [op.name for op in reads] == ["moe.counts.read"]


def test_each_parameter_costs_the_host_its_node_and_hook() -> None:
    model = built()
    gradient = next(op for op in layer().ops() if op.name == "moe.down.wgrad")
    assert gradient.parameters == 2 * EXPERTS
    stack = model.scenario.stack
    more = replace(stack, host_parameter=stack.host_parameter + 1e-6)
    assert seconds(gradient, more) - seconds(gradient, stack) == pytest.approx(2e-6)
    assert seconds(replace(gradient, captured=True), more) == stack.host_graph


def test_gemms_compute_the_activation_in_mxfp8() -> None:
    """cuDNN's kernels of two GEMMs and what is between them: what is computed inside is gone, and nothing else."""
    apart, inside = (
        [op.name for op in layer(*ON_BLACKWELL, "stack.expert_biases=fused", f"stack.grouped_gemm={which}").ops()]
        for which in ("kernel", "fused")
    )
    gone = ("swiglu.fwd", "swiglu.bwd", "swiglu.gate_w_bwd", "down.quant_x", "up_gate.quant_g")
    scales = ("down.wgrad.swizzle", "up_gate.wgrad.swizzle")
    assert set(apart) - set(inside) == {f"moe.{name}" for name in (*gone, *scales)}
    assert set(inside) - set(apart) == {"moe.down.bias.sum.bwd"}
    with pytest.raises(InputError, match="casts ride on GEMMs in MXFP8"):
        layer("stack.grouped_gemm=fused")
    kept = [
        sum(op.saved for op in layer(*ON_BLACKWELL, f"stack.grouped_gemm={which}").ops())
        for which in ("kernel", "fused")
    ]
    assert kept[1] == kept[0] - 2 * ROWS * WIDTH * 2  # no copy of the bounded inputs
