"""A complete job to start from: what a model on some hardware is usually trained with, and a layout that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from simulator.errors import InputError
from simulator.estimate.shared_prices import SharedPricesMemo
from simulator.inputs import load_hardware, load_model, load_stack
from simulator.spec.hardware import Cluster
from simulator.spec.job import Batch, Job, Layout, Precision, Recompute
from simulator.spec.model import ModelSpec
from simulator.spec.scenario import Scenario
from simulator.studies.search.candidate import judge

TOKENS = 4e6
"""Tokens of a step that are aimed at: what recipes of 2024 and 2025 train with (assumed)."""
SEQUENCE = 4096
MOST_NODES = 512
FSDP_GPUS = 64
"""GPUs up to which dense models are usually trained with FSDP alone (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingJob:
    """A job that is valid and fits, its step time [s] and peak memory [B], and why its stack was chosen."""

    job: Job
    step: float
    memory: float
    why_stack: str


def starting_job(model: str, hardware: str, gpus: int | None, stack: str | None) -> StartingJob:
    """The first layout, from the simplest on, that is valid and fits, on the fewest GPUs where `gpus` is None.

    Raises InputError where none of those tried fits.
    """
    spec, cluster = load_model(model), load_hardware(hardware)
    node, memo = cluster.node.gpus, SharedPricesMemo(keep=8)
    sizes = [gpus] if gpus is not None else [n * node for n in _powers(MOST_NODES)]
    for size in sizes:
        chosen, why = (stack, "as asked") if stack else _stack(spec, cluster, size)
        for job in _jobs(model, spec, hardware, cluster, size, chosen):
            scenario = Scenario(name="job", job=job, model=spec, cluster=cluster, stack=load_stack(chosen))
            found = judge(0, scenario, memo)
            if found.status == "ok":
                return StartingJob(job=job, step=found.step or 0.0, memory=found.memory or 0.0, why_stack=why)
    tried = f"{gpus} GPUs" if gpus is not None else f"up to {sizes[-1]} GPUs"
    raise InputError(f"new: {model} on {hardware}: no layout that was tried fits on {tried}; name more with --gpus")


def _stack(model: ModelSpec, cluster: Cluster, gpus: int) -> tuple[str, str]:
    """The software such models are usually trained with, and why."""
    if model.is_mla and model.is_moe and cluster.name == "h800":
        return "deepseek", "latent attention and experts on H800, as DeepSeek-V3 was trained"
    if not model.is_moe and model.norm != "layer" and gpus <= FSDP_GPUS:
        return "torch-compile", f"a dense model on at most {FSDP_GPUS} GPUs: PyTorch FSDP2 with torch.compile"
    return "megatron-core", "experts, or more GPUs than FSDP alone is used on"


def _jobs(model: str, spec: ModelSpec, hardware: str, cluster: Cluster, gpus: int, stack: str) -> Iterator[Job]:
    """Jobs to try: little recomputation before much, few ways of splitting the model before many."""
    recipe = "fp8" if stack == "deepseek" and cluster.gpu.peak.fp8 else "bf16"
    sequence = min(SEQUENCE, spec.max_position_embeddings or SEQUENCE)
    for layout in _layouts(spec, cluster, gpus, stack):
        replicas = gpus // (layout.tp * layout.pp)
        microbatches = max(4 * layout.pp, round(TOKENS / (sequence * replicas)), 1)
        job = Job(
            model=model,
            hardware=hardware,
            gpus=gpus,
            stack=stack,
            layout=layout,
            batch=Batch(sequence_length=sequence, microbatch_size=1, global_batch_size=replicas * microbatches),
            precision=Precision(recipe=recipe),  # type: ignore[arg-type]  # one of the two
        )
        yield job


def _layouts(spec: ModelSpec, cluster: Cluster, gpus: int, stack: str) -> Iterator[Layout]:
    policies: tuple[Recompute, ...] = ("deepseek", "full") if spec.is_mla and spec.is_moe else ("selective", "full")
    within = [tp for tp in _powers(min(8, cluster.node.gpus)) if gpus % tp == 0]
    if stack.startswith("torch"):
        yield from (Layout(zero=3, recompute=how) for how in policies)
    for how in policies:
        for pp in _powers(16):
            for tp in [1] if spec.is_moe else within:
                if gpus % (tp * pp) == 0:
                    yield _layout(spec, gpus, stack, Layout(tp=tp, pp=pp, zero=1, recompute=how))


def _layout(spec: ModelSpec, gpus: int, stack: str, base: Layout) -> Layout:
    """With experts spread as far as they go, and the schedule of the stack."""
    ranks = gpus // base.pp
    ep = max((n for n in _powers(64) if spec.is_moe and ranks % n == 0 and spec.n_routed_experts % n == 0), default=1)
    dualpipe = stack == "deepseek" and base.pp > 1
    return replace(base, ep=ep, schedule="dualpipe" if dualpipe else "1f1b")


def _powers(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length()) if 2**n <= most]
