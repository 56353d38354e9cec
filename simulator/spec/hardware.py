"""Hardware: GPU, links, node, cluster. SI values, bandwidths per GPU and direction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from simulator.spec.comm_params import Fabric
from simulator.spec.kernel_params import Kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Dense tensor peaks, never sparse [FLOP/s]; `fp8` is 0 where the GPU has none.

    `fp32` is the rate of the FP32 units outside the tensor cores, which add up the partial sums of block-scaled FP8
    (before Blackwell); 0: not known, and taken to keep up.
    """

    bf16: float
    fp8: float = 0.0
    fp32: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What a GPU draws at full clock, and what happens at its limit.

    `cap_of_tdp` is the power it holds, as a share of the GPU's `tdp`; `idle`, `memory` (streaming kernels), `tensor`
    (GEMMs) and `attention` [W] what it would draw at full clock; tensor kernels last (demand / cap)^`exponent` times as
    long once the mean demand exceeds the cap. `spread`: standard deviation of the demand between GPUs of one type, over
    its mean.
    """

    cap_of_tdp: float
    idle: float
    memory: float
    tensor: float
    attention: float
    exponent: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. `boost_clock` [Hz] is the clock the peaks are quoted at; `hbm_bandwidth` [B/s] the displayed peak.

    `hbm_bytes` [B] is the memory that CUDA reports (cudaMemGetInfo's total, PyTorch's "total capacity"), not the size
    in the product's name: the driver keeps a part, and 80 "GB" are 80 GiB less that.

    `power` is None where the kernel parameters were measured inside training, under the load they describe.
    """

    name: str
    architecture: Literal["ampere", "hopper", "blackwell"]
    sms: int
    boost_clock: float
    peak: Peak
    hbm_bytes: float
    hbm_bandwidth: float
    l2_bytes: float
    tdp: float
    power: Power | None = None

    @property
    def power_cap(self) -> float:
        """The power that the GPU holds under load [W]."""
        return self.tdp * (self.power.cap_of_tdp if self.power else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link as one GPU sees it, per direction.

    `bandwidth` [B/s] is attainable: nothing derates it again. `peak` [B/s] is the displayed figure, for reports only.
    `latency` [s] of one small message.
    """

    bandwidth: float
    peak: float
    latency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """`gpus` GPUs joined by NVLink, each with one NIC. `nvlink_sharp`: the switch reduces in flight."""

    gpus: int
    nvlink: Link
    nic: Link
    nvlink_sharp: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A hardware profile. `kernels` and `fabric` hold the calibrated parameters of kernels and communication.

    `sources` maps each numeric leaf (dotted path) to where it comes from; `assumed` lists the leaves nobody measured.
    """

    name: str
    gpu: Gpu
    node: Node
    price_per_gpu_hour: float
    kernels: Kernels
    fabric: Fabric
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def assumed(self) -> tuple[str, ...]:
        """The leaves that nobody measured or published."""
        return tuple(path for path, source in self.sources.items() if source.startswith("assumed"))
