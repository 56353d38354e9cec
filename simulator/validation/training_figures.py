"""End-to-end figures: whole training steps, simulated from the configuration that the source gives.

What a source leaves out is assumed the same way for all figures of a family and said in the function's words. Nothing
here, or in what it calls, is fitted to these figures.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from simulator.engine.kernel_sequence import ALONE
from simulator.engine.lower import price_model
from simulator.inputs import load_scenario
from simulator.results.simulate import Engine, schedule_of, simulate
from simulator.spec.job import Job
from simulator.spec.model import BlockKind, ModelSpec
from simulator.validation.cannot import CannotCompute
from simulator.validation.figures import Figure

V3, V2 = "deepseek-v3-pretrain", "deepseek-v2-pretrain"
DENSE = "llama-3-8b"
"""A job that names every key; model, hardware, stack and layout are then replaced."""
Overrides = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Results of a simulated step."""

    metrics: dict[str, float]
    phases: dict[str, float]
    job: Job
    model: ModelSpec

    @property
    def seconds(self) -> float:
        """The step time [s]."""
        return self.metrics["step_time_s"]


_ASKED: ContextVar[list[tuple[str, Overrides]] | None] = ContextVar("asked", default=None)
"""Where jobs are noted whose steps are asked for, within `step_asked`."""


class _Noted(Exception):
    """A step is asked for, and that is all that was to be found out."""


def step_asked(compute: Callable[[], object]) -> tuple[str, Overrides] | None:
    """The job with its overrides whose step a computation asks for first, without simulating it; None if none is."""
    asked: list[tuple[str, Overrides]] = []
    token = _ASKED.set(asked)
    try:
        compute()
    except _Noted:
        return asked[0]
    finally:
        _ASKED.reset(token)
    return None


def step(job: str, overrides: Overrides = (), engine: Engine = "events") -> Step:
    """One simulated step."""
    noted = _ASKED.get()
    if noted is not None:
        noted.append((job, overrides))
        raise _Noted
    return _simulated(job, overrides, engine)


@lru_cache(maxsize=16)
def _simulated(job: str, overrides: Overrides, engine: Engine) -> Step:
    scenario = load_scenario(job, overrides)
    result = simulate(scenario, engine=engine)
    return Step(metrics=result.metrics, phases=result.breakdown_s, job=scenario.job, model=scenario.model)


# --- DeepSeek -----------------------------------------------------------------------------------------------------

_PHASES = {
    "phase_1F": "forward",
    "phase_1B": "backward",
    "phase_1W": "weight",
    "phase_1F1B": "overlapped",
    "phase_bubble": "bubble",
    "phase_opt": "optimizer",
}
_METRICS = {
    "tokens_per_day": ("tokens_per_day", 1e-9),
    "time_per_step": ("step_time_s", 1.0),
    "tflops_per_gpu_noncausal": ("tflops_per_gpu_full", 1.0),
    "tflops_per_gpu_causal": ("tflops_per_gpu_causal", 1.0),
    "mfu_noncausal": ("mfu_full", 100.0),
    "mfu_causal": ("mfu_causal", 100.0),
}


def v3_step(figure: Figure) -> float:
    """DeepSeek-V3's step on a multi-plane (mpft) or multi-rail (mrft) network (arXiv 2505.09343, table 4).

    Both give each GPU the same bandwidth and latency: their difference, which plane a message takes, is not modelled,
    so one forecast is compared with both.
    """
    one = step(V3)
    if figure.quantity in _PHASES:
        return one.phases[_PHASES[figure.quantity]]
    if figure.quantity not in _METRICS:
        raise CannotCompute("no such number of a step")
    name, factor = _METRICS[figure.quantity]
    return one.metrics[name] * factor


def v3_per_trillion(figure: Figure) -> float:
    """GPU-hours, or days of the cluster, per 1e12 tokens."""
    one = step(V3)
    hours = one.metrics["gpu_hours_per_trillion_tokens"]
    return hours / one.job.gpus / 24.0 if figure.unit == "days" else hours


