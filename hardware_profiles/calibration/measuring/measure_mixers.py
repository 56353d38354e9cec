"""Measure attention with a sliding window, and recurrent token mixers, on one rested GPU; kernel by kernel.

    python -m hardware_profiles.calibration.measuring.measure_mixers OUT.csv [KINDS]

KINDS are of window, delta, kda, ssd, conv, with a comma between. `window` is FlashAttention-2 as PyTorch ships it, by
the operator that takes a window (aten::_flash_attention_forward). `delta` is the gated delta rule, and `kda` the same
with a decay for each channel (Kimi Linear's), by the Triton kernels of flash-linear-attention, in chunks of 64 tokens
and token by token; `ssd` is Mamba-2 by those of mamba_ssm, in chunks of `window` tokens; `conv` is the short
convolution with SiLU before them, by causal_conv1d (CUDA) and flash-linear-attention (Triton). The libraries must be on
the path (`pip install --no-deps --target packages fla-core einops mamba-ssm causal-conv1d`); flash-linear-attention
refuses the backward of the delta rule on Hopper for Triton before 3.7.1, which computes it wrongly there. Launches are
as in `measure_rested`. `kernels` has every kernel of one call with its median time [us].
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
    """One call under the delta rule: `chunk` forward, `backward` of that, or `token` with a state to go on from."""
    delta, channels = import_module("fla.ops.gated_delta_rule"), import_module("fla.ops.kda")
    q, k, v, gate, beta = _inputs(batch, seq, heads, d_k, d_v, form == "backward")
    state = torch.randn(batch, heads, d_k, d_v, device=DEVICE) if form == "token" else None
    inputs: dict[str, torch.Tensor] = {"q": q, "k": k, "v": v, "g": gate, "beta": beta}
    if op == "delta":
        fn: Callable[..., Any] = (
            delta.fused_recurrent_gated_delta_rule if form == "token" else delta.chunk_gated_delta_rule
        )
    else:
        gates = gate[..., None].expand(*gate.shape, d_k).contiguous().detach().requires_grad_(form == "backward")
        inputs |= {"g": gates}
        fn = channels.fused_recurrent_kda if form == "token" else channels.chunk_kda
    options = {"initial_state": state, "output_final_state": form == "token"}
    if form != "backward":
        return lambda: fn(**inputs, **options)
    return backward_of(fn(**inputs, **options)[0], list(inputs.values()))


def backward_of(out: torch.Tensor, leaves: list[torch.Tensor]) -> Call:
    """The gradients of all inputs."""
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def ssd_call(form: str, batch: int, seq: int, heads: int, groups: int, chunk: int, d_k: int, d_v: int) -> Call:
    """One call of Mamba-2: `chunk` forward, `backward` of that, or `token`."""
    grad, a = form == "backward", -torch.rand(heads, device=DEVICE) - 0.1
    if form == "token":
        update = import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
        state, x = torch.randn(batch, heads, d_v, d_k, device=DEVICE), bf16(batch, heads, d_v)
        step = torch.rand(batch, heads, device=DEVICE).to(torch.bfloat16)[..., None].expand(batch, heads, d_v)
        rates = a[:, None, None].expand(heads, d_v, d_k)
        b, c = bf16(batch, groups, d_k), bf16(batch, groups, d_k)
        ones, gate = torch.ones(heads, device=DEVICE)[:, None].expand(heads, d_v), bf16(batch, heads, d_v)
        return lambda: update(state, x, step, rates, b, c, D=ones, z=gate, dt_bias=ones, dt_softplus=True)
    scan = import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    x, b, c = bf16(batch, seq, heads, d_v), bf16(batch, seq, groups, d_k), bf16(batch, seq, groups, d_k)
    step, skip = bf16(batch, seq, heads), torch.ones(heads, device=DEVICE)
    leaves = [t.detach().requires_grad_(grad) for t in (x, step, a, b, c, skip)]
    run = partial(scan, *leaves[:5], chunk, D=leaves[5], dt_softplus=True)
    return backward_of(run(), leaves) if grad else run


def conv_call(impl: str, form: str, batch: int, seq: int, channels: int, taps: int = 4) -> Call:
    """One call of the convolution over (batch, seq, channels): `forward`, `backward` or `token`."""
    grad, weight = form == "backward", bf16(channels, taps).requires_grad_(form == "backward")
    x = bf16(batch, seq, channels).requires_grad_(grad)
    if impl == "triton":
        made = import_module("fla.modules.causal_conv1d")
        if form == "token":
            cache = bf16(batch, channels, taps)
            return lambda: made.causal_conv1d_update(x, cache, weight=weight, activation="silu")
        run = partial(made.causal_conv1d, x, weight=weight, activation="silu")
        return backward_of(run()[0], [x, weight]) if grad else run
    cuda = import_module("causal_conv1d")
    if form == "token":
        state, one = bf16(batch, channels, taps), x[:, 0]
        return lambda: cuda.causal_conv1d_update(one, state, weight, activation="silu")
    run = partial(cuda.causal_conv1d_fn, x.transpose(1, 2), weight, activation="silu")
    return backward_of(run(), [x, weight]) if grad else run


LENGTHS = ((1, 2048), (1, 4096), (2, 4096), (1, 8192), (1, 16384))
"""Sequences, and tokens of each."""


def recurrent(op: str) -> Iterator[Case]:
    """The delta rule."""
    for heads in (32, 8):
        head: Row = {"heads": heads, "d_qk": 128, "d_v": 128}
        for batch, seq in LENGTHS:
            for form in ("chunk", "backward"):
                labels = {"op": f"{op}.{form}", "batch": batch, "seq": seq} | head
                guess = 20.0 * batch * seq * heads * 128 * 128 / 5e13 + 1e-4
                yield labels, partial(recurrent_call, op, form, batch, seq, heads, 128, 128), guess
        for batch in (1, 8, 32, 64, 128, 256):
            labels = {"op": f"{op}.token", "batch": batch, "seq": 1} | head
            yield labels, partial(recurrent_call, op, "token", batch, 1, heads, 128, 128), 2e-4


def ssd() -> Iterator[Case]:
    """Mamba-2."""
    for heads, groups in ((128, 8), (32, 2)):
        head: Row = {"heads": heads, "kv_heads": groups, "d_qk": 128, "d_v": 64}
        for chunk in (128, 256):
            for batch, seq in LENGTHS:
                for form in ("chunk", "backward"):
                    labels = {"op": f"ssd.{form}", "batch": batch, "seq": seq, "window": chunk} | head
                    guess = 20.0 * batch * seq * heads * 128 * 64 / 5e13 + 1e-4
                    yield labels, partial(ssd_call, form, batch, seq, heads, groups, chunk, 128, 64), guess
        for batch in (1, 8, 32, 64, 128, 256):
            labels = {"op": "ssd.token", "batch": batch, "seq": 1} | head
            yield labels, partial(ssd_call, "token", batch, 1, heads, groups, 0, 128, 64), 2e-4


def conv() -> Iterator[Case]:
    """The convolution: `heads` holds its channels."""
    for impl in ("cuda", "triton"):
        for channels in (2560, 8192, 12288):
            for batch, seq in LENGTHS[:4]:
                for form in ("forward", "backward"):
                    labels: Row = {"op": f"conv.{form}@{impl}", "batch": batch, "seq": seq, "heads": channels}
                    yield labels, partial(conv_call, impl, form, batch, seq, channels), 2e-4
            for batch in (1, 8, 64, 256):
                labels = {"op": f"conv.token@{impl}", "batch": batch, "seq": 1, "heads": channels}
                yield labels, partial(conv_call, impl, "token", batch, 1, channels), 1e-5


def each_kernel(labels: Row, runs: list[Events]) -> Row:
    """The row of `measure_rested`, and the median time of every kernel in order of launch."""
    row = rested.summary(labels, runs)
    same = [run for run in runs if len(run) == len(runs[0])]
    names = [event[2].removeprefix("void ").replace(",", " ")[:60] for event in runs[0]]
    spans = [statistics.median(run[i][1] - run[i][0] for run in same) for i in range(len(names))]
    parts = [f"{name}={span:.2f}" for name, span in zip(names, spans, strict=True)]
    return {key: row.get(key, "") for key in COLUMNS if key != "kernels"} | {"kernels": " ; ".join(parts)}


SECTIONS: dict[str, Callable[[], Iterator[Case]]] = {
    "window": windows, "delta": partial(recurrent, "delta"), "kda": partial(recurrent, "kda"), "ssd": ssd, "conv": conv,
}  # fmt: skip


def measure(cases: list[Case]) -> list[Row]:
    """Rows of the cases that ran, with their kernels."""
    return rested.measure(cases, each_kernel)


if __name__ == "__main__":
    rested.write("measure_mixers.py", COLUMNS, SECTIONS, measure)
