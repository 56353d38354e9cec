"""Prices every op of a scenario's blocks under the four conditions; equal layers are priced once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from simulator.cost.classes import class_of
from simulator.cost.cost import Cost, Share
from simulator.cost.price import price, times
from simulator.engine.kernel_sequence import Priced
from simulator.engine.power import lagging_pace, lags
from simulator.ops import AllToAll, Attention, DecodeAttention, Gemm, Op
from simulator.spec.hardware import Cluster
from simulator.spec.kernel_params import Kernels, rested
from simulator.spec.scenario import Scenario
from simulator.spec.serving import ServingStack
from simulator.spec.stack import LIBRARY, Stack, releases


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The communication kernel that compute is concurrent with.

    Parameters
    ----------
    sms : SMs that it holds.
    traffic : its memory traffic [B/s].
    """

    sms: int
    traffic: float


def neighbour_of(scenario: Scenario, all_to_all: Op | None) -> Neighbour:
    """What the scenario's all-to-alls take from concurrent compute: SMs and memory bandwidth."""
    comm_sms = scenario.job.overlap.comm_sms
    if all_to_all is None or scenario.stack.dispatcher in LIBRARY:
        return Neighbour(0, 0.0)
    if isinstance(all_to_all.work, AllToAll) and all_to_all.work.low_latency:
        return Neighbour(0, 0.0)  # the NIC moves the tokens; kernels that send and receive are ops of their own
    return Neighbour(comm_sms, scenario.cluster.kernels.comm_traffic)


ACCESSES = 2.5
"""Memory accesses per byte that a collective moves: an all-gather writes what it receives and reads what it sends (2);
a reduce-scatter also reads its own part (3)."""


def collective_of(cluster: Cluster) -> Neighbour:
    """What a collective over a node takes from concurrent compute."""
    return Neighbour(cluster.fabric.nvlink.sms, ACCESSES * cluster.node.nvlink.bandwidth)


def lengthened(cost: Cost, factor: float, name: str) -> Cost:
    """A kernel that takes `factor` times as long, which its terms give a `name`."""
    if factor == 1.0:
        return cost
    return replace(
        cost,
        duration=cost.duration * factor,
        formula=f"({cost.formula}) * {name}",
        terms=(*cost.terms, (name, factor)),
    )


def release_factor(op: Op, stack: Stack, kernels: Kernels) -> float:
    """How many times as long a kernel takes in the releases of libraries that the software runs."""
    cls = f"{op.cls}.causal" if isinstance(op.work, Attention) and op.work.causal else op.cls
    known = (kernels.releases[name].longer for name in releases(stack) if name in kernels.releases)
    return next((longer[cls] for longer in known if cls in longer), 1.0)


ATTENTION = {"fa3": "training", "fa2": "fa2", "cudnn": "library"}
"""Name of each stack's attention kernels in kernel classes."""


def kernel_class(cls: str, stack: Stack, kernels: Kernels) -> str:
    """The class of the software's kernel for an op's class, if the profile has one."""
    if cls.startswith("attn.decode"):
        return decode_class(cls if "@" in cls else class_of(cls, stack.attention, kernels.decode), kernels)
    if stack.grouped_gemm == "streams" and cls.startswith("gemm.") and ".grouped" in cls:
        return class_of(cls, "streams", kernels.gemm)
    if cls.startswith("gemm.") and stack.serving is not None:
        return _serving_gemm(cls, stack, stack.serving, kernels)
    if cls.startswith("gemm.nvfp4"):
        named = class_of("gemm.nvfp4", stack.norm_kernels, kernels.gemm)
        return named if named != "gemm.nvfp4" else cls
    if cls.startswith("attn."):
        return class_of(cls, ATTENTION[stack.attention], kernels.attention)
    if cls.startswith(("norm.", "swiglu", "quant.", "rope", "gelu")):
        return class_of(cls, stack.norm_kernels, kernels.stream)
    return cls


def decode_class(cls: str, kernels: Kernels) -> str:
    """The kernel over an FP8 cache where it was measured, else over BF16; vLLM's, else FlashAttention-3's own."""
    names = (cls, cls.replace(".fp8", ""), cls.replace("_vllm", ""), cls.replace(".fp8", "").replace("_vllm", ""))
    return next((name for name in names if name in kernels.decode), cls)