def v3_pretraining_hours(figure: Figure) -> float:
    """GPU-hours of the whole pre-training at full batch (the ramp of the first 3 % of tokens is left out)."""
    return step(V3).metrics["gpu_hours_per_trillion_tokens"] * float(figure.config["tokens_T"])


def v2_per_trillion(figure: Figure) -> float:
    """GPU-hours per 1e12 tokens of DeepSeek-V2; the number of GPUs is assumed (the source does not say it)."""
    return step(V2).metrics["gpu_hours_per_trillion_tokens"]


def v3_compute_to_comm(figure: Figure) -> float:
    """Compute of a MoE layer, forward and backward, over its all-to-alls, each alone."""
    scenario = load_scenario(V3)
    built = price_model(scenario, schedule_of(scenario).stages)
    ops = [built.price(op) for op in built.blocks[BlockKind.MOE].ops()]
    comm = sum(one.durations[ALONE] for one in ops if one.op.stream == "comm")
    return sum(one.durations[ALONE] for one in ops if one.op.stream == "compute") / comm


# --- published dense models ------------------------------------------------------------------------------------------


def overrides_of(**values: Any) -> Overrides:
    """`layout__pp=8` -> `layout.pp=8`; true and false as TOML writes them."""
    texts = []
    for key, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        texts.append(f"{key.replace('__', '.')}={text}")
    return tuple(texts)


def gpt(*, layers: int, heads: int, hidden: int, vocab: int, seq: int) -> Overrides:
    """A GPT of these sizes: plain feed-forward four times as wide, a learned position for each of `seq` tokens."""
    return overrides_of(
        model="gpt3-175b",
        model__num_hidden_layers=layers,
        model__num_attention_heads=heads,
        model__hidden_size=hidden,
        model__vocab_size=vocab,
        model__max_position_embeddings=seq,
    )


def zero_bubble(figure: Figure) -> float:
    """Samples per GPU and second of the zero-bubble paper (arXiv 2401.10241, table 4)."""
    one = step(DENSE, zero_bubble_run(figure), "longest-path")
    return one.job.batch.global_batch_size / one.seconds / one.job.gpus


def zero_bubble_run(figure: Figure) -> Overrides:
    """A run of the zero-bubble paper: GPT on A100, 8 GPUs a node.

    Its first and last stages hold one layer fewer, since they also hold the embedding and the head. The vocabulary is
    not given; its models are named 1.5B, 6.2B, 14.6B and 28.3B, which their layers and 27 to 34 thousand rows as wide
    make (28.08B and 14.47B are layers'), so that it is 32,000, as of the SentencePiece tokenizers that its scripts ask
    for (GPTSentencePieceTokenizer). Its ZB-1p and ZB-2p are the automatic schedules, whose
    updates are validated afterwards (section 4; examples/pretrain_zero_bubble.sh of its software, with FP16), and whose
    messages only streams wait for (zb_schedules.py, fused_pipeline_ops).
    """
    c = figure.config
    layers, pp, micro = int(c["layers"]), int(c["pp"]), int(c["mbs"])
    name, vpp = str(c["schedule"]), 1
    if name == "1f1b_i":
        name, vpp = "interleaved", (layers + 2) // pp
    own: dict[str, Any] = {}
    if name in ("zb1p", "zb2p"):
        name, own = f"{name}-auto", {"stack__post_validation": True, "stack__p2p_sync": False}
    virtual = pp * vpp
    each = (layers + 2) // virtual
    stages = [each - 1, *[each] * (virtual - 2), each - 1]
    sizes = gpt(layers=layers, heads=int(c["heads"]), hidden=int(c["hidden"]), vocab=32000, seq=int(c["seq"]))
    return sizes + overrides_of(
        hardware="a100",
        stack="megatron-lm",
        gpus=int(c["gpus"]),
        layout__tp=1,
        layout__pp=pp,
        layout__vpp=vpp,
        layout__zero=0,
        layout__schedule=name,
        layout__recompute="none",
        layout__stages=stages,
        batch__sequence_length=int(c["seq"]),
        batch__microbatch_size=micro,
        batch__global_batch_size=micro * int(c["microbatches"]),
        **own,
    )


