"""A question about one operation: named columns with a type each, all but `op` optional.

The names are those of the command line's options and of the columns of a table. A column that is missing or empty
takes its default; what an operation does not need is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from simulator.errors import InputError
from simulator.inputs.problems import cut

DEFAULT_HARDWARE = "h800"

OPS: Mapping[str, str] = {
    "gemm": "gemm",
    "matmul": "gemm",
    "linear": "gemm",
    "grouped_gemm": "grouped_gemm",
    "group_gemm": "grouped_gemm",
    "moe_gemm": "grouped_gemm",
    "m_grouped_gemm": "grouped_gemm",
    "attention": "attention",
    "attn": "attention",
    "flash_attention": "attention",
    "mla": "attention",
    "mha": "attention",
    "gqa": "attention",
    "decode_attention": "decode_attention",
    "flash_decoding": "decode_attention",
    "gqa_decode": "decode_attention",
    "mha_decode": "decode_attention",
    "mla_decode": "decode_attention",
    "stream": "stream",
    "streaming": "stream",
    "elementwise": "stream",
    "memory": "stream",
    "mem": "stream",
    "copy": "stream",
    "all_to_all": "all_to_all",
    "alltoall": "all_to_all",
    "a2a": "all_to_all",
    "dispatch": "dispatch",
    "combine": "combine",
    "p2p": "p2p",
    "send_recv": "p2p",
    "sendrecv": "p2p",
    "send": "p2p",
    "point_to_point": "p2p",
    "all_reduce": "all_reduce",
    "allreduce": "all_reduce",
    "all_gather": "all_gather",
    "allgather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "reducescatter": "reduce_scatter",
    "broadcast": "broadcast",
}
"""Spelling (lower case, `_` between words) -> operation."""

PRECISIONS: Mapping[str, str] = {
    "fp8": "fp8_block",
    "fp8_block": "fp8_block",
    "float8": "fp8_block",
    "e4m3": "fp8_block",
    "fp8_tensor": "fp8_tensor",
    "fp8_per_tensor": "fp8_tensor",
    "fp8_row": "fp8_row",
    "fp8_rowwise": "fp8_row",
    "fp8_per_row": "fp8_row",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "bf16",
    "float16": "bf16",
    "half": "bf16",
}
"""Spelling -> precision. FP16 runs at the speed of BF16 on every GPU here."""

KV_DTYPES: Mapping[str, str] = {
    name: "fp8" if precision.startswith("fp8") else "bf16" for name, precision in PRECISIONS.items()
}
"""Spelling -> type of a cache."""

FORMS = ("dense", "wgrad", "grouped", "masked", "grouped_wgrad", "low_latency")
DIRECTIONS = ("dispatch", "combine")
TRUE, FALSE = ("true", "1", "yes", "y", "t"), ("false", "0", "no", "n", "f")


class BadColumn(InputError):
    """A column whose value cannot be used."""

    def __init__(self, column: str, value: str, right: str) -> None:
        self.column = column
        shown = f": {cut(repr(value))}" if value else ""
        super().__init__(f"{column}{shown}: {right}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about one kernel; None: not stated.

    Parameters
    ----------
    op : operation.
    hardware : hardware profile.
    precision : number format.
    m, n, k : of a GEMM (grouped: m is the total; masked: m is expected per group; weight gradient: k is the tokens).
    groups : GEMMs in the kernel.
    rows : tokens per group, separated by spaces, if they are not equal.
    form : form of a GEMM, or `low_latency`.
    sms : SMs granted to a kernel, or held by an all-to-all.
    seq, seq_kv : queries and keys of an attention core [tokens].
    q_len, kv_len : new tokens, and cached keys with the new ones, of decode attention [tokens].
    kv_dtype : format of the cache.
    heads, kv_heads : query heads; heads of keys and values.
    batch : sequences.
    d_qk, d_v : head widths [elements].
    causal : whether a mask hides later keys.
    backward : whether it is the backward.
    bytes : read and written by a memory-bound kernel, sent, or full buffer of a collective [B].
    ranks, nodes : of a collective.
    tokens : tokens per rank of an all-to-all.
    hidden : values of a token.
    top_k, node_limit, experts : gate of an all-to-all.
    ep : expert-parallel ranks.
    direction : dispatch or combine.
    dispatcher : kernels of the all-to-all.
    low_latency : whether the kernels for decoding run.
    concurrent : whether other work runs at the same time.
    both_ways : whether a rank that sends a message receives one as large at the same time.
    cls : kernel class instead of the default.
    impl : whose kernel: `library` (public: DeepGEMM, cuDNN ...), `training` (DeepSeek's of its profile), `fa2`.
    """

    op: str
    hardware: str = DEFAULT_HARDWARE
    precision: str | None = None
    m: int | None = None
    n: int | None = None
    k: int | None = None
    groups: int | None = None
    rows: str | None = None
    form: str | None = None
    sms: int | None = None
    seq: int | None = None
    seq_kv: int | None = None
    q_len: int | None = None
    kv_len: int | None = None
    kv_dtype: str | None = None
    heads: int | None = None
    kv_heads: int | None = None
    batch: int | None = None
    d_qk: int | None = None
    d_v: int | None = None
    causal: bool | None = None
    backward: bool | None = None
    bytes: float | None = None
    ranks: int | None = None
    nodes: int | None = None
    tokens: int | None = None
    hidden: int | None = None
    top_k: int | None = None
    node_limit: int | None = None
    ep: int | None = None
    experts: int | None = None
    direction: str | None = None
    dispatcher: str | None = None
    low_latency: bool | None = None
    concurrent: bool | None = None
    both_ways: bool | None = None
    cls: str | None = None
    impl: str | None = None

    def __post_init__(self) -> None:
        """Raises BadColumn for the first number that is beyond all that is built."""
        for name in _NUMBERS:
            value, most = getattr(self, name), _MOST.get(name, _MOST_OF_A_SHAPE)
            if value is not None and not 0 <= value <= most:
                raise BadColumn(name, f"{value:g}" if value <= 1e300 else "", f"must be from 0 to {most:g}")


