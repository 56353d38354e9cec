"""The router: affinities, node-limited selection, gate weights, and the sequence-wise balance loss.

DeepSeek-V3 section 2.1.2, equations 12 to 20; DeepSeek-V2 section 2.2 for the softmax gate.
"""

from dataclasses import dataclass

import numpy as np

from workloads.reference.config import RefConfig
from workloads.reference.count import Array, require_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where tokens go: experts [T, k], their gate weights [T, k], and all affinities [T, E]."""

    experts: Array
    weights: Array
    scores: Array


def affinities(logits: Array, scoring_func: str) -> Array:
    """Equation 15 (sigmoid), or V2's softmax [T, E]."""
    if scoring_func == "sigmoid":
        out: Array = 1.0 / (1.0 + np.exp(-logits))
        return out
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    soft: Array = e / e.sum(axis=-1, keepdims=True)
    return soft


def select(choice: Array, *, top_k: int, n_group: int = 1, topk_group: int = 1, best_of_group: int = 2) -> Array:
    """Experts per token [T, k], best first: only from the `topk_group` strongest groups.

    A group is as strong as the sum of its `best_of_group` best. It is a node's experts, so a token reaches at most
    `topk_group` nodes. `choice` [T, E] holds affinities with any balancing bias already added (equation 16). Ties go
    to the lower index.
    """
    require_finite("affinities for choosing experts", choice)
    tokens, experts = choice.shape
    if experts % n_group:
        raise ValueError(f"{experts} experts do not divide into {n_group} groups")
    allowed = experts // n_group * topk_group
    if not 1 <= topk_group <= n_group:
        raise ValueError(f"topk_group {topk_group} must lie in 1..{n_group}")
    if not 1 <= top_k <= allowed:
        raise ValueError(
            f"top-k {top_k} must lie in 1..{allowed}: {topk_group} of {n_group} groups hold {allowed} experts"
        )
    if topk_group < n_group:
        groups = choice.reshape(tokens, n_group, experts // n_group)
        best = min(best_of_group, groups.shape[-1])
        strength = np.sort(groups, axis=-1)[..., -best:].sum(axis=-1)
        open_groups = np.zeros((tokens, n_group), bool)
        np.put_along_axis(open_groups, _top(strength, topk_group), True, axis=1)
        choice = np.where(open_groups.repeat(experts // n_group, axis=1), choice, -np.inf)
    return _top(choice, top_k)


def from_table(cfg: RefConfig, layer: int, tokens: Array) -> Array:
    """Experts [T, k] of tokens by a fixed table of the vocabulary, different for each layer (DeepSeek-V4)."""
    drawn = np.random.default_rng(layer).random((cfg.vocab_size, cfg.experts))
    return _top(drawn, cfg.num_experts_per_tok)[tokens.reshape(-1)]


def route(cfg: RefConfig, logits: Array, bias: Array | None = None, given: Array | None = None) -> Route:
    """Select by biased affinity, weigh by the unbiased one (equations 13 and 14); or weigh the `given` experts."""
    scores = affinities(logits, cfg.scoring_func)
    choice = scores if bias is None else scores + bias
    grouped = cfg.topk_method != "greedy"
    experts = given
    if experts is None:
        experts = select(
            choice,
            top_k=cfg.num_experts_per_tok,
            n_group=cfg.n_group if grouped else 1,
            topk_group=cfg.topk_group if grouped else 1,
            best_of_group=1 if cfg.topk_method == "group_limited_greedy" else 2,
        )
    weights = np.take_along_axis(scores, experts, axis=1)
    if cfg.norm_topk_prob:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return Route(experts=experts, weights=weights * cfg.routed_scaling_factor, scores=scores)


def route_input_grad(cfg: RefConfig, experts: Array, scores: Array, dweights: Array, dscores: Array) -> Array:
    """dlogits [T, E] from the gradients of gate weights [T, k] and, for the balance loss, of scores [T, E]."""
    d = dweights * cfg.routed_scaling_factor
    if cfg.norm_topk_prob:
        chosen = np.take_along_axis(scores, experts, axis=1)
        total = chosen.sum(axis=1, keepdims=True)
        d = (d - (d * chosen).sum(axis=1, keepdims=True) / total) / total
    ds = dscores.copy()
    np.put_along_axis(ds, experts, np.take_along_axis(ds, experts, axis=1) + d, axis=1)
    if cfg.scoring_func == "sigmoid":
        dlogits: Array = ds * scores * (1.0 - scores)
    else:
        dlogits = scores * (ds - (ds * scores).sum(axis=1, keepdims=True))
    return dlogits


def balance_loss(cfg: RefConfig, experts: Array, scores: Array, sequences: int) -> tuple[float, Array]:
    """The sequence-wise auxiliary loss, mean over sequences, and its gradient by scores [T, E] (equations 17 to 20)."""
    if cfg.aux_loss_alpha == 0.0:
        return 0.0, np.zeros_like(scores)
    n, k = scores.shape[1], experts.shape[1]
    s = scores.reshape(sequences, -1, n)
    length = s.shape[1]
    hits = np.zeros_like(scores)
    np.put_along_axis(hits, experts, 1.0, axis=1)
    f = hits.reshape(s.shape).sum(axis=1) * (n / (k * length))
    total = s.sum(axis=-1, keepdims=True)
    share = s / total
    loss = cfg.aux_loss_alpha * float((f * share.mean(axis=1)).sum()) / sequences
    dshare = cfg.aux_loss_alpha / (sequences * length) * f[:, None, :]
    ds: Array = (dshare - (dshare * share).sum(axis=-1, keepdims=True)) / total
    return loss, ds.reshape(scores.shape)


def _top(values: Array, count: int) -> Array:
    order: Array = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return order
