"""Which figure is computed how: rules in order, the first whose pattern fits decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from simulator.validation import (
    kernel_figures,
    measured_memory,
    named_models,
    recorded_profile,
    training_figures,
)
from simulator.validation.cannot import CannotCompute
from simulator.validation.figures import Figure
from simulator.validation.runs import foundry_runs, megascale_runs, nanotron_runs, published_runs, torchtitan_runs
from simulator.validation.serving import attention_modules, published_replays, published_steps

Compute = Callable[[Figure], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Figures whose name fits `pattern` are computed by `compute`, in their own unit.

    `given`: the program takes this number from the source, so that agreement proves nothing. `heavy`: whole steps are
    simulated; figures with the same `run` of name parts share one simulation.
    """

    pattern: str
    compute: Compute
    given: bool = False
    heavy: bool = False


def _never(reason: str) -> Compute:
    def compute(figure: Figure) -> float:
        raise CannotCompute(reason)

    return compute


_FORMAT = "a format in words, which the graph has too"
_SERVING = "serving is not simulated"
_FLEET = "a total of many steps and of a day's traffic, or a price: the documentation computes the fleet from it"
_UNKNOWN_STEP = "batch, length or layout of the step are not published"
_SHAPE = "the shape is not published"
_NUMERICS = "a property of arithmetic, not of time: foretrain numerics shows it"

