"""What the model counts while it runs, against closed forms and against the arrays it really holds."""

from dataclasses import replace

import numpy as np
import pytest

from workloads.reference.config import RefConfig
from workloads.reference.count import OUTSIDE, RECOMPUTABLE, WHOLE, Count, Counter, Run, Widths
from workloads.reference.init import init_params, unit_shapes, units
from workloads.reference.model import as_tokens, loss_and_grads, stage_forward
from workloads.reference.presets import tiny_gqa, tiny_v2_lite, tiny_v3

MODELS = {"v3": tiny_v3(), "v2-lite": tiny_v2_lite(), "gqa": tiny_gqa()}
B, S = 2, 7
OPS = frozenset(RECOMPUTABLE) - WHOLE - {"core_attn"}
T = B * S


def counted(cfg: RefConfig, recompute: frozenset[str] = frozenset(), widths: Widths | None = None) -> Counter:
    counter = Counter(widths)
    loss_and_grads(Run(cfg=cfg, counter=counter, recompute=recompute), init_params(cfg, 0), as_tokens(cfg, 0, B, S))
    return counter


def matmul_ops(cfg: RefConfig, layer: int) -> dict[str, int]:
    """MACs of one pass through each weight matrix of a layer, from its shape and the rows it sees."""
    shapes = unit_shapes(cfg, f"layers.{layer}")
    rows = {
        name: T * cfg.num_experts_per_tok / cfg.experts if name.startswith("moe.") else T
        for name, shape in shapes.items()
        if len(shape) >= 2
    }
    return {name: round(rows[name] * np.prod(shapes[name])) for name in rows}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("part", ["F", "I", "W"])
def test_each_gemm_costs_two_flops_a_mac_in_every_part(name: str, part: str) -> None:
    cfg = MODELS[name]
    counter = counted(cfg)
    for layer in range(cfg.num_hidden_layers):
        for op, macs in matmul_ops(cfg, layer).items():
            assert counter.counts[layer, op, part].flops == 2 * macs, op
    assert counter.counts[OUTSIDE, "head", part].flops == 2 * T * cfg.hidden_size * cfg.vocab_size


@pytest.mark.parametrize("name", MODELS)
def test_attention_core_counts_the_full_square(name: str) -> None:
    cfg = MODELS[name]
    counter = counted(cfg)
    square = 2 * B * cfg.num_attention_heads * S * S
    assert counter.counts[0, "attn.core", "F"].flops == square * (cfg.qk_head_dim + cfg.v_dim)
    assert counter.counts[0, "attn.core", "I"].flops == square * (3 * cfg.qk_head_dim + 2 * cfg.v_dim)
    assert (0, "attn.core", "W") not in counter.counts


def test_names_are_the_ones_promised() -> None:
    names = {op for _, op, _ in counted(tiny_v3()).counts}
    assert names == {
        "embed",
        "attn.q_a",
        "attn.kv_a",
        "attn.q_b",
        "attn.kv_b",
        "attn.core",
        "attn.o",
        "router.gate",
        "shared.up_gate",
        "shared.down",
        "moe.up_gate",
        "moe.down",
        "moe.dispatch",
        "moe.combine",
        "dense.up_gate",
        "dense.down",
        "norm.attn",
        "norm.q_lora",
        "norm.kv_lora",
        "norm.ffn",
        "norm.final",
        "mtp.proj",
        "mtp.norm_h",
        "mtp.norm_e",
        "head",
        "loss",
    }
    lite = {op for _, op, _ in counted(tiny_v2_lite()).counts}
    assert "attn.q" in lite
    assert not lite & {"attn.q_a", "attn.q_b", "norm.q_lora", "mtp.proj"}
    gqa = {op for _, op, _ in counted(tiny_gqa()).counts if op.startswith("attn")}
    assert gqa == {"attn.qkv", "attn.core", "attn.o"}


def test_bytes_of_one_gemm() -> None:
    """T x k input and k x n weight in, T x n out; the weight gradient is written in FP32."""
    cfg = tiny_v3()
    k, n = cfg.hidden_size, cfg.q_lora_rank or 0
    counts = counted(cfg).counts
    assert counts[0, "attn.q_a", "F"].read == 2 * (T * k + k * n)
    assert counts[0, "attn.q_a", "F"].written == 2 * T * n
    assert counts[0, "attn.q_a", "I"] == Count(flops=2 * T * k * n, read=2 * (T * n + k * n), written=2 * T * k)
    assert counts[0, "attn.q_a", "W"] == Count(flops=2 * T * k * n, read=2 * (T * n + T * k), written=4 * k * n)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recompute", [frozenset(), OPS, *(frozenset((name,)) for name in sorted(WHOLE))])
