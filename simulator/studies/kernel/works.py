"""From a question to the op that the cost models price: one small function an operation."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from simulator.cost.classes import class_of, is_known
from simulator.dtypes import WIDTH, fp8_bytes
from simulator.errors import meant
from simulator.ops import (
    AllToAll,
    Attention,
    Collective,
    CollectiveKind,
    DecodeAttention,
    Gate,
    Gemm,
    GemmForm,
    GemmPrecision,
    Op,
    PointToPoint,
    Streaming,
    Work,
)
from simulator.spec.hardware import Cluster
from simulator.studies.kernel.question import BadColumn, Question

LOW_LATENCY_TOKENS = 128
"""Up to this many tokens per rank, an all-to-all is taken to use low-latency kernels (DeepEP publishes them for 128)
unless the question names SMs or a node limit, which only throughput kernels have."""
EXPERTS, TOP_K, HIDDEN = 256, 8, 7168
"""Default gate and width of an all-to-all: DeepSeek-V3's, as in DeepEP's tests."""
ALL_TO_ALL_SMS = 24
"""Default SMs of an all-to-all: DeepEP's own tests (README, 2025-02-24)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The op, the SMs that it gets (or, an all-to-all, holds), and a line about what was assumed."""

    op: Op
    sms: int
    note: str = ""


def asked(question: Question, cluster: Cluster) -> Asked:
    """The op of a question on a cluster. Raises BadColumn for what is missing or cannot be."""
    return _BUILD[question.op](question, cluster)


def _need(question: Question, column: str) -> int:
    value = getattr(question, column)
    if value is None:
        raise BadColumn(column, "", f"missing: {question.op.replace('_', '-')} needs it")
    return int(value)


def _bytes(question: Question) -> float:
    if question.bytes is None:
        raise BadColumn("bytes", "", f"missing: {question.op.replace('_', '-')} needs it")
    return question.bytes


def _granted(question: Question, cluster: Cluster) -> int:
    return _within(cluster.gpu.sms if question.sms is None else question.sms, 1, cluster)


def _within(sms: int, least: int, cluster: Cluster) -> int:
    """These SMs, if the GPU has as many."""
    if not least <= sms <= cluster.gpu.sms:
        raise BadColumn("sms", str(sms), f"must be from {least} to the {cluster.gpu.sms} SMs of {cluster.gpu.name}")
    return sms


IMPLS = ("library", "training", "fa2")
SAID = {"fa3": "training", "flash2": "fa2", "cudnn": "library", "cublas": "library", "deepgemm": "library"}
"""Other names of implementations, where a profile has no kernels by that name: DeepSeek's training ran
FlashAttention-3, and the FP8 library of an H800 is DeepGEMM."""


DECODE_SAID = {"library": "", "torch": "fa2", "torch_flash": "fa2", "flash2": "fa2"}
"""Other names of decode attention's kernels; library: those measured on the GPU."""


def _class(cls: str, impl: str, table: Container[str]) -> str:
    """The class of somebody's kernel, by whatever name a profile knows them."""
    own = class_of(cls, impl, table)
    return own if own != cls else class_of(cls, SAID.get(impl, impl), table)


def _known(question: Question, table: Mapping[str, object]) -> None:
    """Refuse a kernel class without parameters of any similar one, and unknown kernels."""
    cls, impl = question.cls, question.impl
    if cls is not None and not is_known(cls, table):
        hint = meant(cls, table, cutoff=0.5, otherwise=f"known: {', '.join(table)}")
        raise BadColumn("cls", cls, f"unknown kernel class; {hint}")
    known = dict.fromkeys((*IMPLS, *(name.partition("@")[2] for name in table if "@" in name), *SAID))
    if impl is not None and impl not in known:
        raise BadColumn("impl", impl, f"choose one of {', '.join(known)}")


def _op(question: Question, cls: str, work: Work, stream: str = "compute") -> Op:
    return Op(
        name=question.op,
        cls=question.cls or cls,
        part="F",
        segment="asked",
        work=work,
        stream="comm" if stream == "comm" else "compute",
    )


_SUFFIX: Mapping[str, str] = {
    "dense": "",
    "wgrad": ".wgrad",
    "grouped": ".grouped",
    "masked": ".masked",
    "grouped_wgrad": ".grouped_wgrad",
}


