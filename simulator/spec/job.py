"""How a job is laid over the GPUs: degrees of parallelism, batch, precision, overlap. Plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from simulator.spec.states import Optimizer
from simulator.spec.workload import WorkloadName

Recompute = Literal["none", "selective", "full", "deepseek"]
Recipe = Literal["fp8", "bf16", "fp8_tensor"]
Placement = Literal["balanced", "even"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Degrees of parallelism and the pipeline schedule.

    `schedule` is a name in `simulator.schedule.SCHEDULES` or the path of a schedule file. `stages` puts the layers on
    the pipeline stages: "balanced" (by cost), "even" (by count), or one number of layers per stage. `zero` is the
    ZeRO stage (0 to 3). `etp` is tensor parallelism inside an expert, `sp` sequence parallelism beside `tp`.
    `cp_kind` how context parallelism moves keys and values.
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    cp: int = 1
    etp: int = 1
    sp: bool = True
    zero: int = 1
    schedule: str = "1f1b"
    recompute: Recompute = "none"
    stages: Placement | tuple[int, ...] = "balanced"
    cp_kind: Literal["ring", "all_gather"] = "ring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`sequence_length` [tokens], `microbatch_size` and `global_batch_size` [sequences]."""

    sequence_length: int
    microbatch_size: int
    global_batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """`recipe` fp8: DeepSeek's fine-grained FP8 GEMMs (arXiv 2412.19437, section 3.3); bf16: everything in BF16;
    fp8_tensor: one scale per tensor (Transformer Engine's per-tensor recipes)."""

    recipe: Recipe = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a job may fill of a GPU's memory.

    `headroom` [share of what CUDA reports] and `headroom_bytes` [B] are left free, both together. `reserve`: least and
    most that the caching allocator reserves beyond what is allocated [share of activations and temporary memory]. A job
    fits with the most, is tight if it fits with the least only, and else does not fit.
    """

    headroom: float = 0.0
    headroom_bytes: float = 0.0
    reserve: tuple[float, float] = (0.0, 0.10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """`comm_sms`: SMs given to the all-to-all kernels; 0 offloads them to a co-processor."""

    comm_sms: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How evenly the gate loads the expert-parallel ranks.

    `uniform`: all ranks equal. `skewed`: the most loaded rank has `max_over_mean` times the mean. `sampled`: loads
    drawn anew in each layer and microbatch from a Dirichlet gate with coefficient of variation `cv` per expert; the
    expected fullest rank counts, so there is no seed. `given`: `loads` over their mean, one for each rank, as
    `foretrain numerics --loads-out` writes them.

    What is known of ranks becomes `cv` times the square root of the experts per rank: ranks of 4 experts that spread
    by 5 % are `sampled` with `cv` = 0.1, and the fullest of any number of ranks follows.
    """

    kind: Literal["uniform", "skewed", "sampled", "given"] = "uniform"
    max_over_mean: float = 1.0
    cv: float = 0.0
    loads: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The whole run: `tokens` to train on, `price_per_gpu_hour` [USD] (None: the hardware profile's)."""

    tokens: float = 1e12
    price_per_gpu_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job file. `model` and `hardware` are names or paths; `stack` names the software's habits, `workload` what is
    done with the model."""

    model: str
    hardware: str
    gpus: int
    layout: Layout = field(default_factory=Layout)
    batch: Batch
    stack: str = "deepseek"
    workload: WorkloadName = "training"
    precision: Precision = field(default_factory=Precision)
    optimizer: Optimizer = field(default_factory=Optimizer)
    memory: Memory = field(default_factory=Memory)
    overlap: Overlap = field(default_factory=Overlap)
    routing: Routing = field(default_factory=Routing)
    run: Run = field(default_factory=Run)

    @property
    def dp(self) -> int:
        """Data-parallel degree of the dense parameters."""
        return self.gpus // (self.layout.tp * self.layout.pp * self.layout.cp)

    @property
    def edp(self) -> int:
        """Data-parallel degree of the experts."""
        return self.gpus // (self.layout.pp * self.layout.ep * self.layout.etp)

    @property
    def microbatches(self) -> int:
        """Microbatches a pipeline sees per step."""
        return self.batch.global_batch_size // (self.dp * self.batch.microbatch_size)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch.global_batch_size * self.batch.sequence_length

    @property
    def tokens_per_rank(self) -> int:
        """Tokens of one microbatch that one rank computes (its share of the context)."""
        return self.batch.microbatch_size * self.batch.sequence_length // self.layout.cp