COLUMNS = tuple(f.name for f in fields(Question))
_INTEGERS = frozenset(f.name for f in fields(Question) if "int" in str(f.type))
_BOOLEANS = frozenset(f.name for f in fields(Question) if "bool" in str(f.type))
_FORMER = {"beside": "concurrent"}
"""Columns of earlier versions under today's names."""
_NUMBERS = (*sorted(_INTEGERS), "bytes")
_MOST_OF_A_SHAPE = 1e9
_MOST: Mapping[str, float] = {"bytes": 1e18} | dict.fromkeys(
    ("groups", "ranks", "nodes", "ep", "experts", "top_k"), 1e5
)
"""The largest number of a column: a thousand times what is built, so that nothing overflows or counts for ever."""
_MAY_BE_ZERO = frozenset(("node_limit", "sms"))


_CHOICES: Mapping[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    "op": (OPS, tuple(dict.fromkeys(name.replace("_", "-") for name in OPS.values()))),
    "precision": (PRECISIONS, ("fp8", "bf16", "fp8_tensor", "fp8_row")),
    "kv_dtype": (KV_DTYPES, ("bf16", "fp8")),
    "form": ({form: form for form in FORMS}, FORMS),
    "direction": ({word: word for word in DIRECTIONS}, DIRECTIONS),
}
"""Column -> what its words mean, and the words to choose from."""


def question_from_text(texts: Mapping[str, str], hardware: str = DEFAULT_HARDWARE) -> Question:
    """The question of one row of a table: column -> text. Empty texts are as good as none.

    Raises BadColumn for the first column that cannot be read.
    """
    current = {_FORMER.get(name, name): text for name, text in texts.items()}
    said = {name: text.strip() for name, text in current.items() if name in COLUMNS and text and text.strip()}
    if "op" not in said:
        raise BadColumn("op", "", f"missing: choose one of {', '.join(known_ops())}")
    values = {name: _typed(name, text) for name, text in said.items()}
    return Question(**({"hardware": hardware} | values))


def known_ops() -> list[str]:
    """The operations, each in its plainest spelling."""
    return list(_CHOICES["op"][1])


def number(column: str, text: str) -> float:
    """A finite number."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        raise BadColumn(column, text, "must be a number") from None
    if not isfinite(value):
        raise BadColumn(column, text, "must be a finite number")
    return value


UNITS: Mapping[str, float] = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 1e3, "mb": 1e6, "gb": 1e9, "b": 1.0}


def size(text: str) -> float:
    """Bytes of 58.7e6, 58.7MB or 512MiB; raises ValueError for what is no size."""
    word = text.strip().lower()
    unit = next((name for name in UNITS if word.endswith(name)), "")
    value = float(word.removesuffix(unit).replace("_", "")) * UNITS.get(unit, 1.0)
    if not isfinite(value) or value < 0:
        raise ValueError("must be at least 0 and finite")
    return value


def _typed(name: str, text: str) -> Any:
    if name in _INTEGERS:
        return _integer(name, text)
    if name in _BOOLEANS:
        return _boolean(name, text)
    if name == "bytes":
        try:
            return size(text)
        except ValueError:
            raise BadColumn(name, text, "must be a size from 0: 58.7e6, 58.7MB or 512MiB") from None
    word = text.lower().replace("-", "_").replace(" ", "_")
    if name not in _CHOICES:
        return text
    meant, said = _CHOICES[name]
    return _chosen(name, text, meant.get(word), said)


def _chosen(name: str, text: str, value: str | None, known: Any) -> str:
    if value is None:
        raise BadColumn(name, text, f"choose one of {', '.join(known)}")
    return value


def _integer(name: str, text: str) -> int:
    value = number(name, text)
    least = 0 if name in _MAY_BE_ZERO else 1
    if value != int(value) or value < least:
        raise BadColumn(name, text, f"must be an integer, at least {least}")
    return int(value)


def _boolean(name: str, text: str) -> bool:
    word = text.lower()
    if word in TRUE or word in FALSE:
        return word in TRUE
    try:
        return bool(_boolean_number(word))
    except ValueError:
        raise BadColumn(name, text, "must be true or false") from None


def _boolean_number(word: str) -> float:
    value = float(word)
    if value not in (0.0, 1.0):
        raise ValueError(word)
    return value
