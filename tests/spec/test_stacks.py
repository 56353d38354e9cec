"""What software runs besides the GEMMs of a dense layer, counted by hand."""

from __future__ import annotations

import pytest

from simulator.cost.cost import Cost
from simulator.engine.kernel_sequence import Priced
from simulator.engine.lower import sends_block
from simulator.engine.program import exposed
from simulator.graph.block import Block, problems
from simulator.graph.ends import head
from simulator.graph.layer import dense_layer, moe_layer
from simulator.graph.shapes import Shapes, shapes_of
from simulator.inputs import list_names, load_scenario
from simulator.ops import Collective, ConcurrentWith, Gemm, Op, Streaming
from simulator.results.simulate import prepare, timeline_of

T, H, KV, INNER, VOCAB = 4096, 4096, 1024, 14336, 128256
BF16 = 2
SMALL = ["gpus=8", "layout.tp=1", "layout.pp=1", "layout.recompute=none", "batch.sequence_length=4096"]
SMALL += ["batch.microbatch_size=1", "batch.global_batch_size=8"]


def shapes(*overrides: str) -> Shapes:
    return shapes_of(load_scenario("llama-3-8b", [*SMALL, *overrides]))


def moved(block: Block, *starts: str) -> float:
    """Bytes of all kernels whose name starts like this."""
    return sum(
        op.count * op.work.bytes for op in block.ops() if isinstance(op.work, Streaming) and op.name.startswith(starts)
    )


def sums(block: Block) -> list[str]:
    return [op.name for op in block.ops() if ".residual." in op.name]


@pytest.mark.parametrize("stack", list_names("stack"))
@pytest.mark.parametrize("recipe", ["bf16", "fp8_tensor"])
def test_every_stack_makes_sound_layers(stack: str, recipe: str) -> None:
    wide = shapes(f"stack={stack}", f"precision.recipe={recipe}", "layout.tp=2")
    experts = shapes_of(load_scenario("deepseek-v2-pretrain", [f"stack={stack}", f"precision.recipe={recipe}"]))
    for block in (dense_layer(wide), head(wide), moe_layer(experts), dense_layer(experts)):
        assert problems(block) == []


# ---- cross-entropy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "each", "kept"),
    [
        ("plain", 2 + (2 + 2), 2),
        ("fp32", (2 + 4) + 4 + (4 + 4) + (4 + 2), 4),
        ("compiled", 2 + 2 + (2 + 2), 2),
        ("parallel", (2 + 4) + 4 + (4 + 4) + (4 + 4) + 4 + (4 + 4) + (4 + 4) + (4 + 2), 4),
        ("parallel_fused", (2 + 4) + (4 + 4) + (4 + 4) + (4 + 2), 4),
        ("te", 2 + (2 + 2) + (2 + 2), 2),
    ],
)
def test_bytes_a_logit_of_the_cross_entropy(loss: str, each: int, kept: int) -> None:
    block = head(shapes(f"stack.loss={loss}"))
    assert moved(block, "loss.", "logits.") == pytest.approx(T * VOCAB * each)
    saved = next(op.saved for op in block.ops() if op.name == "loss.fwd")
    assert saved == T * (VOCAB * kept + 4 + 8)


# ---- residuals ----------------------------------------------------------------------------------------------------


def test_sums_that_no_norm_makes_are_kernels() -> None:
    megatron = dense_layer(shapes("stack=megatron-core"))
    assert sums(megatron) == [
        "attn.residual.fwd",
        "dense.residual.fwd",
        "norm.ffn.residual.bwd",
        "norm.attn.residual.bwd",
    ]
    assert moved(megatron, "attn.residual", "dense.residual") == 2 * 3 * T * H * BF16
    forward = ("norm.attn.fwd", "norm.ffn.fwd")
    assert moved(megatron, *forward) == 2 * 2 * T * H * BF16  # each reads and writes once
    compiled = dense_layer(shapes("stack=torch-compile"))
    assert sums(compiled) == ["dense.residual.fwd"]  # what leaves the layer
    assert moved(compiled, *forward) == (2 + 4) * T * H * BF16


