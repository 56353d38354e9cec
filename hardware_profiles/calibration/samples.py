"""From the tables of kernels measured alone to samples: published figures, H200, H100."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hardware_profiles.calibration.h800_trace import trace
from hardware_profiles.calibration.infersim import infersim
from hardware_profiles.calibration.layers.moe_layer import engine_experts, engine_streams, maps, moe_layer
from hardware_profiles.calibration.layers.transformer_engine import transformer_engine
from hardware_profiles.calibration.sample import TABLES, Row, Sample, Work, gemm, integer, merged, number, rows
from simulator.errors import InputError
from simulator.graph.attention import softmax_class
from simulator.ops import Attention, DecodeAttention, Gemm, GemmForm, GemmPrecision, Streaming

# --- published figures ----------------------------------------------------------------------------------------------

FORM_CLASS = {"dense": "", "wgrad": ".wgrad", "grouped": ".grouped", "grouped_wgrad": ".grouped_wgrad"}


def _published_gemm(row: Row) -> tuple[str, Work]:
    form: GemmForm = row["form"]  # type: ignore[assignment]
    precision: GemmPrecision = row["precision"]  # type: ignore[assignment]
    out = 4.0 if "wgrad" in form else 2.0
    work = gemm(
        integer(row, "m"), integer(row, "n"), integer(row, "k"), precision, form, integer(row, "groups", 1), out
    )
    if precision == "fp8_block" and row["hardware"] != "h800":
        return f"gemm.fp8{FORM_CLASS[form]}@{row['impl']}", work
    if precision == "fp8_block":
        return ("gemm.fp8.masked" if form == "masked" else f"gemm.fp8{FORM_CLASS[form]}@library"), work
    return f"gemm.{precision}", work


def _published_attention(row: Row) -> Iterator[tuple[str, Attention]]:
    suffix = "@fa2" if row["impl"] == "fa2" and row["hardware"] != "a100" else ""
    for backward in {"0": (False,), "1": (True,), "fwdbwd": (False, True)}[row["backward"]]:
        fp8 = row["precision"] == "fp8"
        yield (
            ("attn.bwd" if backward else "attn.fwd") + (".fp8" if fp8 else "") + suffix,
            Attention(
                batch=integer(row, "batch"), seq_q=integer(row, "seq"), seq_kv=integer(row, "seq"),
                heads=integer(row, "heads"), kv_heads=integer(row, "kv_heads"), d_qk=integer(row, "d_qk"),
                d_v=integer(row, "d_v"), causal=row["causal"] == "1", backward=backward,
                precision="fp8" if fp8 else "bf16",
            ),
        )  # fmt: skip


def published() -> list[Sample]:
    """Kernel figures published by others: DeepGEMM, aiconfigurator, FlashAttention-2 and -3.

    DeepGEMM's first revision (2025-02-26) is left out: the figures of later ones supersede it.
    """
    out = []
    for row in rows("published_kernels.csv"):
        if ".r0226." in row["id"]:
            continue
        if row["op"] == "gemm":
            cls, work = _published_gemm(row)
            works: tuple[Work, ...] = (work,)
        else:
            pairs = list(_published_attention(row))
            cls, works = pairs[0][0], tuple(a for _, a in pairs)
        out.append(
            Sample(
                hardware=row["hardware"], cls=cls, work=works, seconds=number(row, "us") * 1e-6,
                table="published_kernels", label=row["id"], sms=108 if row["hardware"] == "a100" else 132,
            )
        )  # fmt: skip
    return out


# --- H200: the older table and our own measurements ------------------------------------------------------------------

STREAM_CLASS = {
    "copy": "elem", "add": "elem", "gelu": "gelu", "rmsnorm": "norm.fwd@library", "cast_fp8": "quant.tensor",
    "transpose": "transpose",
    "swiglu": "swiglu@library", "quant_token": "quant.token@library",
    "loss_fwd_eager": "loss", "loss_bwd_eager": "loss.bwd", "embedding": "embedding", "adam": "optimizer",
    "rmsnorm_compiled": "norm.fwd@compiled", "rmsnorm_residual_compiled": "norm.fwd.residual@compiled",
    "rmsnorm_bwd_compiled": "norm.bwd@compiled",
}  # fmt: skip
VOCABULARY = 16000
"""PyTorch's cross-entropy over fewer classes runs another kernel, half as fast: a small share of a vocabulary that
tensor parallelism splits is priced too fast."""
COMPILED = ("swiglu", "quant_token", "rmsnorm_compiled", "rmsnorm_residual_compiled", "rmsnorm_bwd_compiled")
PRECISION_CLASS = {
    "bf16": "gemm.bf16", "fp8_tensor": "gemm.fp8_tensor", "fp8_row": "gemm.fp8_row", "fp8_block": "gemm.fp8@library",
    "fp8_block_fprop": "gemm.fp8@library", "fp8_block_both": "gemm.fp8.wgrad@library",
}  # fmt: skip


OUT_BYTES = {"wgrad": 4.0, "wgrad_write": 4.0, "grouped_wgrad": 1.0}
"""Bytes of an output of PyTorch's GEMMs: its grouped weight gradients are BF16 written once, which counts like FP8
read and written."""


def _h200_precision(text: str) -> GemmPrecision:
    return "fp8_block" if text.startswith("fp8_block") else text  # type: ignore[return-value]


TELLABLE = 2.0
"""Kernels that events measure as less than so many times their own time are left out: part of that time is hidden."""


def event_time(table: list[Row]) -> float:
    """What two CUDA events with nothing between them measure [s]: row `empty` of a table timed by them, else 0."""
    mine = [row for row in table if row["op"] == "empty" and row.get("mode") == "cold"]
    return number(mine[0], "us") * 1e-6 if mine else 0.0


def h200_older() -> list[Sample]:
    """The H200 table measured before (CUDA events, L2 flushed); without the events' own time."""
    out = []
    events = event_time(rows("h200_measured.csv"))
    for row in rows("h200_kernels.csv"):
        op = row["op"]
        if op in ("gemm", "grouped_gemm"):
            grouped = op == "grouped_gemm"
            groups = int(row["name"][1:]) if grouped else 1
            m, n, k = integer(row, "M"), integer(row, "N"), integer(row, "K")
            work: Work = gemm(m, n, k, _h200_precision(row["prec"]), "grouped" if grouped else "dense", groups)
            pairs = [(PRECISION_CLASS[row["prec"]] + (".grouped" if grouped else ""), work, number(row, "us"))]
        elif op == "attn":
            pairs = list(_h200_attention(row))
        elif op == "mem":
            size = number(row, "bytes") / 2
            pairs = [(STREAM_CLASS[row["name"]], Streaming(read=size, written=size), number(row, "us"))]
        else:
            continue
        out += [
            Sample(
                hardware="h200",
                cls=c,
                work=(w,),
                seconds=t * 1e-6 - events,
                table="h200_kernels",
                label=row["name"] or op,
                weight=2.0,
            )
            for c, w, t in pairs
            if t * 1e-6 > TELLABLE * events
        ]
    return out


