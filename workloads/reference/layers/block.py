"""One transformer layer: x + attention(norm(x)), then x + feed-forward(norm(x))."""

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.ffn import ffn, ffn_forget, ffn_input_grad
from workloads.reference.layers.gqa import gqa, gqa_forget, gqa_input_grad, gqa_restore
from workloads.reference.layers.linear import Deferred
from workloads.reference.layers.mla import mla, mla_forget, mla_input_grad, mla_restore
from workloads.reference.layers.moe import moe, moe_forget, moe_input_grad
from workloads.reference.layers.norm import forget, rmsnorm, rmsnorm_input_grad

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
    saved: Saved = {"norm.attn/x": x}
    attn_in = _normed(run, "norm.attn", p, saved)
    attn_out, kept = (mla if run.cfg.is_mla else gqa)(run, p, attn_in)
    saved |= kept | {"norm.ffn/x": x + attn_out}
    ffn_in = _normed(run, "norm.ffn", p, saved)
    aux = 0.0
    if run.cfg.is_moe(run.layer):
        out, aux, kept = moe(run, p, ffn_in)
    else:
        out, kept = ffn(run, "dense", p, ffn_in)
    saved |= kept | {f"{_first(run, 'attn')}/x": attn_in, f"{_first(run, 'ffn')}/x": ffn_in}
    return saved["norm.ffn/x"] + out, aux, saved


def _forget(run: Run, saved: Saved) -> Saved:
    """What is left to keep under the policy of recomputation."""
    if run.again("layer"):
        return {"norm.attn/x": saved["norm.attn/x"]}
    first = {half: f"{_first(run, half)}/x" for half in ("attn", "ffn")}
    inputs = {key: saved[key] for key in first.values()}
    mine = {key: array for key, array in saved.items() if key.startswith(FFN)}
    rest = {key: array for key, array in saved.items() if key not in mine}
    rest = (mla_forget if run.cfg.is_mla else gqa_forget)(run, rest)
    mine = moe_forget(run, mine) if run.cfg.is_moe(run.layer) else ffn_forget(run, "dense", mine)
    return forget(run, rest | mine | inputs, {f"norm.{half}": key for half, key in first.items()}, "layernorm")


def block_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and every waiting weight gradient of the layer."""
    saved = dict(saved)  # recomputed statistics join it, but are not kept
    if run.again("layer"):
        saved = _forward(run.at(part="R"), p, saved["norm.attn/x"])[2]
    ffn_in = _input_of(run, "ffn", p, saved)
    if run.cfg.is_moe(run.layer):
        dffn, deferred = moe_input_grad(run, p, ffn_in, saved, dy)
    else:
        dffn, deferred = ffn_input_grad(run, "dense", p, ffn_in, saved, dy)
    dmiddle, gain = _norm_input_grad(run, "norm.ffn", p, saved, dffn)
    dmiddle = dmiddle + dy
    attn_in = _input_of(run, "attn", p, saved)
    if run.cfg.is_mla:
        dattn, more = mla_input_grad(run, p, attn_in, mla_restore(run, p, attn_in, saved), dmiddle)
    else:
        dattn, more = gqa_input_grad(run, p, attn_in, gqa_restore(run, p, saved), dmiddle)
    dx, gain2 = _norm_input_grad(run, "norm.attn", p, saved, dattn)
    return dx + dmiddle, [*deferred, gain, *more, gain2]


def _first(run: Run, half: str) -> str:
    """The first op that reads a normalised input: it is the one charged with keeping it."""
    if half == "ffn":
        return "router.gate" if run.cfg.is_moe(run.layer) else "dense.up_gate"
    if not run.cfg.is_mla:
        return "attn.qkv"
    return "attn.q_a" if run.cfg.q_lora_rank is not None else "attn.q"


def _normed(run: Run, op: str, p: Weights, saved: Saved) -> Array:
    y, saved[f"{op}/rstd"] = rmsnorm(run, op, saved[f"{op}/x"], p[op])
    return y


def _input_of(run: Run, half: str, p: Weights, saved: Saved) -> Array:
    key = f"{_first(run, half)}/x"
    return saved[key] if key in saved else _normed(run.at(part="R"), f"norm.{half}", p, saved)


def _norm_input_grad(run: Run, op: str, p: Weights, saved: Saved, dy: Array) -> tuple[Array, Deferred]:
    x, rstd = saved[f"{op}/x"], saved[f"{op}/rstd"]
    gain = Deferred(kind="gain", op=op, name=op, layer=run.layer, x=x, dy=dy, extra=rstd)
    return rmsnorm_input_grad(run, op, x, rstd, p[op], dy), gain
