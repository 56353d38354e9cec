"""Time of latent attention for one new token a sequence (MLA as DeepSeek serves it), from attention's parameters.

    t = launch + norm4( FLOP / main-loop rate, FLOP / power rate, bytes / bandwidth )

All heads of a sequence read one latent a key, whose first `rank` entries are the values too: they stand in tiles as
queries do in training, and keys are cut so that all SMs end together (flash decoding). Nothing is fitted here: the
parameters are those of the forward kernel, at its widest heads. No job has this kernel; `validate` compares with it.
"""

from __future__ import annotations

from math import ceil

from simulator.cost.attention_cost import rate_of
from simulator.cost.classes import params_for
from simulator.cost.cost import Cost
from simulator.cost.gemm_cost import norm4, tensor_peak
from simulator.spec.hardware import Gpu
from simulator.spec.kernel_params import Kernels

TILE = 64
"""Heads in a tile (FlashMLA's block of queries)."""


def latent_decode_cost(
    batch: int, keys: int, gpu: Gpu, kernels: Kernels, *, heads: int = 128, rank: int = 512, rope: int = 64
) -> Cost:
    """Cost of one query in each of `batch` sequences over `keys` cached latents of `rank` + `rope` entries in BF16."""
    p, _, source = params_for(kernels.attention, "attn.fwd", kernels.name)
    width, rows = rank + rope, ceil(heads / TILE) * TILE
    flops = 2.0 * batch * rows * keys * (width + rank)
    size = 2.0 * batch * (keys * width + heads * (width + rank))
    peak = tensor_peak(gpu, "bf16")
    tensor, power = flops / (rate_of(p, width, rank) * peak), flops / (p.power_rate * peak)
    memory = size / (p.bandwidth * gpu.hbm_bandwidth)
    return Cost(
        duration=p.launch + norm4(tensor, power, memory),
        bound_by="memory" if memory > tensor else "tensor",
        formula="launch + norm4(flop/rate, flop/power rate, bytes/bandwidth)",
        terms=(("tensor_s", tensor), ("power_s", power), ("memory_s", memory), ("launch_s", p.launch)),
        source=f"forward kernel: {source}",
        calibrated=False,
    )
