"""Measure attention with a sliding window, and recurrent token mixers, on one rested GPU; kernel by kernel.

    python -m hardware_profiles.calibration.measuring.measure_mixers OUT.csv [KINDS]

KINDS are of window, delta, kda, ssd, with a comma between. `window` is FlashAttention-2 as PyTorch ships it, by the
operator that takes a window (aten::_flash_attention_forward). `delta` is the gated delta rule, `kda` the same with a
decay for each channel (Kimi Linear's), and `ssd` a scalar decay of the state (Mamba-2's), in chunks of 64 tokens and
token by token, by the Triton kernels of flash-linear-attention, which must be on the path
(`pip install --no-deps --target fla_packages fla-core einops`). Launches are as in `measure_rested`.
`kernels` has every kernel of one call with its median time [us].
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch

from hardware_profiles.calibration.measuring import measure_rested as rested
from hardware_profiles.calibration.measuring.measure_rested import Call, Case, Events, Row
from hardware_profiles.calibration.measuring.torch_kernels import DEVICE, bf16

COLUMNS = ["op", "batch", "seq", "heads", "kv_heads", "d_qk", "d_v", "window", "backward", "us", "us_min", "launches",
           "kernels"]  # fmt: skip


def window_call(window: int, backward: bool, batch: int, seq: int, heads: int, kv: int, dim: int) -> Call:
    q, k, v = (bf16(batch, seq, many, dim) for many in (heads, kv, kv))
    left = window - 1 if window else -1
    sizes = (None, None, seq, seq, 0.0, True, False)
    ahead = torch.ops.aten._flash_attention_forward
    limits = {"scale": dim**-0.5, "window_size_left": left, "window_size_right": 0 if window else -1}
    if not backward:
        return lambda: ahead(q, k, v, *sizes, **limits)
    out, lse, seed, offset, _ = ahead(q, k, v, *sizes, **limits)
    grad, back = torch.randn_like(out), torch.ops.aten._flash_attention_backward
    if kv != heads:
        k, v = (x.repeat_interleave(heads // kv, dim=2) for x in (k, v))
    return lambda: back(grad, q, k, v, out, lse, None, None, seq, seq, 0.0, True, seed, offset, **limits)


def windows() -> Iterator[Case]:
    for seq, batch in ((2048, 4), (4096, 2), (8192, 1), (16384, 1)):
        for heads, kv, dim in ((64, 8, 64), (32, 8, 128), (16, 16, 128)):
            for window in (0, 128, 512, 1024, 4096):
                if window >= seq:
                    continue
                for backward in (False, True):
                    labels: Row = {"op": "window", "batch": batch, "seq": seq, "heads": heads, "kv_heads": kv,
                                   "d_qk": dim, "d_v": dim, "window": window, "backward": int(backward)}  # fmt: skip
                    pairs = batch * heads * seq * min(window or seq / 2, seq / 2)
                    guess = 4.0 * pairs * dim * (2.5 if backward else 1.0) / 2e14
                    yield labels, partial(window_call, window, backward, batch, seq, heads, kv, dim), guess


def _inputs(batch: int, seq: int, heads: int, d_k: int, d_v: int, grad: bool) -> list[torch.Tensor]:
    q, k = bf16(batch, seq, heads, d_k), torch.nn.functional.normalize(bf16(batch, seq, heads, d_k).float(), dim=-1)
    v = bf16(batch, seq, heads, d_v)
    gate = torch.nn.functional.logsigmoid(torch.randn(batch, seq, heads, device=DEVICE))
    beta = torch.rand(batch, seq, heads, device=DEVICE).to(torch.bfloat16)
    return [x.detach().requires_grad_(grad) for x in (q, k.to(torch.bfloat16), v, gate, beta)]


def recurrent_call(op: str, form: str, batch: int, seq: int, heads: int, d_k: int, d_v: int) -> Call:
    """One call of a recurrent mixer: `chunk` forward, `backward` of that, or `token` with a state to go on from."""
    delta, scalar = import_module("fla.ops.gated_delta_rule"), import_module("fla.ops.simple_gla")
    channels = import_module("fla.ops.kda")

    q, k, v, gate, beta = _inputs(batch, seq, heads, d_k, d_v, form == "backward")
    state = torch.randn(batch, heads, d_k, d_v, device=DEVICE) if form == "token" else None
    inputs: dict[str, torch.Tensor] = {"q": q, "k": k, "v": v, "g": gate}
    if op == "delta":
        inputs["beta"] = beta
        fn: Callable[..., Any] = (
            delta.fused_recurrent_gated_delta_rule if form == "token" else delta.chunk_gated_delta_rule
        )
    elif op == "kda":
        gates = gate[..., None].expand(*gate.shape, d_k).contiguous().detach().requires_grad_(form == "backward")
        inputs |= {"g": gates, "beta": beta}
        fn = channels.fused_recurrent_kda if form == "token" else channels.chunk_kda
    else:
        fn = scalar.fused_recurrent_simple_gla if form == "token" else scalar.chunk_simple_gla
    options = {"initial_state": state, "output_final_state": form == "token"}
    if form != "backward":
        return lambda: fn(**inputs, **options)
    out = fn(**inputs, **options)[0]
    grad, leaves = torch.randn_like(out), list(inputs.values())
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def recurrent(op: str) -> Iterator[Case]:
    d_k = 128
    for heads, d_v in ((128, 64), (64, 64), (32, 64)) if op == "ssd" else ((32, 128), (64, 128), (16, 128), (8, 128)):
        for batch, seq in ((1, 2048), (1, 4096), (2, 4096), (1, 8192), (1, 16384)):
            for form in ("chunk", "backward"):
                labels: Row = {"op": f"{op}.{form}", "batch": batch, "seq": seq}
                labels |= {"heads": heads, "d_qk": d_k, "d_v": d_v}
                guess = 20.0 * batch * seq * heads * d_k * d_v / 5e13 + 1e-4
                yield labels, partial(recurrent_call, op, form, batch, seq, heads, d_k, d_v), guess
        for batch in (1, 8, 32, 128, 256):
            labels = {"op": f"{op}.token", "batch": batch, "seq": 1, "heads": heads, "d_qk": d_k, "d_v": d_v}
            yield labels, partial(recurrent_call, op, "token", batch, 1, heads, d_k, d_v), 1e-3


def each_kernel(labels: Row, runs: list[Events]) -> Row:
    """The row of `measure_rested`, and the median time of every kernel in order of launch."""
    row = rested.summary(labels, runs)
    same = [run for run in runs if len(run) == len(runs[0])]
    names = [event[2].removeprefix("void ").replace(",", " ")[:60] for event in runs[0]]
    spans = [statistics.median(run[i][1] - run[i][0] for run in same) for i in range(len(names))]
    parts = [f"{name}={span:.2f}" for name, span in zip(names, spans, strict=True)]
    return {key: row.get(key, "") for key in COLUMNS if key != "kernels"} | {"kernels": " ; ".join(parts)}


SECTIONS: dict[str, Callable[[], Iterator[Case]]] = {
    "window": windows, "delta": partial(recurrent, "delta"), "kda": partial(recurrent, "kda"),
    "ssd": partial(recurrent, "ssd"),
}  # fmt: skip


def measure(cases: list[Case]) -> list[Row]:
    """Rows of the cases that ran, with their kernels."""
    return rested.measure(cases, each_kernel)


if __name__ == "__main__":
    rested.write("measure_mixers.py", COLUMNS, SECTIONS, measure)
