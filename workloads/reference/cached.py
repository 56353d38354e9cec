"""The whole model over a KV cache: prompts, decoding, and speculation with drafts that are verified and rolled back.

Every layer keeps a cache of latents (`mla_decode`), the MTP module one of its own. A pass over new tokens attends to
what is cached and leaves their latents there. Verification feeds the last certain token and all drafts at once; what
was not accepted is dropped from every cache, so that the next pass finds them as if it had never been tried.
"""

from dataclasses import dataclass

import numpy as np

from workloads.reference.count import OUTSIDE, Array, Run, Weights
from workloads.reference.init import Params
from workloads.reference.layers.ends import embed, logits_of
from workloads.reference.layers.ffn import ffn
from workloads.reference.layers.linear import linear
from workloads.reference.layers.mla_decode import LatentCache, decode_absorbed, empty_cache
from workloads.reference.layers.moe import moe
from workloads.reference.layers.norm import rmsnorm
from workloads.reference.model import SHARED
from workloads.reference.speculative import Choose, Decoded, likeliest


@dataclass(frozen=True, slots=True, kw_only=True)
class Caches:
    """One cache for each layer, and one of the MTP module; batches of one length."""

    layers: tuple[LatentCache, ...]
    module: LatentCache

    @property
    def length(self) -> int:
        """Positions that the main model has cached."""
        return self.layers[0].length

    def cut(self, length: int, module: int) -> "Caches":
        """Both rolled back to so many positions."""
        return Caches(layers=tuple(_cut(one, length) for one in self.layers), module=_cut(self.module, module))


def empty_caches(run: Run, batch: int = 1) -> Caches:
    """Caches before the first token."""
    if not run.cfg.is_mla or run.cfg.norm_placement != "pre" or run.cfg.parallel_block:
        raise ValueError("only layers of latent attention with norms before their branches are decoded with a cache")
    one = empty_cache(run, batch)
    return Caches(layers=(one,) * run.cfg.num_hidden_layers, module=one)


def forward(run: Run, params: Params, tokens: Array, caches: Caches) -> tuple[Array, Array, Caches]:
    """States [B, S, hidden] before the final norm and logits [B, S, vocabulary] of new tokens [B, S]."""
    x, layers = embed(run.at(layer=OUTSIDE), params["embed"], tokens), []
    for number, cache in enumerate(caches.layers):
        x, grown = _layer(run.at(layer=number), params[f"layers.{number}"], x, cache)
        layers.append(grown)
    logits, _ = logits_of(run.at(layer=OUTSIDE), params["head"], x)
    return x, logits, Caches(layers=tuple(layers), module=caches.module)


def _layer(run: Run, p: Weights, x: Array, cache: LatentCache) -> tuple[Array, LatentCache]:
    """One layer over its cache."""
    normed, _ = rmsnorm(run, "norm.attn", x, p["norm.attn"])
    out, cache = decode_absorbed(run, p, normed, cache)
    x = x + out
    normed, _ = rmsnorm(run, "norm.ffn", x, p["norm.ffn"])
    made = moe(run, p, normed)[0] if run.cfg.is_moe(run.layer) else ffn(run, "dense", p, normed)[0]
    return x + made, cache


def draft(
    run: Run, params: Params, states: Array, tokens: Array, cache: LatentCache
) -> tuple[Array, Array, LatentCache]:
    """The MTP module over states [B, S, hidden] and the tokens behind them [B, S]: its states, its logits of the last
    position [B, vocabulary], and its cache."""
    p = params["mtp.0"] | {name: params[owner][name] for name, owner in SHARED.items()}
    here = run.at(layer=run.cfg.num_hidden_layers)
    halves = [
        rmsnorm(here, "mtp.norm_h", states, p["mtp.norm_h"])[0],
        rmsnorm(here, "mtp.norm_e", embed(here, p, tokens), p["mtp.norm_e"])[0],
    ]
    x = linear(here, "mtp.proj", np.concatenate(halves, axis=-1), p["mtp.proj"])
    x, cache = _layer(here, p, x, cache)
    logits, _ = logits_of(here, p, x[:, -1:])
    return x, logits[:, 0], cache


def decode(run: Run, params: Params, prompt: list[int], new: int, choose: Choose = likeliest) -> tuple[Decoded, Caches]:
    """`new` tokens, one for each pass over the newest token, and the caches behind the last pass."""
    tokens = list(prompt)
    _, logits, caches = forward(run, params, np.array([tokens]), empty_caches(run))
    for _ in range(new - 1):
        tokens.append(choose(logits[0, -1], len(tokens)))
        _, logits, caches = forward(run, params, np.array([tokens[-1:]]), caches)
    tokens.append(choose(logits[0, -1], len(tokens)))
    return Decoded(tokens=tokens, passes=new, drafted=0, accepted=0), caches


def speculate(
    run: Run, params: Params, prompt: list[int], new: int, depth: int, choose: Choose = likeliest
) -> tuple[Decoded, Caches]:
    """The same tokens with `depth` drafts for each pass; a draft is kept when the main model would have chosen it.

    The caches hold every token but the last, which no pass has seen yet.
    """
    tokens = list(prompt)
    states, logits, caches = forward(run, params, np.array([tokens]), empty_caches(run))
    tokens.append(choose(logits[0, -1], len(tokens)))
    passes, drafted, accepted = 1, 0, 0
    while len(tokens) < len(prompt) + new:
        guesses, module = _drafts(run, params, states, tokens, caches.module, depth)
        caches = Caches(layers=caches.layers, module=module)
        before = caches.length
        fed = [tokens[-1], *guesses]
        states, logits, grown = forward(run, params, np.array([fed]), caches)
        passes, drafted = passes + 1, drafted + depth
        kept = 0
        for guess in guesses:
            tokens.append(choose(logits[0, kept], len(tokens)))
            if tokens[-1] != guess:
                break
            kept += 1
        else:
            tokens.append(choose(logits[0, depth], len(tokens)))
        accepted += kept
        caches = grown.cut(before + 1 + kept, module.length)
        states = states[:, : 1 + kept]
    return Decoded(tokens=tokens, passes=passes, drafted=drafted, accepted=accepted), caches


def _drafts(
    run: Run, params: Params, states: Array, tokens: list[int], cache: LatentCache, depth: int
) -> tuple[list[int], LatentCache]:
    """`depth` drafts behind the last token, and the module's cache of what is certain.

    The first pass runs over all states of the last verification, each further one over the draft before, which leaves
    nothing behind.
    """
    count = states.shape[1]
    x, logits, certain = draft(run, params, states, np.array([tokens[-count:]]), cache)
    out, further = [int(logits[0].argmax())], certain
    for _ in range(depth - 1):
        x, logits, further = draft(run, params, x[:, -1:], np.array([out[-1:]]), further)
        out.append(int(logits[0].argmax()))
    return out, certain


def _cut(cache: LatentCache, length: int) -> LatentCache:
    return LatentCache(latent=cache.latent[:, :length], k_rope=cache.k_rope[:, :length])
