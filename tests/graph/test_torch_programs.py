"""How PyTorch programs that are written module by module run a layer: torchtitan and what it stands for."""

from __future__ import annotations

import pytest

from simulator.cost.cost import Cost
from simulator.engine.kernel_sequence import Priced
from simulator.engine.program import exposed, of_one_input
from simulator.engine.update import own_gradient_ops, update_ops
from simulator.errors import InputError
from simulator.graph.block import Block, problems
from simulator.graph.parameters import held_by_block
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.ops import Attention, Collective, Gemm, HostRead, Op, Streaming
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario

T, H, INNER, Q, KV = 4096, 4096, 14336, 4096, 2048
JOB = ["layout.pp=1", "layout.zero=3", "hardware=h200", "stack=torch-compile", "precision.recipe=bf16"]
JOB += ["batch.sequence_length=2048", "batch.microbatch_size=2", "batch.global_batch_size=16", "layout.recompute=none"]


def scenario(*changes: str, tp: int = 1) -> Scenario:
    return load_scenario("llama-3-8b", [*JOB, "gpus=8", f"layout.tp={tp}", *changes])


def layer(*changes: str, tp: int = 1) -> Block:
    block = build_blocks(shapes_of(scenario(*changes, tp=tp)))[BlockKind.DENSE]
    assert problems(block) == []
    return block


def named(block: Block, *parts: str) -> list[Op]:
    return [op for op in block.ops() if all(part in op.name for part in parts)]


def moved(ops: list[Op]) -> float:
    return sum(op.count * (op.work.read + op.work.written) for op in ops if isinstance(op.work, Streaming))


def test_separate_projections_multiply_alike_and_sum_their_gradients() -> None:
    joined, separate = layer(), layer("stack.projections=separate")
    for part in "FIW":
        assert separate.flops(part) == joined.flops(part)
    gemms = [op.work for op in named(separate, "attn.qkv", ".fwd") if isinstance(op.work, Gemm)]
    assert [gemm.n for gemm in gemms] == [4096, 1024, 1024]
    assert len(named(separate, "up_gate", ".wgrad")) == 2
    assert moved(named(separate, "qkv.dgrad_sum")) == T * H * (3 + 1) * 2  # one compiled kernel reads all three
    assert moved(named(separate, "up_gate.dgrad_sum")) == T * H * (2 + 1) * 2
    eager = layer("stack.projections=separate", "stack.residual_fused=false")
    assert moved(named(eager, "qkv.dgrad_sum")) == 2 * T * H * (2 + 1) * 2  # autograd adds two at a time
    assert separate.saved_bytes == joined.saved_bytes


def test_every_second_of_separate_projections_is_recomputed() -> None:
    """wk, wo and w3 of wq, wk, wv, wo, w1, w3, w2 (torchtitan's policy `op`), whether they are joined or not."""
    for how in ("joined", "separate"):
        block = layer("layout.recompute=selective", f"stack.projections={how}")
        again = [op.work for op in block.ops() if op.part == "R" and isinstance(op.work, Gemm)]
        assert sum(gemm.n * gemm.k for gemm in again) == 1024 * H + Q * H + INNER * H


def test_keys_repeated_for_every_query_head() -> None:
    plain, block = layer(), layer("stack.keys_repeated=true")
    whole = 2 * Q
    assert moved(named(block, "kv.repeat.fwd")) == T * (KV + whole) * 2
    assert moved(named(block, "kv.repeat.bwd")) == T * (KV + whole) * 2
    cores = [op.work for op in block.ops() if isinstance(op.work, Attention)]
    assert {core.kv_heads for core in cores} == {32}
    assert block.flops("F") == plain.flops("F")
    assert block.saved_bytes - plain.saved_bytes == T * (whole - KV) * 2


