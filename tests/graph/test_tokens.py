"""How tokens find their experts: what runs and travels with each dispatcher, and nothing where a rank has them all."""

from __future__ import annotations

import pytest

from simulator.graph.block import Block, problems
from simulator.graph.tokens.order import SHORT_SORT, SHORT_SORT_LAUNCHES, SORT_LAUNCHES
from simulator.inputs import load_scenario
from simulator.ops import AllToAll, Collective, Fixed, HostRead, Notify, Op, Streaming
from simulator.results.simulate import prepare, simulate

EXPERTS = (
    "model=mixtral-8x7b",
    "model.num_hidden_layers=2",
    "layout.tp=1",
    "layout.pp=1",
    "layout.recompute=none",
    "batch.sequence_length=2048",
)
DISPATCHERS = ("deepep", "hybrid_ep", "nccl", "allgather")


def layer(ep: int, *changes: str) -> Block:
    """The MoE layer of a small Mixtral on `ep` ranks."""
    gpus = max(1, ep)
    scenario = load_scenario(
        "llama-3-8b",
        [*EXPERTS, f"gpus={gpus}", f"layout.ep={ep}", f"batch.global_batch_size={2 * gpus}", *changes],
    )
    return prepare(scenario)[0].blocks["moe"]  # type: ignore[index]


def ops_of(block: Block, kind: type) -> list[Op]:
    return [op for op in block.ops() if isinstance(op.work, kind)]


@pytest.mark.parametrize("stack", ["torch", "torch-compile", "megatron-core", "deepseek"])
def test_one_rank_sends_nothing(stack: str) -> None:
    block = layer(1, f"stack={stack}")
    assert problems(block) == []
    assert not ops_of(block, AllToAll)
    assert not ops_of(block, Notify)
    assert not [op for op in block.ops() if isinstance(op.work, Collective)]
    assert bool(ops_of(block, HostRead)) is (stack == "megatron-core")


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("stack", ["torch", "megatron-core", "deepseek"])
@pytest.mark.parametrize("recipe", ["bf16", "fp8"])
def test_notify_and_layout_are_deepeps(stack: str, dispatcher: str, recipe: str) -> None:
    block = layer(4, f"stack={stack}", f"stack.dispatcher={dispatcher}", f"precision.recipe={recipe}")
    assert problems(block) == []
    own = dispatcher == "deepep"
    assert len(ops_of(block, Notify)) == (5 if own else 0)
    travels = [op for op in block.ops() if op.cls in ("comm.dispatch", "comm.combine")]
    assert [op.name.rpartition(".")[2] for op in travels] == ["a2a", "a2a", "a2a_dispatch", "a2a_combine"]
    assert all(op.work.barrier is not own for op in ops_of(block, AllToAll))  # type: ignore[union-attr]
    counts = [op for op in block.ops() if op.cls == "comm.ep.counts"]
    assert len(counts) == (0 if own else 1)


@pytest.mark.parametrize(("node", "experts"), [(8, 8.0), (2, 4.0)])
def test_hybrid_ep_sends_the_gate_weights_of_all_experts_of_a_node(node: int, experts: float) -> None:
    """With each copy of a token forward, their gradients with those that come home in backward; the others do not."""
    rented = f"hardware.node.gpus={node}"
    plain = layer(4, "stack=megatron-core", "stack.dispatcher=deepep", rented)
    hybrid = layer(4, "stack=megatron-core", "stack.dispatcher=hybrid_ep", rented)

    def each(block: Block) -> list[float]:
        return [op.work.bytes_per_token for op in block.ops() if isinstance(op.work, AllToAll)]

    more = [a - b for a, b in zip(each(hybrid), each(plain), strict=True)]
    assert sorted(more) == [0.0, 0.0, experts * 4, experts * 4]
    names = [op.name for op in hybrid.ops() if isinstance(op.work, AllToAll)]
    found = dict(zip(names, more, strict=True))
    assert found["moe.dispatch.fwd.a2a"] == found["moe.dispatch.bwd.a2a_combine"] == experts * 4
    sums = {name: op.work for block, name in ((hybrid, "hybrid"), (plain, "plain"))
            for op in block.ops() if op.name == "moe.unpermute.grad"}  # fmt: skip
    received = (sums["hybrid"].written - sums["plain"].written) / (experts * 4)  # type: ignore[union-attr]
    assert received == pytest.approx(sums["plain"].written / (4096 * 2))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("recipe", "change", "kernels"),
    [
        ("fp8_tensor", "stack.dispatcher=nccl", 4),
        ("mxfp8", "stack.dispatcher=deepep", 4),
        ("mxfp8", "stack.dispatcher=hybrid_ep", 0),
        ("mxfp8", "stack.token_counts=capacity", 0),
        ("mxfp8", "stack.grouped_gemm=fused", 0),
        ("bf16", "stack.dispatcher=nccl", 0),
    ],
)
def test_rows_are_padded_for_quantised_gemms_that_run_one_by_one(recipe: str, change: str, kernels: int) -> None:
    block = layer(4, "stack=megatron-core", "hardware=b200", f"precision.recipe={recipe}", change)
    assert problems(block) == []
    pads = [op for op in block.ops() if op.cls == "permute.pad"]
    assert len(pads) == kernels
    gemm = next(op.work for op in block.ops() if op.name == "moe.down.fwd")
    assert all(op.work == Streaming(read=gemm.m * gemm.n * 2.0, written=gemm.m * gemm.n * 2.0) for op in pads)  # type: ignore[union-attr]
    order = [op.name for op in block.ops()]
    if pads:
        assert order.index("moe.pad.fwd") < order.index("moe.up_gate.fwd") < order.index("moe.down.fwd")
        assert order.index("moe.down.fwd") < order.index("moe.unpad.fwd") < order.index("moe.pad.grad")
        assert order.index("moe.pad.grad") < order.index("moe.down.dgrad") < order.index("moe.unpad.grad")