def _h200_attention(row: Row) -> Iterator[tuple[str, Work, float]]:
    suffix = "@library" if row["name"].startswith("CUDNN") else "@fa2"
    for backward, column in ((False, "us_fwd"), (True, "us_bwd")):
        work = Attention(
            batch=integer(row, "B"), seq_q=integer(row, "S"), seq_kv=integer(row, "S"), heads=integer(row, "H"),
            kv_heads=integer(row, "H"), d_qk=integer(row, "dq"), d_v=integer(row, "dv"), causal=True, backward=backward,
        )  # fmt: skip
        yield ("attn.bwd" if backward else "attn.fwd") + suffix, work, number(row, column)


def _measured_gemm(row: Row) -> tuple[str, Work] | None:
    form = row["form"]
    if form == "wgrad_write":  # written, not accumulated: a plain GEMM with an FP32 output
        cls = {"fp8_block_both": "gemm.fp8.wgrad@library"}.get(row["precision"])
        if cls is None:
            return None
    else:
        cls = PRECISION_CLASS[row["precision"]] + FORM_CLASS[form]
    work = gemm(
        integer(row, "m"), integer(row, "n"), integer(row, "k"), _h200_precision(row["precision"]),
        "dense" if form == "wgrad_write" else form,  # type: ignore[arg-type]
        integer(row, "groups", 1), OUT_BYTES.get(form, 2.0),
    )  # fmt: skip
    if row["impl"] == "torch_slow":
        return None  # without fast accumulation: a kernel of its own, of a class that no job runs
    if not row.get("rows"):
        return cls, work
    if form != "grouped":
        return None  # a group's share of k is not modelled
    return cls, replace(work, rows=tuple(map(int, row["rows"].split())))


