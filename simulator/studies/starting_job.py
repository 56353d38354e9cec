"""A complete job to start from: what a model on some hardware is usually trained with, and a layout that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from simulator.errors import InputError
from simulator.estimate.shared_prices import SharedPricesMemo
from simulator.inputs import load_hardware, load_model, load_stack
from simulator.memory import memory_of_rows
from simulator.results.simulate import prepare
from simulator.routing.published_loads import with_published_loads
from simulator.spec.hardware import Cluster
from simulator.spec.job import Batch, Job, Layout, Recompute, Routing
from simulator.spec.model import ModelSpec
from simulator.spec.precision import Precision
from simulator.spec.scenario import Scenario
from simulator.studies.search.candidate import Candidate, judge

TOKENS = 4e6
"""Tokens of a step that are aimed at: what recipes of 2024 and 2025 train with (assumed)."""
SEQUENCE = 4096
MOST_NODES = 512
FSDP_GPUS = 64
"""GPUs up to which dense models are usually trained with FSDP alone (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingJob:
    """A job that is valid and fits, its step time [s] and peak memory [B], of how many layouts that fit it is the
    fastest, and why its stack was chosen."""

    job: Job
    step: float
    memory: float
    fitting: int
    why_stack: str


def starting_job(model: str, hardware: str, gpus: int | None, stack: str | None) -> StartingJob:
    """The fastest of the usual layouts that are valid and fit, on the fewest GPUs where `gpus` is None.

    With little recomputation if any such layout fits. Times are the quick engine's: of all with equal ranks, of the
    fastest for each `ep` with the loads of experts that the job takes.

    Raises InputError where none of those tried fits.
    """
    spec, cluster = load_model(model), load_hardware(hardware)
    node, memo = cluster.node.gpus, SharedPricesMemo(keep=8)
    sizes = [gpus] if gpus is not None else [n * node for n in _powers(MOST_NODES)]
    for size in sizes:
        chosen, why = (stack, "as asked") if stack else _stack(spec, cluster, size)
        software = load_stack(chosen)
        for how in _policies(spec):
            fitting: list[tuple[Candidate, Scenario]] = []
            for job in _jobs(model, spec, hardware, cluster, size, chosen, how):
                scenario = Scenario(name="job", job=job, model=spec, cluster=cluster, stack=software)
                found = judge(0, scenario, memo)
                if found.status == "ok":
                    fitting.append((found, scenario))
            if fitting:
                best, taken = _fastest(_with_loads(fitting, memo))
                return StartingJob(
                    job=replace(taken.job, routing=Routing()),  # which the file need not state
                    step=best.step or 0.0,
                    memory=best.memory or 0.0,
                    fitting=len(fitting),
                    why_stack=why,
                )
    tried = f"{gpus} GPUs" if gpus is not None else f"up to {sizes[-1]} GPUs"
    raise InputError(f"new: {model} on {hardware}: no layout that was tried fits on {tried}; name more with --gpus")


def _with_loads(fitting: list[tuple[Candidate, Scenario]], memo: SharedPricesMemo) -> list[tuple[Candidate, Scenario]]:
    """The fastest for each number of ranks that experts are spread over, with the loads that jobs of the model take.

    Pricing uneven ranks takes up to a second for each layout, which is why the others are left out.
    """
    ranked = sorted(fitting, key=lambda one: one[0].step or 0.0, reverse=True)
    fastest = {one.job.layout.ep: one for _, one in ranked}.values()
    asked = Routing(kind="auto")
    loaded = [replace(one, job=with_published_loads(replace(one.job, routing=asked), one.model)) for one in fastest]
    return [(judge(0, one, memo), one) for one in loaded]


def _fastest(fitting: list[tuple[Candidate, Scenario]]) -> tuple[Candidate, Scenario]:
    """The fastest that fits whatever the allocator reserves; where all are tight, the fastest of them."""
    ranked = sorted(fitting, key=lambda one: one[0].step or 0.0)  # of equals the simplest, which comes first
    roomy = (one for one in ranked if memory_of_rows(*prepare(one[1])).answer == "fits")
    return next(roomy, ranked[0])


def _stack(model: ModelSpec, cluster: Cluster, gpus: int) -> tuple[str, str]:
    """The software such models are usually trained with, and why."""
    if model.is_mla and model.is_moe and cluster.name == "h800":
        return "deepseek", "latent attention and experts on H800, as DeepSeek-V3 was trained"
    if not model.is_moe and model.norm != "layer" and gpus <= FSDP_GPUS:
        return "torch-compile", f"a dense model on at most {FSDP_GPUS} GPUs: PyTorch FSDP2 with torch.compile"
    return "megatron-core", "experts, or more GPUs than FSDP alone is used on"


def _policies(spec: ModelSpec) -> tuple[Recompute, ...]:
    """Recomputation: little before much."""
    return ("deepseek", "full") if spec.is_mla and spec.is_moe else ("selective", "full")


def _jobs(
    model: str, spec: ModelSpec, hardware: str, cluster: Cluster, gpus: int, stack: str, how: Recompute
) -> Iterator[Job]:
    """Jobs to try: few ways of splitting the model before many."""
    recipe = "fp8" if stack == "deepseek" and cluster.gpu.peak.fp8 else "bf16"
    sequence = min(SEQUENCE, spec.max_position_embeddings or SEQUENCE)
    for layout in _layouts(spec, cluster, gpus, stack, how):
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


def _layouts(spec: ModelSpec, cluster: Cluster, gpus: int, stack: str, how: Recompute) -> Iterator[Layout]:
    """Sharded data parallelism alone where PyTorch runs it, then stages, and tensor or expert parallelism in them."""
    within = [tp for tp in _powers(min(8, cluster.node.gpus)) if gpus % tp == 0]
    if stack.startswith("torch"):
        yield Layout(zero=3, recompute=how)
    for pp in _powers(16):
        dualpipe = stack == "deepseek" and pp > 1
        base = Layout(pp=pp, zero=1, recompute=how, schedule="dualpipe" if dualpipe else "1f1b")
        if gpus % pp:
            continue
        if spec.is_moe:
            yield from (replace(base, ep=ep) for ep in _spread(spec, gpus // pp))
        else:
            yield from (replace(base, tp=tp) for tp in within if gpus % (tp * pp) == 0)


def _spread(spec: ModelSpec, ranks: int) -> list[int]:
    """Numbers of ranks that experts may be spread over."""
    return [ep for ep in _powers(64) if ranks % ep == 0 and spec.n_routed_experts % ep == 0]


def _powers(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length()) if 2**n <= most]
