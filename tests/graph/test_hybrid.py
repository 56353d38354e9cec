"""Attention and Mamba-2 next to each other in a layer (Falcon-H1): both branches' ops once each, cache and state."""

from __future__ import annotations

import pytest

from simulator.errors import InputError
from simulator.graph.block import Block, problems
from simulator.graph.serving.shapes import serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.inputs.architectures import Unsupported
from simulator.inputs.architectures.recurrent import SHIPPED
from simulator.inputs.check import check
from simulator.memory.serving import kv_cache_bytes
from simulator.ops import Collective, Op, Streaming
from simulator.results.simulate import simulate
from simulator.spec.mixer import BlockKind
from simulator.spec.model import ModelSpec
from simulator.spec.scenario import Scenario
from simulator.validation.public_models import public_model

STATE = ("mamba_num_heads=32", "mamba_head_dim=128", "mamba_n_groups=2", "ssm_state_size=256", "mamba_rms_norm=false")
SIZES = tuple(f"model.{size}" for size in STATE)
JOB = ("model.num_hidden_layers=4", "gpus=8", "layout.tp=1", "batch.global_batch_size=8", "batch.sequence_length=4096")


def job_of(mixer: str, name: str = "llama-3-8b", *overrides: str) -> Scenario:
    kinds = f'model.layer_types=["{mixer}","{mixer}","{mixer}","{mixer}"]'
    return load_scenario(name, [*(JOB if name == "llama-3-8b" else JOB[:1]), kinds, *SIZES, *overrides])


def ops_of(job: Scenario, mixer: str) -> dict[str, Op]:
    kind = BlockKind("dense" if mixer == "full" else f"{mixer}+dense")
    shapes = serving_shapes(job) if job.workload.serves else shapes_of(job)
    block: Block = build_blocks(shapes)[kind]
    assert problems(block) == []
    return {op.name: op for op in block.ops()}


def full(name: str = "llama-3-8b", *overrides: str) -> Scenario:
    own = JOB if name == "llama-3-8b" else JOB[:1]
    return load_scenario(name, [*own, *overrides])


@pytest.mark.parametrize("name", ["llama-3-8b", "llama-3-8b-decode", "llama-3-8b-prefill"])
@pytest.mark.parametrize("recipe", ["bf16", "fp8"])
def test_ops_are_those_of_both_branches_and_their_sum(name: str, recipe: str) -> None:
    change = (f"precision.recipe={recipe}", "hardware=h800")
    both = ops_of(job_of("hybrid", name, *change), "hybrid")
    attended, passed = ops_of(full(name, *change), "full"), ops_of(job_of("mamba2", name, *change), "mamba2")
    assert set(both) - set(attended) - set(passed) == {op for op in both if op.startswith("attn.mixers")}
    assert set(attended) | set(passed) <= set(both) | {"attn.o.all_reduce", "mixer.out.all_reduce"}
    for op in both.values():
        one = attended.get(op.name) or passed.get(op.name)
        assert one is None or (one.flops, one.saved, one.work) == (op.flops, op.saved, op.work), op.name


def test_what_is_kept_is_what_both_keep_with_one_input() -> None:
    """The norm's input, output and statistics are kept once."""
    both, attended, passed = (
        sum(op.saved for op in ops.values())
        for ops in (ops_of(job_of("hybrid"), "hybrid"), ops_of(full(), "full"), ops_of(job_of("mamba2"), "mamba2"))
    )
    rest = sum(op.saved for name, op in ops_of(full(), "full").items() if name.startswith(("norm.", "dense.")))
    assert both == attended + passed - rest


