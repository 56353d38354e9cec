"""One transformer layer. Usually x + attention(norm(x)), then x + feed-forward(norm(x)); norms may stand behind the
branches instead (arXiv 2501.00656, section 2.1) or as well, and both branches may read the layer's input (arXiv
2204.06745, section 2.1)."""

from collections.abc import Callable
from typing import NamedTuple

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.ffn import ffn, ffn_forget, ffn_input_grad
from workloads.reference.layers.gqa import gqa, gqa_forget, gqa_input_grad, gqa_restore
from workloads.reference.layers.linear import Deferred
from workloads.reference.layers.mixers import hyper
from workloads.reference.layers.mixers.hybrid import hybrid, hybrid_input_grad
from workloads.reference.layers.mixers.mla_sparse import (
    mla_sparse,
    mla_sparse_forget,
    mla_sparse_input_grad,
    mla_sparse_restore,
)
from workloads.reference.layers.mixers.recurrent import recurrent, recurrent_input_grad
from workloads.reference.layers.mixers.selective import selective, selective_input_grad
from workloads.reference.layers.mixers.shared_key import (
    shared_key,
    shared_key_forget,
    shared_key_input_grad,
    shared_key_restore,
)
from workloads.reference.layers.mixers.short_conv import short_conv, short_conv_input_grad
from workloads.reference.layers.mla import mla, mla_forget, mla_input_grad, mla_restore
from workloads.reference.layers.moe import moe, moe_forget, moe_input_grad
from workloads.reference.layers.norm import forget, rmsnorm, rmsnorm_input_grad


class Gradient(NamedTuple):
    """The gradient of a branch's input, and the weight gradients that wait."""

    dx: Array
    deferred: list[Deferred]


_RECURRENT = {"mamba1": (selective, selective_input_grad), "conv": (short_conv, short_conv_input_grad)}
"""Recurrent layers of their own form, forward and backward."""
FFN = ("router.", "moe.", "shared.", "dense.")
"""What the names of the feed-forward part begin with."""


def block(run: Run, p: Weights, x: Array) -> tuple[Array, float, Saved]:
    """Output [B, S, hidden], the layer's balance loss, and what backward needs (already recorded by the counter)."""
    y, aux, saved = _forward(run, p, x)
    saved = _forget(run, saved)
    run.keep(saved)
    return y, aux, saved


def _forward(run: Run, p: Weights, x: Array) -> tuple[Array, float, Saved]:
    """The layer with everything that its backward reads."""
    saved: Saved = {}
    if run.cfg.hc_mult > 1:
        return _through_streams(run, p, x)
    middle, attn_in = x, x
    if run.cfg.has("attn", run.layer):
        attn_in = _enter(run, "attn", p, x, saved)
        attn_out, kept = _mixer(run)(run, p, attn_in)
        saved |= kept
        middle = x + _leave(run, "attn", p, attn_out, saved)
    if not run.cfg.has("ffn", run.layer):
        return middle, 0.0, saved
    shared = run.cfg.parallel_block and run.cfg.shared_norm
    read = x if run.cfg.parallel_block else middle
    ffn_in = attn_in if shared else _enter(run, "ffn", p, read, saved)
    aux = 0.0
    last = run if run.cfg.norm_placement == "pre" else run.whole()  # a norm behind reads what the last GEMM makes
    if run.cfg.is_moe(run.layer):
        out, aux, kept = moe(last, p, ffn_in)
    else:
        out, kept = ffn(last, "dense", p, ffn_in)
    saved |= kept
    return middle + _leave(run, "ffn", p, out, saved), aux, saved


def _through_streams(run: Run, p: Weights, x: Array) -> tuple[Array, float, Saved]:
    """Both branches between hyper-connections."""
    attn_in, saved = hyper.enter(run, "attn", p, x)
    out, kept = _mixer(run)(run, p, _enter(run, "attn", p, attn_in, saved))
    saved |= kept
    middle = hyper.leave(run, "attn", p, saved, out)
    ffn_in, kept = hyper.enter(run, "ffn", p, middle)
    saved |= kept
    out, aux, kept = moe(run.whole(), p, _enter(run, "ffn", p, ffn_in, saved))
    saved |= kept
    return hyper.leave(run, "ffn", p, saved, out), aux, saved


def _mixer(run: Run) -> Callable[[Run, Weights, Array], tuple[Array, Saved]]:
    """What mixes the tokens of this layer."""
    if run.cfg.is_recurrent(run.layer):
        return _RECURRENT.get(run.cfg.mixer(run.layer), (recurrent, recurrent_input_grad))[0]
    if run.cfg.mixer(run.layer) == "hybrid":
        return hybrid
    if run.cfg.shared_key_value:
        return shared_key
    if run.cfg.is_chosen:
        return mla_sparse
    return mla if run.cfg.is_mla else gqa


