"""The toy learns, load balancing balances, and speculative decoding changes nothing but the number of passes."""

from dataclasses import replace

import numpy as np
import pytest

from workloads.reference.balance import Skew, balance_run, gate_config, max_over_mean, rank_loads, update_bias
from workloads.reference.count import Run
from workloads.reference.init import Params, init_params
from workloads.reference.parallel.traffic import Layout
from workloads.reference.precision import EXACT, Bf16, Fp8, Precision
from workloads.reference.presets import toy_trainee
from workloads.reference.speculative import (
    Choose,
    decode_plain,
    decode_speculative,
    likeliest,
    module_share,
    sampler,
    speedup,
)
from workloads.reference.train import Trained, TrainSettings, evaluate, text, train

CFG = toy_trainee()
SETTINGS = TrainSettings(steps=60)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(CFG, Bf16(), SETTINGS)


@pytest.mark.long
def test_the_toy_learns_and_repeats_itself(trained: Trained) -> None:
    assert trained.losses[0] == pytest.approx(np.log(CFG.vocab_size), rel=0.1)
    assert trained.losses[-5:].mean() < 1.1
    short = replace(SETTINGS, steps=8)
    np.testing.assert_array_equal(train(CFG, Bf16(), short).losses, train(CFG, Bf16(), short).losses)
    fresh = init_params(CFG, 0, np.float32)
    assert evaluate(CFG, trained.params, EXACT, SETTINGS, 2) < 0.5 * evaluate(CFG, fresh, EXACT, SETTINGS, 2)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Bf16(), Fp8()], ids=["bf16", "fp8"])
def test_low_precision_follows_float32(precision: Precision) -> None:
    short = replace(SETTINGS, steps=12)
    exact, low = (train(CFG, p, short).losses for p in (EXACT, precision))
    assert not np.array_equal(exact, low)
    np.testing.assert_allclose(low, exact, rtol=0.02)


@pytest.mark.parametrize("choose", [likeliest, sampler(5)], ids=["greedy", "sampled"])
def test_speculation_yields_the_same_tokens_in_fewer_passes(trained: Trained, choose: Choose) -> None:
    run, prompt = Run(cfg=CFG), text(CFG.vocab_size, 0)(np.random.default_rng(1), 10).tolist()
    plain = decode_plain(run, trained.params, prompt, 24, choose)
    quick = decode_speculative(run, trained.params, prompt, 24, choose)
    assert quick.tokens == plain.tokens
    assert len(plain.tokens) == 34
    assert quick.passes < plain.passes == 24
    assert quick.passes + quick.accepted in (24, 25)  # each pass one token, each accepted draft one more
    assert 0 < quick.acceptance <= 1


def test_an_untrained_module_is_never_trusted() -> None:
    params: Params = init_params(CFG, 7)
    run = Run(cfg=CFG)
    plain, quick = (f(run, params, [1, 2, 3], 12, sampler(0)) for f in (decode_plain, decode_speculative))
    assert quick.tokens == plain.tokens
    assert quick.acceptance < 0.5


def test_speedup_formula() -> None:
    assert speedup(0.0, module_cost=0.0) == 1.0
    assert speedup(0.9, module_cost=0.0) == 1.9
    assert speedup(0.875, module_cost=0.04) == pytest.approx(1.80, abs=0.005)
    assert speedup(0.9, module_cost=0.0, verify_cost=1.0) < 1  # compute-bound: judging a token costs a token
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        speedup(1.5, module_cost=0.0)
    with pytest.raises(ValueError, match="no MTP module"):
        module_share(replace(CFG, num_nextn_predict_layers=0), activated=True)


def test_bias_update() -> None:
    got = update_bias(np.zeros(3), np.array([4, 2, 0]), 0.1)
    np.testing.assert_allclose(got, [-0.1, 0.0, 0.1])
    assert max_over_mean(np.array([4, 2, 0])) == 2.0
    assert max_over_mean(np.zeros(3)) == 1.0
    assert rank_loads(np.arange(8), Layout(experts=8, ranks=4, nodes=2)).tolist() == [1, 5, 9, 13]


@pytest.mark.long
def test_bias_balances_batches_without_forcing_sequences() -> None:
    cfg, skew = gate_config(32, 4, 4, 2), Skew(sequences=64, length=16)
    without = balance_run(cfg, steps=150, seed=0, skew=skew)
    biased = balance_run(cfg, steps=150, seed=0, speed=5e-3, skew=skew)
    helped = balance_run(cfg, steps=150, seed=0, alpha=1e-2, learning_rate=30.0, skew=skew)
    tail = slice(-30, None)
    assert without.per_batch[tail].mean() > 2.5
    assert biased.per_batch[tail].mean() < 1.6
    assert helped.per_batch[tail].mean() < 2.0
    assert biased.per_sequence[tail].mean() > 2 * biased.per_batch[tail].mean()
    assert (biased.loads.sum(axis=1) == 64 * 16 * 4).all()
