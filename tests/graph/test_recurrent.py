"""Recurrent layers: their ops, their states' memory, their parallelism, and layers of one part."""

from __future__ import annotations

import pytest

from simulator.graph.block import Block, problems
from simulator.graph.mixers.recurrent import state_of
from simulator.graph.serving.shapes import serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import block_kinds, build_blocks
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.memory.serving import kv_cache_bytes
from simulator.ops import Collective, Gemm, Scan, Streaming
from simulator.results.simulate import simulate
from simulator.spec.mixer import BlockKind
from simulator.spec.scenario import Scenario

SMALL = ("model.num_hidden_layers=4", "gpus=8", "layout.tp=1", "batch.global_batch_size=8")
DELTA = (
    'model.layer_types=["delta","delta","delta","full"]',
    "model.linear_num_key_heads=16",
    "model.linear_num_value_heads=32",
    "model.linear_key_head_dim=128",
    "model.linear_value_head_dim=128",
)
MAMBA = (
    'model.layer_types=["mamba2","mamba2","mamba2","full"]',
    "model.mamba_num_heads=128",
    "model.mamba_head_dim=64",
    "model.mamba_n_groups=8",
    "model.ssm_state_size=128",
)
KDA = (
    'model.layer_types=["kda","kda","kda","full"]',
    "model.linear_num_key_heads=32",
    "model.linear_num_value_heads=32",
    "model.linear_key_head_dim=128",
    "model.linear_value_head_dim=128",
    "model.linear_gate_rank=64",
)
MIXERS = {"delta": DELTA, "kda": KDA, "mamba2": MAMBA}
STATE = {"delta": 32 * 128 * 128, "kda": 32 * 128 * 128, "mamba2": 128 * 64 * 128}
CONVOLVED = {"delta": (2 * 16 + 32) * 128, "kda": 3 * 32 * 128, "mamba2": 128 * 64 + 2 * 8 * 128}


def training(mixer: str, *overrides: str) -> Scenario:
    return load_scenario("llama-3-8b", [*SMALL, "batch.sequence_length=4096", *MIXERS[mixer], *overrides])


def serving(mixer: str, job: str, *overrides: str) -> Scenario:
    return load_scenario(job, ["model.num_hidden_layers=4", *MIXERS[mixer], *overrides])


def block_of(job: Scenario, mixer: str) -> Block:
    shapes = serving_shapes(job) if job.workload.serves else shapes_of(job)
    return build_blocks(shapes)[BlockKind(f"{mixer}+dense")]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("recipe", ["bf16", "fp8"])
def test_a_step_runs_with_blocks_that_are_well_formed(mixer: str, recipe: str) -> None:
    job = training(mixer, f"precision.recipe={recipe}", "hardware=h800")
    assert problems(block_of(job, mixer)) == []
    found = simulate(job, engine="longest-path")
    assert found.metrics["step_time_s"] > 0
    assert any(one.cls.startswith("scan.") for one in found.classes)


@pytest.mark.parametrize("mixer", MIXERS)
def test_work_in_chunks_grows_with_the_tokens_only(mixer: str) -> None:
    """Attention of twice the length is four times as much; a state passes over each token once."""
    flops = []
    for length in (4096, 8192):
        block = block_of(training(mixer, f"batch.sequence_length={length}"), mixer)
        flops.append(sum(op.work.flops for op in block.ops() if isinstance(op.work, Scan)))
    assert flops[1] == pytest.approx(2 * flops[0], rel=1e-12)


def test_mamba2_as_one_function_keeps_no_convolution_and_gates_in_the_scan() -> None:
    """8,192 channels of inner width: the scan writes what the gate left and what it was, the norm reads one of them;
    the convolution (10,240 channels) runs again. Two sequences are copied to the front, and back."""
    two = ("gpus=4", "batch.microbatch_size=2", "batch.sequence_length=2048")
    parts, joined = (
        {op.name: op for op in block_of(training("mamba2", f"stack.mamba2={how}", *two), "mamba2").ops()}
        for how in ("parts", "joined")
    )
    values, projected = 4096 * 8192 * 2, 4096 * (2 * 8192 + 2 * 8 * 128 + 128) * 2
    scan, norm = joined["mixer.scan.fwd"], joined["mixer.norm.fwd"]
    assert scan.work.bytes - parts["mixer.scan.fwd"].work.bytes == 2 * values
    assert parts["mixer.norm.fwd"].work.bytes - norm.work.bytes == values
    assert joined["mixer.conv.recompute"].work == parts["mixer.conv.fwd"].work
    assert parts["mixer.conv.fwd"].saved - joined["mixer.conv.fwd"].saved == 4096 * 10240 * 2
    assert scan.saved - parts["mixer.scan.fwd"].saved == values
    assert {name: op.work.bytes for name, op in joined.items() if name not in parts and op.cls == "elem"} == {
        "mixer.sequences.fwd": 2 * projected,
        "mixer.values.fwd": 2 * values,
        "mixer.gated.bwd": 5 * values,
        "mixer.sequences.bwd": 2 * projected,
    }


