"""What lists, steps and windows of a config.json say about its layers.

transformers writes the kind of attention of every layer (`layer_types`); older files give a window and the layers that
have it.
"""

from __future__ import annotations

from typing import Any

from simulator.inputs.architectures.architecture import Finish, Table, Unsupported
from simulator.inputs.limits import MODEL
from simulator.spec.mixer import Mixer

MIXERS = {
    "full_attention": Mixer.FULL,
    "attention": Mixer.FULL,
    "sliding_attention": Mixer.SLIDING,
    "chunked_attention": Mixer.CHUNKED,
    "linear_attention": Mixer.DELTA,
    "mamba": Mixer.MAMBA2,
    **{str(mixer): mixer for mixer in Mixer},
}
"""transformers' names of a layer's attention, and our own -> what mixes its tokens."""


def window(table: Table) -> Table:
    """Which layers have a window, or chunks; `use_sliding_window` and `max_window_layers` are taken away.

    transformers' `layer_types` says it of every layer. Without, Qwen's window counts where `use_sliding_window` says
    so, from layer `max_window_layers` on.
    """
    used = table.pop("use_sliding_window", True)
    first = table.pop("max_window_layers", 0)
    kinds = table.pop("layer_types", None)
    width, layers = table.get("sliding_window"), table.get("num_hidden_layers")
    if kinds is None and table.get("attention_chunk_size") and counts_layers(table):
        kinds = ["chunked_attention"] * _layers(table)
    if kinds is not None:
        return _of_types(table, kinds, layers)
    if not used or width == 0:
        return table | {"sliding_window": None}
    if width is not None and isinstance(first, int) and isinstance(layers, int) and first > 0:
        if first >= layers:
            return table | {"sliding_window": None}
        if counts_layers(table):
            return table | {"layer_types": [Mixer.FULL] * first + [Mixer.SLIDING] * (layers - first)}
    return table


def _of_types(table: Table, kinds: Any, layers: Any) -> Table:
    """The mixer of each layer, by transformers' list."""
    if not isinstance(kinds, (list, tuple)) or not all(isinstance(kind, str) for kind in kinds):
        raise Unsupported("layer_types", kinds, "must be a list, each a string")
    if len(kinds) != layers:
        raise Unsupported("layer_types", kinds, f"lists {len(kinds)} layers, num_hidden_layers is {layers}")
    other = [kind for kind in kinds if kind not in MIXERS]
    if other:
        what = " and ".join(sorted(set(other)))
        raise Unsupported("layer_types", kinds, f"{what} in {len(other)} of {layers} layers is not modelled")
    return of_mixers(table, [MIXERS[kind] for kind in kinds])


def of_mixers(table: Table, mixers: list[Mixer]) -> Table:
    """The layers' mixers; a list only where they differ, a window or chunk only where a layer has one."""
    for mixer, field in ((Mixer.SLIDING, "sliding_window"), (Mixer.CHUNKED, "attention_chunk_size")):
        if mixer not in mixers:
            table = {key: value for key, value in table.items() if key != field}
        elif not table.get(field):
            raise Unsupported(field, table.get(field), f"missing: layers with {mixer} attention need it, at least 1")
    alike = set(mixers) in ({Mixer.FULL}, {Mixer.SLIDING})
    return table if alike else table | {"layer_types": [str(mixer) for mixer in mixers]}


def every(step: int, *, first: bool = False, other: str = "sliding_attention") -> Finish:
    """Where a file lists no types, every `step`-th layer has full attention (the first of each group where `first`),
    all others `other`; a number in `sliding_window_pattern` is the step."""

    def run(table: Table) -> Table:
        given = table.pop("sliding_window_pattern", None)
        if table.get("layer_types") is not None or not counts_layers(table) or not _is_windowed(table, other):
            return table
        group = step if given is None else given
        if isinstance(group, str):
            group = [kind == "G" for kind in group]
            return table | {"layer_types": [_kind(group[i % len(group)], other) for i in range(_layers(table))]}
        if type(group) is not int or group < 1:
            raise Unsupported("sliding_window_pattern", group, "must be an integer, at least 1")
        at = 0 if first else group - 1
        return table | {"layer_types": [_kind(i % group == at, other) for i in range(_layers(table))]}

    return run


