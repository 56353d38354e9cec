"""How a job is laid over the GPUs: degrees of parallelism, batch, precision, overlap. Plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from simulator.spec.precision import Precision
from simulator.spec.serving import Serving
from simulator.spec.states import Optimizer
from simulator.spec.uneven import Stragglers
from simulator.spec.workload import WorkloadName

RecomputePreset = Literal["none", "selective", "full", "deepseek"]
Module = Literal[
    "core_attn",
    "norm",
    "layernorm",
    "mla_up",
    "mla_up_proj",
    "swiglu",
    "moe_act",
    "mlp",
    "moe",
    "shared_experts",
    "ops",
    "layer",
]
"""What can be recomputed. Megatron-Core's names mean what they mean there (`--recompute-modules`,
megatron/core/transformer/transformer_config.py, 2025):

- `core_attn`: the attention core (arXiv 2205.05198, section 5);
- `norm`: the outputs of all norms (arXiv 2412.19437, section 3.2.3); `layernorm`: of the two norms of a layer only;
- `mla_up`: the up-projections of latent attention (the same section); `mla_up_proj`: with the norms before them;
- `swiglu`: the outputs of the activation, of dense layers and of experts (section 3.3.3); `moe_act`: of the routed
  experts only;
- `mlp`: the feed-forward part of dense layers; `moe`: gate, all-to-alls and experts; `shared_experts`: these only;
- `ops`: all of a layer but its attention core, its all-to-alls and every second GEMM (TorchTitan's policy `op`,
  arXiv 2410.06511; see `simulator.graph.recompute`);
- `layer`: all of a layer; only its input is kept.
"""
Recompute = RecomputePreset | tuple[Module, ...]
Placement = Literal["balanced", "even"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Degrees of parallelism and the pipeline schedule.

    Parameters
    ----------
    tp : tensor parallelism [ranks].
    pp : pipeline parallelism [ranks].
    vpp : stages per pipeline rank of an interleaved schedule.
    ep : expert parallelism [ranks].
    cp : context parallelism [ranks].
    etp : tensor parallelism inside an expert [ranks].
    sp : sequence parallelism, in addition to `tp`.
    zero : ZeRO stage, 0 to 3.
    replicas : groups of ranks that each hold everything that ZeRO shards: gradients are reduce-scattered within a group
        and all-reduced over the groups (HSDP; torchtitan, data_parallel_replicate_degree; Megatron-Core,
        --num-distributed-optimizer-instances). 1: one group of all.
    schedule : a name in `simulator.schedule.SCHEDULES`, or the path of a schedule file.
    recompute : what backward recomputes: "none", "full" (whole layers), "selective" (as the stack means it), "deepseek"
        (norm, mla_up, swiglu), or a list of modules (`Module`).
    recompute_method : which layers of a stage, where whole ones are recomputed. uniform: all, in groups of
        `recompute_layers` that keep one input together; block: the first `recompute_layers`, the others keep everything
        (Megatron-Core, --recompute-method).
    recompute_layers : layers of a group, or of a stage [layers].
    stages : layers per pipeline stage: "balanced" (by cost), "even" (by count), one number for each stage, or a layout
        as Megatron-Core writes it (`simulator.spec.placement`), which places embedding, MTP modules and loss, too.
    decoder_first_pipeline_num_layers, decoder_last_pipeline_num_layers : layers of the first and last pipeline rank;
        the others share the rest evenly (`stages` "even") [layers].
    cp_kind : how context parallelism brings queries and keys together: keys and values go round (ring) or are gathered
        (all_gather), or an all-to-all turns parts of the sequence into parts of the heads (all_to_all;
        `simulator.graph.mixers.context`).
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    cp: int = 1
    etp: int = 1
    sp: bool = True
    zero: int = 1
    replicas: int = 1
    schedule: str = "1f1b"
    recompute: Recompute = "none"
    recompute_method: Literal["uniform", "block"] = "uniform"
    recompute_layers: int = 1
    stages: Placement | str | tuple[int, ...] = "balanced"
    decoder_first_pipeline_num_layers: int | None = None
    decoder_last_pipeline_num_layers: int | None = None
    cp_kind: Literal["ring", "all_gather", "all_to_all"] = "ring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sizes of a training step.

    Parameters
    ----------
    sequence_length : length of a sequence [tokens].
    microbatch_size : sequences of a microbatch.
    global_batch_size : sequences of a step.
    """

    sequence_length: int
    microbatch_size: int
    global_batch_size: int