def test_one_sequence_is_not_copied() -> None:
    ops = {op.name for op in block_of(training("mamba2"), "mamba2").ops()}
    assert "mixer.conv.recompute" in ops
    assert not ops & {"mixer.sequences.fwd", "mixer.values.fwd", "mixer.sequences.bwd"}


@pytest.mark.parametrize(("graphs", "mixer"), [("mamba", True), ("attention", True), ("gate", False)])
def test_graphs_hold_the_recurrent_mixer(graphs: str, mixer: bool) -> None:
    ops = block_of(training("mamba2", f"stack.cuda_graphs={graphs}"), "mamba2").ops()
    assert {op.captured for op in ops if op.name.startswith("mixer.")} == {mixer}
    assert not any(op.captured for op in ops if op.segment.startswith("mlp"))
    full = build_blocks(shapes_of(training("mamba2", f"stack.cuda_graphs={graphs}")))[BlockKind("dense")]
    assert any(op.captured for op in full.ops()) is (graphs == "attention")


def test_kernels_that_pass_the_state_on_go_from_chunk_to_chunk() -> None:
    """4,096 tokens in chunks of 64; 32 heads of 128 columns, 32 a CTA."""
    ops = {op.name: op.work for op in block_of(training("delta"), "delta").ops()}
    state, chunk = ops["mixer.state.fwd"], ops["mixer.scan.fwd"]
    assert isinstance(state, Scan)
    assert isinstance(chunk, Scan)
    assert (state.ctas, state.steps) == (128, 64)
    assert (chunk.ctas, chunk.steps) == (32 * 64, 1)


def test_flop_of_the_delta_rule_by_hand() -> None:
    """Forward, a token and head: 3 GEMMs with the state, and within chunks of 64 three as wide as a key, two as a
    value."""
    block = block_of(training("delta"), "delta")
    found = sum(op.work.flops for op in block.ops() if isinstance(op.work, Scan) and op.part == "F")
    assert found == 4096 * 32 * 2.0 * (3 * 128 * 128 + 64 * (3 * 128 + 2 * 128))