def test_without_a_norm_the_state_kernel_gates() -> None:
    """Scan: z is read, the gated output written and kept next to the other; backward has a kernel of its own."""
    normed, plain = (
        ops_of(job_of("mamba2", "llama-3-8b", f"model.mamba_rms_norm={on}", "stack.mamba2=parts"), "mamba2")
        for on in ("true", "false")
    )
    values = 4096 * 32 * 128 * 2
    for name in ("read", "written"):
        assert getattr(plain["mixer.scan.fwd"].work, name) - getattr(normed["mixer.scan.fwd"].work, name) == values
    assert "mixer.norm.fwd" in normed
    assert "mixer.norm.fwd" not in plain
    assert isinstance(plain["mixer.gated.bwd"].work, Streaming)
    assert plain["mixer.gated.bwd"].work.bytes == 5 * values
    sizes = {
        one: job_of("mamba2", "llama-3-8b", f"model.mamba_rms_norm={one}").model.parameters()
        for one in ("true", "false")
    }
    assert sizes["true"] - sizes["false"] == 4 * 32 * 128


def test_a_sequence_holds_a_cache_and_a_state() -> None:
    for context in (1000, 9000):
        change = (f"serving.context={context}", "serving.kv_dtype=bf16")
        both, attended, passed = (
            kv_cache_bytes(job, serving_shapes(job))
            for job in (
                job_of("hybrid", "llama-3-8b-decode", *change),
                full("llama-3-8b-decode", *change),
                job_of("mamba2", "llama-3-8b-decode", *change),
            )
        )
        assert both == attended + passed


def test_model_flop_are_those_of_both() -> None:
    def macs(model: ModelSpec, kind: str, sequence: int) -> float:
        return model.layer_macs_per_token(BlockKind(kind), sequence)

    for sequence in (1, 4096):
        both, attended, passed = (
            macs(job_of("hybrid").model, "hybrid+dense", sequence),
            macs(full().model, "dense", sequence),
            macs(job_of("mamba2").model, "mamba2+dense", sequence),
        )
        assert both == attended + passed - 3 * 4096 * 14336
    for name in ("llama-3-8b-decode", "llama-3-8b-prefill"):
        assert 0 < simulate(job_of("hybrid", name), engine="longest-path").metrics["mfu"] < 1


def test_each_branch_reduces_by_itself_and_both_trade_under_context_parallelism() -> None:
    ops = ops_of(job_of("hybrid", "llama-3-8b", "layout.tp=2", "layout.cp=2", "layout.cp_kind=all_gather"), "hybrid")
    named = [name for name, op in ops.items() if isinstance(op.work, Collective)]
    for part in ("mixer.out", "attn.o", "mixer.heads", "mixer.tokens", "attn.core.fwd.kv"):
        assert any(name.startswith(part) for name in named), part
    wrong = job_of("hybrid", "llama-3-8b", "layout.tp=8", "model.mamba_num_heads=36", "model.mamba_n_groups=4")
    assert any("heads of hybrid layers" in problem.message for problem in check(wrong))


def test_published_sizes() -> None:
    """33.6B (arXiv 2507.22448); 20 query heads of 128 next to 32 states of 256 x 128 in each layer."""
    model = public_model("Falcon-H1-34B")
    assert model is not None
    assert model.parameters() == 33_642_221_312
    assert set(model.layer_kinds()) == {"hybrid+dense"}
    state = model.of_kind(BlockKind("hybrid+dense")).state
    assert (state.heads, state.key_dim, state.value_dim, state.norms) == (32, 256, 128, 0)


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({"mamba_d_ssm": 100}, "must be the 32 heads"),
        ({"layer_types": ["hybrid"]}, "must be hybrid for each"),
    ],
)
def test_what_a_file_cannot_say(change: dict[str, object], right: str) -> None:
    table = {"mamba_d_ssm": 4096, "mamba_num_heads": 32, "mamba_d_head": 128, "num_hidden_layers": 2, "hidden_size": 64}
    with pytest.raises(Unsupported, match=right):
        SHIPPED["falcon_h1"].finish(table | change)


def test_latent_attention_next_to_mamba_is_refused() -> None:
    with pytest.raises(InputError, match="grouped queries, and one norm before both"):
        load_scenario("deepseek-v3-1f1b", [f"model.layer_types={['hybrid'] * 61}".replace("'", '"'), *SIZES])
