"""Every gradient written by hand, against finite differences in float64."""

from dataclasses import replace

import numpy as np
import pytest

from workloads.reference.config import RefConfig
from workloads.reference.count import RECOMPUTABLE, WHOLE, Run
from workloads.reference.init import Params, init_params, units
from workloads.reference.model import as_tokens, loss_and_grads, stage_forward
from workloads.reference.presets import (
    tiny_chunks,
    tiny_delta,
    tiny_falcon_h1,
    tiny_falcon_mamba,
    tiny_gqa,
    tiny_jamba,
    tiny_k3,
    tiny_kda,
    tiny_lfm2,
    tiny_m3,
    tiny_mamba,
    tiny_nemotron,
    tiny_qwen3_moe,
    tiny_trinity,
    tiny_v2_lite,
    tiny_v3,
    tiny_v4,
    tiny_v32,
    tiny_windows,
)

MODELS = {
    "v3": tiny_v3(),
    "v3-two-mtp": replace(tiny_v3(), num_nextn_predict_layers=2, num_hidden_layers=2),
    "v3-no-shared": replace(tiny_v3(), n_shared_experts=0, num_hidden_layers=2),
    "v2-lite": tiny_v2_lite(),
    "v4": tiny_v4(),
    "v3.2": replace(tiny_v32(), num_hidden_layers=2),
    "m3": tiny_m3(),
    "trinity": tiny_trinity(),
    "tied": replace(tiny_gqa(), qk_norm=True, value_norm=True, key_is_value=True, num_hidden_layers=2),
    "gqa": tiny_gqa(),
    "qwen2": replace(tiny_gqa(), attention_bias=True, num_hidden_layers=2),
    "qwen3-moe": tiny_qwen3_moe(),
    "windows": tiny_windows(),
    "chunks": tiny_chunks(),
    "delta": tiny_delta(),
    "mamba": tiny_mamba(),
    "kda": tiny_kda(),
    "k3": tiny_k3(),
    "nemotron": tiny_nemotron(),
    "falcon-h1": replace(tiny_falcon_h1(), num_hidden_layers=1, layer_types=("hybrid",)),
    "jamba": replace(tiny_jamba(), num_hidden_layers=2, layer_types=("mamba1", "full_attention"), mlp_only_layers=(1,)),
    "mamba1": replace(
        tiny_falcon_mamba(),
        num_hidden_layers=1,
        layer_types=("mamba1",),
        mixer_only_layers=(0,),
        mamba_state_norms=False,
    ),
    "lfm2": replace(tiny_lfm2(), num_hidden_layers=2, layer_types=("conv", "full_attention")),
    "falcon-mamba": replace(tiny_falcon_mamba(), num_hidden_layers=1, layer_types=("mamba1",), mixer_only_layers=(0,)),
    "post-norm": replace(tiny_gqa(), norm_placement="post", qk_norm=True, qk_norm_over="projection"),
    "both-norms": replace(tiny_gqa(), norm_placement="both", num_hidden_layers=2),
    "parallel": replace(tiny_gqa(), parallel_block=True, num_hidden_layers=2),
    "one-norm": replace(tiny_gqa(), parallel_block=True, shared_norm=True, num_hidden_layers=2),
    "gated": replace(tiny_gqa(), attention_gate="element", head_dim=8, partial_rotary_factor=0.25, num_hidden_layers=2),
}


def objective(cfg: RefConfig, params: Params, tokens: np.ndarray) -> float:
    return sum(stage_forward(Run(cfg=cfg), params, units(cfg), None, tokens).losses.values())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recompute", [(), tuple(set(RECOMPUTABLE) - WHOLE), tuple(WHOLE - {"layer"}), ("layer",)])
def test_every_weight_against_finite_differences(name: str, recompute: tuple[str, ...]) -> None:
    cfg = MODELS[name]
    params = init_params(cfg, seed=1)
    tokens = as_tokens(cfg, seed=2, batch=2, length=7)
    run = Run(cfg=cfg, recompute=frozenset(recompute), early_stop="layer" in recompute)
    _, grads = loss_and_grads(run, params, tokens)
    rng = np.random.default_rng(3)
    for unit, weights in params.items():
        for weight, array in weights.items():
            if weight == "router.bias":  # steers selection only: no gradient by definition
                assert weight not in grads[unit]
                continue
            if "index" in weight:  # learns from a loss of its own, below
                continue
            direction = rng.standard_normal(array.shape)
            step = 1e-6
            values = []
            for sign in (1, -1):
                moved = {u: dict(w) for u, w in params.items()}
                moved[unit][weight] = array + sign * step * direction
                values.append(objective(cfg, moved, tokens))
            slope = (values[0] - values[1]) / (2 * step)
            mine = float((grads[unit][weight] * direction).sum())
            assert mine == pytest.approx(slope, rel=2e-5, abs=2e-8), f"{unit} {weight}"
            assert np.abs(grads[unit][weight]).max() > 0, f"{unit} {weight}: a zero gradient proves nothing"
