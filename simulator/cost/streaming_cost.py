"""Time of memory-bound kernels, and of those too small for their bytes to matter.

    t = launch + max(norm4(bytes / attainable bandwidth, bytes / (SMs x rate of one SM)),
                     values / (SMs x values of one SM), chain of the CTAs) x waves

A CTA waits for its own loads, so it takes a fixed time (or moves its bytes at a fixed rate) even if memory is idle. A
small grid cannot be faster than one CTA; a large one runs `resident` CTAs an SM at a time, and small CTAs then keep too
little in flight to fill the memory (V3's rotary kernel: 1 KB each, 1.1 of 3.35 TB/s). Norms loop over their rows with a
fixed grid: the bytes of one CTA decide.

PyTorch's kernel for operands that are not next to each other (halves of a projection or of heads, a factor for each
row) computes every value's address: its instructions decide, 2.7 ps a value on an H200 whatever its bytes. So does
AdamW on BF16 states.

Tensors much smaller than L2 are still in it, and may go faster; a grid that exactly fills the GPU needs another wave
when SMs are taken; a concurrent kernel's memory traffic takes its part of the bandwidth and delays the start.
"""

from __future__ import annotations

from collections.abc import Iterator

from simulator.cost.classes import params_for
from simulator.cost.cost import Bound, Cost, Share
from simulator.cost.gemm_cost import norm4
from simulator.errors import InputError
from simulator.ops import Fixed, Streaming
from simulator.spec.hardware import Gpu
from simulator.spec.kernel_params import Kernels, StreamParams

FORMULA = "launch + max(memory, chain) * waves_factor * traffic_factor"
VALUES_FORMULA = "launch + max(memory, values/(sms*value_rate), chain) * waves_factor * traffic_factor"
"""Where instructions may decide."""
SM_FORMULA = "launch + max(norm4(memory, bytes/(sms*sm_rate)), chain) * waves_factor * traffic_factor"
"""Where what one SM can move has a limit."""


def waves_factor(work: Streaming, p: StreamParams, gpu: Gpu, sms: int) -> float:
    """How many times the first wave's time a kernel takes: 1, or more when its exact grid no longer fits."""
    resident = work.blocks // gpu.sms
    if p.resident or not resident or work.blocks % gpu.sms:
        return 1.0
    waves = -(-work.blocks // (resident * sms))
    return 1.0 + p.wave_time * (waves - 1)


def cta_time(work: Streaming, p: StreamParams) -> float:
    """How long one CTA lasts, as its own accesses take [s]."""
    if not work.blocks:
        return p.cta_time
    own = p.cta_time + (work.bytes / work.blocks / p.cta_rate if p.cta_rate else 0.0)
    return min(own, p.cta_most) if p.cta_most else own


def chain_time(work: Streaming, p: StreamParams, sms: int) -> float:
    """Time of the CTAs one after the other on `sms` SMs [s]."""
    lasts = cta_time(work, p)
    if not work.blocks:
        return lasts
    return lasts * max(1.0, work.blocks / (p.resident * sms)) if p.resident else lasts


def cached_bytes(work: Streaming, gpu: Gpu) -> float:
    """What is taken to be in L2 still [B]: of a kernel that moves a share x of what L2 holds, 1 - x."""
    return work.bytes * max(0.0, 1.0 - work.bytes / gpu.l2_bytes)


def memory_time(work: Streaming, p: StreamParams, gpu: Gpu) -> float:
    """Time of the bytes in memory, and of those in L2, which go `l2_gain` times faster [s]."""
    bandwidth, cached = p.bandwidth * gpu.hbm_bandwidth, cached_bytes(work, gpu)
    return (work.bytes - cached) / bandwidth + cached / (bandwidth * p.l2_gain)


def instruction_time(work: Streaming, p: StreamParams, sms: int) -> float:
    """Time of the instructions, where their number and not the bytes decides [s]."""
    return work.values / (p.value_rate * sms) if p.value_rate else 0.0


def body_time(work: Streaming, p: StreamParams, gpu: Gpu, sms: int) -> float:
    """Time of the work itself [s], the bytes' or the CTAs'."""
    memory = memory_time(work, p, gpu)
    moved = norm4(memory, work.bytes / (p.sm_rate * sms)) if p.sm_rate else memory
    return max(moved, instruction_time(work, p, sms), chain_time(work, p, sms))


def _terms_of_body(work: Streaming, p: StreamParams, gpu: Gpu, sms: int) -> Iterator[tuple[str, float]]:
    """What the body is made of; what plays no part is left out."""
    yield "bytes", work.bytes
    yield "bandwidth", p.bandwidth * gpu.hbm_bandwidth
    if p.l2_gain != 1.0 and cached_bytes(work, gpu):
        yield "cached_bytes", cached_bytes(work, gpu)
        yield "l2_gain", p.l2_gain
    yield "memory_s", memory_time(work, p, gpu)
    yield "sms", float(sms)
    if p.sm_rate:
        yield "sm_rate", p.sm_rate
    if p.value_rate and work.values:
        yield "values", work.values
        yield "value_rate", p.value_rate
    chain = chain_time(work, p, sms)
    if chain:
        if work.blocks:
            yield "ctas", float(work.blocks)
            yield "resident", float(p.resident)
        yield "cta_s", cta_time(work, p)
    yield "chain_s", chain


def _bound(work: Streaming, p: StreamParams, body: float, launch: float, sms: int) -> Bound:
    """What decides the time."""
    if body <= launch:
        return "latency"
    return "instructions" if instruction_time(work, p, sms) >= body else "memory"


def streaming_cost(work: Streaming, cls: str, gpu: Gpu, kernels: Kernels, share: Share) -> Cost:
    """Cost of one memory-bound kernel of class `cls` on the SMs of `share` [s]."""
    if share.sms < 1 or work.read < 0 or work.written < 0:
        raise InputError(f"streaming kernel {cls}: {work.bytes} bytes on {share.sms} SMs cannot be priced")
    p, calibrated, source = params_for(kernels.stream, cls, kernels.name)
    sms = min(share.sms, gpu.sms)
    waves = waves_factor(work, p, gpu, sms)
    body = body_time(work, p, gpu, sms)
    slow = 1.0 + p.traffic * share.partner_traffic / gpu.hbm_bandwidth
    launch = p.launch + p.concurrent_delay * min(1.0, share.partner_traffic / kernels.comm_traffic)
    return Cost(
        duration=launch + body * waves * slow,
        bound_by=_bound(work, p, body, launch, sms),
        formula=SM_FORMULA if p.sm_rate else VALUES_FORMULA if p.value_rate and work.values else FORMULA,
        terms=(
            *_terms_of_body(work, p, gpu, sms),
            ("waves_factor", waves),
            ("body_s", body),
            ("launch_s", launch),
            ("traffic_factor", slow),
        ),
        source=source,
        calibrated=calibrated,
    )


def fixed_cost(work: Fixed, cls: str, kernels: Kernels) -> Cost:
    """Cost of `work.launches` kernels of a class whose time does not depend on their work [s]."""
    if work.launches < 0:
        raise InputError(f"fixed kernel {cls}: {work.launches} launches")
    p, calibrated, source = params_for(kernels.fixed, cls, kernels.name)
    return Cost(
        duration=p.time * work.launches,
        bound_by="fixed",
        formula="launches * time",
        terms=(("launches", float(work.launches)), ("time_s", p.time)),
        source=source,
        calibrated=calibrated,
    )