def test_with_dropout_the_sum_rides_on_it() -> None:
    block = dense_layer(shapes("stack=megatron-lm", "layout.sp=false"))
    names = [op.name for op in block.ops()]
    assert "attn.dropout_add.fwd" in names
    assert "attn.residual.fwd" not in names


def test_routed_and_shared_experts_are_summed_before_the_residual() -> None:
    s = shapes_of(load_scenario("deepseek-v2-pretrain", ["stack=megatron-core"]))
    segment = next(one for one in moe_layer(s).forward if one.name == "out.F")
    assert [op.name for op in segment.ops] == ["moe.unpermute_local.fwd", "moe.shared.sum", "moe.residual.fwd"]


# ---- eager modules --------------------------------------------------------------------------------------------------


def test_eager_rotation_and_swiglu() -> None:
    """In units of one tensor read or written: four multiplications of halves (4), two sums (3), concatenation (2)
    forward; a sign (1) more backward. SwiGLU backward: two multiplications (6), SiLU (3), concatenation of two (4)."""
    block = dense_layer(shapes("stack=torch"))
    assert moved(block, "rope.") == (9 + 10) * T * (H + KV) * BF16
    backward = [op for segment in block.backward for op in segment.ops]
    swiglu = [op.work for op in backward if op.name.startswith(("dense.silu", "dense.swiglu"))]
    assert sum(work.bytes for work in swiglu if isinstance(work, Streaming)) == 13 * T * INNER * BF16
    assert moved(block, "attn.qkv.cat") == 2 * T * (H + 2 * KV) * BF16
    assert moved(block, "attn.out.copy") == 2 * T * H * BF16


# ---- FP8 with a scale a tensor ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "cls"), [(2048, "softmax"), (4096, "softmax.wide"), (16384, "softmax.long")])
def test_the_softmax_of_unfused_attention_is_a_kernel_by_its_rows(tokens: int, cls: str) -> None:
    block = dense_layer(shapes("stack.attention_fused=false", f"batch.sequence_length={tokens}"))
    found = [op for op in block.ops() if op.name.endswith(".softmax")]
    assert [op.cls for op in found] == [cls, cls]  # forward and backward
    assert found[0].work.bytes == 2 * BF16 * 32 * tokens * tokens


def casts(block: Block) -> dict[str, float]:
    ends = (".quant_x", ".quant_g", ".x_t", ".g_t")
    return {op.name: op.work.bytes for op in block.ops() if op.name.endswith(ends) and isinstance(op.work, Streaming)}


def test_casts_of_per_tensor_fp8_on_one_rank() -> None:
    """Norms write FP8; all else is cast and transposed (2 + 1 + 1 B), and norms' outputs are transposed (1 + 1 B)."""
    block = dense_layer(shapes("stack=megatron-core", "precision.recipe=fp8_tensor"))
    assert casts(block) == {
        "attn.o.quant_x": 4 * T * H,
        "dense.down.quant_x": 4 * T * INNER,
        "dense.down.quant_g": 4 * T * H,
        "dense.up_gate.quant_g": 4 * T * 2 * INNER,
        "dense.up_gate.x_t": 2 * T * H,
        "attn.o.quant_g": 4 * T * H,
        "attn.qkv.quant_g": 4 * T * (H + 2 * KV),
        "attn.qkv.x_t": 2 * T * H,
    }


def test_gathered_gradients_are_cast_before_and_transposed_after() -> None:
    found = casts(dense_layer(shapes("stack=megatron-core", "precision.recipe=fp8_tensor", "layout.tp=4")))
    assert found["dense.down.quant_g"] == 3 * T / 4 * H
    assert found["dense.down.g_t"] == 2 * T * H
    assert found["dense.up_gate.quant_g"] == 4 * T * 2 * INNER / 4