def _is_windowed(table: Table, other: str) -> bool:
    return bool(table.get("attention_chunk_size" if other == "chunked_attention" else "sliding_window"))


def _layers(table: Table) -> int:
    return int(table["num_hidden_layers"])


def _kind(full: bool, other: str) -> str:
    return "full_attention" if full else other


def no_window_unless_used(table: Table) -> Table:
    """For families whose window counts only where `use_sliding_window` says so."""
    return window({"use_sliding_window": False} | table)


def sparse_step(table: Table) -> Table:
    """Qwen counts layers from 1: layer i is MoE where (i + 1) % step == 0."""
    step = table.pop("decoder_sparse_step", 1)
    named = table.get("mlp_only_layers", [])
    if not (counts_layers(table) and isinstance(step, int) and step > 1 and are_integers(named)):
        return table  # what is wrong is reported when the values are checked
    dense = {i for i in range(table["num_hidden_layers"]) if (i + 1) % step}
    return table | {"mlp_only_layers": sorted(dense | set(named))}


def mlp_layer_types(table: Table) -> Table:
    """transformers' list of `dense` and `sparse` layers."""
    kinds = table.pop("mlp_layer_types", None)
    if kinds is None:
        return table
    layers = table.get("num_hidden_layers")
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= {"dense", "sparse"}:
        raise Unsupported("mlp_layer_types", kinds, 'must be a list, each "dense" or "sparse"')
    if len(kinds) != layers:
        raise Unsupported("mlp_layer_types", kinds, f"lists {len(kinds)} layers, num_hidden_layers is {layers}")
    dense = [i for i, kind in enumerate(kinds) if kind == "dense"]
    return table | {"first_k_dense_replace": 0, "moe_layer_freq": 1, "mlp_only_layers": dense}


def without_rotation(table: Table) -> Table:
    """How many layers do not rotate: zeros in `no_rope_layers`, or every `no_rope_layer_interval`-th (SmolLM 3)."""
    rotating = table.pop("no_rope_layers", None)
    interval = table.pop("no_rope_layer_interval", 0)
    layers = table.get("num_hidden_layers")
    if rotating is not None and rotating != []:
        if not are_integers(rotating) or len(rotating) != layers:
            raise Unsupported(
                "no_rope_layers", rotating, f"must be a list of one 0 or 1 for each of the {layers} layers"
            )
        return table | {"nope_layers": rotating.count(0)}
    if isinstance(interval, int) and interval > 0 and counts_layers(table):
        return table | {"nope_layers": table["num_hidden_layers"] // interval}
    return table


def rotary_dim(table: Table) -> Table:
    """`rotary_dim` values of a head rotate."""
    width = table.pop("rotary_dim", None)
    head, heads, hidden = table.get("head_dim"), table.get("num_attention_heads"), table.get("hidden_size")
    if not head and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        head = hidden // heads
    if isinstance(width, int) and isinstance(head, int) and head > 0 and "partial_rotary_factor" not in table:
        return table | {"partial_rotary_factor": width / head}
    return table


def uniform(*names: str) -> Any:
    """A `finish` for fields that a file may give as a list of one value a layer, all equal."""

    def run(table: Table) -> Table:
        for name in names:
            value = table.get(name)
            if isinstance(value, list) and value:
                if any(item != value[0] for item in value):
                    raise Unsupported(
                        name, value, "layers of different widths are not modelled: must be the same for all"
                    )
                table = table | {name: value[0]}
        return table

    return run


def are_integers(value: Any) -> bool:
    """Whether it is a list of integers."""
    return isinstance(value, list) and all(type(item) is int for item in value)


def counts_layers(table: Table) -> bool:
    """Whether the number of layers is one that can be counted to."""
    layers = table.get("num_hidden_layers")
    return isinstance(layers, int) and MODEL["num_hidden_layers"].holds(layers)