def _forget(run: Run, saved: Saved) -> Saved:
    """What is left to keep under the policy of recomputation."""
    if run.again("layer"):
        return {_input(run): saved[_input(run)]}
    if run.cfg.parallel_block:  # its input, and its one norm, are kept only once
        saved = {key: array for key, array in saved.items() if key != "norm.ffn/x"}
    first = {half: f"{_first(run, half)}/x" for half in ("attn", "ffn") if run.cfg.has(half, run.layer)}
    inputs = {key: saved[key] for key in first.values() if key in saved}
    mine = {key: array for key, array in saved.items() if key.startswith(FFN)}
    rest = {key: array for key, array in saved.items() if key not in mine}
    if run.cfg.shared_key_value:
        rest = shared_key_forget(run, rest)
    elif run.cfg.is_chosen:
        rest = mla_sparse_forget(run, rest)
    elif "attn" in first and not run.cfg.is_recurrent(run.layer):
        rest = (mla_forget if run.cfg.is_mla else gqa_forget)(run, rest)
    if "ffn" in first:
        mine = moe_forget(run, mine) if run.cfg.is_moe(run.layer) else ffn_forget(run, "dense", mine)
    kept = rest | mine | inputs
    if run.cfg.norm_placement == "post":
        return kept
    return forget(run, kept, {f"norm.{half}": key for half, key in first.items()}, "layernorm")


def _input(run: Run) -> str:
    """The tensor that is the layer's input."""
    if run.cfg.hc_mult > 1:
        return "hc.attn.weights/x"
    if not run.cfg.has("attn", run.layer):
        return "norm.ffn/x"
    return f"{_first(run, 'attn')}/x" if run.cfg.norm_placement == "post" else "norm.attn/x"


def block_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and every waiting weight gradient of the layer."""
    saved = dict(saved)  # what is recomputed joins it, but is not kept
    if run.again("layer"):
        saved = _forward(run.at(part="R"), p, saved[_input(run)])[2]
    if run.cfg.hc_mult > 1:
        return _through_streams_input_grad(run, p, saved, dy)
    if not (run.cfg.has("attn", run.layer) and run.cfg.has("ffn", run.layer)):
        return _one_part_input_grad(run, p, saved, dy)
    parallel = run.cfg.parallel_block
    dffn_out, deferred = _leave_input_grad(run, "ffn", p, saved, dy)
    dffn_in, more = _ffn_input_grad(run, p, saved, dffn_out)
    deferred = [*deferred, *more]
    dmiddle = dy
    if not parallel:
        through, more = _enter_input_grad(run, "ffn", p, saved, dffn_in)
        dmiddle, deferred = dy + through, [*deferred, *more]
    dattn_out, more = _leave_input_grad(run, "attn", p, saved, dmiddle)
    dattn_in, also = _attention_input_grad(run, p, saved, dattn_out)
    deferred, dx = [*deferred, *more, *also], dmiddle
    if parallel and run.cfg.shared_norm:
        dattn_in = dattn_in + dffn_in
    elif parallel:
        through, more = _enter_input_grad(run, "ffn", p, saved, dffn_in)
        dx, deferred = dx + through, [*deferred, *more]
    through, more = _enter_input_grad(run, "attn", p, saved, dattn_in)
    return dx + through, [*deferred, *more]


def _one_part_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """Back through a layer with one branch, and a norm before it."""
    half = "attn" if run.cfg.has("attn", run.layer) else "ffn"
    dinput, deferred = (_attention_input_grad if half == "attn" else _ffn_input_grad)(run, p, saved, dy)
    through, more = _enter_input_grad(run, half, p, saved, dinput)
    return dy + through, [*deferred, *more]


def _through_streams_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """Back through both branches between hyper-connections."""
    deferred: list[Deferred] = []
    for branch, back in (("ffn", _ffn_input_grad), ("attn", _attention_input_grad)):
        passed = hyper.leave_input_grad(run, branch, p, saved, dy)
        dinput, more = back(run, p, saved, passed.y)
        dinput, gain = _enter_input_grad(run, branch, p, saved, dinput)
        dy, also = hyper.enter_input_grad(run, branch, p, saved, dinput, passed)
        deferred += [*more, *gain, *also]
    return dy, deferred


def _ffn_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> Gradient:
    x = _input_of(run, "ffn", p, saved)
    if run.cfg.is_moe(run.layer):
        return Gradient(*moe_input_grad(run, p, x, saved, dy))
    return Gradient(*ffn_input_grad(run, "dense", p, x, saved, dy))


def _attention_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> Gradient:
    x = _input_of(run, "attn", p, saved)
    if run.cfg.is_recurrent(run.layer):
        back = _RECURRENT.get(run.cfg.mixer(run.layer), (recurrent, recurrent_input_grad))[1]
        return Gradient(*back(run, p, x, saved, dy))
    if run.cfg.mixer(run.layer) == "hybrid":
        return Gradient(*hybrid_input_grad(run, p, x, saved, dy))
    if run.cfg.shared_key_value:
        return Gradient(*shared_key_input_grad(run, p, x, shared_key_restore(run, p, saved), dy))
    if run.cfg.is_chosen:
        return Gradient(*mla_sparse_input_grad(run, p, x, mla_sparse_restore(run, p, saved), dy))
    if run.cfg.is_mla:
        return Gradient(*mla_input_grad(run, p, x, mla_restore(run, p, x, saved), dy))
    return Gradient(*gqa_input_grad(run, p, x, gqa_restore(run, p, saved), dy))


def _first(run: Run, half: str) -> str:
    """The first op that reads a branch's input: it is the one charged with keeping it."""
    if half == "ffn":
        return "router.gate" if run.cfg.is_moe(run.layer) else "dense.up_gate"
    if run.cfg.is_recurrent(run.layer):
        return "mixer.in"
    if run.cfg.shared_key_value:
        return "attn.qkv_a"
    if not run.cfg.is_mla:
        return "attn.qkv"
    return "attn.q_a" if run.cfg.q_lora_rank is not None else "attn.q"


