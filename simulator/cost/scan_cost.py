"""Time of a kernel of a recurrent layer in chunks: GEMMs of small tiles, and chains of chunks.

    t = launch + norm4( max(FLOP / rate, values / (SMs x values of one SM)), bytes / bandwidth, chain )
    chain = waves x steps x step_time: what CTAs that go from chunk to chunk take for the chunks one after the other

A kernel over all chunks at once has as many CTAs as chunks and one step each. The tiles (64 x 64 x 128) are those of
an attention kernel, so its rate lies below that kernel's. Where CTAs may also hold twice as many columns of the state,
which halves their number and makes a step `wide` times as long, the shorter chain counts: Triton tunes for it.
Mamba-1's selective scan has no GEMMs: instructions outside the tensor cores compute every value of every token's state.
"""

from __future__ import annotations

from math import ceil

from simulator.cost.classes import params_for
from simulator.cost.cost import Bound, Cost, Share
from simulator.cost.gemm_cost import norm4, tensor_peak
from simulator.errors import InputError
from simulator.ops import Scan
from simulator.spec.hardware import Gpu
from simulator.spec.kernel_params import Kernels

FORMULA = "launch + norm4(flops/rate, memory, waves*steps*step) * traffic_factor"
VALUES_FORMULA = "launch + norm4(values/(sms*value_rate), memory, waves*steps*step) * traffic_factor"
"""Where no GEMMs compute the state."""


def scan_cost(work: Scan, cls: str, gpu: Gpu, kernels: Kernels, share: Share) -> Cost:
    """Cost of one kernel of class `cls` on the SMs of `share` [s]."""
    if share.sms < 1 or work.ctas < 1 or work.steps < 1:
        raise InputError(f"scan of {work.ctas} CTAs, {work.steps} steps, {share.sms} SMs: must each be at least 1")
    p, calibrated, source = params_for(kernels.scan, cls, kernels.name)
    sms = min(share.sms, gpu.sms)
    cuts = ((work.ctas, 1.0), (ceil(work.ctas / 2), p.wide)) if p.wide else ((work.ctas, 1.0),)
    rounds = [(ceil(many / (p.resident * sms)), step) for many, step in cuts]
    waves, longer = min(rounds, key=lambda cut: cut[0] * cut[1])
    busy = min(1.0, work.ctas / sms)
    rate = p.rate * tensor_peak(gpu, "bf16") * sms / gpu.sms * busy
    tensor, chain = work.flops / rate, waves * work.steps * p.step_time * longer
    memory = (work.read + work.written) / (p.bandwidth * gpu.hbm_bandwidth)
    slow = 1.0 + p.traffic * share.partner_traffic / gpu.hbm_bandwidth
    instructions = work.values / (p.value_rate * sms) if p.value_rate else 0.0
    body = norm4(max(tensor, instructions), memory, chain)
    limits: dict[Bound, float] = {
        "tensor": tensor,
        "instructions": instructions,
        "memory": memory,
        "latency": max(chain, p.launch),
    }
    return Cost(
        duration=p.launch + body * slow,
        bound_by=max(limits, key=lambda name: limits[name]),
        formula=VALUES_FORMULA if instructions else FORMULA,
        terms=(
            *((("values", work.values), ("value_rate", p.value_rate)) if instructions else ()),
            *(() if instructions else (("flops", work.flops), ("rate", rate), ("tensor_s", tensor))),
            ("bytes", work.read + work.written),
            ("bandwidth", p.bandwidth * gpu.hbm_bandwidth),
            ("memory_s", memory),
            ("ctas", float(work.ctas)),
            ("waves", float(waves)),
            ("steps", float(work.steps)),
            ("step_s", p.step_time * longer),
            ("chain_s", chain),
            ("launch_s", p.launch),
            ("traffic_factor", slow),
        ),
        source=source,
        calibrated=calibrated,
    )
