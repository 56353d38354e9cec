"""Rules of serving jobs: what a step of prefill or decode cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from simulator.inputs.problems import Problem
from simulator.routing.loads import BY_EXPERT
from simulator.spec.job import Layout, Overlap, Run
from simulator.spec.scenario import Scenario
from simulator.spec.serving import Serving, expert_slots
from simulator.spec.stack import LIBRARY

_TRAINING_LAYOUT = (
    "pp",
    "vpp",
    "cp",
    "zero",
    "schedule",
    "replicas",
    "recompute",
    "recompute_method",
    "recompute_layers",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "stages",
    "cp_kind",
)
"""Keys of the layout that a serving step has no use for."""


def serving_of(s: Scenario) -> Serving:
    """The `[serving]` table, which every serving job has."""
    assert s.job.serving is not None  # the loader refuses a serving job without it
    return s.job.serving


def training_keys(s: Scenario) -> Iterator[Problem]:
    """Keys that only training reads."""
    plain = Layout()
    for key in _TRAINING_LAYOUT:
        value = getattr(s.job.layout, key)
        if value != getattr(plain, key):
            yield _only_training(f"layout.{key}", value, getattr(plain, key), s.job.workload)
    for part in fields(s.job.optimizer):
        value = getattr(s.job.optimizer, part.name)
        if value is not None:
            yield _only_training(f"optimizer.{part.name}", value, "none", s.job.workload)
    for part in fields(s.job.offload):
        value = getattr(s.job.offload, part.name)
        if value:
            yield _only_training(f"offload.{part.name}", value, "0", s.job.workload)
    if s.job.run.tokens != Run().tokens:
        yield _only_training("run.tokens", f"{s.job.run.tokens:g}", "1e12", s.job.workload)
    if s.job.workload == "decode" and s.job.overlap != Overlap():
        yield Problem(
            rule="communication SMs",
            key="overlap.comm_sms",
            value=s.job.overlap.comm_sms,
            message="changes nothing: low-latency kernels hold no SMs while tokens travel",
            suggestion="leave it out",
        )


def _only_training(key: str, value: object, plain: object, workload: str) -> Problem:
    return Problem(
        rule="keys of training",
        key=key,
        value=value,
        message=f'a job with workload = "{workload}" has no use for it',
        suggestion=f"leave it out (or write {plain})",
    )


def software(s: Scenario) -> Iterator[Problem]:
    """The stack must know how to serve, with kernels that the hardware profile has."""
    own = s.stack.serving
    if own is None:
        yield Problem(
            rule="serving software",
            key="stack",
            value=s.stack.name,
            message="says nothing of serving",
            suggestion="use deepseek-serving or torch-serving",
        )
        return
    if own.all_reduce != "nccl" and own.all_reduce not in s.cluster.fabric.all_reduce:
        known = ", ".join(["nccl", *sorted(s.cluster.fabric.all_reduce)])
        yield Problem(
            rule="serving software",
            key="stack.serving.all_reduce",
            value=own.all_reduce,
            message=f"{s.cluster.name} has no parameters of these kernels",
            suggestion=f"use one of {known}",
        )


DS_MLA = (512, 64)
"""Widths of latents and of their rotary part that `fp8_ds_mla` lays out (deepseek-ai/FlashMLA, README, 2025-09)."""


def cache_format(s: Scenario) -> Iterator[Problem]:
    """Formats of the KV cache that are of latents only."""
    m = s.model
    if serving_of(s).kv_dtype == "fp8_ds_mla" and (m.kv_lora_rank, m.qk_rope_head_dim) != DS_MLA:
        yield Problem(
            rule="format of the KV cache",
            key="serving.kv_dtype",
            value="fp8_ds_mla",
            message=f"is of latents of 512 and 64 values; {m.name} caches others",
            suggestion="use fp8 or bf16",
        )


def positions(s: Scenario) -> Iterator[Problem]:
    """Context and new tokens within what the model was made for."""
    serving, longest = serving_of(s), s.model.max_position_embeddings
    for key, cached, new in (
        ("serving.context", serving.longest_context, serving.tokens),
        ("serving.prefill_context", serving.prefill_context, serving.prefill_tokens),
    ):
        length = cached + new
        if longest and length > longest:
            yield Problem(
                rule="positions",
                key=key,
                value=cached,
                message=f"with {new} new tokens is {length} tokens; {s.model.name} has positions for {longest}",
                suggestion=f"use at most {max(0, longest - new)}",
            )


def microbatches(s: Scenario) -> Iterator[Problem]:
    """Two microbatches need two sequences or more, and an all-to-all to hide."""
    serving = serving_of(s)
    if not serving.two_batch_overlap:
        return
    if serving.sequences % 2:
        yield Problem(
            rule="two microbatches",
            key="serving.sequences",
            value=serving.sequences,
            message="does not divide into two equal microbatches",
            suggestion=f"use {serving.sequences + 1}, or two_batch_overlap = false",
        )
    if not s.model.is_moe or s.job.layout.ep == 1 or s.stack.dispatcher in LIBRARY:
        yield Problem(
            rule="two microbatches",
            key="serving.two_batch_overlap",
            value="true",
            message="there is no all-to-all to hide",
            suggestion="use false",
        )


def drafting(s: Scenario) -> Iterator[Problem]:
    """Drafted tokens, their acceptance, and chunks of prompts that run along with decode."""
    serving, plain, decodes = serving_of(s), Serving(sequences=1, tokens=1), s.job.workload == "decode"
    if serving.mtp_depth and decodes and serving.tokens > 1:
        yield Problem(
            rule="drafted tokens",
            key="serving.tokens",
            value=serving.tokens,
            message=f"with mtp_depth {serving.mtp_depth}: a step verifies the drafted tokens and one more",
            suggestion="use 1",
        )
    given = serving.mtp_acceptance
    if isinstance(given, tuple) and len(given) != serving.mtp_depth:
        yield Problem(
            rule="drafted tokens",
            key="serving.mtp_acceptance",
            value=list(given),
            message=f"lists {len(given)} of mtp_depth {serving.mtp_depth} drafted tokens",
            suggestion="give one number for each, or one for all",
        )
    for name, used in (
        ("mtp_acceptance", bool(serving.mtp_depth) and decodes),
        ("prefill_tokens", decodes),
        ("prefill_context", serving.prefill_tokens > 0),
    ):
        value = getattr(serving, name)
        if value != getattr(plain, name) and not used:
            needs = {"mtp_acceptance": "mtp_depth above 0 in decode", "prefill_tokens": "decode"}
            yield Problem(
                rule="unused keys",
                key=f"serving.{name}",
                value=value,
                message=f"changes nothing without {needs.get(name, 'prefill_tokens')}",
                suggestion="leave it out",
            )
    if serving.prefill_tokens and serving.two_batch_overlap:
        yield Problem(
            rule="two microbatches",
            key="serving.prefill_tokens",
            value=serving.prefill_tokens,
            message="a chunk of a prompt does not divide into two microbatches: not modelled",
            suggestion="use two_batch_overlap = false",
        )


def ranks(s: Scenario) -> Iterator[Problem]:
    """Ranks apart, ranks without sequences, and the placement of experts."""
    serving, dp = serving_of(s), s.job.dp
    travels = s.model.is_moe and s.stack.dispatcher not in LIBRARY and s.job.layout.ep > 1
    if serving.ranks == "apart" and s.job.workload == "prefill" and not travels:
        yield Problem(
            rule="ranks apart",
            key="serving.ranks",
            value="apart",
            message="changes nothing in a prefill without all-to-alls: no rank waits for another",
            suggestion="use mean",
        )
    if serving.tokens_cv and (serving.ranks != "apart" or s.job.workload != "prefill"):
        yield Problem(
            rule="unused keys",
            key="serving.tokens_cv",
            value=serving.tokens_cv,
            message='changes nothing but in a prefill with ranks = "apart"',
            suggestion="leave it out",
        )
    if serving.idle_ranks and (serving.idle_ranks >= dp or not travels):
        why = f"leaves none of {dp} data-parallel ranks" if travels else "changes nothing: ranks share no experts"
        yield Problem(
            rule="idle ranks",
            key="serving.idle_ranks",
            value=serving.idle_ranks,
            message=why,
            suggestion=f"use at most {dp - 1}" if travels and dp > 1 else "use 0",
        )
    drawn = bool(serving.tokens_cv) or not isinstance(serving.context, int)
    if serving.seed and (serving.ranks != "apart" or not drawn):
        yield Problem(
            rule="unused keys",
            key="serving.seed",
            value=serving.seed,
            message='changes nothing without ranks = "apart" and a context, or tokens, that differ',
            suggestion="leave it out",
        )
    if serving.eplb != "auto" and not (travels and s.job.routing.kind in ("uniform", *BY_EXPERT)):
        why = f"{s.job.routing.kind} routing is about ranks" if travels else "there is no all-to-all over ep ranks"
        yield Problem(
            rule="placement of experts",
            key="serving.eplb",
            value=serving.eplb,
            message=f"changes nothing: {why}",
            suggestion="use auto",
        )
    elif serving.eplb == "hierarchical":
        yield from _hierarchy(s)


def _hierarchy(s: Scenario) -> Iterator[Problem]:
    """Groups and copies that spread evenly over the nodes."""
    serving, groups = serving_of(s), s.model.gate.groups
    nodes = max(1, s.job.layout.ep // s.cluster.node.gpus)
    copies = serving.redundant_experts + serving.shared_slots
    if groups % nodes or serving.redundant_experts % nodes or serving.shared_slots % nodes:
        what = f"{groups} groups" if groups % nodes else f"{copies} copies"
        yield Problem(
            rule="placement of experts",
            key="serving.eplb",
            value="hierarchical",
            message=f"{what} of experts do not spread evenly over {nodes} nodes",
            suggestion="use global",
        )


def slots(s: Scenario) -> Iterator[Problem]:
    """Slots of experts over the expert-parallel ranks, with copies."""
    serving, model, ep = serving_of(s), s.model, s.job.layout.ep
    travels = model.is_moe and s.stack.dispatcher not in LIBRARY and ep > 1
    for name in ("redundant_experts", "shared_slots"):
        value = getattr(serving, name)
        if value and not travels:
            why = f"{model.name} has no experts" if not model.is_moe else "there is no all-to-all over ep ranks"
            yield Problem(
                rule="copies of experts",
                key=f"serving.{name}",
                value=value,
                message=f"changes nothing: {why}",
                suggestion="use 0",
            )
    if serving.expert_weights != "recipe" and not model.is_moe:
        yield Problem(
            rule="stored weights",
            key="serving.expert_weights",
            value=serving.expert_weights,
            message=f"changes nothing: {model.name} has no experts",
            suggestion="use recipe",
        )
    if serving.shared_slots and model.is_moe and model.moe_latent_size:
        yield Problem(
            rule="copies of experts",
            key="serving.shared_slots",
            value=serving.shared_slots,
            message=f"a shared part reads {model.hidden_size} values of a token, an expert {model.moe_latent_size}",
            suggestion="use 0",
        )
    elif serving.shared_slots and model.is_moe and model.shared_width != model.moe_intermediate_size:
        yield Problem(
            rule="copies of experts",
            key="serving.shared_slots",
            value=serving.shared_slots,
            message=f"a shared part of width {model.shared_width} is not one expert of {model.moe_intermediate_size}",
            suggestion="use 0",
        )
    if not model.n_routed_experts:
        return
    total = expert_slots(model, serving)
    if total % ep:
        copies = serving.redundant_experts + -total % ep
        yield Problem(
            rule="experts on ranks",
            key="layout.ep",
            value=ep,
            message="does not divide the "
            + (f"{total} slots of " if total > model.n_routed_experts else "")
            + f"{model.n_routed_experts} routed experts"
            + (f" and {total - model.n_routed_experts} copies" if total > model.n_routed_experts else ""),
            suggestion=f"use {_divisors(total, ep)}" + (f", or redundant_experts = {copies}" if travels else ""),
        )


def _divisors(value: int, near: int) -> str:
    """The divisors of `value` around `near`."""
    below = next((d for d in range(min(near, value), 0, -1) if value % d == 0), 1)
    above = next((d for d in range(near + 1, value + 1) if value % d == 0), None)
    return f"{below} or {above}" if above else str(below)


def experts(s: Scenario) -> Iterator[Problem]:
    """How tokens reach the experts: all-to-alls between data-parallel ranks, or all-reduces of tensor-parallel ones."""
    layout, model = s.job.layout, s.model
    if not model.is_moe:
        return
    if s.stack.dispatcher in LIBRARY:
        gathers = layout.ep > layout.tp and layout.etp == 1 and layout.ep % layout.tp == 0
        if gathers and layout.tp > 1 and not layout.sp:
            yield Problem(
                rule="sequence parallelism",
                key="layout.sp",
                value="false",
                message=f"would gather every token from each of tp {layout.tp} ranks",
                suggestion="set layout.sp = true",
            )
        if gathers:
            return
        if layout.ep * layout.etp != layout.tp or s.job.dp != s.job.edp:
            yield Problem(
                rule="experts on ranks",
                key="layout.ep",
                value=layout.ep,
                message=f"x etp {layout.etp} is not tp {layout.tp}: without all-to-all kernels tensor-parallel ranks"
                " share the experts and sum them up by an all-reduce",
                suggestion="let ep x etp be tp, let ep be a multiple of tp and etp 1 (then tokens are gathered),"
                " or use a stack whose dispatcher is deepep",
            )
        if layout.tp > 1 and layout.sp:
            yield Problem(
                rule="sequence parallelism",
                key="layout.sp",
                value="true",
                message="is not modelled of experts without all-to-all kernels",
                suggestion="set layout.sp = false",
            )
        return
    if layout.etp > 1:
        yield Problem(
            rule="experts on ranks",
            key="layout.etp",
            value=layout.etp,
            message=f"is not modelled with the all-to-all kernels of {s.stack.dispatcher}",
            suggestion="use 1",
        )
    if layout.tp > 1 and layout.ep > 1 and not layout.sp:
        yield Problem(
            rule="sequence parallelism",
            key="layout.sp",
            value="false",
            message=f"would dispatch every token from each of tp {layout.tp} ranks",
            suggestion="set layout.sp = true",
        )
    if s.job.workload == "decode" and layout.ep > 1 and s.stack.dispatcher not in s.cluster.fabric.low_latency:
        yield Problem(
            rule="all-to-all kernels",
            key="stack.dispatcher",
            value=s.stack.dispatcher,
            message=f"{s.cluster.name} has no low-latency kernels of this name",
            suggestion="use deepep",
        )
