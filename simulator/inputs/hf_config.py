"""Hugging Face config.json of many architectures -> `ModelSpec`, and an account of every key.

A key is either read, known to leave the shape alone, or an error: nothing that changes the shape is dropped silently.
What the architectures are stands in `simulator.inputs.architectures`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from simulator.errors import InputError
from simulator.inputs.architectures import SHIPPED, Architecture, Unsupported
from simulator.inputs.architectures.ignored import ENCODER, NOT_SET, reason
from simulator.inputs.architectures.refused import KEYS, REFUSED
from simulator.inputs.limits import MODEL, check_ranges
from simulator.inputs.problems import nearest, problem
from simulator.inputs.ranges.consistent import check_consistent
from simulator.inputs.typed import build, field_names
from simulator.plugins import Registry
from simulator.spec.model import ModelSpec

Table = dict[str, Any]

STEPS = (
    *("decoder_sparse_step", "moe_layer_interval", "no_rope_layer_interval", "moe_layer_freq"),
    *("interleave_moe_layer_step", "sliding_window_pattern", "full_attention_interval"),
)
"""Keys that say how many layers a pattern has."""
TEXT_PARTS = ("thinker_config", "text_config", "llm_config", "language_config")
"""Tables in which a model of several modalities keeps its language model."""
HOW_TO = "docs/howto/model.md says how to add one"
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

ARCHITECTURES: Registry[Architecture] = Registry(
    kind="architecture", cls=Architecture, group="foretrain.architectures", shipped=SHIPPED, error=InputError
)
"""Architectures by `model_type`; `register_architecture` and installed packages add to the shipped ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadKey:
    """A key of the file that shapes the model: the `field` of `ModelSpec` it fills, or what it helps to compute."""

    key: str
    value: Any
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoredKey:
    """A key of the file that leaves the shape alone, and why."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A config.json as it was understood: the model, what was read, what the type implied, what was ignored.

    `implied` are fields that no key of the file gives. `notes` are sentences on what is unusual, though no mistake.
    """

    model: ModelSpec
    read: tuple[ReadKey, ...]
    implied: tuple[tuple[str, Any], ...]
    ignored: tuple[IgnoredKey, ...]
    notes: tuple[str, ...] = ()


def register_architecture(model_type: str, architecture: Architecture) -> None:
    """Add an architecture for this process; raises InputError for a `model_type` that is known already.

    Worker processes of a search do not have it: a search with registered architectures runs in one process. A package
    that offers its `Architecture` as an entry point `foretrain.architectures` is known everywhere.
    """
    ARCHITECTURES.register(model_type, architecture)


def model_from_config(table: Table, name: str, source: str, changes: Table | None = None) -> ModelSpec:
    """The model of a parsed config.json; `changes` are laid over it, in the file's spelling or in ours.

    Errors name `source`, which may end in a key prefix: `--set: model.`.
    """
    return read_config(table, name, source, changes).model


def read_config(table: Table, name: str, source: str, changes: Table | None = None) -> Reading:
    """The model of a parsed config.json with an account of every key; see `model_from_config`."""
    table, source, around = _language_model(table, source)
    architecture = _architecture(table, source)
    kind = table["model_type"]
    with ARCHITECTURES.guard(kind):
        native, ours = _sort_changes(architecture, changes or {})
        flat = _flat(table, architecture)
        for key in native:
            flat = {k: v for k, v in flat.items() if architecture.keys.get(k) != architecture.keys[key]}
        known, ignored = _known(flat | native, architecture, source, kind)
        values = _values(known, architecture, source) | ours
    values |= {"name": name, "model_type": kind}
    for required in _REQUIRED:
        if values.get(required) is None:
            raise problem(source, _spelling(architecture, required), None, "missing: must be an integer, at least 1")
    if architecture.moe and not values.get("n_routed_experts") and "n_routed_experts" not in ours:
        raise _without_experts(architecture, values.get("n_routed_experts"), source, kind)
    model = build(ModelSpec, values, source)
    check_ranges(model, MODEL, source)
    check_consistent(model, source)
    return Reading(
        model=model,
        read=tuple(ReadKey(key=key, value=value, field=architecture.keys[key]) for key, value in known.items()),
        implied=_implied(model, values, {architecture.keys[key] for key in known}),
        ignored=(*ignored, *around),
        notes=tuple(_notes(model, known)),
    )


