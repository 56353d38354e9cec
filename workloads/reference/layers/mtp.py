"""A multi-token prediction module (DeepSeek-V3 section 2.2, equations 21 to 25).

Module k (from 0) joins the hidden state of position i with the embedding of token i + k + 1 and predicts token
i + k + 2, with a norm of its own but the embedding and the output head of the main model. The state it starts from is
the last layer's output before the final norm; the concatenation is [hidden; embedding], as equation 21 writes it.
"""

import numpy as np

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.block import block, block_input_grad
from workloads.reference.layers.ends import embed, embed_deferred, head_loss, head_loss_input_grad
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad
from workloads.reference.layers.norm import forget, rmsnorm, rmsnorm_input_grad

JOIN = ("mtp.norm_h", "mtp.norm_e")


def mtp_trunk(run: Run, p: Weights, h: Array, tokens: Array) -> tuple[Array, float, Saved]:
    """Hidden state [B, S, hidden] of the module for the next tokens [B, S]; weights include the shared `embed`."""
    saved: Saved = {"mtp.norm_h/x": h, "mtp.norm_e/x": embed(run, p, tokens), "embed/tokens": tokens}
    saved |= _joined(run, p, saved)
    y = linear(run, "mtp.proj", saved["mtp.proj/x"], p["mtp.proj"])
    saved = forget(run, saved, dict.fromkeys(JOIN, "mtp.proj/x"))
    run.keep(saved)
    y, aux, kept = block(run, p, y)
    return y, aux, saved | kept


def _joined(run: Run, p: Weights, saved: Saved) -> Saved:
    """Both norms' outputs side by side, and their statistics."""
    out: Saved = {}
    halves = []
    for op in JOIN:
        y, out[f"{op}/rstd"] = rmsnorm(run, op, saved[f"{op}/x"], p[op])
        halves.append(y)
    return out | {"mtp.proj/x": np.concatenate(halves, axis=-1)}


def mtp(run: Run, p: Weights, h: Array, tokens: Array, labels: Array) -> tuple[Array, float, float, Saved]:
    """The module's state, its cross-entropy, its balance loss, and what backward needs."""
    y, aux, saved = mtp_trunk(run, p, h, tokens)
    loss, kept = head_loss(run, p, y, labels)
    run.keep(kept)
    return y, loss, aux, saved | kept


def mtp_input_grad(run: Run, p: Weights, saved: Saved, dy: Array | None, weight: float) -> tuple[Array, list[Deferred]]:
    """Gradient of the incoming state; `dy` comes from a further module, None at the last."""
    dstate, deferred = head_loss_input_grad(run, p, saved, weight)
    djoined, more = block_input_grad(run, p, saved, dstate if dy is None else dstate + dy)
    if "mtp.proj/x" not in saved:
        saved = saved | _joined(run.at(part="R"), p, saved)
    later = [
        Deferred(kind="linear", op="mtp.proj", name="mtp.proj", layer=run.layer, x=saved["mtp.proj/x"], dy=djoined)
    ]
    dhalves = np.split(linear_input_grad(run, "mtp.proj", djoined, p["mtp.proj"]), 2, axis=-1)
    grads = []
    for op, dhalf in zip(JOIN, dhalves, strict=True):
        x, rstd = saved[f"{op}/x"], saved[f"{op}/rstd"]
        grads.append(rmsnorm_input_grad(run, op, x, rstd, p[op], dhalf))
        later.append(Deferred(kind="gain", op=op, name=op, layer=run.layer, x=x, dy=dhalf, extra=rstd))
    later.append(embed_deferred(run, saved["embed/tokens"], grads[1]))
    return grads[0], [*deferred, *more, *later]
