"""What one operation costs, and how well a table of them is predicted, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from reports.terminal.elements import columns
from reports.views import words
from simulator.cost.cost import Cost
from simulator.ops import AllToAll, Attention, Collective, DecodeAttention, Gemm, Op, PointToPoint, Scan, Streaming
from simulator.spec.hardware import Cluster
from simulator.studies.kernel import Answer, SustainedLoad, Table
from simulator.units import si


def report(answer: Answer, cluster: Cluster) -> list[RenderableType]:
    """Time, limit, formula with its numbers, and where the parameters come from."""
    title = Text(f"{answer.op.cls} on {cluster.gpu.name}: {shape(answer.op)}", style="bold")
    return [title, Text(), _facts(answer, cluster), Text(), _formula(answer), Text(), *_origin(answer)]


def shape(op: Op) -> str:
    """The work of an op in a few words."""
    work = op.work
    match work:
        case Gemm():
            form = "" if work.form == "dense" else f", {work.form}"
            groups = f", {work.groups} groups" if work.groups > 1 else ""
            groups += f" of {min(work.rows)} to {max(work.rows)} tokens" if len(set(work.rows)) > 1 else ""
            return f"{work.m} x {work.n} x {work.k} {work.precision}{form}{groups}"
        case Attention():
            mask = "causal" if work.causal else "full"
            mask += f", window of {work.window}" if work.window else f", chunks of {work.chunk}" if work.chunk else ""
            keys = f" over {work.seq_kv} keys" if work.seq_kv != work.seq_q else ""
            kv = f" ({work.kv_heads} kv)" if work.kv_heads != work.heads else ""
            which = "backward" if work.backward else "forward"
            sizes = f"{work.batch} x {work.seq_q} tokens{keys}, {work.heads} heads{kv} of {work.d_qk}/{work.d_v}"
            return f"{sizes}, {mask}, {which}"
        case DecodeAttention():
            kv = f" ({work.kv_heads} kv)" if work.kv_heads != work.heads else ""
            new = f"{work.q_len} new token{'s' if work.q_len > 1 else ''}"
            heads = f"{work.heads} heads{kv} of {work.d_qk}/{work.d_v}"
            return f"{new} over {work.kv_len} keys of {work.batch} sequences, {heads}"
        case Scan() | Streaming():
            return f"{_in_chunks(work)}{si(work.bytes, 'B')} read and written"
        case AllToAll():
            gate = f"top {work.gate.top_k} of {work.gate.experts}"
            limit = f", at most {work.gate.node_limit} of {work.gate.groups} groups" if work.gate.node_limit else ""
            return f"{work.direction} of {work.tokens} tokens of {work.hidden} over {work.ranks} ranks, {gate}{limit}"
        case PointToPoint():
            return f"{si(work.bytes, 'B')} over {'the NIC' if work.tier == 'nic' else 'NVLink'}"
        case Collective():
            kind = work.kind.replace("_", "-")
            return f"{kind} of {si(work.bytes, 'B')} over {work.ranks} ranks, {work.per_node} a node"
        case _:
            return op.name


def _in_chunks(work: Scan | Streaming) -> str:
    """The GEMMs of a kernel of a recurrent layer."""
    if not isinstance(work, Scan):
        return ""
    chain = f", {work.steps} one after the other" if work.steps > 1 else ""
    return f"{si(work.flops, 'FLOP')} in chunks{chain}; "


def _facts(answer: Answer, cluster: Cluster) -> RichTable:
    table = columns("", "")
    cost = answer.cost
    table.add_row("time", Text(words.seconds(cost.duration), style="bold"))
    table.add_row("limited by", limit(cost))
    for name, value in _rates(answer, cluster):
        table.add_row(name, value)
    if answer.sms:
        held = "held" if answer.op.stream == "comm" else "granted"
        table.add_row("SMs", f"{answer.sms} of {cluster.gpu.sms} {held}")
    if answer.note:
        table.add_row("taken as", answer.note)
    if answer.looped:
        table.add_row("clock", "of a benchmark's loop, as the power limit leaves it")
    if answer.sustained is not None:
        table.add_row("sustained load", _sustained(answer.sustained))
    return table


def _sustained(found: SustainedLoad) -> str:
    """What the power limit makes of a kernel that runs over and over."""
    time, draws = words.seconds(found.time), f"{found.demand:.0f} W at full clock"
    if found.slowdown == 1.0:
        return f"{time}, not slowed: it needs {draws}, and {found.limit:.0f} W are allowed"
    full = words.seconds(found.full_clock)
    return f"{time}: {found.slowdown:.3f} times {full}, it would need {draws} and {found.limit:.0f} W are allowed"


def limit(cost: Cost) -> str:
    """The resource that bounds a kernel, and what about it."""
    terms = dict(cost.terms)
    if cost.bound_by == "tensor" and terms.get("power_s", 0.0) > terms.get("tensor_s", 0.0):
        return "tensor cores, at the rate that power and L2 sustain"
    if cost.bound_by == "memory" and terms.get("chain_s", 0.0) >= terms.get("body_s", 1.0):
        return "the loads that its CTAs wait for"
    return words.of_bound(cost.bound_by)


def _rates(answer: Answer, cluster: Cluster) -> list[tuple[str, str]]:
    """What the time means as a rate."""
    seconds, work = answer.cost.duration, answer.op.work
    if not seconds:
        return []
    if isinstance(work, (Gemm, Attention)):
        fp8 = work.precision.startswith("fp8") and cluster.gpu.peak.fp8 > 0
        peak = cluster.gpu.peak.fp8 if fp8 else cluster.gpu.peak.bf16
        share = f"{100 * answer.flops / seconds / peak:.1f} % of the dense {'FP8' if fp8 else 'BF16'} peak"
        return [("rate", f"{answer.flops / seconds / 1e12:.4g} TFLOP/s, {share}")]
    if isinstance(work, (Streaming, DecodeAttention)):
        share = f"{100 * work.bytes / seconds / cluster.gpu.hbm_bandwidth:.1f} % of the displayed bandwidth"
        return [("rate", f"{si(work.bytes / seconds, 'B/s')}, {share}")]
    links = ((answer.cost.nic_bytes, "over the NIC"), (answer.cost.nvlink_bytes, "over NVLink"))
    return [(where, f"{si(size, 'B')}, {si(size / seconds, 'B/s')}") for size, where in links if size]


def _formula(answer: Answer) -> RichTable:
    """The formula and its terms with their numbers."""
    table = columns("", "", gap=2)
    table.add_row("formula", answer.cost.formula)
    for name, value in answer.cost.terms:
        table.add_row(f"  {name.removesuffix('_s')}", term(name, value))
    if "norm4" in answer.cost.formula:
        table.add_row("  norm4", "fourth root of the sum of fourth powers: the largest, softly")
    return table


CLOCK = 5e-10
"""Half a cycle of a GPU [s]: a fitted time below it is none."""


def term(name: str, value: float) -> str:
    """A term of a formula with its unit, which is in its name."""
    if name.endswith("_s"):
        return words.seconds(value) if value >= CLOCK else "0"
    if name.endswith("bytes") or name == "bytes":
        return si(value, "B")
    if name.endswith("bandwidth") or name in ("sm_rate", "load_rate"):
        return si(value, "B/s")
    if name in ("power_rate", "loop_rate"):
        return si(value, "FLOP/s")
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"


def _origin(answer: Answer) -> list[RenderableType]:
    table = columns("", "")
    table.add_row("source", answer.cost.source or "none")
    table.add_row("calibrated", "yes" if answer.cost.calibrated else "no: not measured on this hardware")
    return [table]


def mape_lines(table: Table) -> list[str]:
    """One line per operation with a measurement: rows, mean absolute error, mean error."""
    return [
        f"{op}: {words.counted(int(one['rows']), 'measured row')}, mean absolute error {100 * one['mape']:.1f} %,"
        f" mean error {100 * one['bias']:+.1f} %"
        for op, one in _sorted(table.mape())
    ]


def _sorted(errors: Mapping[str, dict[str, float]]) -> Sequence[tuple[str, dict[str, float]]]:
    return sorted(errors.items())
