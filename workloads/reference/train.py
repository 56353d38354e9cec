"""Training a toy: synthetic text, AdamW, and the bias update between steps (DeepSeek-V3 sections 2.1.2 and 4.2)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from workloads.reference.balance import update_bias
from workloads.reference.config import RefConfig
from workloads.reference.count import Array, Run, Saved
from workloads.reference.init import Params, init_params, units
from workloads.reference.model import stage_forward, stage_input_grad, stage_weight_grad
from workloads.reference.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How the toy is trained; betas, weight decay and clipping are those of section 4.2."""

    steps: int
    batch: int = 8
    length: int = 32
    learning_rate: float = 3e-3
    warmup: int = 20
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0
    bias_speed: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished run: the main loss at every step [nats] and the final weights."""

    losses: Array
    params: Params = field(repr=False)


def text(vocab: int, seed: int, words: int = 48) -> Callable[[np.random.Generator, int], Array]:
    """A sampler of token strings: words of 3 to 6 letters from a fixed dictionary, Zipf-distributed, space 0 between.

    Within a word the next letter is nearly certain, at its start it is not: as in language.
    """
    rng = np.random.default_rng(seed)
    dictionary = [np.append(rng.integers(1, vocab, rng.integers(3, 7)), 0) for _ in range(words)]
    chance = 1.0 / np.arange(1, words + 1)

    def sample(rng: np.random.Generator, length: int) -> Array:
        picks = rng.choice(words, size=length, p=chance / chance.sum())
        return np.concatenate([dictionary[i] for i in picks])[:length]

    return sample


def batches(cfg: RefConfig, s: TrainSettings, *, stream: int) -> Iterator[Array]:
    """Endless microbatches [batch, length + 1 + D] of the same language; `stream` picks which part of it."""
    sample = text(cfg.vocab_size, s.seed)
    rng = np.random.default_rng((s.seed, stream))
    while True:
        yield np.stack([sample(rng, s.length + 1 + cfg.num_nextn_predict_layers) for _ in range(s.batch)])


def train(cfg: RefConfig, precision: Precision, s: TrainSettings) -> Trained:
    """Train from scratch in float32 master weights with GEMMs in `precision`."""
    run, params = Run(cfg=cfg, precision=precision), init_params(cfg, s.seed, np.float32)
    moments: tuple[Params, Params] = ({}, {})
    losses = []
    for step, tokens in zip(range(s.steps), batches(cfg, s, stream=0), strict=False):
        out = stage_forward(run, params, units(cfg), None, tokens)
        _, waiting = stage_input_grad(run, params, units(cfg), out.saved, None)
        grads = stage_weight_grad(run, waiting)
        losses.append(out.losses["head"])
        _clip(grads, s.clip)
        adamw(params, grads, moments, s, step)
        move_biases(params, out.saved, s.bias_speed)
    return Trained(losses=np.array(losses), params=params)


def evaluate(cfg: RefConfig, params: Params, precision: Precision, s: TrainSettings, count: int) -> float:
    """Mean main loss over `count` unseen microbatches [nats]."""
    plain = replace(cfg, num_nextn_predict_layers=0)
    run, total = Run(cfg=plain, precision=precision), 0.0
    for _, tokens in zip(range(count), batches(plain, s, stream=1), strict=False):
        total += stage_forward(run, params, units(plain), None, tokens).losses["head"]
    return total / count


def adamw(params: Params, grads: Params, moments: tuple[Params, Params], s: TrainSettings, step: int) -> None:
    """One update in place (arXiv 1711.05101): warm-up, then cosine decay to a tenth."""
    rate = learning_rate(s, step)
    for unit, weights in grads.items():
        first, second = (m.setdefault(unit, {}) for m in moments)
        for name, g in weights.items():
            first[name] = s.beta1 * first.get(name, 0.0) + (1 - s.beta1) * g
            second[name] = s.beta2 * second.get(name, 0.0) + (1 - s.beta2) * g * g
            m = first[name] / (1 - s.beta1 ** (step + 1))
            v = second[name] / (1 - s.beta2 ** (step + 1))
            w = params[unit][name]
            shrink = 0.0 if "norm" in name else s.weight_decay
            params[unit][name] = (w - rate * (m / (np.sqrt(v) + 1e-8) + shrink * w)).astype(w.dtype)


def learning_rate(s: TrainSettings, step: int) -> float:
    if step < s.warmup:
        return s.learning_rate * (step + 1) / s.warmup
    done = (step - s.warmup) / max(s.steps - s.warmup, 1)
    return s.learning_rate * (0.1 + 0.45 * (1 + float(np.cos(np.pi * done))))


def move_biases(params: Params, saved: dict[str, Saved], speed: float) -> None:
    """Move every gate's selection bias, in place, by the load that its last forward saw."""
    for unit, tensors in saved.items():
        bias = params[unit].get("router.bias")
        if bias is not None:
            load = np.bincount(tensors["router.gate/ids"].reshape(-1), minlength=len(bias))
            params[unit]["router.bias"] = update_bias(bias, load, speed).astype(bias.dtype)


def _clip(grads: Params, limit: float) -> None:
    """Scale all gradients so that their joint norm is at most `limit`, in place."""
    norm = float(np.sqrt(sum(float((g * g).sum()) for weights in grads.values() for g in weights.values())))
    if norm > limit:
        for weights in grads.values():
            for name in weights:
                weights[name] = weights[name] * (limit / norm)