def narayanan(figure: Figure) -> float:
    """TFLOP/s per GPU with recomputation of Megatron-LM on A100 (arXiv 2104.04473, table 1).

    Counted as its equation 3 does: 96 B s l h^2 (1 + s/6h + V/16lh). Assumed, where the table is silent: microbatches
    of one sequence with pipelines and of four without, two chunks of layers per rank where they divide.
    """
    c = figure.config
    layers, hidden, vocab, seq, batch = (int(c[key]) for key in ("layers", "hidden", "vocab", "seq", "gbs"))
    pp, tp = int(c["pp"]), int(c["tp"])
    chunks = 2 if pp > 1 and layers % (2 * pp) == 0 else 1
    one = step(
        DENSE,
        gpt(layers=layers, heads=int(c["heads"]), hidden=hidden, vocab=vocab, seq=seq)
        + overrides_of(
            hardware="a100",
            stack="megatron-lm",
            gpus=int(c["gpus"]),
            layout__tp=tp,
            layout__pp=pp,
            layout__vpp=chunks,
            layout__sp=False,
            layout__zero=0,
            layout__schedule="interleaved" if chunks > 1 else "1f1b",
            layout__recompute="full",
            layout__stages="even",
            batch__sequence_length=seq,
            batch__microbatch_size=1 if pp > 1 else 4,
            batch__global_batch_size=batch,
        ),
        "longest-path",
    )
    flops = 96.0 * batch * seq * layers * hidden**2 * (1 + seq / (6 * hidden) + vocab / (16 * layers * hidden))
    return flops / one.seconds / int(c["gpus"]) / 1e12


def megatron_readme(figure: Figure) -> float:
    """Model TFLOP/s per GPU of Megatron-Core's README: GPT in BF16 on H100, attention counted in full.

    Assumed, where it is silent: microbatches of one sequence, one chunk of layers per rank, and no option that it does
    not name (so its cross-entropy is not fused). It stands in core_v0.8.0 of 2024-08, not in v0.7.0, so that CUDA was
    12.5 at most; of such libraries one release was measured.
    """
    c = figure.config
    one = step(
        DENSE,
        gpt(
            layers=int(c["layers"]),
            heads=int(c["heads"]),
            hidden=int(c["hidden"]),
            vocab=int(c["vocab"]),
            seq=int(c["seq"]),
        )
        + overrides_of(
            hardware="h100",
            stack="megatron-core",
            stack__loss="parallel",
            stack__cublas="12.5",
            stack__cudnn="9.2",
            gpus=int(c["gpus"]),
            layout__tp=int(c["tp"]),
            layout__pp=int(c["pp"]),
            layout__recompute="none",
            layout__stages="even",
            batch__sequence_length=int(c["seq"]),
            batch__microbatch_size=1,
            batch__global_batch_size=int(c["gbs"]),
        ),
    )
    return one.metrics["tflops_per_gpu_full"]