def test_complex_numbers_are_widened_multiplied_and_narrowed() -> None:
    rotated = T * (Q + KV // 2)
    for direction in ("fwd", "bwd"):
        assert moved(named(layer("stack.rope_complex=true"), "rope.", direction)) == rotated * (6 + 8 + 6)


def test_a_norm_op_by_op() -> None:
    """x to FP32, x^2, its mean, x times its root, back, times w; and thirteen kernels of autograd's."""
    block = layer("stack.norm_kernels=operators")
    assert moved(named(block, "norm.attn.fwd")) == T * H * (6 + 8 + 4 + 8 + 6 + 4)
    backward = [op for op in named(block, "norm.attn.bwd") if "residual" not in op.name]
    assert len(backward) == 13
    assert moved(backward) == T * H * (4 + 6 + 2 + 6 + 8 + 12 + 4 + 4 + 8 + 8 + 12 + 12 + 6)


def test_collectives_of_the_second_dimension_are_copied() -> None:
    """Four gathers and two scatters of outputs; the two sums of gradients are written as they leave."""
    block = layer("stack.sequence_copies=true", "stack.projections=separate", tp=8)
    comm = [op for op in block.ops() if isinstance(op.work, Collective)]
    copies = named(block, ".order")
    assert (len(comm), len(copies)) == (8, 6)
    assert {moved([op]) for op in copies} == {2 * 8 * T * H * 2 / 8}
    sums = layer("stack.sequence_copies=true", "stack.projections=separate", "stack.residual_fused=false", tp=8)
    assert len(named(sums, ".order")) == 8


def test_fused_collectives_choose_their_layout_and_sums_are_not_fused() -> None:
    block = layer("stack.sequence_copies=true", "stack.projections=separate", "stack.tp_overlap=true", tp=8)
    comm = {op.name: op.concurrent_with for op in block.ops() if isinstance(op.work, Collective)}
    alone = {name for name, how in comm.items() if how == "nothing"}
    assert alone == {"attn.dx.reduce_scatter", "dense.dx.reduce_scatter"}
    assert not named(block, ".order")


def test_what_arrives_in_bf16_is_cast_by_every_rank() -> None:
    """torchao gathers BF16 where scales are by row, FP8 where they are of the tensor."""
    for recipe, share in (("fp8_row", 1), ("fp8_tensor", 8)):
        block = layer(f"precision.recipe={recipe}", tp=8)
        cast = named(block, "attn.qkv.quant_x")[0]
        assert isinstance(cast.work, Streaming)
        assert cast.work.read == T * H * 2 / share
        gradient = named(block, "dense.down.quant_g")[0]
        assert isinstance(gradient.work, Streaming)
        assert gradient.work.read == T * H * 2 / share


def test_adamw_op_by_op_moves_eighty_bytes_a_parameter() -> None:
    found = {}
    for update in ("fused", "foreach"):
        one = scenario(f"stack.update={update}")
        held = held_by_block(BlockKind.DENSE, one.model, one.job)
        ops = [op for op in update_ops(held, [BlockKind.DENSE], (8, 1), one) if op.name == "optimizer.adam"]
        found[update] = moved(ops) / (held.total / 8)
    assert found == pytest.approx({"fused": 28.0, "foreach": 80.0})


@pytest.mark.parametrize("apart", ["stack.relu2_fused=false", "stack.swiglu_fused=false"])
def test_a_square_over_a_relu_is_six_kernels(apart: str) -> None:
    """In BF16 tensors of the inner size: 2 + 2 forward, 2 + 2 + 3 + 3 backward, where a fused one moves 2 and 3."""
    sizes = ("model.hidden_act=relu2", "model.gated_mlp=false", "stack.fused_quant=false")
    blocks = layer(*sizes), layer(*sizes, apart)
    tensors = [moved([op for name in ("relu", "square", "swiglu") for op in named(b, f"dense.{name}")]) for b in blocks]
    assert [one / (T * INNER * 2) for one in tensors] == [2 + 3, 4 + 10]
    assert blocks[0].saved_bytes == blocks[1].saved_bytes  # the ReLU's output is kept, its input is not


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("stack.sequence_copies=true", "no collective of tensor parallelism cuts the sequence"),
        ("stack.update=foreach", "the optimizer is sgd"),
        ("stack.keys_repeated=true", "every query head has keys of its own"),
        ("stack.bias_apart=true", "queries, keys and values have no biases"),
        ("stack.relu2_fused=false", "is not a squared ReLU without a gate"),
        ("stack.clips_whole=true", "only ZeRO-1 shards the update alone"),
        ("stack.p2p_headers=2", "there is no pipeline"),
        ("stack.stage_reduced=true", "there is no pipeline"),
        ("stack.p2p_reads=3", "there is no pipeline"),
        ("stack.heads_copied=true", "has latent attention"),
        ("stack.padding_removed=true", "has latent attention"),
        ("stack.flat_shards=true", "gradients are not sharded"),
        ("stack.ddp_buckets=true", "there is one data-parallel rank"),
    ],
)
def test_where_they_change_nothing_they_are_refused(change: str, why: str) -> None:
    more = ["optimizer.kind=sgd", "model.num_key_value_heads=32"]
    if why == "has latent attention":
        more = ["model=deepseek-v3-tiny", "layout.ep=8"]
    if why.startswith(("gradients are", "there is one")):
        more = ["layout.zero=0", "layout.tp=8", "batch.global_batch_size=2"]
    with pytest.raises(InputError, match=why):
        scenario(*more, change)