def _serving_gemm(cls: str, stack: Stack, software: ServingStack, kernels: Kernels) -> str:
    """DeepGEMM is the library where a profile knows no other."""
    own = software.experts if ".grouped" in cls and stack.dispatcher in LIBRARY else software.gemm
    found = class_of(cls, own, kernels.gemm)
    return class_of(cls, "library", kernels.gemm) if own == "deepgemm" and found == cls else found


def _named(op: Op, stack: Stack, kernels: Kernels) -> Op:
    """The op with the class of the software's kernel."""
    cls = kernel_class(op.cls, stack, kernels)
    return op if cls == op.cls else replace(op, cls=cls)


def _follows_clock(op: Op, cost: Cost, serves: bool) -> bool:
    """Whether an op lasts longer at a lower clock: a tensor kernel, or one whose instructions decide (casts, kernels
    without vectors and AdamW between GEMMs: `hardware_profiles/calibration/tables/h200_clock.csv`)."""
    if isinstance(op.work, DecodeAttention) or (isinstance(op.work, Gemm) and serves):
        return cost.bound_by == "tensor"  # what waits for memory does not notice the clock of tensor cores
    return isinstance(op.work, (Gemm, Attention)) or cost.bound_by == "instructions"


def _reduces(scenario: Scenario) -> bool:
    """Whether a collective may run next to compute."""
    return not scenario.workload.serves or scenario.job.layout.tp > 1 or scenario.stack.dispatcher in LIBRARY


def pricer(scenario: Scenario, all_to_all: Op | None, pace: float = 1.0) -> Callable[[Op], Priced]:
    """A function that prices one op, remembering what it has seen.

    `pace`: how much longer tensor kernels last at the clock of the step than at the boost clock
    (`simulator.engine.power`).

    Under `gemm_sms_reserved` a GEMM always leaves the SMs of the all-to-all free (DeepSeek's 112 of 132), even when
    nothing communicates.
    """
    cluster, stack = scenario.cluster, scenario.stack
    if cluster.gpu.power is not None:
        cluster = replace(cluster, kernels=rested(cluster.kernels))
    neighbour, collective = neighbour_of(scenario, all_to_all), collective_of(cluster)
    sms, left = cluster.gpu.sms, max(1, cluster.gpu.sms - neighbour.sms)
    rest = max(1, sms - collective.sms)
    gap = scenario.kernel_gap
    memo: dict[tuple[object, str, str], Priced] = {}

    serves, reduces = scenario.workload.serves, _reduces(scenario)
    lagging = lagging_pace(pace, cluster.gpu.power)

    def cost_of(op: Op, share: Share, busy: bool) -> Priced:
        cost = price(
            op,
            cluster,
            share,
            comm_sms=scenario.job.overlap.comm_sms,
            concurrent=busy,
            dispatcher=stack.dispatcher,
        )
        cost = lengthened(cost, release_factor(op, stack, cluster.kernels), "release")
        if _follows_clock(op, cost, serves):
            cost = lengthened(cost, lagging if lags(op, cost) else pace, "clock_factor")
        return Priced(op=op, cost=cost, durations=(times(cost, op, gap),) * 4)

    def compute(op: Op) -> Priced:
        own = left if stack.gemm_sms_reserved and isinstance(op.work, Gemm) else sms
        alone = cost_of(op, Share(sms=own), False)
        held = busy = shared = alone.durations[0]
        if reduces:  # else no collective ever runs next to compute
            shared = cost_of(op, Share(sms=min(own, rest), partner_traffic=collective.traffic), True).durations[0]
        if neighbour.sms or neighbour.traffic:
            held = cost_of(op, Share(sms=left), True).durations[0]
            busy = cost_of(op, Share(sms=left, partner_traffic=neighbour.traffic), True).durations[0]
        return replace(alone, durations=(alone.durations[0], held, busy, shared))

    def priced(op: Op) -> Priced:
        key = (op.work, op.cls, f"{op.count}{op.stream}")
        if key not in memo:
            run = _named(op, stack, cluster.kernels)
            if isinstance(op.work, AllToAll):
                lone = cost_of(run, Share(sms=sms), False)
                busy = cost_of(run, Share(sms=sms), True)
                one = replace(lone, durations=(lone.durations[0], *busy.durations[:2], lone.durations[0]))
            else:
                one = compute(run) if op.stream == "compute" else cost_of(run, Share(sms=sms), False)
            memo[key] = one
        one = memo[key]
        return one if one.op is op else Priced(op=op, cost=one.cost, durations=one.durations)

    return priced
