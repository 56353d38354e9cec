"""DeepSeekMoE: shared experts for all tokens, routed experts for the chosen ones (DeepSeek-V3 section 2.1.2).

The gate weight multiplies an expert's activation before its down-projection, which is the same sum as weighing the
output (the projection is linear), lets `combine` add plainly, and spares keeping the experts' outputs for backward.
"""

import numpy as np

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.ffn import activate, activation, activation_input_grad, ffn, ffn_forget, ffn_input_grad
from workloads.reference.layers.gate import balance_loss, from_table, route, route_input_grad
from workloads.reference.layers.linear import Deferred, grouped, grouped_input_grad, linear, linear_input_grad
from workloads.reference.layers.norm import forget, rmsnorm, rmsnorm_input_grad

ROWS = "moe.up_gate/x"  # a copy of its token for every (token, expert) pair
LATENT, NORMED = "moe.latent_norm", "moe.latent_out/x"  # a norm of the experts' sums, and what it makes
ARRIVED = "moe.dispatch/x"  # the tokens that the copies are made of


def moe(run: Run, p: Weights, x: Array) -> tuple[Array, float, Saved]:
    """Output [B, S, hidden] for normalised input x, and the balance loss."""
    tokens = x.reshape(-1, x.shape[-1])
    shared, kept_shared = ffn(run.whole(), "shared", p, x) if run.cfg.n_shared_experts else (None, {})
    logits = linear(run, "router.gate", tokens, p["router.gate"])
    given = None
    if run.layer < run.cfg.num_hash_layers:
        assert run.tokens is not None, "experts by table need the tokens"
        given = from_table(run.cfg, run.layer, run.tokens)
    r = route(run.cfg, logits, p.get("router.bias"), given)
    aux, _ = balance_loss(run.cfg, r.experts, r.scores, x.shape[0])
    saved: Saved = {"router.gate/scores": r.scores, "router.gate/ids": r.experts}
    order, counts = sort_by_expert(r.experts, run.cfg.experts)
    narrow = run.cfg.moe_latent_size > 0
    sent = linear(run, "moe.latent_in", tokens, p["moe.latent_in"]) if narrow else tokens
    rows = dispatch(run, sent, order, r.experts.shape[1])
    g = r.weights.reshape(-1)[order]
    last = run.whole() if narrow else run  # the projection back reads what the experts make
    y, kept = experts_forward(last, p["moe.up_gate"], p["moe.down"], rows, g, counts)
    saved |= kept | kept_shared | {"moe.dispatch/order": order, ARRIVED: sent}
    if run.stops and not narrow:
        return x, aux, saved
    out = combine(run, y, order, r.experts.shape[1])
    if narrow:
        saved |= _latent(run, p, out)
        if run.stops:
            return x, aux, saved
        out = linear(run, "moe.latent_out", saved[NORMED], p["moe.latent_out"])
    out = out.reshape(x.shape)
    return out if shared is None else out + shared, aux, saved


def _latent(run: Run, p: Weights, out: Array) -> Saved:
    """What the projection back reads: the experts' sums, or a norm of them."""
    if not run.cfg.moe_latent_norm:
        return {NORMED: out}
    y, rstd = rmsnorm(run, LATENT, out, p[LATENT])
    return {f"{LATENT}/x": out, NORMED: y, f"{LATENT}/rstd": rstd}


def moe_forget(run: Run, saved: Saved) -> Saved:
    """What is left to keep: never both the tokens that arrived and their copies; nothing where it runs again."""
    if run.again("moe"):
        return {}
    drop = ROWS if "permute" in run.recompute else ARRIVED
    kept = {key: array for key, array in saved.items() if key != drop}
    if run.cfg.moe_latent_norm:
        kept = forget(run, kept, {LATENT: NORMED}, "layernorm")
    return ffn_forget(run, "moe", ffn_forget(run, "shared", kept))


