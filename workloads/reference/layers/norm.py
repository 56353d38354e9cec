"""RMSNorm (arXiv 1910.07467): y = g x / sqrt(mean(x^2) + eps)."""

import numpy as np

from workloads.reference.count import Array, Run, Saved


def rmsnorm(run: Run, op: str, x: Array, gain: Array) -> tuple[Array, Array]:
    """y [..., width] and 1/rms [...], which backward needs."""
    rstd: Array = 1.0 / np.sqrt((x * x).mean(axis=-1) + run.cfg.rms_norm_eps)
    y: Array = x * rstd[..., None] * gain
    run.count(op, "F", read={"x": x, "w": gain}, written={"y": y, "rstd": rstd})
    return y, rstd


def rmsnorm_input_grad(run: Run, op: str, x: Array, rstd: Array, gain: Array, dy: Array) -> Array:
    """dx = r (g dy) - x r^3 mean(x g dy), with r = 1/rms."""
    gdy = dy * gain
    r = rstd[..., None]
    dx: Array = r * gdy - x * r**3 * (x * gdy).mean(axis=-1, keepdims=True)
    run.count(op, "I", read={"x": x, "rstd": rstd, "w": gain, "dy": dy}, written={"dx": dx})
    return dx


def forget(run: Run, saved: Saved, outputs: dict[str, str], module: str = "norm") -> Saved:
    """What is left to keep when norms are recomputed: neither 1/rms nor the output, which `outputs` names by norm.

    `module`: another name under which these norms are recomputed.
    """
    if not run.again("norm", module):
        return saved
    drop = {f"{op}/rstd" for op in outputs} | set(outputs.values())
    return {key: array for key, array in saved.items() if key not in drop}