NO_BATCH = Batch(sequence_length=1, microbatch_size=1, global_batch_size=1)
"""Stands in a serving job, which has no batch of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a job may fill of a GPU's memory.

    A job fits with the most reserve, is tight if it fits with the least only, and otherwise does not fit.

    Parameters
    ----------
    headroom : left free [share of what CUDA reports].
    headroom_bytes : left free in addition [B].
    reserve : least and most that the caching allocator reserves beyond what is allocated [share of activations and
        temporary memory].
    """

    headroom: float = 0.0
    headroom_bytes: float = 0.0
    reserve: tuple[float, float] = (0.0, 0.10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """What a rank keeps in the memory of its host instead of its own.

    Parameters
    ----------
    optimizer : of masters and moments; the CPU updates them (Megatron-Core, --optimizer-cpu-offload and
        --optimizer-offload-fraction) [share].
    activations : of what each layer keeps for backward, but those of a stage's last layer, which backward needs first;
        copied behind the layer's forward, and back before its backward, both overlapped with the neighbouring layer
        [share].
    """

    optimizer: float = 0.0
    activations: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How communication overlaps with compute.

    Parameters
    ----------
    comm_sms : SMs of the all-to-all kernels (0: a co-processor does them).
    """

    comm_sms: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How evenly the gate loads the expert-parallel ranks.

    `uniform`: all ranks equal. `skewed`: `max_over_mean` is given, and rank 0 has it in every layer. `hot`: expert 0 of
    every layer has `hot_expert` times the mean, the others share the rest; who holds it has more. `given`: `loads`
    are, of every layer. `sampled`: experts of each layer differ in popularity, by `cv` for the whole step and by
    `microbatch_cv` anew in each microbatch, and tokens are drawn. `measured`: recorded in `file`. `published`: sampled,
    as others measured gates that are balanced alike (`simulator.routing.published_loads`). `auto`, of a training job
    that says nothing: `published` where there are such measurements, else `uniform`. Loading a job resolves both.

    A spread known per rank gives `cv` when multiplied by the square root of the experts per rank: ranks of 4 experts
    that spread by 5 % are `sampled` with `cv` = 0.1.

    Parameters
    ----------
    kind : which of the eight.
    ranks : how a training step has ranks that differ. `mean`: as one with the mean load sees them, which waits in each
        kind of action as if that ran behind itself on all ranks; `apart`: each of an expert-parallel group, over the
        whole step. `auto`: `mean` of published loads, `apart` of loads that a job states. With slow GPUs: `apart`.
    max_over_mean : load of the most loaded rank over the mean.
    hot_expert : load of the hot expert over the mean expert's.
    cv : coefficient of variation of the popularity of an expert, the same in all microbatches.
    microbatch_cv : coefficient of variation of the factor by which a microbatch changes it.
    seed : of the random numbers of `sampled`.
    file : CSV or Parquet of tokens per layer and expert (`simulator.inputs.recorded.load_file`).
    loads : load of each rank over the mean, as `foretrain numerics --loads-out` writes them.
    """

    kind: Literal["uniform", "skewed", "hot", "sampled", "given", "measured", "published", "auto"] = "uniform"
    ranks: Literal["auto", "mean", "apart"] = "auto"
    max_over_mean: float = 1.0
    hot_expert: float = 1.0
    cv: float = 0.0
    microbatch_cv: float = 0.0
    seed: int = 0
    file: str = ""
    loads: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The whole training run.

    Parameters
    ----------
    tokens : tokens to train on.
    price_per_gpu_hour : rent of one GPU [USD/h] (None: the hardware profile's).
    """

    tokens: float = 1e12
    price_per_gpu_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job file.

    Parameters
    ----------
    model : name of a shipped model, or a path.
    hardware : name of a shipped hardware profile, or a path.
    gpus : GPUs of the job.
    layout : degrees of parallelism and schedule.
    batch : sizes of a training step; None for serving.
    serving : sequences, context and tokens of a serving step; None for training (`simulator.inputs.workloads`).
    stack : name of the software's settings, or a path.
    workload : what is done with the model.
    precision : number formats.
    optimizer : optimizer and formats of its states, where they differ from the stack's.
    memory : what may be filled of a GPU's memory.
    offload : what is kept in the host's memory.
    overlap : SMs of communication.
    routing : balance of the experts.
    stragglers : GPUs that are slower than the others.
    run : tokens and price of the whole run.
    """

    model: str
    hardware: str
    gpus: int
    layout: Layout = field(default_factory=Layout)
    batch: Batch = NO_BATCH
    serving: Serving | None = None
    stack: str = "deepseek"
    workload: WorkloadName = "training"
    precision: Precision = field(default_factory=Precision)
    optimizer: Optimizer = field(default_factory=Optimizer)
    memory: Memory = field(default_factory=Memory)
    offload: Offload = field(default_factory=Offload)
    overlap: Overlap = field(default_factory=Overlap)
    routing: Routing = field(default_factory=Routing)
    stragglers: Stragglers = field(default_factory=Stragglers)
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
        """Microbatches a pipeline sees per step; 0 where the GPUs do not fill one."""
        return self.batch.global_batch_size // (self.dp * self.batch.microbatch_size) if self.dp else 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch.global_batch_size * self.batch.sequence_length

    @property
    def tokens_per_rank(self) -> int:
        """Tokens of one microbatch that one rank computes (its share of the context)."""
        return self.batch.microbatch_size * self.batch.sequence_length // self.layout.cp