def test_kept_bytes_are_the_arrays_held(name: str, recompute: frozenset[str]) -> None:
    cfg, counter = MODELS[name], Counter(Widths(default=1.0, by_tensor={}))
    out = stage_forward(
        Run(cfg=cfg, counter=counter, recompute=recompute),
        init_params(cfg, 0),
        units(cfg),
        None,
        as_tokens(cfg, 0, B, S),
    )
    held = sum(array.size for saved in out.saved.values() for array in saved.values())
    assert counter.total(part="F").kept == sum(counter.kept.values()) == held


def test_kept_activations_of_an_mla_layer_in_closed_form() -> None:
    """2 bytes an element, statistics in FP32, nothing recomputed."""
    c = tiny_v3()
    kept = {name: size for (layer, name), size in counted(c).kept.items() if layer == 0}
    heads, rank, rows = c.num_attention_heads, c.kv_lora_rank or 0, {}
    widths = {
        "norm.attn/x": c.hidden_size,
        "attn.q_a/x": c.hidden_size,
        "norm.q_lora/x": 14,
        "attn.q_b/x": 14,
        "norm.kv_lora/x": rank,
        "attn.kv_b/x": rank,
        "attn.core/q": heads * 10,
        "attn.core/k": heads * 10,
        "attn.core/v": heads * 5,
        "attn.o/x": heads * 5,
        "norm.ffn/x": c.hidden_size,
        "dense.up_gate/x": c.hidden_size,
        "dense.down/u": 80,
        "dense.down/x": 40,
    }
    rows = {name: 2.0 * T * width for name, width in widths.items()}
    rows |= {f"{op}/rstd": 4.0 * T for op in ("norm.attn", "norm.q_lora", "norm.kv_lora", "norm.ffn")}
    assert kept == rows | {"attn.core/lse": 4.0 * T * heads}


def test_recomputation_keeps_less_and_is_counted_apart() -> None:
    cfg = tiny_v3()
    plain, again = counted(cfg), counted(cfg, OPS)
    dropped = {name for _, name in set(plain.kept) - set(again.kept)}
    norms = {"attn", "ffn", "q_lora", "kv_lora", "final"}
    assert dropped == {f"norm.{which}/rstd" for which in norms} | {
        "attn.q_a/x",
        "head/x",
        "mtp.norm_h/rstd",
        "mtp.norm_e/rstd",
        "mtp.proj/x",
        "moe.up_gate/x",
        "attn.q_b/x",
        "attn.kv_b/x",
        "attn.core/q",
        "attn.core/k",
        "attn.core/v",
        "router.gate/x",
        "dense.up_gate/x",
        "dense.down/x",
        "moe.down/x",
        "shared.down/x",
    }
    assert {name for _, name in set(again.kept) - set(plain.kept)} == {"attn.kv_a/k_rope", "moe.dispatch/x"}
    assert plain.total(part="R") == Count()
    assert {op for _, op, part in again.counts if part == "R"} == {
        "norm.attn",
        "norm.ffn",
        "norm.q_lora",
        "norm.kv_lora",
        "norm.final",
        "mtp.norm_h",
        "mtp.norm_e",
        "attn.q_b",
        "attn.kv_b",
        "dense.down",
        "moe.dispatch",
        "moe.down",
        "shared.down",
    }
    for op in ("attn.q_b", "attn.kv_b"):
        assert again.total(op=op, part="R").flops == plain.total(op=op, part="F").flops
    for part in "FIW":
        assert again.total(part=part).flops == plain.total(part=part).flops


def test_declared_widths_scale_bytes_and_zero_leaves_out() -> None:
    cfg = tiny_gqa()
    two, one = counted(cfg), counted(cfg, widths=Widths(default=1.0, by_tensor={"rstd": 0.0, "lse": 0.0}))
    assert one.kept[0, "attn.o/x"] * 2 == two.kept[0, "attn.o/x"]
    assert one.kept[0, "norm.attn/rstd"] == 0.0


def test_unread_experts_are_not_counted() -> None:
    """One token reaches num_experts_per_tok experts: only their weights are read."""
    cfg = replace(tiny_v3(), num_hidden_layers=2, num_nextn_predict_layers=0)
    counter = Counter()
    loss_and_grads(Run(cfg=cfg, counter=counter), init_params(cfg, 0), as_tokens(cfg, 0, 1, 1))
    rows, per_expert = cfg.num_experts_per_tok, 2 * cfg.hidden_size * cfg.moe_intermediate_size
    assert counter.counts[1, "moe.up_gate", "F"].read == 2 * rows * (cfg.hidden_size + per_expert)
