"""What an architecture is to the reader of config.json, and what every family shares.

Keys are the file's; fields are those of `ModelSpec`, or names that `finish` takes away again (`layer_types`,
`rotary_dim` ...). A dotted key reaches into a table of the file: `rope_parameters.partial_rotary_factor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Table = dict[str, Any]
Finish = Callable[[Table], Table]


class Unsupported(Exception):
    """A value that no model here can have: the field it fills, the value, and what would be right."""

    def __init__(self, field_name: str, value: object, right: str) -> None:
        super().__init__(field_name, value, right)
        self.field_name, self.value, self.right = field_name, value, right


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """The values with which a key leaves the shape as it is; `otherwise` says what another one would need."""

    values: tuple[Any, ...]
    otherwise: str


def _same(table: Table) -> Table:
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How one `model_type` spells its shape.

    Parameters
    ----------
    keys : key of the file -> field of the model.
    fixed : what the type implies where the file does not say otherwise.
    finish : computes what no single key says; it may raise `Unsupported`.
    only : keys that are allowed with some values only.
    ignored : keys that leave the shape alone, and why.
    moe : whether it is a mixture of experts: one without a number of experts is then an error.
    dense : the `model_type` of the family's dense models, named where a number of experts is missing.
    title : models that are of this type.
    source : where its keys and what they imply are published.
    """

    keys: Mapping[str, str]
    fixed: Table = field(default_factory=dict)
    finish: Finish = _same
    only: Mapping[str, Only] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    moe: bool = False
    dense: str = ""
    title: str = ""
    source: str = ""


COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_act",
    "tie_word_embeddings",
)
ROTARY = {
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
    "rotary_dim": "rotary_dim",
    "rope_parameters.partial_rotary_factor": "partial_rotary_factor",
    "rope_scaling.partial_rotary_factor": "partial_rotary_factor",
}
WINDOW = {
    "sliding_window": "sliding_window",
    "use_sliding_window": "use_sliding_window",
    "max_window_layers": "max_window_layers",
    "layer_types": "layer_types",
    "sliding_window_pattern": "sliding_window_pattern",
    "attention_chunk_size": "attention_chunk_size",
}
EXPERT_COUNT = {
    "num_experts": "n_routed_experts",
    "num_local_experts": "n_routed_experts",
    "n_routed_experts": "n_routed_experts",
}
"""Three spellings of one number: transformers renames them when it saves."""


def spelled(*names: str, **renamed: str) -> dict[str, str]:
    """The common keys, `names` as they are, and `renamed` ones."""
    return {name: name for name in (*COMMON, *names)} | renamed


def grouped_query(*names: str, **renamed: str) -> dict[str, str]:
    """The keys of a model with grouped queries, rotary embedding and perhaps a window."""
    return spelled("head_dim", *names) | ROTARY | WINDOW | renamed


def steps(*finishes: Finish) -> Finish:
    """Several `finish` functions, one after the other."""

    def run(table: Table) -> Table:
        for finish in finishes:
            table = finish(table)
        return table

    return run


def fill(**defaults: str) -> Finish:
    """Fields that are like another one where the file does not give them."""

    def run(table: Table) -> Table:
        return table | {name: table[other] for name, other in defaults.items() if name not in table and other in table}

    return run


output_bias = fill(attention_out_bias="attention_bias")
"""One key says of all four projections whether they have a bias."""
experts_as_wide_as_dense = fill(moe_intermediate_size="intermediate_size")