def test_one_gather_feeds_all_gemms_of_its_input() -> None:
    """Eight arrivals, each multiplied with three weights before the next piece; the fourth GEMM has another input."""

    def price(op: Op) -> Priced:
        assert isinstance(op.work, Gemm)
        seconds = float(op.work.m * op.work.n)
        return Priced(op=op, cost=Cost(duration=seconds, bound_by="fixed"), durations=(seconds,) * 4)

    def gemm(n: int, k: int) -> Priced:
        work = Gemm(m=80, n=n, k=k, precision="bf16")
        return price(Op(name=f"x{n}", cls="gemm.bf16", part="F", segment="x.F", work=work))

    work = Collective(kind="all_gather", bytes=1.0, ranks=8, per_node=8)
    op = Op(name="x", cls="comm.tp.all_gather", part="F", segment="x.F", work=work, concurrent_with="chunks")
    comm = Priced(op=op, cost=Cost(duration=7000.0, bound_by="fixed"), durations=(7000.0,) * 4)
    after = [gemm(40, 8), gemm(10, 8), gemm(10, 8), gemm(40, 9)]
    assert of_one_input(after) == after[:3]
    assert exposed(comm, [], after, price).durations[0] == 7000.0 + 10 * 60 - 80 * 60


def test_padding_is_taken_out_of_what_the_core_reads_and_put_back() -> None:
    """A gather for queries, keys and values each, zeros and a scatter behind the core; backward the other way round."""
    plain, block = layer(), layer("stack.padding_removed=true")
    reads = [op for op in block.ops() if isinstance(op.work, HostRead)]
    assert [op.segment for op in reads] == ["attn.F"] * 6  # two for each of three
    gathered = moved([op for op in block.ops() if op.name in ("attn.q.unpad", "attn.k.unpad", "attn.v.unpad")])
    assert gathered == T * (Q + KV) * 4
    assert moved(named(block, "attn.out.pad")) == T * Q * (2 + 4 + 4)  # zeros, scatter; gather
    assert moved(named(block, "unpad", ".bwd")) == T * (Q + KV) * (2 + 4)
    assert block.flops("F") == plain.flops("F")
    assert block.saved_bytes - plain.saved_bytes == T * Q * 2  # the output projection's own input
    again = layer("stack.padding_removed=true", "layout.recompute=full")
    assert len([op for op in again.ops() if isinstance(op.work, HostRead)]) == 12


