"""Samples of the kernels of a mixture-of-experts layer: PyTorch's on an H200 (`measuring/measure_moe_layer.py`), and
engines' experts as modules (aiconfigurator's database).

Whole layers in that table (`op` layer) are left out: they only compare. Half of the sizes are held out, as the table
marks them. Of calls of several kernels the sum of the kernels counts (`busy_us`): gaps between them are the stack's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import mean

from hardware_profiles.calibration.sample import Row, Sample, Work, gemm, integer, number, rows
from simulator.dtypes import BF16
from simulator.graph.tokens.order import chunk_map, row_map
from simulator.graph.tokens.router import GATE_BACKWARD_KERNELS, GATE_KERNELS
from simulator.ops import Streaming
from simulator.spec.kernel_params import FixedParams

TABLE = "h200_moe_layer"
Size = tuple[int, int, int]

MOVES: dict[tuple[str, str, str], str] = {
    ("permute", "index_select", "0"): "permute.index_select",
    ("permute", "index_select", "1"): "permute.index_add",
    ("unpermute", "index_add", "0"): "unpermute.index_add",
    ("unpermute", "index_add", "1"): "unpermute.index_add.bwd",
    ("unpermute", "gather_sum", "0"): "unpermute.gather_sum",
    ("unpermute", "gather_sum", "1"): "unpermute.gather_sum.bwd",
}
"""Calls that bring tokens into the order of experts and back -> class."""
GROUPED = {"grouped": "gemm.bf16.grouped", "grouped_wgrad": "gemm.bf16.grouped_wgrad"}
SORTS = {"22": "sort.radix", "5": "sort.short"}
"""Kernels of a stable argsort -> class."""


def _sample(row: Row, cls: str, work: Work, seconds: float) -> Sample:
    label = f"{row['op']} {row['tokens']} x {row['hidden']}, {row['experts']} experts, {row['load'] or row['impl']}"
    return Sample(
        hardware="h200", cls=cls, work=(work,), seconds=seconds, table=TABLE, label=label, rested=1.0,
        resolution=2.5e-7, held=row["held_out"] == "1",
    )  # fmt: skip


def _size(row: Row) -> Size:
    return integer(row, "tokens"), integer(row, "experts"), integer(row, "topk")


def _moves(row: Row) -> Sample | None:
    cls = MOVES.get((row["op"], row["impl"], row["backward"]))
    if cls is None:
        return None
    width = 2.0 * integer(row, "hidden")
    narrow, wide = integer(row, "tokens") * width, integer(row, "tokens") * integer(row, "topk") * width
    read, written = {"permute": (narrow, wide), "unpermute": (wide, narrow)}[row["op"]]
    if row["backward"] == "1":
        read, written = (wide, narrow) if row["op"] == "permute" else (narrow + wide, wide)
    return _sample(row, cls, Streaming(read=read, written=written), number(row, "busy_us") * 1e-6)


def _grouped(row: Row) -> Sample | None:
    if not row["op"].startswith("grouped_"):
        return None
    form = row["form"]
    if form == "grouped_wgrad" and row["load"] != "balanced":
        return None  # a group's share of k is not modelled
    work = gemm(
        integer(row, "m"), integer(row, "n"), integer(row, "k"), "bf16", form,  # type: ignore[arg-type]
        integer(row, "groups"), 1.0 if form == "grouped_wgrad" else 2.0,
    )  # fmt: skip
    if form == "grouped" and row["load"] != "balanced":
        work = replace(work, rows=tuple(map(int, row["rows"].split())))
    return _sample(row, GROUPED[form], work, number(row, "us") * 1e-6)


def _gate(table: list[Row]) -> Iterator[Sample]:
    """The top k, and a mean kernel of what else a gate runs, forward and backward."""
    chosen: dict[Size, float] = {}
    for row in table:
        t, experts, topk = _size(row)
        each = 4.0 * t * experts
        work = Streaming(read=each, written=each)
        seconds = number(row, "busy_us") * 1e-6
        if (row["op"], row["backward"]) == ("topk", "0"):
            chosen[t, experts, topk] = seconds
            yield _sample(row, "router.topk@torch", Streaming(read=each, written=12.0 * t * topk), seconds)
        elif (row["op"], row["impl"], row["backward"]) == ("gate", "eager", "0"):
            rest = (seconds - chosen[t, experts, topk]) / GATE_KERNELS["eager"]
            yield _sample(row, "router.gate@torch", work, rest)
        elif (row["op"], row["impl"], row["backward"]) == ("gate", "eager", "1"):
            yield _sample(row, "router.gate.bwd@torch", work, seconds / GATE_BACKWARD_KERNELS)


def _swiglu(row: Row) -> Sample | None:
    """The backward of torch.compile's SwiGLU, which chooses for every value between two gradients."""
    if (row["op"], row["impl"], row["backward"]) != ("swiglu", "compiled", "1"):
        return None
    moved, values = number(row, "bytes"), float(integer(row, "m") * integer(row, "n"))
    work = Streaming(read=0.6 * moved, written=0.4 * moved, values=values)
    return _sample(row, "swiglu.bwd@compiled", work, number(row, "busy_us") * 1e-6)