def _gemm(question: Question, cluster: Cluster) -> Asked:
    _known(question, cluster.kernels.gemm)
    precision = question.precision or "bf16"
    rows = _rows(question.rows)
    groups = question.groups or len(rows) or 1
    form = _form(question, groups)
    _check_rows(rows, question, groups, form)
    if form in ("dense", "wgrad") and groups > 1:
        raise BadColumn("form", form, f"has one group, not {groups}; write grouped, masked or grouped_wgrad")
    work = Gemm(
        m=_need(question, "m"),
        n=_need(question, "n"),
        k=_need(question, "k"),
        precision=_gemm_precision(precision),
        form=form,
        groups=groups,
        rows=rows,
        out_bytes=WIDTH["fp32"] if "wgrad" in form else WIDTH["bf16"],
    )
    family = "gemm.fp8" if precision == "fp8_block" else f"gemm.{precision}"
    sms = _granted(question, cluster)
    impl = question.impl or ("library" if sms == cluster.gpu.sms else "training")
    cls = _class(family + _SUFFIX[form], impl, cluster.kernels.gemm)
    notes = (_whose(cls, cluster.kernels.gemm), EQUAL if _spread(form, groups) and not rows else "")
    return Asked(op=_op(question, cls, work), sms=sms, note="; ".join(note for note in notes if note))


EQUAL = "as many tokens for every expert (other numbers: rows)"
"""Said because groups seldom are equal, and one row over a tile costs another tile."""


def _spread(form: GemmForm, groups: int) -> bool:
    """Whether rows are spread over groups."""
    return groups > 1 and form in ("grouped", "masked")


def _rows(text: str | None) -> tuple[int, ...]:
    """Tokens per group, if they are given."""
    if text is None:
        return ()
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise BadColumn("rows", text, "must be integers from 0, apart by spaces")
    return tuple(map(int, words))


def _check_rows(rows: tuple[int, ...], question: Question, groups: int, form: GemmForm) -> None:
    """Refuse rows that do not fit the groups of this GEMM."""
    text = question.rows
    if text is None:
        return
    if form not in ("grouped", "masked"):
        raise BadColumn("rows", text, f"has no meaning for {form} GEMMs, only for grouped and masked ones")
    if len(rows) != groups:
        raise BadColumn("rows", text, f"must list the tokens of {groups} groups, not of {len(rows)}")
    if not any(rows):
        raise BadColumn("rows", text, "one group must have tokens")
    if form == "grouped" and sum(rows) != question.m:
        raise BadColumn("rows", text, f"sum to {sum(rows)}; must sum to m, {question.m}")


def _whose(cls: str, known: Mapping[str, object]) -> str:
    if cls.endswith("@library"):
        return "a public library's kernel on all SMs (DeepSeek's own of its training profile: impl training)"
    return "DeepSeek's kernel of its training profile (impl library: public ones)" if f"{cls}@library" in known else ""


def _gemm_precision(precision: str) -> GemmPrecision:
    known: dict[str, GemmPrecision] = {
        "fp8_block": "fp8_block",
        "fp8_tensor": "fp8_tensor",
        "fp8_row": "fp8_row",
        "bf16": "bf16",
    }
    return known[precision]


def _form(question: Question, groups: int) -> GemmForm:
    grouped = question.op == "grouped_gemm" or groups > 1
    forms: dict[str, GemmForm] = {
        "dense": "grouped" if grouped else "dense",
        "grouped": "grouped",
        "masked": "masked",
        "wgrad": "grouped_wgrad" if grouped else "wgrad",
        "grouped_wgrad": "grouped_wgrad",
    }
    said = question.form or "dense"
    if said not in forms:
        raise BadColumn("form", said, f"choose one of {', '.join(forms)}")
    return forms[said]


def _attention(question: Question, cluster: Cluster) -> Asked:
    if question.precision not in (None, "bf16", "fp8_block"):
        raise BadColumn("precision", str(question.precision), "an attention core runs in bf16 or fp8")
    _known(question, cluster.kernels.attention)
    fp8 = question.precision == "fp8_block"
    heads, seq = _need(question, "heads"), _need(question, "seq")
    kv_heads = _kv_heads(question, heads)
    if seq == 1 and (question.seq_kv or question.kv_len or 1) > 1:
        raise BadColumn("seq", "1", "one query over a cache runs in other kernels; ask decode-attention")
    d_qk = question.d_qk or question.d_v or 128
    backward = bool(question.backward)
    work = Attention(
        batch=question.batch or 1,
        seq_q=seq,
        seq_kv=question.seq_kv or question.kv_len or seq,
        heads=heads,
        kv_heads=kv_heads,
        d_qk=d_qk,
        d_v=question.d_v or d_qk,
        causal=question.causal is not False,
        backward=backward,
        precision="fp8" if fp8 else "bf16",
    )
    cls = ("attn.bwd" if backward else "attn.fwd") + (".fp8" if fp8 else "")
    cls = _class(cls, question.impl or "", cluster.kernels.attention)
    return Asked(op=_op(question, cls, work), sms=_granted(question, cluster))


