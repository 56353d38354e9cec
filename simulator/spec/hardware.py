"""Hardware: GPU, links, node, cluster. SI values, bandwidths per GPU and direction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from simulator.spec.comm_params import Fabric
from simulator.spec.kernel_params import Kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Dense tensor peaks of the data sheet, never sparse.

    Parameters
    ----------
    bf16 : BF16 with FP32 accumulation [FLOP/s].
    fp8 : FP8 [FLOP/s] (0: the GPU has none).
    fp4 : NVFP4 [FLOP/s] (0: the GPU has none).
    fp32 : FP32 units outside the tensor cores, which add up partial sums of block-scaled FP8 before Blackwell
        [FLOP/s] (0: not known, taken to keep up).
    """

    bf16: float
    fp8: float = 0.0
    fp4: float = 0.0
    fp32: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What a GPU draws at full clock, and what happens at its power limit.

    Parameters
    ----------
    cap_of_tdp : power that the GPU holds, share of its `tdp`.
    idle : power at rest [W].
    memory : power of memory-bound kernels at full clock [W].
    tensor : power of GEMMs at full clock [W].
    split : power of FP8 GEMMs that add partial sums up outside the tensor cores, at full clock [W] (0: as `tensor`).
    attention : power of attention kernels at full clock [W].
    attention_mixed : the same between GEMMs at the limit, as their time shows (0: as `attention`). GEMMs do not reach
        the highest clock even at rest, attention does, so that it saves more power as the clock falls [W].
    attention_lag : how much longer attention lasts at the limit, over its time at rest, than GEMMs over theirs, and so
        kernels whose instructions decide (`simulator.engine.power.LAGGING`).
    unvectorized : power of elementwise kernels that compute every value's address [W] (0: as `memory`).
    update : power of the optimizer's update [W] (0: as `memory`).
    scatter : power of additions by index [W] (0: as `memory`).
    exponent : above the limit, tensor kernels take (demand / limit) ** exponent times as long.
    pause : longest time without work that counts in the mean demand [s] (0: however long). Behind a longer one the
        clock is down again before kernels have gained more time.
    spread : standard deviation of the demand between GPUs of one type, share of its mean.
    dither : standard deviation of the time of tensor kernels at the limit, over tens of milliseconds, in which the
        governor moves the clock, share of its mean.
    """

    cap_of_tdp: float
    idle: float
    memory: float
    tensor: float
    attention: float
    exponent: float
    pause: float = 0.0
    spread: float = 0.0
    dither: float = 0.0
    split: float = 0.0
    unvectorized: float = 0.0
    update: float = 0.0
    scatter: float = 0.0
    attention_mixed: float = 0.0
    attention_lag: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. `Cluster.sources` has the source of each value.

    Parameters
    ----------
    name : the GPU's name.
    architecture : NVIDIA's name of the generation.
    sms : streaming multiprocessors.
    boost_clock : clock that the peaks are quoted at [Hz].
    peak : dense tensor peaks [FLOP/s].
    hbm_bytes : memory that CUDA reports (cudaMemGetInfo's total, PyTorch's "total capacity") [B]; not the size in the
        GPU's name: 80 "GB" are 80 GiB less what the driver keeps.
    hbm_bandwidth : memory bandwidth of the data sheet [B/s].
    l2_bytes : L2 cache [B].
    tdp : thermal design power [W].
    power : power model; None where kernels were measured inside training, under the load they describe.
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

    Parameters
    ----------
    bandwidth : attainable; nothing derates it again [B/s].
    peak : figure of the data sheet, for reports only [B/s].
    latency : time of one small message [s].
    """

    bandwidth: float
    peak: float
    latency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One GPU's share of its host: the link to it, and the CPU's memory.

    Parameters
    ----------
    bandwidth : attainable of copies, per direction [B/s].
    peak : figure of the data sheet, for reports only [B/s].
    memory_bandwidth : attainable of the CPU's memory [B/s].
    memory_bytes : size of it [B].
    disk_bandwidth : attainable of reads from its local disks [B/s]; 0: it has none.
    disk_bytes : size of these [B].
    """

    bandwidth: float
    peak: float
    memory_bandwidth: float
    memory_bytes: float
    disk_bandwidth: float = 0.0
    disk_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """GPUs joined by NVLink, each with one NIC.

    Parameters
    ----------
    gpus : GPUs of a node.
    nvlink : NVLink of one GPU.
    nic : network of one GPU.
    nvlink_sharp : whether the NVLink switch can reduce.
    host_pace : how long the processor needs for the host's work, over the one that stacks state it for (1).
    host : what one GPU has of its host; None: not described, so that nothing can be offloaded to it.
    """

    gpus: int
    nvlink: Link
    nic: Link
    nvlink_sharp: bool = False
    host_pace: float = 1.0
    host: Host | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A hardware profile.

    Parameters
    ----------
    name : the profile's name.
    gpu : one GPU.
    node : GPUs of a node and their links.
    price_per_gpu_hour : rent of one GPU [USD/h].
    kernels : calibrated kernel parameters.
    fabric : calibrated communication parameters.
    sources : source of each number, by dotted path; an assumed one starts with "assumed".
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