def test_gate_and_decays_of_kda_come_through_narrow_projections() -> None:
    """Every rank has what makes them narrow; heads are split. 4,096 decays of a token are kept in FP32."""
    for tp in (1, 2):
        ops = {op.name: op for op in block_of(training("kda", f"layout.tp={tp}", "gpus=8"), "kda").ops()}
        first, gate, decay = (ops[f"mixer.{name}.fwd"].work for name in ("in", "gate", "decay"))
        assert isinstance(first, Gemm)
        assert isinstance(gate, Gemm)
        assert isinstance(decay, Gemm)
        assert first.n == (3 * 4096 + 32) // tp + 2 * 64
        assert (gate.n, gate.k, decay.n, decay.k) == (4096 // tp, 64, 4096 // tp, 64)
    kept = {op.name: op.saved for op in block_of(training("kda"), "kda").ops()}
    assert kept["mixer.gates.fwd"] == 4096 * (4096 * 4 + 32 * 2)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_state_is_what_a_sequence_keeps_however_long_it_is(mixer: str) -> None:
    """FP32 states and the three last tokens of the convolution, of three layers; the fourth attends."""
    for context in (1000, 9000):
        job = serving(mixer, "llama-3-8b-decode", f"serving.context={context}", "serving.kv_dtype=bf16")
        shapes, tp = serving_shapes(job), job.job.layout.tp
        state = 3 * (STATE[mixer] * 4 + CONVOLVED[mixer] * 3 * 2) / tp
        attended = 4096 / tp * (context + 1)
        assert kv_cache_bytes(job, shapes) == pytest.approx(shapes.serving.sequences * (state + attended), rel=1e-12)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_decode_step_reads_and_writes_the_whole_state(mixer: str) -> None:
    job = serving(mixer, "llama-3-8b-decode")
    ops = {op.name: op.work for op in block_of(job, mixer).ops()}
    work, shapes = ops["mixer.token"], serving_shapes(job)
    assert isinstance(work, Streaming)
    tp = job.job.layout.tp
    assert shapes.batch * STATE[mixer] * 4 / tp < work.written < 1.1 * shapes.batch * STATE[mixer] * 4 / tp
    conv = ops["mixer.conv.fwd"]
    assert isinstance(conv, Streaming)
    assert conv.written == shapes.batch * CONVOLVED[mixer] * (1 + 3) * 2 / tp  # the token, and the last three
    assert not any(isinstance(one, Scan) for one in ops.values())


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_prompt_runs_in_chunks(mixer: str) -> None:
    job = serving(mixer, "llama-3-8b-prefill")
    assert any(isinstance(op.work, Scan) for op in block_of(job, mixer).ops())
    assert all(op.saved == 0.0 for op in block_of(job, mixer).ops())
    for name in ("llama-3-8b-prefill", "llama-3-8b-decode"):
        assert 0 < simulate(serving(mixer, name), engine="longest-path").metrics["mfu"] < 1


@pytest.mark.parametrize("mixer", MIXERS)
def test_tensor_parallel_ranks_have_their_heads(mixer: str) -> None:
    whole, half = (state_of(shapes_of(_kind(training(mixer, f"layout.tp={tp}"), mixer))) for tp in (1, 2))
    assert (half.heads, half.inner, half.state_values) == (whole.heads // 2, whole.inner // 2, whole.state_values // 2)
    found = [p for p in check(training(mixer, "layout.tp=8", "layout.cp=1")) if "layers" in p.message]
    assert found == []


def _kind(job: Scenario, mixer: str) -> Scenario:
    from dataclasses import replace

    return replace(job, model=job.model.of_kind(BlockKind(f"{mixer}+dense")))


@pytest.mark.parametrize("mixer", MIXERS)
def test_context_parallel_ranks_trade_tokens_for_heads(mixer: str) -> None:
    block = block_of(training(mixer, "layout.cp=2", "layout.cp_kind=all_gather"), mixer)
    traded = [op for op in block.ops() if isinstance(op.work, Collective)]
    assert [op.name for op in traded] == ["mixer.heads.fwd", "mixer.tokens.fwd", "mixer.tokens.bwd", "mixer.heads.bwd"]
    assert {op.work.kind for op in traded if isinstance(op.work, Collective)} == {"all_to_all"}


def test_heads_that_no_rank_can_split_are_refused() -> None:
    odd = training("delta", "model.linear_num_value_heads=48", "layout.cp=32", "gpus=64", "layout.tp=1")
    assert any("delta layers' heads" in p.message for p in check(odd))


ONE_PART = ('model.layer_types=["mamba2","none","full","none"]', "model.mixer_only_layers=[0,2]", *MAMBA[1:])


def test_layers_of_one_part_are_what_a_layer_of_both_is() -> None:
    """A Mamba-2 layer and a feed-forward layer after it have the GEMMs of one layer with both."""
    apart = load_scenario("llama-3-8b", [*SMALL, "batch.sequence_length=4096", *ONE_PART])
    assert block_kinds(apart.model)[1:-1] == ("mamba2+none", "none+dense", "full+none", "none+dense")
    parts, whole = build_blocks(shapes_of(apart)), build_blocks(shapes_of(training("mamba2")))
    assert all(problems(block) == [] for block in parts.values())
    for mixer, both in (("mamba2+none", "mamba2+dense"), ("full+none", "dense")):
        kind = BlockKind(both)
        mine = parts[BlockKind(mixer)].flops() + parts[BlockKind("none+dense")].flops()
        assert mine == whole[kind].flops()
    assert apart.model.layer_parameters(BlockKind("none+dense")).norms == 4096
    assert simulate(apart, engine="longest-path").metrics["step_time_s"] > 0


@pytest.mark.parametrize("job", ["llama-3-8b-decode", "llama-3-8b-prefill"])
def test_layers_of_one_part_serve(job: str) -> None:
    found = load_scenario(job, ["model.num_hidden_layers=4", *ONE_PART])
    blocks = build_blocks(serving_shapes(found))
    assert "norm.ffn" not in {op.name for op in blocks[BlockKind("full+none")].ops()}
    assert simulate(found, engine="longest-path").metrics["step_time_s"] > 0


@pytest.mark.parametrize("mixer", MIXERS)
def test_tokens_that_are_verified_together_leave_a_state_each(mixer: str) -> None:
    """Three tokens a sequence: the state is read once and written three times; so many are held."""
    held = {}
    for tokens in (1, 3):
        job = serving(mixer, "llama-3-8b-decode", f"serving.tokens={tokens}", "serving.kv_dtype=bf16")
        shapes, tp = serving_shapes(job), job.job.layout.tp
        work = {op.name: op.work for op in block_of(job, mixer).ops()}["mixer.token"]
        assert isinstance(work, Streaming)
        state = shapes.batch * STATE[mixer] * 4 / tp
        assert tokens * state < work.written < 1.1 * tokens * state
        assert work.read < 1.1 * state
        held[tokens] = kv_cache_bytes(job, shapes)
    assert held[3] - held[1] == pytest.approx(2 * (3 * state + shapes.batch * 4096 / tp))