def _enter(run: Run, half: str, p: Weights, x: Array, saved: Saved) -> Array:
    """The input of a branch: x, or a norm of it."""
    if run.cfg.norm_placement == "post":
        saved[f"{_first(run, half)}/x"] = x
        return x
    saved[f"norm.{half}/x"] = x
    y, saved[f"norm.{half}/rstd"] = rmsnorm(run, f"norm.{half}", x, p[f"norm.{half}"])
    saved[f"{_first(run, half)}/x"] = y
    return y


def _leave(run: Run, half: str, p: Weights, y: Array, saved: Saved) -> Array:
    """What a branch adds to the stream: its output, or a norm of that."""
    if run.cfg.norm_placement == "pre":
        return y
    op = f"norm.{half}.out"
    saved[f"{op}/x"] = y
    out, saved[f"{op}/rstd"] = rmsnorm(run, op, y, p[op])
    return out


def _read_by(run: Run, half: str) -> str:
    """The norm whose output a branch reads."""
    return "attn" if run.cfg.parallel_block and run.cfg.shared_norm else half


def _stream_of(run: Run, half: str, saved: Saved) -> Array:
    """The stream that a branch's norm reads."""
    return saved["norm.attn/x" if run.cfg.parallel_block else f"norm.{half}/x"]


def _input_of(run: Run, half: str, p: Weights, saved: Saved) -> Array:
    """A branch's input, computed again where it was not kept."""
    half = _read_by(run, half)
    key, op = f"{_first(run, half)}/x", f"norm.{half}"
    if key not in saved:
        saved[key], saved[f"{op}/rstd"] = rmsnorm(run.at(part="R"), op, _stream_of(run, half, saved), p[op])
    return saved[key]


def _enter_input_grad(run: Run, half: str, p: Weights, saved: Saved, dy: Array) -> Gradient:
    """Back through the norm before a branch."""
    if run.cfg.norm_placement == "post":
        return Gradient(dy, [])
    return _norm_input_grad(run, f"norm.{half}", p, _stream_of(run, half, saved), saved, dy)


def _leave_input_grad(run: Run, half: str, p: Weights, saved: Saved, dy: Array) -> Gradient:
    """Back through the norm behind a branch."""
    op = f"norm.{half}.out"
    if run.cfg.norm_placement == "pre":
        return Gradient(dy, [])
    return _norm_input_grad(run, op, p, saved[f"{op}/x"], saved, dy)


def _norm_input_grad(run: Run, op: str, p: Weights, x: Array, saved: Saved, dy: Array) -> Gradient:
    rstd = saved[f"{op}/rstd"]
    gain = Deferred(kind="gain", op=op, name=op, layer=run.layer, x=x, dy=dy, extra=rstd)
    return Gradient(rmsnorm_input_grad(run, op, x, rstd, p[op], dy), [gain])