def test_one_flat_parameter_is_not_copied_out_but_its_gradients_are_widened_and_scaled() -> None:
    values = held_by_block(BlockKind.DENSE, scenario().model, scenario().job).total
    block = layer("stack.flat_shards=true")
    assert [op.name for op in named(block, "shard.")] == ["shard.cat", "shard.widen", "shard.scale"]
    assert moved(named(block, "shard.")) == values * (4 + 6 + 8)
    narrow = layer("stack.flat_shards=true", "optimizer.reduced=bf16")
    assert moved(named(narrow, "shard.")) == values * (4 + 4)
    assert named(layer("stack.flat_shards=true", "layout.zero=2"), "shard.")
    assert not named(layer("layout.zero=2"), "shard.")


def test_metrics_compute_the_loss_again_in_fp32() -> None:
    def metrics(*changes: str) -> list[Op]:
        return named(build_blocks(shapes_of(scenario(*changes)))[BlockKind.HEAD], "metric.")

    assert metrics() == []
    logits = T * scenario().model.vocab_size
    assert moved(metrics("stack.loss_metrics=2")) == 2 * logits * (2 + 4 + 4)


def test_heads_copied_apart_and_together_again() -> None:
    """A copy of all, keys and values joined and copied by token; backward both joined, stacked and copied; with two
    sequences the core's output, its gradient and the output projection's input, too."""
    plain, block = layer(), layer("stack.heads_copied=true")
    assert moved([op for op in block.ops() if op.name == "attn.qkv.apart"]) == T * (Q + KV) * 4
    assert moved(named(block, "attn.kv.cat")) == 2 * T * KV * 4  # each way
    assert moved(named(block, "attn.kv.by_token")) == T * KV * 4
    assert moved(named(block, "attn.qkv.stack")) + moved(named(block, "attn.qkv.order")) == 2 * T * (Q + KV) * 4
    assert moved(named(block, "by_sequence")) + moved(named(block, "attn.o.input")) == 3 * T * Q * 4
    assert not named(block, "attn.qkv.cat")
    assert block.saved_bytes - plain.saved_bytes == T * KV * 2
    one = layer("stack.heads_copied=true", "batch.microbatch_size=1", "batch.global_batch_size=8")
    assert not named(one, "by_sequence")


def test_buckets_and_flat_lists_of_data_parallelism() -> None:
    held = held_by_block(BlockKind.DENSE, scenario().model, scenario().job)

    def step(*changes: str) -> dict[str, float]:
        job = scenario("layout.zero=1", "stack.ddp_buckets=true", *changes)
        ops = [*own_gradient_ops(held, job), *update_ops(held, [BlockKind.DENSE], (8, 8), job)]
        return {op.name: moved([op]) / held.total for op in ops}

    found = step()
    assert found["gradient.buckets"] == 8.0  # BF16 in and out, twice
    assert found["gradient.flatten"] == 2 * (4 + 4)
    assert found["param.flatten"] == 3 * (2 + 2)
    assert "gradient.flatten" not in step("layout.zero=0")
    assert found["optimizer.grad_norm"] == 4 / 8
    assert step("stack.clips_whole=true")["optimizer.grad_norm"] == 4


def test_a_bias_added_apart_and_its_gradient_summed_apart() -> None:
    """Megatron-LM's own layers: a read and a write of all that the projection makes, and one more read."""
    sizes = ["model=gpt3-175b", "model.num_hidden_layers=2", "layout.tp=8", "layout.pp=2", "stack=megatron-core"]
    sizes += ["batch.sequence_length=2048", "batch.microbatch_size=1", "batch.global_batch_size=4", "gpus=16"]
    apart, joined = (
        build_blocks(shapes_of(load_scenario("llama-3-8b", [*sizes, f"stack.bias_apart={on}"])))[BlockKind.DENSE]
        for on in ("true", "false")
    )
    values = 2048 * 3 * 12288 // 8
    assert not named(joined, "attn.qkv.bias")
    assert moved(named(apart, "attn.qkv.bias.fwd")) == values * 4
    assert named(apart, "attn.qkv.bias.bwd")[0].work == Streaming(read=values * 2, written=3 * 12288 // 8 * 2)