# ---- tensor parallelism ------------------------------------------------------------------------------------------


def collectives(*overrides: str) -> dict[str, ConcurrentWith]:
    block = dense_layer(shapes("layout.tp=2", *overrides))
    return {op.name: op.concurrent_with for op in block.ops() if isinstance(op.work, Collective)}


def test_megatron_gathers_inputs_again_during_the_input_gradient() -> None:
    plain = ("stack=megatron-core", "stack.tp_overlap=false")
    found = collectives(*plain)
    for name in ("attn.x.again.all_gather", "dense.x.again.all_gather", "dense.dx.reduce_scatter"):
        assert found[name] == "whole"
    assert found["attn.x.all_gather"] == "nothing"
    assert len(found) == 10
    assert len(collectives(*plain, "stack.tp_regather=false")) == 8


def priced(
    work: Gemm | Collective, cls: str, seconds: float, concurrent_with: float = 1.0, held: float = 0.0
) -> Priced:
    op = Op(name="x", cls=cls, part="F", segment="x.B", work=work, concurrent_with="whole")
    cost = Cost(duration=seconds, bound_by="fixed", held=held)
    return Priced(op=op, cost=cost, durations=(seconds, seconds, seconds, concurrent_with * seconds))


@pytest.mark.parametrize(
    ("comm", "gemm", "held", "shown"),
    [
        (4.0, 8.0, 1.0, 0.8),  # at 1.25 times its length, 4 s do 3.2 s of it
        (4.0, 8.0, 0.5, 4.0 - 4.0 / 1.125),
        (12.0, 8.0, 1.0, 4.0),  # longer than the concurrent kernel takes: 10 s
        (9.0, 8.0, 1.0, 1.8),
        (4.0, 0.0, 1.0, 4.0),
    ],
)
def test_overlapped_with_a_kernel_a_whole_collective_costs_the_sms_it_holds(
    comm: float, gemm: float, held: float, shown: float
) -> None:
    work = Collective(kind="all_gather", bytes=1.0, ranks=4, per_node=4)
    kernel = [priced(Gemm(m=1, n=1, k=1, precision="bf16"), "gemm.bf16", gemm, concurrent_with=1.25)] if gemm else []
    found = exposed(priced(work, "comm.tp.all_gather", comm, held=held), [], kernel, lambda _: kernel[0])
    assert found.durations == pytest.approx((shown,) * 4)


def test_what_of_a_collective_hides_crosses_the_links_during_the_kernel() -> None:
    """Only the rest of its bytes is left to the part that shows, or the links would stretch it to its whole length."""
    four = [*SMALL, "gpus=4", "layout.tp=4", "layout.zero=0", "stack=megatron-core", "hardware.node.host_pace=0"]
    hidden = load_scenario("llama-3-8b", four)
    assert (hidden.stack.tp_overlap, hidden.stack.tp_regather) == (True, True)
    events, longest = (timeline_of(*prepare(hidden), engine).makespan for engine in ("events", "longest-path"))
    assert events == pytest.approx(longest, rel=1e-9)
    shown = load_scenario("llama-3-8b", [*four, "stack.tp_overlap=false", "stack.tp_regather=false"])
    assert timeline_of(*prepare(shown), "events").makespan > 1.03 * events


# ---- pipeline ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlap", "layout", "blocks"),
    [
        ("always", "1f1b", False),
        ("never", "interleaved", True),
        ("chunks", "1f1b", True),
        ("chunks", "interleaved", False),
    ],
)
def test_sends_hide_as_the_software_lets_them(overlap: str, layout: str, blocks: bool) -> None:
    vpp = 2 if layout == "interleaved" else 1
    flags = [f"stack.p2p_overlap={overlap}", f"layout.schedule={layout}", f"layout.vpp={vpp}"]
    assert sends_block(load_scenario("llama-3-8b", flags)) is blocks