def _language_model(table: Table, source: str) -> tuple[Table, str, list[IgnoredKey]]:
    """The part of a file of several modalities that is the language model, and what stands around it.

    Whether the head shares the embedding's matrix is what stands around says, where it does: so transformers ties.
    """
    around: list[IgnoredKey] = []
    while (part := _text_part(table)) is not None:
        if (refusal := _type_of(table)) in REFUSED and refusal not in ARCHITECTURES:
            break
        inner = dict(table[part])
        if "tie_word_embeddings" in table:
            inner["tie_word_embeddings"] = table["tie_word_embeddings"]
        why = f"not the language model, which is in {part}"
        around += [
            IgnoredKey(key=key, value=value, why=why)
            for key, value in table.items()
            if key not in (part, "tie_word_embeddings")
        ]
        source = f"{source}{part}." if source.endswith(".") else f"{source}: {part}."
        table = inner
    return table, source, around


def _text_part(table: Table) -> str | None:
    found = (key for key in TEXT_PARTS if isinstance(table.get(key), dict) and table[key])
    return None if _type_of(table) in ARCHITECTURES.registered else next(found, None)


def _type_of(table: Table) -> str:
    """The `model_type` of a file; empty where it is missing or no text."""
    kind = table.get("model_type")
    return kind if isinstance(kind, str) else ""


def _architecture(table: Table, source: str) -> Architecture:
    kind = table.get("model_type")
    found = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    if found is not None:
        return found
    if isinstance(kind, str) and kind in REFUSED:
        refusal = REFUSED[kind]
        right = f"not supported: {refusal.missing}, which the forecast does not have; the nearest supported type is"
        raise problem(source, "model_type", kind, f"{right} {refusal.nearest}; {HOW_TO}")
    near = nearest(kind, ARCHITECTURES) if isinstance(kind, str) else ""
    near = near if near.startswith("did") else "`foretrain show models` lists those that are"
    raise problem(source, "model_type", kind, f"not a known architecture: {near}; {HOW_TO}")


def _without_experts(architecture: Architecture, value: Any, source: str, kind: str) -> InputError:
    key = _spelling(architecture, "n_routed_experts")
    dense = f"; a dense model like it is of type {architecture.dense}" if architecture.dense else ""
    right = f"missing: {kind} is a mixture of experts, and says how many: at least 1{dense}; {HOW_TO}"
    return problem(source, key, value, right)


def _spelling(architecture: Architecture, field: str) -> str:
    """The architecture's first key for a field."""
    return next((key for key, filled in architecture.keys.items() if filled == field), field)


def _flat(table: Table, architecture: Architecture) -> Table:
    """The table with keys of inner tables as dotted ones, where the architecture reads such."""
    flat: Table = {}
    for key, value in table.items():
        if isinstance(value, dict) and any(known.startswith(f"{key}.") for known in architecture.keys):
            flat |= {f"{key}.{k}": v for k, v in _flat_all(value).items()}
        else:
            flat[key] = value
    return flat


def _flat_all(table: Table) -> Table:
    flat: Table = {}
    for key, value in table.items():
        inner = _flat_all(value) if isinstance(value, dict) else {}
        flat |= {f"{key}.{k}": v for k, v in inner.items()} if inner else {key: value}
    return flat


def _known(table: Table, architecture: Architecture, source: str, kind: str) -> tuple[Table, list[IgnoredKey]]:
    """The keys that shape the model, and those that do not (a null says nothing: of a window it is the default)."""
    shape: Table = {}
    ignored: list[IgnoredKey] = []
    for key, value in table.items():
        if key == "model_type":
            continue
        if key in architecture.keys and value is not None:
            shape[key] = value
        else:
            why = NOT_SET if value is None else _why_ignored(key, value, architecture, source, kind)
            ignored.append(IgnoredKey(key=key, value=value, why=why))
    return shape, ignored


