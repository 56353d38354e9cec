"""Rotary positions, causality, and the two forms of MLA decoding."""

import math
from dataclasses import replace

import numpy as np
import pytest

from workloads.reference.config import RefConfig
from workloads.reference.count import Counter, Run
from workloads.reference.init import init_params
from workloads.reference.layers.mla import mla
from workloads.reference.layers.mla_decode import decode_absorbed, decode_plain, empty_cache
from workloads.reference.layers.norm import rmsnorm
from workloads.reference.layers.rope import angles, frequencies, rotate, softmax_scale
from workloads.reference.model import as_tokens, stage_forward
from workloads.reference.presets import tiny_gqa, tiny_v2_lite, tiny_v3

V3_ROPE = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def test_rotation_makes_dot_products_depend_on_distance_only() -> None:
    cfg, rng = tiny_gqa(), np.random.default_rng(0)
    q, k = rng.standard_normal((2, cfg.v_dim))
    cos, sin = angles(cfg, 12)
    qs, ks = (rotate(np.tile(x, (1, 12, 1, 1)), cos, sin)[0, :, 0] for x in (q, k))
    products = qs @ ks.T
    for distance in range(-11, 12):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(qs, axis=1), np.linalg.norm(q))


def test_yarn_with_v3_numbers() -> None:
    """Fast pairs keep their frequency, slow ones are slowed 40 times; the ramp runs between pairs 10 and 23."""
    cfg = replace(tiny_v3(), qk_nope_head_dim=128, qk_rope_head_dim=64, rope_scaling=V3_ROPE)
    plain, stretched = frequencies(replace(cfg, rope_scaling=None)), frequencies(cfg)
    ratio = plain / stretched
    np.testing.assert_allclose(ratio[:11], 1.0)
    np.testing.assert_allclose(ratio[23:], 40.0)
    assert (np.diff(ratio[10:24]) > 0).all()
    assert softmax_scale(cfg) == pytest.approx((0.1 * math.log(40) + 1) ** 2 / math.sqrt(192))
    cos, sin = angles(cfg, 3)
    np.testing.assert_allclose(cos**2 + sin**2, 1.0)  # mscale and mscale_all_dim cancel


@pytest.mark.parametrize("cfg", [tiny_v3(), tiny_gqa()], ids=["mla", "gqa"])
def test_the_future_does_not_matter(cfg: RefConfig) -> None:
    params, tokens = init_params(cfg, 0), as_tokens(cfg, 0, 1, 8)
    later = tokens.copy()
    later[0, 5] = (later[0, 5] + 1) % cfg.vocab_size
    a, b = (stage_forward(Run(cfg=cfg), params, ["embed", "layers.0"], None, t).state for t in (tokens, later))
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert np.abs(a[:, 5:] - b[:, 5:]).max() > 1e-3


@pytest.mark.parametrize("cfg", [tiny_v3(), tiny_v2_lite()], ids=["q_lora", "no_q_lora"])
def test_absorbed_decoding_equals_plain_equals_training(cfg: RefConfig) -> None:
    rng = np.random.default_rng(1)
    run, p = Run(cfg=cfg), init_params(cfg, 0)["layers.0"]
    x, _ = rmsnorm(run, "norm.attn", rng.standard_normal((2, 9, cfg.hidden_size)), p["norm.attn"])
    whole, _ = mla(run, p, x)
    for decode in (decode_plain, decode_absorbed):
        cache, out = empty_cache(run, 2), []
        for piece in (x[:, :4], x[:, 4:5], x[:, 5:6], x[:, 6:]):  # a prompt, two tokens, a speculated triple
            y, cache = decode(run, p, piece, cache)
            out.append(y)
        np.testing.assert_allclose(np.concatenate(out, axis=1), whole, rtol=1e-10, atol=1e-12)
        assert cache.latent.shape == (2, 9, cfg.kv_lora_rank)


def test_absorbed_form_does_not_expand_the_cache() -> None:
    """At a long cache the plain form pays the up-projection for every cached position, the absorbed one once."""
    cfg = tiny_v3()
    p = init_params(cfg, 0)["layers.0"]
    rng = np.random.default_rng(0)
    flops = []
    for decode in (decode_plain, decode_absorbed):
        counter = Counter()
        _, cache = decode(Run(cfg=cfg), p, rng.standard_normal((1, 64, cfg.hidden_size)), empty_cache(Run(cfg=cfg), 1))
        decode(Run(cfg=cfg, counter=counter), p, rng.standard_normal((1, 1, cfg.hidden_size)), cache)
        flops.append(counter.total(op="attn.kv_b").flops)
    assert flops[0] == 65 * flops[1]