def test_delayed_scaling_casts_the_rows_of_all_experts_by_one_call() -> None:
    """Current scaling by a call for each of the rank's two experts, as a dense layer's; the values are the same."""
    casts = {}
    for scaling in ("delayed", "current"):
        settings = ("precision.recipe=fp8_tensor", f"precision.scaling={scaling}")
        block = layer(4, "stack=megatron-core", "hardware=h100", *settings)
        casts[scaling] = next(op for op in block.ops() if op.name == "moe.up_gate.quant_x")
    once, each = casts["delayed"], casts["current"]
    assert (once.cls, once.count, each.cls, each.count) == ("quant.turned.experts", 1, "quant.turned", 2)
    assert isinstance(once.work, Streaming)
    assert isinstance(each.work, Streaming)
    assert once.work.read == pytest.approx(2 * each.work.read)


def test_an_all_gather_brings_every_token_of_the_group() -> None:
    block = layer(4, "stack=megatron-core", "stack.dispatcher=allgather")
    ahead = next(op for op in block.ops() if op.name == "moe.dispatch.fwd.a2a").work
    assert isinstance(ahead, Collective)
    assert (ahead.kind, ahead.bytes) == ("all_gather", 4 * 2048 * 4096 * 2)
    home = next(op for op in block.ops() if op.name == "moe.combine.fwd.a2a").work
    assert isinstance(home, Collective)
    assert (home.kind, home.bytes) == ("reduce_scatter", 4 * 2048 * 4096 * 2)


def test_pytorch_sorts_selects_and_adds_by_index() -> None:
    block = layer(1, "stack=torch")
    by = {op.name: op for op in block.ops()}
    rows = 2 * 2048
    sort = by["moe.sort"].work
    assert sort == Fixed(launches=SHORT_SORT_LAUNCHES if rows <= SHORT_SORT else SORT_LAUNCHES)
    wide, narrow = rows * 4096 * 2.0, 2048 * 4096 * 2.0
    assert by["moe.permute.fwd"].cls == "permute.index_select"
    assert by["moe.permute.fwd"].work == Streaming(read=narrow, written=wide)
    assert by["moe.unpermute.fwd"].cls == "unpermute.index_add"
    assert by["moe.unpermute.fwd"].work == Streaming(read=wide, written=narrow)
    assert by["moe.permute.grad"].cls == "unpermute.index_add.bwd"
    assert by["moe.unpermute.grad"].cls == "permute.index_add"
    assert "moe.swiglu.gate_w_bwd" not in by  # the merge's backward has it


def test_what_arrives_is_sorted_again_where_tokens_travel() -> None:
    names = [op.name for op in layer(4, "stack=torch").ops()]
    for first, second in (
        ("moe.sort", "moe.counts.a2a"),
        ("moe.counts.a2a", "moe.counts.read"),
        ("moe.counts.read", "moe.dispatch.fwd.a2a"),
        ("moe.dispatch.fwd.a2a", "moe.sort_received"),
        ("moe.sort_received", "moe.permute.fwd"),
        ("moe.sort_back", "moe.unpermute.fwd"),
        ("moe.combine.fwd.a2a", "moe.unpermute_local.fwd"),
    ):
        assert names.index(first) < names.index(second)