def _kv_heads(question: Question, heads: int) -> int:
    kv_heads = question.kv_heads or heads
    if heads % kv_heads:
        raise BadColumn("kv_heads", str(kv_heads), f"must divide the {heads} query heads")
    return kv_heads


def _decode_class(base: str, impl: str, cluster: Cluster) -> str:
    """The class of decode attention of somebody's kernel: who has none for such heads is refused."""
    impl = DECODE_SAID.get(impl, impl)
    if not impl:
        return base
    have = [name.partition("@")[2] for name in cluster.kernels.decode if name.startswith(f"{base}@")]
    if impl not in have:
        raise BadColumn("impl", impl, f"choose one of {', '.join(['library', *have])} for {base}")
    return f"{base}@{impl}"


LATENT = "values are the first entries of the keys, cached once (MLA, absorbed)"


def _decode_attention(question: Question, cluster: Cluster) -> Asked:
    _known(replace(question, impl=None), cluster.kernels.decode)
    if question.precision not in (None, "bf16"):
        raise BadColumn("precision", str(question.precision), "runs in bf16; for the cache write kv_dtype")
    heads = _need(question, "heads")
    kv_heads = _kv_heads(question, heads)
    d_qk = question.d_qk or question.d_v or 128
    d_v = question.d_v or d_qk
    latent = kv_heads == 1 and d_qk > d_v
    kv_len, q_len = question.kv_len or question.seq_kv, question.q_len or 1
    if kv_len is None:
        raise BadColumn("kv_len", "", "missing: decode-attention needs it")
    if q_len > kv_len:
        raise BadColumn("q_len", str(q_len), f"new tokens must be among the {kv_len} of kv_len")
    work = DecodeAttention(
        batch=question.batch or 1,
        heads=heads,
        kv_heads=kv_heads,
        d_qk=d_qk,
        d_v=d_v,
        kv_len=kv_len,
        q_len=q_len,
        kv_dtype="fp8" if question.kv_dtype == "fp8" else "bf16",
        latent=latent,
    )
    base, impl = "attn.decode.mla" if latent else "attn.decode", question.impl or "library"
    if work.kv_dtype == "fp8" and f"{base}.fp8@{DECODE_SAID.get(impl, impl)}" in cluster.kernels.decode:
        base = f"{base}.fp8"
    cls = _decode_class(base, impl, cluster)
    return Asked(op=_op(question, cls, work), sms=_granted(question, cluster), note=LATENT if latent else "")


def _stream(question: Question, cluster: Cluster) -> Asked:
    _known(question, cluster.kernels.stream)
    half = _bytes(question) / 2
    cls = _class(question.cls or "elem", question.impl or "", cluster.kernels.stream)
    op = _op(replace(question, cls=cls), cls, Streaming(read=half, written=half))
    return Asked(op=op, sms=_granted(question, cluster))


def _p2p(question: Question, cluster: Cluster) -> Asked:
    across = (question.nodes or 1) > 1
    tier: Literal["nic", "nvlink"] = "nic" if across else "nvlink"
    work = PointToPoint(bytes=_bytes(question), tier=tier, both_ways=bool(question.both_ways))
    note = "between nodes, over the NIC" if across else "within a node, over NVLink (nodes 2: over the NIC)"
    params = cluster.fabric.p2p_nic if across else cluster.fabric.p2p_nvlink
    if question.both_ways and params.channels is None:
        note += "; both ways: nobody measured how they slow each other here, taken not to"
    return Asked(op=_op(question, "comm.p2p", work, "comm"), sms=0, note=note)