def moe_layer() -> list[Sample]:
    """Samples of the table, those that are held out, too."""
    table = rows(f"{TABLE}.csv")
    found = [sample for row in table for sample in (_moves(row), _grouped(row), _swiglu(row)) if sample is not None]
    return [*found, *_gate(table)]


MAPS = "h200_te_maps"


def _map_work(row: Row) -> tuple[str, Streaming]:
    """Class and work of a kernel around Megatron-Core's experts."""
    tokens, experts, many = integer(row, "tokens"), integer(row, "experts"), integer(row, "rows")
    if row["op"] == "pad":
        size = float(many * integer(row, "width") * BF16)
        return "permute.pad", Streaming(read=size, written=size)
    if row["op"] == "cast":
        size = float(many * integer(row, "width") * BF16)
        return "quant.turned.experts", Streaming(read=size, written=size)
    if row["op"] == "map_rows":
        return "permute.map.rows", row_map(tokens, experts)
    return "permute.map.chunks", chunk_map(many, experts)


def maps() -> list[Sample]:
    """Maps of rows and of chunks, padded and cast rows, kernels of Megatron-Core's layers."""
    out = []
    for row in rows(f"{MAPS}.csv"):
        cls, work = _map_work(row)
        out.append(
            Sample(
                hardware="h200", cls=cls, work=(work,), seconds=number(row, "us") * 1e-6, table=MAPS, label=row["case"],
                rested=1.0, resolution=2.5e-7, held=row["held_out"] == "1",
            )
        )  # fmt: skip
    return out


ENGINES = "aic_moe"
SORTED, CASTS, HBM = 2, 2, 4.3e12
"""Kernels that sort the ids of the chosen experts, and that cast to FP8; bandwidth of large ones [B/s]."""
SHORT = 1.6e-6
"""Time of a small kernel in a replayed graph [s]: torch.compile's norm (class norm.small@compiled)."""


FEW = 64
"""Most tokens of modules with expert parallelism that count."""


def _rest_of_module(t: int, chosen: int, h: int, inner: int, fp8: bool) -> float:
    """Time of a module's kernels around its two GEMMs: the sort, the casts, the activation and the sum [s]."""
    casts = 3.0 * (t * h + chosen * inner) if fp8 else 0.0
    moved = casts + 6.0 * chosen * inner + 2.0 * h * (chosen + t)
    return (SORTED + 2 + (CASTS if fp8 else 0)) * SHORT + moved / HBM


