"""Both ends of the model: embedding, and final norm, output head and cross-entropy."""

import numpy as np

from workloads.reference.count import Array, Run, Saved, Weights, require_finite
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad
from workloads.reference.layers.mixers import hyper
from workloads.reference.layers.norm import forget, rmsnorm, rmsnorm_input_grad


def embed(run: Run, p: Weights, tokens: Array) -> Array:
    """Rows [B, S, hidden] of the table for tokens [B, S]."""
    if tokens.size and (tokens.min() < 0 or tokens.max() >= run.cfg.vocab_size):
        raise ValueError(f"tokens span {tokens.min()}..{tokens.max()}, must lie in 0..{run.cfg.vocab_size - 1}")
    x: Array = p["embed"][tokens]
    run.count("embed", "F", read={"tokens": tokens, "w": x}, written={"y": x})
    return x


def embed_deferred(run: Run, tokens: Array, dx: Array) -> Deferred:
    """The embedding has no input gradient, only a weight gradient."""
    return Deferred(kind="rows", op="embed", name="embed", layer=run.layer, x=tokens, dy=dx, size=run.cfg.vocab_size)


def logits_of(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Final norm and output head: logits [B, S, vocabulary]."""
    x, saved = (x, Saved()) if run.cfg.hc_mult == 1 else hyper.collapse(run, p, x)
    y, rstd = rmsnorm(run, "norm.final", x, p["norm.final"])
    return linear(run, "head", y, p["head"]), saved | {"norm.final/x": x, "norm.final/rstd": rstd, "head/x": y}


def head_loss(run: Run, p: Weights, x: Array, labels: Array) -> tuple[float, Saved]:
    """Mean cross-entropy of labels [B, S] [nats], and what backward needs (recorded by the caller)."""
    logits, saved = logits_of(run, p, x)
    require_finite("logits", logits)
    top = logits.max(axis=-1, keepdims=True)
    lse = (top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)))[..., 0]
    picked = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    run.count("loss", "F", read={"x": logits, "tokens": labels}, written={"lse": lse})
    kept = forget(run, saved, {"norm.final": "head/x"})
    return float((lse - picked).mean()), kept | {"loss/x": logits, "loss/lse": lse, "loss/tokens": labels}


def head_loss_input_grad(run: Run, p: Weights, saved: Saved, weight: float) -> tuple[Array, list[Deferred]]:
    """dx of `weight` times the loss, and the waiting weight gradients."""
    logits, labels = saved["loss/x"], saved["loss/tokens"]
    dlogits = np.exp(logits - saved["loss/lse"][..., None])
    ones = np.take_along_axis(dlogits, labels[..., None], axis=-1) - 1.0
    np.put_along_axis(dlogits, labels[..., None], ones, axis=-1)
    dlogits *= np.asarray(weight / labels.size, dlogits.dtype)
    run.count("loss", "I", read={"x": logits, "lse": saved["loss/lse"], "tokens": labels}, written={"dx": dlogits})
    dnormed = linear_input_grad(run, "head", dlogits, p["head"])
    x = saved["norm.final/x"]
    if "head/x" in saved:
        y, rstd = saved["head/x"], saved["norm.final/rstd"]
    else:
        y, rstd = rmsnorm(run.at(part="R"), "norm.final", x, p["norm.final"])
    dx = rmsnorm_input_grad(run, "norm.final", x, rstd, p["norm.final"], dnormed)
    dx, more = (dx, []) if run.cfg.hc_mult == 1 else hyper.collapse_input_grad(run, p, saved, dx)
    return dx, [
        *more,
        Deferred(kind="linear", op="head", name="head", layer=run.layer, x=y, dy=dlogits),
        Deferred(kind="gain", op="norm.final", name="norm.final", layer=run.layer, x=x, dy=dnormed, extra=rstd),
    ]
