"""What the hardware chapter of the DeepSeek-V3 report asks for (arXiv 2412.19437, section 3.5), one change each, and
what one slow GPU, NIC or host costs.

A what-if is a named change of a scenario. Its assumptions are in its description; everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from simulator.errors import InputError
from simulator.inputs.only_training import refuse_serving
from simulator.results import simulate as run
from simulator.results.result import Result
from simulator.spec.comm_params import EpParams
from simulator.spec.kernel_params import GemmParams
from simulator.spec.model import BlockKind
from simulator.spec.placement import is_written
from simulator.spec.scenario import Scenario
from simulator.spec.uneven import Stragglers

UNLIMITED = 1e15
"""A rate that never limits [B/s]."""
NVLINK_900 = 450e9
"""NVLink of H100: 900 GB/s both ways together (NVIDIA H100 datasheet, 2023), so half of it per direction [B/s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """A change: what it asks (`asks`), what is assumed, where it is suggested, the function that makes it, and whether
    ranks then differ (`uneven`)."""

    asks: str
    assumes: str
    source: str
    change: Callable[[Scenario], Scenario]
    uneven: bool = False


def _coprocessor(s: Scenario) -> Scenario:
    return replace(s, job=replace(s.job, overlap=replace(s.job.overlap, comm_sms=0)))


def _unified(s: Scenario) -> Scenario:
    def free(kernels: EpParams) -> EpParams:
        return replace(kernels, send_rate=UNLIMITED, forward_rate=UNLIMITED)

    fabric = s.cluster.fabric
    ep = {name: free(kernels) for name, kernels in fabric.ep.items()}
    return replace(s, cluster=replace(s.cluster, fabric=replace(fabric, ep=ep)))


def _accumulation(s: Scenario) -> Scenario:
    kernels = s.cluster.kernels
    bf16 = kernels.gemm.get("gemm.bf16")
    if bf16 is None:
        raise InputError(f"what-if: the kernels of {s.cluster.name} hold no class gemm.bf16 to take the rate from")

    def as_bf16(p: GemmParams) -> GemmParams:
        step = bf16.block_time * p.k_block / bf16.k_block
        return replace(p, rate=max(p.rate, bf16.rate), block_time=min(p.block_time, step))

    gemm = {name: as_bf16(p) if name.startswith("gemm.fp8") else p for name, p in kernels.gemm.items()}
    return replace(s, cluster=replace(s.cluster, kernels=replace(kernels, gemm=gemm)))


def _fused_casts(s: Scenario) -> Scenario:
    return replace(s, stack=replace(s.stack, fused_quant=True))


def _nvlink(s: Scenario) -> Scenario:
    node = s.cluster.node
    attained = NVLINK_900 * node.nvlink.bandwidth / node.nvlink.peak
    link = replace(node.nvlink, bandwidth=attained, peak=NVLINK_900)
    return replace(s, cluster=replace(s.cluster, node=replace(node, nvlink=link)))


SLOW_GPU = 1.1
"""Slowdown of one slow GPU. Assumed: a tenth; thermal throttling and failing parts make some lose more."""
JITTER = 20e-6
"""Mean delay of a host before an action [s]. Assumed: a few kernel launches of 5 to 6 us each."""


def _uneven(
    gpus: int, *, slowdown: float = 1.0, nic: float = 1.0, jitter: float = 0.0
) -> Callable[[Scenario], Scenario]:
    """Slow GPUs in the middle of the pipeline."""

    def change(s: Scenario) -> Scenario:
        stage = s.job.layout.pp // 2 if gpus else 0
        many = min(gpus, s.job.layout.ep if s.model.is_moe else s.job.gpus // s.job.layout.pp)
        slow = Stragglers(gpus=many, stage=stage, slowdown=slowdown, nic=nic, jitter=jitter)
        return replace(s, job=replace(s.job, stragglers=slow))

    return change


def _own_clocks(s: Scenario) -> Scenario:
    return replace(s, job=replace(s.job, stragglers=replace(s.job.stragglers, clocks="drawn")))


WHAT_IFS: Mapping[str, WhatIf] = MappingProxyType(
    {
        "coprocessor": WhatIf(
            asks="communication offloaded to a co-processor",
            assumes="the all-to-all holds no SMs and runs at the speed of the links",
            source="section 3.5.1",
            change=_coprocessor,
        ),
        "unified-network": WhatIf(
            asks="InfiniBand and NVLink as one network",
            assumes="no SM copies between the two: only the links take time; the SMs stay reserved",
            source="section 3.5.1",
            change=_unified,
        ),
        "fp8-accumulation": WhatIf(
            asks="FP8 accumulated at full precision in the tensor cores",
            assumes="FP8 GEMMs without promotion reach the share of their peak that BF16 GEMMs reach of theirs",
            source="section 3.5.2",
            change=_accumulation,
        ),
        "fused-casts": WhatIf(
            asks="casts to FP8 fused with the memory access before them",
            assumes="as a software stack with fused casts: casts ride on the kernel before",
            source="section 3.5.2",
            change=_fused_casts,
        ),
        "nvlink-900": WhatIf(
            asks="NVLink at 900 GB/s, as in H100",
            assumes="the same share of the peak can be attained",
            source="NVIDIA H100 datasheet, 2023",
            change=_nvlink,
        ),
        "straggler": WhatIf(
            asks="one slow GPU",
            assumes=f"one GPU on the pipeline rank in the middle takes {SLOW_GPU:g} times as long for every kernel",
            source="assumed",
            change=_uneven(1, slowdown=SLOW_GPU),
            uneven=True,
        ),
        "narrow-nic": WhatIf(
            asks="one NIC at half its bandwidth",
            assumes="the NIC of one GPU on the pipeline rank in the middle, which its whole node waits for",
            source="assumed",
            change=_uneven(1, nic=0.5),
            uneven=True,
        ),
        "lost-rail": WhatIf(
            asks="a node without one of its rails",
            assumes="two GPUs of a node on the pipeline rank in the middle share one NIC",
            source="assumed",
            change=_uneven(2, nic=0.5),
            uneven=True,
        ),
        "own-clocks": WhatIf(
            asks="every GPU at a clock of its own",
            assumes="at the power limit each has a power demand of its own, drawn with the hardware's gpu.power.spread;"
            " else all wait for the one that is expected to demand most",
            source="hardware_profiles/calibration/tables/h200_gpus.csv, 2026-11; arXiv 2208.11035",
            change=_own_clocks,
            uneven=True,
        ),
        "late-hosts": WhatIf(
            asks="hosts that are late",
            assumes=f"every host is late by {JITTER * 1e6:g} us on average before each action (exponential)",
            source="assumed",
            change=_uneven(0, jitter=JITTER),
            uneven=True,
        ),
    }
)


def named(name: str) -> WhatIf:
    """The what-if of that name."""
    if name not in WHAT_IFS:
        from simulator.inputs.problems import nearest

        raise InputError(f"there is no what-if {name!r}: {nearest(name, WHAT_IFS)}")
    return WHAT_IFS[name]


def differs_by_rank(names: Sequence[str]) -> bool:
    """Whether one of these what-ifs makes ranks differ: next to it, the job as it is must have its ranks apart, too."""
    return any(named(name).uneven for name in names)


def apply(scenario: Scenario, name: str) -> Scenario:
    """The scenario with the what-if of that name; its own name says so, and its layers stay on their stages."""
    refuse_serving(scenario, "a what-if")
    return replace(named(name).change(pinned(scenario)), name=f"{scenario.name} + {name}")


def simulate(
    scenario: Scenario,
    names: Sequence[str],
    *,
    engine: run.Engine = "events",
    progress: Callable[[float], None] | None = None,
) -> Result:
    """One step with the what-ifs of these names, one after the other; warnings say what they assume."""
    for name in names:
        scenario = apply(scenario, name)
    result = run.simulate(scenario, engine=engine, progress=progress)
    if not names:
        return result
    said = [f"What if: {one.asks}. Assumed: {one.assumes}." for one in map(named, names)]
    provenance = {**result.provenance, "what_if": list(names)}
    return replace(result, warnings=[*said, *result.warnings], provenance=provenance)


def pinned(scenario: Scenario) -> Scenario:
    """The scenario with its layers listed by stage: if it were balanced again, the cut could move and hide the effect
    of a change."""
    layout = scenario.job.layout
    if isinstance(layout.stages, tuple) or is_written(layout.stages):
        return scenario
    from simulator.estimate.shared_prices import evenly  # NumPy takes 0.1 s to load

    counts = tuple(sum(kind.is_layer for kind in _main(blocks)) for blocks in run.prepare(scenario)[0].stages)
    return replace(scenario, job=replace(scenario.job, layout=replace(evenly(layout), stages=counts)))


def _main(blocks: tuple[BlockKind, ...]) -> tuple[BlockKind, ...]:
    """The blocks before the output head: after it come those of MTP modules, which always follow it."""
    return blocks[: blocks.index(BlockKind.HEAD)] if BlockKind.HEAD in blocks else blocks