def _why_ignored(key: str, value: Any, architecture: Architecture, source: str, kind: str) -> str:
    """Why a key that is not read leaves the shape alone; raises where it would not."""
    if key in architecture.only:
        only = architecture.only[key]
        if not _is_one_of(value, only.values):
            right = " or ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in only.values)
            raise problem(source, key, value, f"must be {right}: {only.otherwise}: not modelled for {kind}; {HOW_TO}")
        return "the value with which this type is supported"
    last = key.rpartition(".")[2]
    if last in ENCODER:
        if not _is_one_of(value, ENCODER[last]):
            raise problem(source, key, value, f"only decoders are supported; {HOW_TO}")
        return "a decoder only"
    why = architecture.ignored.get(key) or reason(key)
    if why:
        return why
    near = nearest(key, architecture.keys)
    right = f"unknown key for {kind}, it may change the shape"
    if key in KEYS:
        right += f": {KEYS[key]} is not modelled for {kind}"
    elif near.startswith("did"):
        right += f"; {near}"
    raise problem(source, key, value, f"{right}; {HOW_TO}")


def _is_one_of(value: Any, choices: tuple[Any, ...]) -> bool:
    """Equal and of the same type: 0 is not false."""
    return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices)


def _values(known: Table, architecture: Architecture, source: str) -> Table:
    """What the fields of `ModelSpec` are, by the architecture's spelling and what it implies."""
    values: Table = dict(architecture.fixed)
    given: dict[str, str] = {}
    for key, value in known.items():
        field = architecture.keys[key]
        if field in given and values[field] != value:
            raise problem(source, key, value, f"contradicts {given[field]}: give one of them")
        values[field], given[field] = value, key
    if isinstance(values.get("hidden_act"), str):
        values["hidden_act"] = _activation(values["hidden_act"])
    values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
    try:
        return architecture.finish(values)
    except Unsupported as error:
        key = given.get(error.field_name, error.field_name)
        raise problem(source, key, error.value, f"{error.right}; {HOW_TO}") from None


def _activation(name: str) -> str:
    """Kernels of all GELUs cost the same; swish is SiLU's other name."""
    return "gelu" if name.startswith("gelu") else "silu" if name == "swish" else name


def _implied(model: ModelSpec, values: Table, given: set[str]) -> tuple[tuple[str, Any], ...]:
    """Fields that the type, not a key of the file, sets to something else than the model's default."""
    usual = {f.name: f.default for f in fields(ModelSpec)}
    named = [name for name in field_names(ModelSpec) if name in values and name not in given]
    shown = [(name, getattr(model, name)) for name in named if name not in ("name", "model_type")]
    return tuple((name, value) for name, value in shown if value != usual[name])


def _notes(model: ModelSpec, known: Table) -> list[str]:
    """What is unusual in a file, though no mistake."""
    notes = []
    window, longest = model.sliding_window, model.max_position_embeddings
    if window is not None and longest and window >= longest:
        notes.append(f"sliding_window {window} is not shorter than the longest sequence, {longest}: it never counts")
    for key in STEPS:
        step = known.get(key)
        if isinstance(step, int) and step > 1 and model.num_hidden_layers % step:
            notes.append(f"{key} {step} does not divide num_hidden_layers {model.num_hidden_layers}: the last is cut")
    if model.n_routed_experts and not model.is_moe:
        notes.append(f"none of the {model.num_hidden_layers} layers has experts")
    return notes


def _sort_changes(architecture: Architecture, changes: Table) -> tuple[Table, Table]:
    """Changes in the file's own keys, and those only our spelling has."""
    native: Table = {}
    ours: Table = {}
    for key, value in changes.items():
        if key in architecture.keys:
            native[key] = value
        elif key in architecture.keys.values():
            native[_spelling(architecture, key)] = value
        else:
            ours[key] = value
    return native, ours


def settable(model_type: str) -> dict[str, str]:
    """Every key that `--set model.KEY` takes -> the field of `ModelSpec` that gives its type."""
    own = {name: name for name in field_names(ModelSpec) if name not in ("name", "model_type")}
    fields = set(own)
    return own | {k: v for k, v in ARCHITECTURES[model_type].keys.items() if v in fields}