def moe_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    if "router.gate/ids" not in saved:
        saved = saved | moe(run.at(part="R"), p, x)[2]
    experts, scores, order = (saved[k] for k in ("router.gate/ids", "router.gate/scores", "moe.dispatch/order"))
    counts = np.bincount(experts.reshape(-1), minlength=run.cfg.experts)
    top_k = experts.shape[1]
    if ROWS not in saved:
        saved = saved | {ROWS: dispatch(run.at(part="R"), saved[ARRIVED], order, top_k)}
    dout, late = dy.reshape(-1, dy.shape[-1]), []
    if run.cfg.moe_latent_size:
        if NORMED not in saved:
            saved = saved | _latent(run.at(part="R"), p, saved[f"{LATENT}/x"])
        late.append(_linear_later(run, "moe.latent_out", saved[NORMED], dout))
        dout = linear_input_grad(run, "moe.latent_out", dout, p["moe.latent_out"])
        if run.cfg.moe_latent_norm:
            made, rstd = saved[f"{LATENT}/x"], saved[f"{LATENT}/rstd"]
            late.append(Deferred(kind="gain", op=LATENT, name=LATENT, layer=run.layer, x=made, dy=dout, extra=rstd))
            dout = rmsnorm_input_grad(run, LATENT, made, rstd, p[LATENT], dout)
    drows = combine_input_grad(run, dout, order, top_k)
    dx_rows, dg, deferred = experts_input_grad(run, p["moe.up_gate"], p["moe.down"], saved, drows, counts)
    dx = dispatch_input_grad(run, dx_rows, order, top_k)
    if run.cfg.moe_latent_size:
        late.append(_linear_later(run, "moe.latent_in", x.reshape(-1, x.shape[-1]), dx))
        dx = linear_input_grad(run, "moe.latent_in", dx, p["moe.latent_in"])
    dweights = np.empty_like(dg)
    dweights[order] = dg
    _, daux = balance_loss(run.cfg, experts, scores, x.shape[0])
    dlogits = route_input_grad(run.cfg, experts, scores, dweights.reshape(experts.shape), daux)
    dx = dx + linear_input_grad(run, "router.gate", dlogits, p["router.gate"])
    deferred += [*late, _linear_later(run, "router.gate", x.reshape(dx.shape), dlogits)]
    dx = dx.reshape(x.shape)
    if run.cfg.n_shared_experts:
        dshared, more = ffn_input_grad(run, "shared", p, x, saved, dy)
        dx, deferred = dx + dshared, deferred + more
    return dx, deferred


def _linear_later(run: Run, op: str, x: Array, dy: Array) -> Deferred:
    return Deferred(kind="linear", op=op, name=op, layer=run.layer, x=x, dy=dy)


def sort_by_expert(experts: Array, n: int) -> tuple[Array, Array]:
    """Order of the (token, choice) pairs by expert [T k], and tokens per expert [n]; stable, so deterministic."""
    flat = experts.reshape(-1)
    return np.argsort(flat, kind="stable"), np.bincount(flat, minlength=n)


def dispatch(run: Run, tokens: Array, order: Array, top_k: int) -> Array:
    """Rows [T k, hidden] in expert order: one copy of a token per chosen expert."""
    rows: Array = tokens[order // top_k]
    run.count("moe.dispatch", "F", read={"x": rows, "order": order}, written={"y": rows})
    return rows


def dispatch_input_grad(run: Run, drows: Array, order: Array, top_k: int) -> Array:
    """The backward of dispatch is a combine: add the copies' gradients [T, hidden]."""
    dx = _sum_copies(drows, order, top_k)
    run.count("moe.dispatch", "I", read={"dy": drows, "order": order}, written={"dx": dx})
    return dx


def combine(run: Run, rows: Array, order: Array, top_k: int) -> Array:
    """Add up each token's expert outputs [T, hidden]."""
    y = _sum_copies(rows, order, top_k)
    run.count("moe.combine", "F", read={"x": rows, "order": order}, written={"y": y})
    return y


def combine_input_grad(run: Run, dy: Array, order: Array, top_k: int) -> Array:
    """The backward of combine is a dispatch."""
    drows: Array = dy[order // top_k]
    run.count("moe.combine", "I", read={"dy": drows, "order": order}, written={"dx": drows})
    return drows


def experts_forward(run: Run, w_up: Array, w_down: Array, rows: Array, g: Array, counts: Array) -> tuple[Array, Saved]:
    """Each row through its expert, weighted by g [rows]; weights [experts, in, out], rows sorted by expert."""
    u = grouped(run, "moe.up_gate", rows, w_up, counts)
    a = activate(run, "moe.down", u, g)
    y = rows if run.stops else grouped(run, "moe.down", a, w_down, counts)
    return y, {ROWS: rows, "moe.down/u": u, "moe.down/x": a, "moe.down/g": g}


def experts_input_grad(
    run: Run, w_up: Array, w_down: Array, saved: Saved, dy: Array, counts: Array
) -> tuple[Array, Array, list[Deferred]]:
    """Gradients of rows [rows, hidden] and of gate weights [rows], and the waiting weight gradients."""
    u, g = saved["moe.down/u"], saved["moe.down/g"]
    a = saved["moe.down/x"] if "moe.down/x" in saved else activate(run.at(part="R"), "moe.down", u, g)
    da = grouped_input_grad(run, "moe.down", dy, w_down, counts)
    dg = (da * activation(run, u)).sum(axis=-1)
    du = activation_input_grad(run, u, da * g[:, None])
    run.count("moe.down", "I", read={"u": u, "g": g, "dx": da}, written={"du": du, "dg": dg})
    dx = grouped_input_grad(run, "moe.up_gate", du, w_up, counts)
    later = [("moe.down", a, dy), ("moe.up_gate", saved[ROWS], du)]
    return (
        dx,
        dg,
        [Deferred(kind="grouped", op=op, name=op, layer=run.layer, x=x, dy=d, extra=counts) for op, x, d in later],
    )


def _sum_copies(rows: Array, order: Array, top_k: int) -> Array:
    back = np.empty_like(rows)
    back[order] = rows
    out: Array = back.reshape(len(rows) // top_k, top_k, rows.shape[-1]).sum(axis=1)
    return out