RULES: tuple[Rule, ...] = (
    Rule(pattern="A.model.params_*", compute=named_models.parameters),
    Rule(pattern="A.model.*", compute=named_models.model_field, given=True),
    Rule(pattern="A.cost.pretrain_kh", compute=training_figures.v3_pretraining_hours, heavy=True),
    Rule(pattern="A.cost.per_trillion_*", compute=training_figures.v3_per_trillion, heavy=True),
    Rule(pattern="A.cost.ctx_ext_kh", compute=_never("the layout of the context extension is not published")),
    Rule(pattern="A.cost.*", compute=_never("contains phases whose layout is not published")),
    Rule(pattern="A.ctx.*", compute=_never("a number of steps, which is an input; their layout is not published")),
    Rule(pattern="A.dualpipe.*", compute=_never("a formula: tests hold the simulated schedules against it")),
    Rule(pattern="A.mem.ema", compute=_never("kept in memory of the host: no part of a GPU's memory or time")),
    Rule(pattern="A.mem.*", compute=_never("a choice in words, which the graph and the memory account make too")),
    Rule(pattern="A.comm.dispatch_fmt", compute=_never(_FORMAT)),
    Rule(pattern="A.fp8.act_tile", compute=_never(_FORMAT)),
    Rule(pattern="A.fp8.weight_block", compute=_never(_FORMAT)),
    Rule(pattern="A.fp8.formats", compute=_never(_FORMAT)),
    Rule(pattern="A.fp8.bf16_kept", compute=_never("a choice in words, which the graph makes too")),
    Rule(pattern="?.fp8.*loss*", compute=_never("the loss of a trained model; foretrain numerics trains a toy")),
    Rule(pattern="A.train.*", compute=named_models.v3_layout, given=True),
    Rule(pattern="A.overlap.compute_comm_ratio", compute=training_figures.v3_compute_to_comm),
    Rule(pattern="A.net.*", compute=named_models.v3_network, given=True),
    Rule(pattern="A.route.experts_per_node_avg", compute=named_models.experts_per_node),
    Rule(pattern="A.route.max_experts_same_comm", compute=kernel_figures.experts_at_same_cost),
    Rule(pattern="A.comm.sms", compute=named_models.v3_comm_sms, given=True),
    Rule(pattern="?.mtp.speedup", compute=named_models.mtp_speedup),
    Rule(pattern="?.mtp.accept_*", compute=_never("a property of trained models, not of time")),
    Rule(pattern="A.v2.per_trillion_kh", compute=training_figures.v2_per_trillion, heavy=True),
    Rule(pattern="A.v2.flops_per_token_crosscheck", compute=named_models.flop_per_token),
    Rule(pattern="A.v2.dense67b*", compute=_never("neither layout nor batch are published")),
    Rule(pattern="B.kv_per_token.*", compute=named_models.cache_per_token),
    Rule(pattern="B.train_gflop_per_token.*", compute=named_models.flop_per_token),
    Rule(pattern="B.topology.*", compute=named_models.topology),
    Rule(pattern="B.hw.mpft_max_gpus", compute=named_models.topology),
    Rule(pattern="B.latency64B.*", compute=kernel_figures.latency),
    Rule(pattern="B.train.*", compute=training_figures.v3_step, heavy=True),
    Rule(pattern="B.decode_bound.*", compute=named_models.decode_bound),
    Rule(pattern="B.hw.*_bits", compute=_never(_NUMERICS)),
    Rule(pattern="B.roce.*", compute=_never("a plot whose sizes of messages and groups are not published")),
    Rule(
        pattern="B.trace.*", compute=_never("a layout, which the jobs deepseek-v3-prefill-ep32 and -decode-ep128 have")
    ),
    Rule(pattern="B.hw.*", compute=named_models.v3_network, given=True),
    Rule(pattern="C.deepgemm.peak*", compute=_never(_SHAPE)),
    Rule(pattern="C.deepgemm.megamoe.*", compute=_never("a kernel that fuses all-to-all and experts is not modelled")),
    Rule(pattern="C.deepgemm.*", compute=kernel_figures.deepgemm),
    Rule(pattern="C.aiconf.*.gemm.*", compute=kernel_figures.gemm_time),
    Rule(pattern="C.aiconf.*.mla_decode.*", compute=kernel_figures.latent_decode),
    Rule(pattern="C.flashmla.sparse*", compute=_never("sparse attention is not modelled")),
    Rule(pattern="C.flashmla.*", compute=_never(_SHAPE)),
    Rule(pattern="C.cudnn.*", compute=_never("groups and tokens per expert are not published")),
    Rule(pattern="C.pplx.nvlink.*", compute=_never("these kernels' path inside one node has no parameters")),
    Rule(pattern="C.pplx.torch_a2a.*", compute=_never("how far the messages are padded is not published")),
    Rule(pattern="C.fa3.ablation", compute=kernel_figures.attention_ablation),
    Rule(pattern="C.fa?.*", compute=kernel_figures.attention_rate),
    Rule(pattern="C.nccl.*", compute=kernel_figures.collective),
    Rule(pattern="C.aiconf.*.nccl.*", compute=kernel_figures.collective),
    Rule(pattern="C.deepep.v2.*", compute=_never("a choice of the kernels' authors, not a time")),
    Rule(pattern="C.*", compute=kernel_figures.all_to_all),
    Rule(pattern="B.deepep_mpft.*", compute=kernel_figures.all_to_all),
    Rule(pattern="T.pair.*", compute=recorded_profile.trace_pair),
    Rule(pattern="E.zerobubble.*", compute=training_figures.zero_bubble, heavy=True),
    Rule(pattern="E.zerobubble_mem.*", compute=measured_memory.zero_bubble, heavy=True),
    Rule(pattern="E.simumax_mem.*", compute=measured_memory.simumax, heavy=True),
    Rule(pattern="E.narayanan.*", compute=training_figures.narayanan, heavy=True),
    Rule(pattern="E.megatron_readme.strong*", compute=_never("the layout is not published")),
    Rule(pattern="E.megatron_readme.*", compute=training_figures.megatron_readme, heavy=True),
    Rule(pattern="E.megatron_gb200.*", compute=training_figures.megatron_gb200, heavy=True),
    Rule(pattern="E.bridge.*", compute=published_runs.rate, heavy=True),
    Rule(pattern="E.nemo2407.*", compute=published_runs.rate, heavy=True),
    Rule(pattern="E.megascale.*", compute=megascale_runs.dense, heavy=True),
    Rule(
        pattern="E.megascale_moe.megatron_lm.*",
        compute=_never("what it recomputes, its microbatches and how tokens travel are not published"),
    ),
    Rule(pattern="E.megascale_moe.*", compute=megascale_runs.experts, heavy=True),
    Rule(pattern="E.folding.*", compute=_never("neither microbatches nor virtual stages are published")),
    Rule(pattern="E.foundry.*", compute=foundry_runs.rate, heavy=True),
    Rule(pattern="E.nanotron.*", compute=nanotron_runs.rate, heavy=True),
    Rule(pattern="E.torchtitan.*", compute=torchtitan_runs.rate, heavy=True),
    Rule(pattern="E.torchao.202508.*", compute=_never("the power limit of these GPUs is not published")),
    Rule(pattern="E.torchao.*", compute=torchtitan_runs.rate, heavy=True),
    Rule(pattern="E.dgxc.*", compute=published_runs.rate, heavy=True),
    Rule(pattern="E.simumax.*", compute=training_figures.simumax, heavy=True),
    Rule(pattern="F.power.*.inference_peak", compute=_never(_SERVING)),
    Rule(pattern="F.power.*", compute=_never("power of a whole system: profiles hold that of a GPU")),
    Rule(pattern="F.price.*", compute=named_models.price, given=True),
    Rule(pattern="F.*", compute=named_models.hardware, given=True),
    Rule(pattern="Q.*", compute=published_replays.replayed, heavy=True),
    Rule(pattern="K.*", compute=attention_modules.attention_module),
    Rule(pattern="S.*", compute=published_steps.serving_step),
    Rule(pattern="D.dsinfra.decode_node", compute=published_steps.online_decode),
    Rule(pattern="D.sglang96.prefill.*", compute=published_steps.sglang_prefill),
    Rule(pattern="D.sglang96.decode.*", compute=published_steps.sglang_decode),
    Rule(pattern="D.dsinfra.*", compute=_never(_FLEET)),
    Rule(pattern="D.*", compute=_never(_UNKNOWN_STEP)),
    Rule(pattern="A.infer.*", compute=_never("a layout, which the jobs deepseek-v3-prefill and -decode have")),
    Rule(pattern="A.v2.*", compute=_never(_SERVING)),
    Rule(pattern="?.fp8.*", compute=_never(_NUMERICS)),
    Rule(pattern="B.logfmt.*", compute=_never("a format that no job here uses")),
    Rule(pattern="*", compute=_never("no computation for this quantity")),
)


def rule_for(figure: Figure) -> Rule:
    """The rule that computes a figure."""
    return next(rule for rule in RULES if fnmatchcase(figure.id, rule.pattern))
