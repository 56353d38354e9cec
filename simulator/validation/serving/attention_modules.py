"""Attention of one layer as a module (`workloads/facts/serving_modules.csv`): the ops of the graph, one after another.

Its core is calibrated by another table of the same database; projections, norms and casts by tables of their own. That
they add up to the module is compared with here, not fitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from simulator.engine.kernel_sequence import ALONE
from simulator.engine.lower import price_model
from simulator.inputs import load_scenario
from simulator.spec.model import BlockKind
from simulator.validation.figures import Figure, fact_rows

TABLE = "serving_modules.csv"
PARTS = ("prepare.F", "attn.F")
"""Segments of a layer that the module consists of."""
OUTSIDE = ("norm.attn", "norm.ffn")
"""Ops of these segments that it does not hold: the norms before and behind it."""


def module_rows() -> list[Figure]:
    """The figures of the table."""
    return [
        Figure(
            id=row["id"],
            section="K",
            system=row["engine"],
            quantity="attention_module_time",
            value=float(row["value"]),
            unit="us",
            source=f"{row['source']}, {row['date']}",
            config={key: row[key] for key in ("phase", "hardware", "attention", "batch", "length")},
        )
        for row in fact_rows(TABLE)
    ]


def attention_module(figure: Figure) -> float:
    """Time of an attention module [µs]."""
    return 1e6 * sum(_times(tuple(figure.config.items())).values())


@cache
def _times(config: tuple[tuple[str, str], ...]) -> Mapping[str, float]:
    """Ops of the module -> their times [s]."""
    c = dict(config)
    work = "serving.context" if c["phase"] == "decode" else "serving.tokens"
    own = ["model=deepseek-v3", f"hardware={c['hardware']}", "stack=sglang", "precision.recipe=fp8"]
    own += [f"serving.sequences={c['batch']}", f"{work}={c['length']}", "serving.kv_dtype=fp8"]
    if c["phase"] == "decode":
        own.append(f"stack.serving.decode_attention={c['attention']}")
    built = price_model(load_scenario(f"llama-3-8b-{c['phase']}", own), 1)
    parts = [part for part in built.blocks[BlockKind.DENSE].forward if part.name in PARTS]
    ops = [op for part in parts for op in part.ops if op.name not in OUTSIDE]
    return {op.name: built.price(op).durations[ALONE] for op in ops}
