"""Short convolutions (LFM2, arXiv 2511.23404): of three parts of a projection the first times the third is convolved
over the last few tokens of each channel, and the result times the second is projected back."""

import numpy as np

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad
from workloads.reference.layers.mixers.recurrent import _ahead, _convolved, _shifted, _summed


def short_conv(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Output [B, S, hidden] of normalised input x [B, S, hidden]."""
    parts = linear(run, "mixer.in", x, p["mixer.in"])
    before, behind, value = np.split(parts, 3, axis=-1)
    saved: Saved = {"mixer.parts/x": parts, "mixer.conv/x": before * value}
    saved["mixer.conv/y"] = _convolved(p, saved["mixer.conv/x"])
    saved["mixer.out/x"] = behind * saved["mixer.conv/y"]
    if run.ends_here:
        return x, saved
    return linear(run, "mixer.out", saved["mixer.out/x"], p["mixer.out"]), saved


def short_conv_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    before, behind, value = np.split(saved["mixer.parts/x"], 3, axis=-1)
    dgated = linear_input_grad(run, "mixer.out", dy, p["mixer.out"])
    dmade, made = dgated * behind, saved["mixer.conv/x"]
    taps = p["mixer.conv"].reshape(-1, made.shape[-1])
    dtaps = np.concatenate([_shifted(made, i) * dmade for i in range(len(taps))], axis=-1)
    dproduct: Array = np.sum([_ahead(dmade, i) * tap for i, tap in enumerate(taps)], axis=0)
    dparts = np.concatenate([dproduct * value, dgated * saved["mixer.conv/y"], dproduct * before], axis=-1)
    later = [("mixer.out", saved["mixer.out/x"], dy), ("mixer.in", x, dparts)]
    deferred = [Deferred(kind="linear", op=op, name=op, layer=run.layer, x=a, dy=d) for op, a, d in later]
    return linear_input_grad(run, "mixer.in", dparts, p["mixer.in"]), [*deferred, _summed(run, "mixer.conv", dtaps)]