def _collective(question: Question, cluster: Cluster) -> Asked:
    kinds: dict[str, CollectiveKind] = {
        "all_reduce": "all_reduce",
        "all_gather": "all_gather",
        "reduce_scatter": "reduce_scatter",
        "broadcast": "broadcast",
        "all_to_all": "all_to_all",
    }
    ranks = question.ranks or question.ep
    if ranks is None:
        raise BadColumn("ranks", "", f"missing: {question.op.replace('_', '-')} needs it")
    nodes = question.nodes or -(-ranks // cluster.node.gpus)
    if ranks % nodes:
        raise BadColumn("ranks", str(ranks), f"do not fill {nodes} nodes evenly")
    if ranks // nodes > cluster.node.gpus:
        raise BadColumn("nodes", str(nodes), f"{ranks // nodes} ranks a node, but a node has {cluster.node.gpus} GPUs")
    kernels = _all_reduce_kernels(question, cluster)
    work = Collective(
        kind=kinds[question.op], bytes=_bytes(question), ranks=ranks, per_node=ranks // nodes, kernels=kernels
    )
    note = f"{ranks} ranks on {nodes} node{'s' if nodes > 1 else ''}; bytes are the whole buffer"
    return Asked(op=_op(question, f"comm.{question.op}", work, "comm"), sms=0, note=note)


def _all_reduce_kernels(question: Question, cluster: Cluster) -> str:
    """Whose kernels an all-reduce runs."""
    impl = question.impl or "library"
    if question.op != "all_reduce" or impl in ("library", "nccl"):
        return "nccl"
    if impl not in cluster.fabric.all_reduce:
        raise BadColumn("impl", impl, f"choose one of {', '.join(['nccl', *cluster.fabric.all_reduce])}")
    return impl


def _all_to_all(question: Question, cluster: Cluster) -> Asked:
    """Dispatch or combine of experts; a plain all-to-all where bytes but no tokens are given."""
    if question.op == "all_to_all" and question.tokens is None and question.bytes is not None:
        return _collective(question, cluster)
    direction = question.op if question.op in ("dispatch", "combine") else question.direction or "dispatch"
    ranks = question.ep or question.ranks
    if ranks is None:
        raise BadColumn("ep", "", "missing: an expert all-to-all needs the number of ranks")
    tokens, hidden = _need(question, "tokens"), question.hidden or HIDDEN
    low_latency = _is_low_latency(question, tokens)
    experts, top_k = question.experts or max(EXPERTS, ranks), question.top_k or TOP_K
    if top_k > experts:
        raise BadColumn("top_k", str(top_k), f"a token cannot choose more than the {experts} experts there are")
    work = AllToAll(
        direction="dispatch" if direction == "dispatch" else "combine",
        tokens=tokens,
        hidden=hidden,
        bytes_per_token=_token_bytes(question, direction, hidden),
        ranks=ranks,
        gate=_gate(question, experts, top_k, ranks, cluster),
        cached=True,
        low_latency=low_latency,
    )
    note = "low-latency kernels" if low_latency else "throughput kernels"
    note += f", {work.bytes_per_token:.0f} B a token"
    sms = _within(ALL_TO_ALL_SMS if question.sms is None else question.sms, 0, cluster)
    return Asked(op=_op(question, f"comm.{direction}", work, "comm"), sms=sms, note=note)


def _is_low_latency(question: Question, tokens: int) -> bool:
    if question.low_latency is not None:
        return question.low_latency
    return question.form == "low_latency" or (tokens <= LOW_LATENCY_TOKENS and not _kernels_said(question))


def _kernels_said(question: Question) -> bool:
    """Whether a question about an all-to-all names its kernels."""
    said = question.low_latency is not None or question.sms is not None or question.node_limit is not None
    return said or question.form == "low_latency" or question.dispatcher == "nccl"


def fewest(one: Asked, question: Question) -> Op | None:
    """The all-to-all of `LOW_LATENCY_TOKENS` tokens by low-latency kernels: a lower bound for one of more tokens, since
    nobody has measured throughput kernels at few tokens. None if the question names its kernels."""
    work = one.op.work
    if not isinstance(work, AllToAll) or work.low_latency or _kernels_said(question):
        return None
    return replace(one.op, work=replace(work, tokens=LOW_LATENCY_TOKENS, low_latency=True))


def _gate(question: Question, experts: int, top_k: int, ranks: int, cluster: Cluster) -> Gate:
    """The gate that is asked about: its groups are the nodes unless said otherwise."""
    nodes = max(1, ranks // cluster.node.gpus)
    groups = question.groups or nodes
    limit = min(question.node_limit or 0, groups)
    return Gate(experts=experts, top_k=top_k, groups=groups, node_limit=limit if limit < groups else 0)


def _token_bytes(question: Question, direction: str, hidden: int) -> float:
    """FP8 with a scale per 128 values at dispatch, BF16 at combine, unless the precision is said."""
    said = question.precision or ("fp8_block" if direction == "dispatch" else "bf16")
    return hidden * WIDTH["bf16"] if said == "bf16" else fp8_bytes(hidden)


_BUILD: Mapping[str, Callable[[Question, Cluster], Asked]] = {
    "gemm": _gemm,
    "grouped_gemm": _gemm,
    "attention": _attention,
    "decode_attention": _decode_attention,
    "stream": _stream,
    "all_to_all": _all_to_all,
    "dispatch": _all_to_all,
    "combine": _all_to_all,
    "p2p": _p2p,
    "all_reduce": _collective,
    "all_gather": _collective,
    "reduce_scatter": _collective,
    "broadcast": _collective,
}
