"""Balancing expert load: a selection bias without a loss (DeepSeek-V3 section 2.1.2), or an auxiliary loss."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from workloads.reference.config import RefConfig
from workloads.reference.count import Array
from workloads.reference.layers.gate import balance_loss, route, route_input_grad
from workloads.reference.parallel.traffic import Layout


def update_bias(bias: Array, load: Array, speed: float) -> Array:
    """Next step's selection bias [E]: `speed` less where load [E] is above its mean, more where below."""
    step: Array = bias + speed * np.sign(load.mean() - load)
    return step


def max_over_mean(load: Array) -> Array:
    """Busiest expert over the mean, along the last axis; 1 is perfect. No load at all counts as balanced."""
    mean = load.mean(axis=-1)
    ratio: Array = np.where(mean > 0, load.max(axis=-1) / np.where(mean > 0, mean, 1.0), 1.0)
    return ratio


def rank_loads(load: Array, layout: Layout) -> Array:
    """(token, expert) pairs per rank from pairs per expert [E]."""
    sums: Array = load.reshape(layout.ranks, layout.experts_per_rank).sum(axis=1)
    return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceTrace:
    """Load over steps under one method."""

    per_batch: Array  # [steps] max / mean over the batch
    per_sequence: Array  # [steps] the same within a sequence, mean over sequences
    loads: Array  # [steps, E] (token, expert) pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """Synthetic tokens: each sequence has a topic, all share a common direction that some experts prefer."""

    width: int = 32
    sequences: int = 16
    length: int = 64
    topic: float = 1.0  # size of a sequence's own direction against the tokens' noise of 1
    common: float = 1.0  # size of the direction shared by all, which makes some experts popular


def gate_config(experts: int, top_k: int, n_group: int, topk_group: int) -> RefConfig:
    """A config in which only the gate matters."""
    return RefConfig(
        vocab_size=1,
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=1,
        n_routed_experts=experts,
        num_experts_per_tok=top_k,
        moe_intermediate_size=1,
        n_group=n_group,
        topk_group=topk_group,
    )


def balance_run(
    cfg: RefConfig,
    *,
    steps: int,
    seed: int,
    speed: float = 0.0,
    alpha: float = 0.0,
    learning_rate: float = 0.0,
    skew: Skew | None = None,
) -> BalanceTrace:
    """Steps of one gate under a bias of some `speed`, or under gradient descent on an auxiliary loss of `alpha`."""
    skew = skew or Skew()
    cfg = replace(cfg, aux_loss_alpha=alpha)
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((skew.width, cfg.experts)) / np.sqrt(skew.width)
    bias = np.zeros(cfg.experts)
    per_batch, per_sequence, history = [], [], []
    for x in _batches(skew, rng, steps):
        r = route(cfg, x @ weight, bias)
        loads = _loads(r.experts, skew.sequences, cfg.experts)
        load = loads.sum(axis=0)
        history.append(load)
        per_batch.append(max_over_mean(load))
        per_sequence.append(max_over_mean(loads).mean())
        bias = update_bias(bias, load, speed)
        if learning_rate:
            _, dscores = balance_loss(cfg, r.experts, r.scores, skew.sequences)
            dlogits = route_input_grad(cfg, r.experts, r.scores, np.zeros(r.weights.shape), dscores)
            weight = weight - learning_rate * (x.T @ dlogits)
    return BalanceTrace(per_batch=np.array(per_batch), per_sequence=np.array(per_sequence), loads=np.array(history))


def _batches(skew: Skew, rng: np.random.Generator, steps: int) -> Iterator[Array]:
    """Tokens [sequences * length, width] for each step."""
    common = rng.standard_normal(skew.width) * skew.common
    for _ in range(steps):
        topics = rng.standard_normal((skew.sequences, 1, skew.width)) * skew.topic
        noise = rng.standard_normal((skew.sequences, skew.length, skew.width))
        yield (noise + topics + common).reshape(-1, skew.width)


def _loads(experts: Array, sequences: int, n: int) -> Array:
    """(token, expert) pairs per sequence and expert [sequences, E]."""
    per = experts.reshape(sequences, -1)
    return np.stack([np.bincount(row, minlength=n) for row in per])