def test_megatron_core_joins_chunks_and_leaves_those_of_one_expert() -> None:
    """A plain all-to-all brings chunks of one sender and expert: eight experts, two a rank or one."""
    for stack in ("nemo-24", "megatron-core"):
        two, one = (layer(ep, f"stack={stack}") for ep in (4, 8))
        assert {"moe.permute.fwd", "moe.unpermute.fwd"} <= {op.name for op in two.ops()}
        assert not [
            op
            for op in one.ops()
            if op.name.startswith(("moe.permute.", "moe.unpermute.", "moe.sort_", "moe.map.chunks"))
        ]
        gemm, back = (
            next(op for op in one.ops() if op.name == f"moe.{name}") for name in ("up_gate.fwd", "down.dgrad")
        )
        assert gemm.after == ("moe.dispatch.fwd.a2a",)
        assert back.after == ("moe.combine.bwd.a2a_dispatch",)
        assert next(op for op in one.ops() if op.name == "moe.combine.fwd.a2a").after == ("moe.down.fwd",)
    joined = next(op for op in layer(4, "stack=nemo-24").ops() if op.name == "moe.unpermute.grad")
    assert joined.cls == "elem"


def test_fused_kernels_sort_chunks_and_permute_at_home() -> None:
    """What a measured layer of Megatron-Core runs, in its order, with one rank, too (h200_te_layers.csv)."""
    for ep in (1, 4):
        names = [op.name for op in layer(ep, "stack=megatron-core").ops()]
        order = ["rows", "chunks", "chunks_back"]
        home = ["moe.map.rows", "moe.permute_local.fwd", "moe.map.chunks", "moe.permute.fwd", "moe.up_gate.fwd"]
        back = ["moe.down.fwd", "moe.map.chunks_back", "moe.unpermute.fwd", "moe.unpermute_local.fwd"]
        assert [name for name in names if name in {*home, *back}] == [*home, *back]
        assert [name for name in names if name.startswith("moe.map")] == [f"moe.map.{which}" for which in order]
    ops = {op.name: op for op in layer(1, "stack=megatron-core").ops()}
    wide = 2 * 2048 * 4096 * 2.0
    for name in ("moe.permute.fwd", "moe.unpermute.fwd", "moe.permute.grad", "moe.unpermute.grad"):
        assert (ops[name].cls, ops[name].work) == ("elem", Streaming(read=wide, written=wide))
    assert "moe.map.chunks" not in {op.name for op in layer(4, "stack=megatron-core", "stack.dispatcher=deepep").ops()}


def test_an_all_to_all_crosses_nodes_behind_the_ranks_that_share_an_expert() -> None:
    """Eight expert-parallel ranks: neighbours fill a node; behind four ranks of each expert two share one; and behind
    two context-parallel ranks of each of these, where experts stay in the groups of data parallelism, none."""
    cut = ("gpus=64", "layout.tp=4", "layout.etp=4", "batch.global_batch_size=64")
    for changes, stack, near in (
        (("gpus=8",), "nemo-24", 0),
        (cut, "nemo-24", 2),
        ((*cut, "layout.cp=2"), "nemo-24", 1),
        ((*cut, "layout.cp=2"), "megatron-core", 2),
    ):
        block = layer(8, f"stack={stack}", *changes)
        work = next(op for op in block.ops() if op.name == "moe.dispatch.fwd.a2a").work
        assert isinstance(work, AllToAll)
        assert work.per_node == near


def test_experts_filled_to_a_capacity_send_no_counts() -> None:
    names = {op.name for op in layer(4, "stack=nemo-24", "stack.token_counts=capacity").ops()}
    assert "moe.dispatch.fwd.a2a" in names
    assert not {"moe.counts.a2a", "moe.counts.read"} & names


def test_the_counts_are_read_where_the_stack_says() -> None:
    for ep, counts, read in (
        (1, "host", True),
        (1, "all_to_all", False),
        (4, "all_to_all", True),
        (4, "device", False),
    ):
        block = layer(ep, "stack=torch", f"stack.token_counts={counts}")
        assert bool(ops_of(block, HostRead)) is read


def test_a_step_on_one_rank_does_not_depend_on_the_all_to_all() -> None:
    def seconds(*changes: str) -> float:
        few = [*EXPERTS, "gpus=1", "batch.global_batch_size=2", "stack=torch", "hardware=h200", *changes]
        return float(simulate(load_scenario("llama-3-8b", few), engine="longest-path").metrics["step_time_s"])

    assert seconds("hardware.fabric.notify.alpha=1e-2", "hardware.fabric.notify.layout_alpha=1e-2") == seconds()


def test_gradients_are_added_for_all_but_the_first_microbatch() -> None:
    one, four = (layer(1, "stack=torch", "optimizer.gradients=bf16", f"batch.global_batch_size={n}") for n in (1, 4))
    added = {op.name: op.work for op in four.ops() if op.name.endswith("wgrad_add")}
    assert not [op for op in one.ops() if op.name.endswith("wgrad_add")]
    values = 8 * 4096 * 14336
    assert added["moe.down.wgrad_add"] == Streaming(read=0.75 * values * 4, written=0.75 * values * 2)