def _measured_attention(row: Row) -> tuple[str, Work] | None:
    # cuDNN's backward without a mask falls to another, four times slower kernel at 192/128
    if row["impl"] == "cudnn" and row["d_qk"] == "192" and row["backward"] == "1" and row["causal"] == "0":
        return None
    backward = row["backward"] == "1"
    attention = Attention(
        batch=integer(row, "batch"), seq_q=integer(row, "seq"), seq_kv=integer(row, "seq"), heads=integer(row, "heads"),
        kv_heads=integer(row, "kv_heads"), d_qk=integer(row, "d_qk"), d_v=integer(row, "d_v"),
        causal=row["causal"] == "1", backward=backward,
    )  # fmt: skip
    suffix = "@library" if row["impl"] == "cudnn" else "@fa2"
    return ("attn.bwd" if backward else "attn.fwd") + suffix, attention


def _measured(row: Row) -> tuple[str, Work] | None:
    op, kernel = row["op"], row.get("kernel", "")
    if op == "gemm":
        return _measured_gemm(row)
    if op == "attention":
        return _measured_attention(row)
    if op == "rmsnorm" and "mode" in row:
        return None  # compiled in `h200_measured`, the first shape in twice its time; eager in the older table
    if kernel.startswith("Memcpy") or (op in COMPILED and kernel and not kernel.startswith("triton")):
        return None  # the driver's own copy, or the compiler gave the shape up
    if op.startswith("loss") and integer(row, "n") < VOCABULARY:
        return None
    cls = softmax_class(integer(row, "n")) if op == "softmax" else STREAM_CLASS.get(op)
    if cls is None or row.get("mode", "cold") != "cold":
        return None
    size = number(row, "bytes") / 2
    return cls, Streaming(read=size, written=size, values=size * 2 / ADAM_BYTES if cls == "optimizer" else 0.0)


ADAM_BYTES = 28.0
"""What AdamW in FP32 reads and writes of a parameter [B]."""