def engine_experts() -> list[Sample]:
    """Both GEMMs of engines' experts: the module's time less that of the small kernels. Loads are balanced there: token
    t takes the experts t + i x (experts / top-k), so that few tokens meet as many experts as they choose. With expert
    parallelism and many tokens SGLang's modules take as long as if they computed other ranks' rows, too: left out."""
    out = []
    for row in rows(f"{ENGINES}.csv"):
        t, h, inner, experts = (integer(row, key) for key in ("tokens", "hidden", "inner", "experts"))
        topk, ep, precision = integer(row, "topk"), integer(row, "ep"), row["precision"]
        inner //= integer(row, "tp")
        chosen, active = t * topk // ep, min(t, experts // topk) * topk // ep
        if not active or (ep > 1 and t > FEW):
            continue
        work = tuple(
            gemm(chosen, n, k, precision, "grouped", active)  # type: ignore[arg-type]
            for n, k in ((2 * inner, h), (h, inner))
        )
        cls = f"gemm.{'bf16' if precision == 'bf16' else 'fp8'}.grouped@{row['kernels']}"
        seconds = number(row, "us") * 1e-6 - _rest_of_module(t, chosen, h, inner, precision != "bf16")
        label = f"{row['engine']} {t} x {h}, tp {row['tp']}, ep {ep}"
        out.append(Sample(hardware=row["hardware"], cls=cls, work=work, seconds=seconds, table=ENGINES, label=label))
    return out


SHORT_TABLE = "h200_engine_kernels"
SHORT_CLASS = {
    "quant": "quant.small", "rope": "rope.small", "write": "kvcopy.small", "write_fp8": "kvcopy.small",
    "sum": "permute.small", "gather": "permute.small",
}  # fmt: skip
"""Operations of that table -> class; norms have classes that torch.compile's kernels were fitted to."""
LEAST, GRAPH_GAP = 1e6, 1e-7
"""Bytes from which other classes price a kernel [B], and the gap between two kernels of a replayed graph [s]."""


def engine_streams() -> list[Sample]:
    """Short kernels of engines, less the gap behind each; every second size of each held out."""
    out: list[Sample] = []
    count: dict[str, int] = {}
    for row in rows(f"{SHORT_TABLE}.csv"):
        op, size = row["op"], number(row, "bytes")
        if op not in SHORT_CLASS or size >= LEAST:
            continue
        count[op] = count.get(op, 0) + 1
        out.append(
            Sample(
                hardware="h200", cls=SHORT_CLASS[op], work=(Streaming(read=size / 2, written=size / 2),),
                seconds=number(row, "us_graph") * 1e-6 - GRAPH_GAP, table=SHORT_TABLE, rested=1.0, resolution=0.0,
                label=f"{op} {row['m']} x {row['n']}", held=count[op] % 2 == 0,
            )
        )  # fmt: skip
    return out


def _fixed_times(held: bool) -> dict[str, list[float]]:
    """Time of a kernel of the sort and of the counts [s], in the rows held out or in the others."""
    out: dict[str, list[float]] = {}
    counts: dict[Size, float] = {}
    for row in rows(f"{TABLE}.csv"):
        if (row["held_out"] == "1") is not held:
            continue
        each = number(row, "busy_us") / (number(row, "launches") or 1.0) * 1e-6
        if row["op"] == "argsort" and row["impl"] == "int64_stable":
            out.setdefault(SORTS[row["launches"]], []).append(each)
        elif (row["op"], row["impl"]) in (("counts", "histc"), ("cumsum", "int64")):
            counts[_size(row)] = each
            out.setdefault("sort.counts", []).append(each)
    return out


def moe_fixed() -> dict[str, FixedParams]:
    """Mean time of the kernels of sort and counts, which hardly depends on the rows sorted, by class."""
    held = _fixed_times(True)
    out = {}
    for cls, times in sorted(_fixed_times(False).items()):
        value = float(f"{mean(times):.3g}")
        off = mean(abs(value / one - 1.0) for one in held.get(cls, times))
        text = f"PyTorch on one H200 (table {TABLE}): mean of {len(times)} sizes, {off:.0%} off on others"
        out[cls] = FixedParams(time=value, source=text, range="1024 to 16384 tokens, 2 to 8 experts a token")
    return out
