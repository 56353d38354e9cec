"""The whole model over a KV cache equals the plain forward; drafts change only the passes, and leave no trace."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference.test_ref_training import CFG, SETTINGS
from workloads.reference.cached import decode, draft, empty_caches, forward, speculate
from workloads.reference.config import RefConfig
from workloads.reference.count import Run
from workloads.reference.init import Params, init_params, units
from workloads.reference.layers.ends import logits_of
from workloads.reference.layers.mtp import mtp_trunk
from workloads.reference.model import SHARED, as_tokens, stage_forward
from workloads.reference.precision import EXACT
from workloads.reference.presets import tiny_gqa, tiny_v2_lite, tiny_v3
from workloads.reference.speculative import Choose, decode_plain, decode_speculative, likeliest, sampler
from workloads.reference.train import Trained, train


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(CFG, EXACT, SETTINGS)


def plain(run: Run, params: Params, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States and logits of the forward that training runs."""
    chain = [unit for unit in units(run.cfg) if unit == "embed" or unit.startswith("layers.")]
    padded = np.concatenate([tokens, np.zeros((len(tokens), 1 + run.cfg.num_nextn_predict_layers), int)], axis=1)
    states = stage_forward(run, params, chain, None, padded).state
    return states, logits_of(run, params["head"], states)[0]


@pytest.mark.parametrize("cfg", [tiny_v3(), tiny_v2_lite()], ids=["v3", "v2-lite"])
@pytest.mark.parametrize("pieces", [(9,), (4, 1, 1, 3), (1,) * 9], ids=["prompt", "chunks", "tokens"])
def test_decoding_over_a_cache_is_the_plain_forward(cfg: RefConfig, pieces: tuple[int, ...]) -> None:
    run, params = Run(cfg=cfg), init_params(cfg, 0)
    tokens = as_tokens(cfg, 1, 2, 9)[:, :9]
    states, logits = plain(run, params, tokens)
    caches, at, found = empty_caches(run, 2), 0, []
    for piece in pieces:
        x, y, caches = forward(run, params, tokens[:, at : at + piece], caches)
        found.append((x, y))
        at += piece
    np.testing.assert_allclose(np.concatenate([x for x, _ in found], axis=1), states, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(np.concatenate([y for _, y in found], axis=1), logits, rtol=1e-9, atol=1e-11)
    assert caches.length == 9


def test_the_module_over_its_cache_is_the_one_of_training() -> None:
    cfg = tiny_v3()
    run, params = Run(cfg=cfg), init_params(cfg, 0)
    tokens = as_tokens(cfg, 1, 1, 8)[:, :8]
    states, _ = plain(run, params, tokens[:, :7])
    p = params["mtp.0"] | {name: params[owner][name] for name, owner in SHARED.items()}
    whole, _, _ = mtp_trunk(run.at(layer=cfg.num_hidden_layers), p, states, tokens[:, 1:])
    first, _, cache = draft(run, params, states[:, :4], tokens[:, 1:5], empty_caches(run).module)
    rest, _, cache = draft(run, params, states[:, 4:], tokens[:, 5:], cache)
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), whole, rtol=1e-9, atol=1e-11)
    assert cache.length == 7


@pytest.mark.parametrize("choose", [likeliest, sampler(5)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_verified_drafts_yield_the_same_tokens_and_leave_no_trace(trained: Trained, depth: int, choose: Choose) -> None:
    run, prompt = Run(cfg=CFG), [3, 1, 4, 1, 5]
    wanted = decode_plain(run, trained.params, prompt, 16, choose).tokens
    alone, _ = decode(run, trained.params, prompt, 16, choose)
    quick, caches = speculate(run, trained.params, prompt, 16, depth, choose)
    assert alone.tokens == wanted
    assert quick.tokens[: len(wanted)] == wanted
    assert quick.passes + quick.accepted == len(quick.tokens) - len(prompt)
    _, _, fresh = forward(run, trained.params, np.array([quick.tokens[:-1]]), empty_caches(run))
    assert caches.length == fresh.length == len(quick.tokens) - 1
    for mine, theirs in zip(caches.layers, fresh.layers, strict=True):
        np.testing.assert_allclose(mine.latent, theirs.latent, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mine.k_rope, theirs.k_rope, rtol=1e-4, atol=1e-5)


def test_one_draft_with_a_cache_is_one_draft_without(trained: Trained) -> None:
    run, prompt = Run(cfg=CFG), [3, 1, 4, 1, 5]
    slow = decode_speculative(run, trained.params, prompt, 16)
    quick, _ = speculate(run, trained.params, prompt, 16, 1)
    assert (quick.passes, quick.accepted) == (slow.passes, slow.accepted)


def test_drafts_of_an_untrained_module_are_rolled_back() -> None:
    params, run = init_params(CFG, 7), Run(cfg=CFG)
    quick, caches = speculate(run, params, [1, 2, 3], 12, 3, sampler(0))
    assert quick.accepted < quick.drafted / 2
    assert caches.length == len(quick.tokens) - 1


def test_other_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="only layers of latent attention"):
        empty_caches(Run(cfg=tiny_gqa()))