def own_table(path: Path, hardware: str) -> list[Sample]:
    """Rows of a table as `measure_h200.py` writes it, measured on `hardware`.

    Raises:
        InputError: The file cannot be read, or a row lacks a column or names a kernel that is not known.
    """
    out = []
    try:
        table = rows(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', error)}: must be a CSV table") from None
    lacking = [name for name in ("op", "us") if table and name not in table[0]]
    if lacking:
        raise InputError(
            f"{path}: no column {' and none '.join(lacking)}: must be a table of foretrain calibrate measure"
        )
    events = event_time(table)
    for at, row in enumerate(table, 1):
        try:
            pair = _measured(row)
            seconds = float(row["us"]) * 1e-6 - events if pair else 0.0
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: row {at}: {error}: must be as measure_h200.py writes it") from None
        if pair is not None and seconds > (TELLABLE - 1.0) * events:
            label = f"{row['op']} {row.get('mode', 'rested')}"
            out.append(
                Sample(
                    hardware=hardware, cls=pair[0], work=(pair[1],), seconds=seconds, table=path.stem, label=label,
                )
            )  # fmt: skip
    return out


def h200_measured() -> list[Sample]:
    """What `measure_h200.py` measured."""
    return own_table(TABLES / "h200_measured.csv", "h200")


def _decode(row: Row, hardware: str, cls: str, table: str) -> Sample:
    work = DecodeAttention(
        batch=integer(row, "batch"), heads=integer(row, "heads"), kv_heads=integer(row, "kv_heads"),
        d_qk=integer(row, "d_qk"), d_v=integer(row, "d_v"), kv_len=integer(row, "kv_len"), q_len=integer(row, "q_len"),
        latent=row["d_qk"] != row["d_v"], kv_dtype="fp8" if row.get("kv_dtype") == "fp8" else "bf16",
    )  # fmt: skip
    label = f"{work.batch} x {work.heads}/{work.kv_heads} x {work.kv_len}"
    return Sample(hardware=hardware, cls=cls, seconds=number(row, "us") * 1e-6, table=table, label=label, work=(work,))


def decode_attention() -> list[Sample]:
    """Decode attention: PyTorch's FlashAttention-2 on one H200, L2 flushed before each call, and what aiconfigurator
    measured of SGLang's FlashAttention-3 on H200 and H100, and of other engines' kernels and FP8 caches on H200."""
    table = "h200_decode_attention"
    own = [_decode(row, "h200", "attn.decode@fa2", table) for row in rows(f"{table}.csv")]
    others = [
        _decode(row, row["hardware"], _decode_class(row), of_aic)
        for of_aic in ("aic_decode_attention", "aic_decode_engines")
        for row in rows(f"{of_aic}.csv")
    ]
    return [*own, *others]


def _decode_class(row: Row) -> str:
    latent, narrow = row["d_qk"] != row["d_v"], row.get("kv_dtype") == "fp8"
    return f"attn.decode{'.mla' if latent else ''}{'.fp8' if narrow else ''}@{row['impl']}"


def small_gemm() -> list[Sample]:
    """GEMMs of few rows as decoding runs them (`measure_small_gemm.py`), L2 flushed; half of the (n, k) held out."""
    out = []
    for row in rows("h200_small_gemm.csv"):
        if row["form"] == "batched":
            continue  # of absorbed latent attention: no class of its own
        pair = _measured_gemm(row)
        if pair is None:
            continue
        out.append(
            Sample(
                hardware="h200", cls=pair[0], work=(pair[1],), seconds=number(row, "us") * 1e-6,
                table="h200_small_gemm",
                label=f"{row['m']} x {row['n']} x {row['k']}", rested=1.0, resolution=2.5e-7,
                held=row["held_out"] == "1",
            )
        )  # fmt: skip
    return out


GRAPH_GAP = 1e-7
"""Between two kernels of a replayed CUDA graph on an H200 [s]: what a call of a chain takes beyond a kernel alone. Of
the shortest kernels of h200_narrow (compiled, up to 2 KiB: 1.07 to 1.13 us against 1.0 to 1.25 us) and, in the median,
of the 59 GEMMs under 5 MB of h200_small_gemm; the profiler's resolution is 0.25 us. The chain finds operands in L2, the
kernel alone does not: the gap is between this and 0.35 us."""
SMALL_CLASS = {
    ("add", "eager"): "elem.small", ("add", "compile"): "elem.small", ("cast", "eager"): "elem.small",
    ("cast", "compile"): "elem.small", ("scale", "eager"): "elem.small", ("scale", "compile"): "elem.small",
    ("swiglu", "compile"): "swiglu.small", ("rmsnorm", "eager"): "norm.small",
    ("rmsnorm", "compile"): "norm.small@compiled",
}  # fmt: skip
SHARE_READ = {"add": 2 / 3, "cast": 1 / 3, "scale": 1 / 2, "swiglu": 2 / 3, "rmsnorm": 1 / 2}


def small_streams() -> list[Sample]:
    """Memory-bound kernels of 1 KiB to 1 MiB in a replayed graph (`measure_narrow.py`), less the gap behind each; every
    second size of each kernel held out. Eager SwiGLU, two kernels over strided halves, is no class of its own."""
    out: list[Sample] = []
    sizes: dict[tuple[str, str], list[float]] = {}
    for row in rows("h200_narrow.csv"):
        kind = row["op"], row["impl"]
        size, before = number(row, "bytes"), sizes.setdefault((row["op"], row["impl"]), [])
        if not row["us_graph"] or kind not in SMALL_CLASS or size in before:
            continue
        before.append(size)
        read = size * SHARE_READ[row["op"]]
        out.append(
            Sample(
                hardware="h200", cls=SMALL_CLASS[kind], work=(Streaming(read=read, written=size - read),),
                seconds=number(row, "us_graph") * 1e-6 - GRAPH_GAP, table="h200_narrow",
                label=f"{row['op']} {row['impl']} {size:.0f}", rested=1.0, resolution=0.0, held=len(before) % 2 == 0,
            )
        )  # fmt: skip
    return out


UNVECTORIZED = (
    "mul_half", "silu_half", "silu_half_back", "mul_rotary", "neg_rotary", "copy_transposed", "to_fp32", "mul_rows",
)  # fmt: skip
EAGER_CLASS = dict.fromkeys(UNVECTORIZED, "elem.unvectorized") | {
    "cat_rotary": "cat.unvectorized",
    "adamw": "optimizer",
}
"""Ops of `measure_eager.py` -> class. Its vectorized ones, in the class `elem` from elsewhere, only compare."""


def eager() -> list[Sample]:
    """Kernels whose instructions, not bytes, decide: those for operands not next to each other, and AdamW."""
    out = []
    for row in rows("h200_eager.csv"):
        cls = EAGER_CLASS.get(row["op"])
        if cls is None:
            continue
        values, moved = number(row, "values"), number(row, "bytes")
        out.append(
            Sample(
                hardware="h200", cls=cls, seconds=number(row, "busy_us") * 1e-6, table="h200_eager",
                work=(Streaming(read=moved - moved / 3, written=moved / 3, values=values),),
                label=f"{row['op']} {row['impl']} {row['m']} x {row['n']}", rested=1.0, resolution=2.5e-7,
                held=row["held_out"] == "1",
            )
        )  # fmt: skip
    return out


CAST_CLASS = {
    "amax": "quant.amax@compiled", "cast_delayed": "quant.tensor@compiled", "cast_row": "quant.row@compiled",
    "cast_transpose": "quant.turned@compiled",
}  # fmt: skip
"""Casts that torch.compile writes as one kernel -> class."""


def compiled_casts() -> list[Sample]:
    """torch.compile's casts to FP8 (`measure_fp8_mix.py --only casts`); two of five shapes held out. Casts in several
    kernels are not fitted; a cast by columns alone is what `cast_row_both` takes beyond `cast_row`."""
    table = [row for row in rows("h200_fp8_casts.csv") if row["impl"] == "compiled"]
    by_row = {(row["m"], row["n"]): number(row, "busy_us") for row in table if row["op"] == "cast_row"}
    out = []
    for row in table:
        values, moved = float(integer(row, "m") * integer(row, "n")), number(row, "bytes")
        cls, us = CAST_CLASS.get(row["op"]), number(row, "busy_us")
        if row["op"] == "cast_row_both":
            cls, us, moved = "quant.column@compiled", us - by_row[row["m"], row["n"]], 3.0 * values
        if cls is not None:
            work = Streaming(read=2.0 * values, written=max(0.0, moved - 2.0 * values), values=values)
            out.append(
                Sample(
                    hardware="h200", cls=cls, work=(work,), seconds=us * 1e-6, table="h200_fp8_casts",
                    label=f"{row['op']} {row['m']} x {row['n']}", rested=1.0, resolution=2.5e-7,
                    held=row["held_out"] == "1",
                )
            )  # fmt: skip
    return out


def torchao_kernels() -> list[Sample]:
    """What torchao's scales of rows add behind a GEMM (`measure_torchao.py --only others`); every second shape held
    out."""
    return [
        Sample(
            hardware="h200", cls="quant.rescale@compiled", seconds=number(row, "us") * 1e-6, table="h200_torchao",
            work=(Streaming(read=number(row, "bytes") / 2, written=number(row, "bytes") / 2,
                            values=float(integer(row, "m") * integer(row, "n"))),),
            label=f"{row['op']} {row['m']} x {row['n']}", rested=1.0, resolution=2.5e-7, held=row["held_out"] == "1",
        )
        for row in rows("h200_torchao.csv")
        if row["op"] == "rescale"
    ]  # fmt: skip


ACCUMULATED = {"fp8_tensor split": 2.0, "fp8_tensor e5m2 split": 2.0, "fp8_tensor split fp32out": 4.0}
"""Variants of the table of accumulators -> bytes of an output value."""


def fp8_split() -> list[Sample]:
    """FP8 GEMMs whose partial sums are added up in FP32 outside the tensor cores, as gradients' are: sustained
    (`h200_fp8_accumulation`), and rested (`h200_fp8_split`)."""
    out = []
    for row in rows("h200_fp8_accumulation.csv"):
        width = ACCUMULATED.get(row["variant"])
        if width is not None:
            work = gemm(integer(row, "m"), integer(row, "n"), integer(row, "k"), "fp8_tensor", out=width)
            out.append(_split_sample(work, number(row, "us_lasting"), "h200_fp8_accumulation", row["variant"]))
    for row in rows("h200_fp8_split.csv"):
        if row["precision"] == "fp8_tensor_split":
            work = gemm(integer(row, "m"), integer(row, "n"), integer(row, "k"), "fp8_tensor")
            out.append(_split_sample(work, number(row, "us"), "h200_fp8_split", "rested", rested=1.0))
    return merged(out)


def _split_sample(work: Gemm, us: float, table: str, label: str, rested: float = 0.0) -> Sample:
    return Sample(
        hardware="h200", cls="gemm.fp8_tensor.split", work=(work,), seconds=us * 1e-6, table=table, label=label,
        rested=rested,
    )  # fmt: skip


def h100_measured() -> list[Sample]:
    """What `measure_rested.py` measured on an H100; layouts of operands, and a shape in both tables, count as runs of
    one shape."""
    return merged([s for table in H100_TABLES for s in own_table(TABLES / f"{table}.csv", "h100")])


H100_TABLES = ("h100_measured", "h100_more", "h100_further", "h100_compiled")
"""Measured one after the other: most shapes of each are random ones of its own."""


def h100_unseen() -> list[Sample]:
    """Measured once the form of the model was settled: compared with, never fitted. Shapes that the other tables
    hold, too, are left out."""
    known = {(s.cls, s.work) for s in (*h100_measured(), *deepgemm())}
    new = [*merged(own_table(TABLES / "h100_unseen.csv", "h100")), *deepgemm("h100_deepgemm_unseen")]
    return [s for s in new if (s.cls, s.work) not in known]


DEEPGEMM_CLASS = {
    "dense": "gemm.fp8@deepgemm", "grouped": "gemm.fp8.grouped@library", "masked": "gemm.fp8.masked",
    "wgrad": "gemm.fp8.wgrad@deepgemm",
}  # fmt: skip
DEEPGEMM_TABLE = "h100_deepgemm"


def deepgemm(table: str = DEEPGEMM_TABLE) -> list[Sample]:
    """What `measure_deepgemm.py` measured on an H100."""
    out = []
    for row in rows(f"{table}.csv"):
        form: GemmForm = row["form"]  # type: ignore[assignment]
        work = gemm(
            integer(row, "expected") or integer(row, "m"), integer(row, "n"), integer(row, "k"), "fp8_block", form,
            integer(row, "groups"), OUT_BYTES.get(form, 2.0),
        )  # fmt: skip
        out.append(
            Sample(
                hardware="h100", cls=DEEPGEMM_CLASS[form], seconds=number(row, "us") * 1e-6, table=table, label=form,
                work=(replace(work, rows=tuple(map(int, row["rows"].split()))),),
            )
        )  # fmt: skip
    return merged(out)


def everything() -> list[Sample]:
    """All samples of all tables that enter a fit or its held-out part."""
    h200 = merged([*h200_older(), *h200_measured()])
    own = [*h200, *moe_layer(), *maps(), *engine_experts(), *small_gemm(), *small_streams(), *eager()]
    own += [*engine_streams(), *transformer_engine()]
    own += [*compiled_casts(), *torchao_kernels(), *fp8_split(), *decode_attention()]
    return [*trace(), *infersim(), *published(), *own, *h100_measured(), *deepgemm()]