def megatron_gb200(figure: Figure) -> float:
    """Model TFLOP/s per GPU of DeepSeek-V3 on 256 GB200 with Megatron-Core, causal attention counted as half.

    Assumed: MXFP8 GEMMs as fast as those of scales per 128, which also travel in dispatch here (theirs is BF16), 24 SMs
    for DeepEP and 16 for Hybrid-EP, and nothing recomputed (the source recomputes SwiGLU). CUDA graphs, where there are
    any, hold attention, gate and preparation of the dispatch, as the source says.
    """
    c = figure.config
    name = figure.id.rpartition(".")[2]
    virtual = int(c["pp"]) * int(c["vp"])
    one = step(
        DENSE,
        overrides_of(
            model="deepseek-v3",
            model__num_nextn_predict_layers=0,
            **_RACKS["GB200"],
            stack="megatron-core",
            stack__dispatcher="nccl" if name == "alltoall" else name,
            stack__cuda_graphs="attention" if c.get("cuda_graphs") else "none",
            optimizer__first_moment="bf16",
            optimizer__second_moment="bf16",
            gpus=int(c["gpus"]),
            precision__recipe="fp8",
            **({} if name == "alltoall" else {"overlap__comm_sms": 24 if name == "deepep" else 16}),
            layout__tp=int(c["tp"]),
            layout__zero=1,
            layout__pp=int(c["pp"]),
            layout__vpp=int(c["vp"]),
            layout__ep=int(c["ep"]),
            layout__schedule="interleaved",
            layout__recompute="none",
            layout__stages=[1, *[2] * (virtual - 2), 0],
            batch__sequence_length=int(c["seq"]),
            batch__microbatch_size=int(c["mbs"]),
            batch__global_batch_size=int(c["gbs"]),
        ),
    )
    return one.metrics["tflops_per_gpu_causal"]


_RACKS: dict[str, dict[str, Any]] = {"GB200": {"hardware": "gb200", "hardware__node__gpus": 64}}
"""Jobs of powers of two use 64 of a rack's 72 GPUs."""

_SIMUMAX_MODELS = {
    "llama3_70b": "llama-3-70b",
    "llama3_405b": "llama-3.1-405b",
    "deepseekv2": "deepseek-v2",
    "deepseekv3": "deepseek-v3",
}


def simumax(figure: Figure) -> float:
    """Step time of SimuMax's measurements [ms]."""
    return step(DENSE, simumax_run(figure), "longest-path").seconds * 1e3


def simumax_run(figure: Figure) -> Overrides:
    """A run of SimuMax on 8 B200: a few layers of each model, nothing overlapped, Transformer Engine's cross-entropy
    (its docs/b200/b200_real_repro_guide.md), and heads sent round for context parallelism (section 7 there). Experts
    are padded to a capacity of the mean, and what exceeds it is dropped
    (simu_tools/megatron_scripts/scripts/run_pretrain_deepseekv2.sh): all have as many tokens, which no host reads."""
    c = figure.config
    overlap = bool(c["overlap"])
    values: dict[str, Any] = {
        "model": _SIMUMAX_MODELS[str(c["model"])],
        "model__num_hidden_layers": int(c["layers"]),
        "hardware": "b200",
        "stack": "megatron-core",
        "stack__grad_sync_overlap": overlap,
        "stack__param_gather_overlap": overlap,
        "stack__tp_overlap": overlap,
        "stack__p2p_overlap": "chunks" if overlap else "never",
        "stack__loss": "te",
        "gpus": int(c["gpus"]),
        "layout__tp": int(c["tp"]),
        "layout__cp": int(c.get("cp", 1)),
        "layout__pp": int(c["pp"]),
        "layout__ep": int(c.get("ep", 1)),
        "layout__zero": int(c["zero"]),
        "layout__recompute": "none",
        "layout__stages": "even",
        "precision__recipe": str(c["precision"]).lower(),
        "batch__sequence_length": int(c["seq"]),
        "batch__microbatch_size": int(c["mbs"]),
        "batch__global_batch_size": int(c["mbs"]) * int(c["microbatches"]) * int(c["dp"]),
    }
    if int(c.get("cp", 1)) > 1:
        values["layout__cp_kind"] = "all_to_all"
    if str(c["model"]).startswith("deepseek"):
        values["routing__kind"] = "uniform"
        values["stack__token_counts"] = "device"
        values["model__first_k_dense_replace"] = int(c.get("dense_layers", 1))
        values["model__num_nextn_predict_layers"] = 0
    return overrides_of(**values)
