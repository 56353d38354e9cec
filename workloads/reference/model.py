"""The model as a chain of units, cut into stages; forward, input gradient and weight gradient of a stage.

A microbatch is tokens [B, S + 1 + D]: S positions, the label of the last one, and one more token for each of the
D MTP modules, so that every module works on S full positions.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from workloads.reference.config import RefConfig
from workloads.reference.count import OUTSIDE, Array, Run, Saved, Weights
from workloads.reference.init import Params, units
from workloads.reference.layers.block import block, block_input_grad
from workloads.reference.layers.ends import embed, embed_deferred, head_loss, head_loss_input_grad
from workloads.reference.layers.linear import Deferred, weight_grads
from workloads.reference.layers.mtp import mtp, mtp_input_grad

Losses = dict[str, float]  # unit -> its share of the objective [nats]
SHARED = {"embed": "embed", "head": "head"}  # weights an MTP module borrows -> the unit that owns them


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """What a stage's forward leaves: the state for the next stage, loss terms, and what backward needs."""

    state: Array
    losses: Losses
    saved: dict[str, Saved] = field(repr=False)


Waiting = dict[str, list[Deferred]]  # unit -> weight gradients not yet computed


def split_stages(cfg: RefConfig, count: int) -> list[list[str]]:
    """Units per stage: layers as evenly as possible (earlier stages take the rest), ends on the outer stages."""
    layers = units(cfg)[1 : 1 + cfg.num_hidden_layers]
    if not 1 <= count <= len(layers):
        raise ValueError(f"{count} stages for {len(layers)} layers: must lie in 1..{len(layers)}")
    cuts = [-(-len(layers) * s // count) for s in range(count + 1)]
    stages = [layers[a:b] for a, b in pairwise(cuts)]
    stages[0] = ["embed", *stages[0]]
    stages[-1] = [*stages[-1], *units(cfg)[1 + len(layers) :]]
    return stages


def stage_forward(run: Run, params: Params, stage: list[str], state: Array | None, tokens: Array) -> StageOutput:
    """Run a stage's units; `state` [B, S, hidden] comes from the stage before, None for the first."""
    losses: Losses = {}
    saved: dict[str, Saved] = {}
    for unit in stage:
        state, loss, saved[unit] = _unit_forward(run, params, unit, state, tokens)
        losses |= loss
    assert state is not None
    return StageOutput(state=state, losses=losses, saved=saved)


def stage_input_grad(
    run: Run, params: Params, stage: list[str], saved: dict[str, Saved], dy: Array | None
) -> tuple[Array | None, Waiting]:
    """Gradient of the stage's input (None for the first stage), with the weight gradients left waiting."""
    waiting: Waiting = {}
    for unit in reversed(stage):
        dy, waiting[unit] = _unit_input_grad(run, params, unit, saved[unit], dy)
    return dy, waiting


def stage_weight_grad(run: Run, waiting: Waiting) -> Params:
    """The waiting weight gradients, each under the unit that owns the weight."""
    grads: Params = {}
    for unit, deferred in waiting.items():
        for name, dw in weight_grads(run, deferred).items():
            add_grads(grads, {SHARED.get(name, unit): {name: dw}})
    return grads


def add_grads(total: Params, more: Params) -> None:
    """Add `more` into `total`, in place."""
    for unit, weights in more.items():
        mine = total.setdefault(unit, {})
        for name, dw in weights.items():
            mine[name] = mine[name] + dw if name in mine else dw


def loss_and_grads(run: Run, params: Params, tokens: Array) -> tuple[Losses, Params]:
    """One microbatch through the whole model, nothing split: the yardstick for every schedule."""
    chain, run = units(run.cfg), replace(run, tokens=tokens[:, : positions(run.cfg, tokens)])
    out = stage_forward(run, params, chain, None, tokens)
    _, waiting = stage_input_grad(run, params, chain, out.saved, None)
    return out.losses, stage_weight_grad(run, waiting)


def positions(cfg: RefConfig, tokens: Array) -> int:
    """S, the trained positions of a microbatch tokens [B, S + 1 + D]."""
    s: int = tokens.shape[-1] - 1 - cfg.num_nextn_predict_layers
    if tokens.ndim != 2 or s < 1:
        raise ValueError(
            f"tokens have shape {tokens.shape}, must be [batch, S + 1 + {cfg.num_nextn_predict_layers}] "
            "with S at least 1"
        )
    return s


def _unit_forward(
    run: Run, params: Params, unit: str, state: Array | None, tokens: Array
) -> tuple[Array, Losses, Saved]:
    s, p = positions(run.cfg, tokens), _weights(params, unit)
    if unit == "embed":
        saved: Saved = {"embed/tokens": tokens[:, :s]}
        run.at(layer=OUTSIDE).keep(saved)
        x = embed(run.at(layer=OUTSIDE), p, tokens[:, :s])
        return np.tile(x, run.cfg.hc_mult), {}, saved
    if state is None or state.shape != (len(tokens), s, run.cfg.stream_width):
        raise ValueError(
            f"{unit}: state has shape {None if state is None else state.shape}, must be "
            f"({len(tokens)}, {s}, {run.cfg.stream_width})"
        )
    here = replace(run, layer=_layer(run.cfg, unit), tokens=tokens[:, :s])
    if unit == "head":
        loss, saved = head_loss(here, p, state, tokens[:, 1 : s + 1])
        here.keep(saved)
        return state, {unit: loss}, saved
    if unit.startswith("mtp."):
        k = int(unit[4:])
        y, loss, aux, saved = mtp(here, p, state, tokens[:, k + 1 : k + 1 + s], tokens[:, k + 2 : k + 2 + s])
        return y, {unit: loss * _mtp_weight(run.cfg), f"{unit}.balance": aux}, saved
    y, aux, saved = block(here, p, state)
    return y, {f"{unit}.balance": aux} if run.cfg.is_moe(here.layer) else {}, saved


def _unit_input_grad(
    run: Run, params: Params, unit: str, saved: Saved, dy: Array | None
) -> tuple[Array | None, list[Deferred]]:
    p, here = _weights(params, unit), run.at(layer=_layer(run.cfg, unit))
    if unit == "head":
        dx, deferred = head_loss_input_grad(here, p, saved, 1.0)
        return dx if dy is None else dx + dy, deferred
    if unit.startswith("mtp."):
        return mtp_input_grad(here, p, saved, dy, _mtp_weight(run.cfg))
    if dy is None:
        raise ValueError(f"{unit}: backward needs the gradient of its output; only head and MTP units start one")
    if unit == "embed":
        dy = np.sum(np.split(dy, run.cfg.hc_mult, axis=-1), axis=0)
        return None, [embed_deferred(here, saved["embed/tokens"], dy)]
    return block_input_grad(here, p, saved, dy)


def _weights(params: Params, unit: str) -> Weights:
    if not unit.startswith("mtp."):
        return params[unit]
    return params[unit] | {name: params[owner][name] for name, owner in SHARED.items()}


def _layer(cfg: RefConfig, unit: str) -> int:
    """Layer number as in checkpoints: MTP modules follow the last layer; the ends have none."""
    kind, _, index = unit.partition(".")
    if kind == "layers":
        return int(index)
    return cfg.num_hidden_layers + int(index) if kind == "mtp" else OUTSIDE


def _mtp_weight(cfg: RefConfig) -> float:
    """Lambda / D of equation 25."""
    return cfg.mtp_loss_weight / cfg.num_nextn_predict_layers


def as_tokens(cfg: RefConfig, seed: int, batch: int, length: int) -> Array:
    """Random tokens [batch, length + 1 + D] for tests and counts."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, cfg.vocab_size, (batch, length + 1 + cfg.num_nextn_predict_layers))
