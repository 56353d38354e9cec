"""What configs can be read: types, shipped models, public models tried; and the account of one file's keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from reports.terminal.elements import columns, note, section
from simulator.inputs import ARCHITECTURES, Architecture, Reading
from simulator.inputs.architectures.refused import REFUSED
from simulator.spec.model import ModelSpec
from simulator.validation.public_models import Tried, agrees, published_number

_SHOWN = 44  # characters of a value in the table of keys
COUNTING = (
    "total: all parameters but those of multi-token-prediction modules; active: what multiplies for one token, the head"
    " with it, the input embedding not"
)


def billions(count: float) -> str:
    """Parameters as pages write them: `30.53B`, `124M`."""
    return f"{count / 1e9:,.2f}B" if count >= 1e9 else f"{count / 1e6:,.0f}M"


def models(shipped: Mapping[str, ModelSpec], sources: Mapping[str, str]) -> list[RenderableType]:
    """Types of config.json that are supported, and the shipped models."""
    types = columns("model_type", "models", "kind", "keys and shape from")
    for names, found in _grouped(ARCHITECTURES):
        origin = found.source or ARCHITECTURES.origin(names[0])
        types.add_row(Text(", ".join(names), style="bold"), found.title, _kind(found.moe), Text(origin, style="dim"))
    table = columns("", "model_type", ">total", ">active", "source")
    for name, spec in shipped.items():
        active = spec.activated_parameters()
        source = Text(sources.get(name, ""), style="dim")
        table.add_row(Text(name, style="bold"), spec.model_type, billions(spec.parameters()), billions(active), source)
    return [
        *section("Types of config.json", types),
        *section("Shipped models", table, note(COUNTING)),
        *section(
            "More",
            note(f"{len(REFUSED)} types more are known and refused, each with what is missing and the nearest type"),
            note("foretrain show models --public tries public models; docs/howto/model.md says how to add a type"),
        ),
    ]


def _grouped(found: Mapping[str, Architecture]) -> list[tuple[list[str], Architecture]]:
    """Architectures, each with all its names."""
    groups: dict[int, tuple[list[str], Architecture]] = {}
    for name, one in found.items():
        groups.setdefault(id(one), ([], one))[0].append(name)
    return list(groups.values())


def _kind(moe: bool) -> str:
    return "MoE" if moe else "dense"


def models_dict(shipped: Mapping[str, ModelSpec], sources: Mapping[str, str]) -> dict[str, Any]:
    """The same as JSON, with the types that are refused."""
    return {
        "schema": "foretrain.models/1",
        "types": [
            {
                "model_type": model_type,
                "models": found.title,
                "moe": found.moe,
                "source": found.source,
                "origin": ARCHITECTURES.origin(model_type),
            }
            for model_type, found in ARCHITECTURES.items()
        ],
        "shipped": [
            {
                "name": name,
                "model_type": spec.model_type,
                "parameters": spec.parameters(),
                "activated_parameters": spec.activated_parameters(),
                "source": sources.get(name, ""),
            }
            for name, spec in shipped.items()
        ],
        "refused": [
            {"model_type": name, "missing": refusal.missing, "nearest": refusal.nearest}
            for name, refusal in REFUSED.items()
            if name not in ARCHITECTURES
        ],
    }


# ---- public models ----------------------------------------------------------------------------------------------


def public(outcomes: Sequence[Tried]) -> list[RenderableType]:
    """Public models: parameters next to the published, or why a file is refused."""
    loads = [one for one in outcomes if one.model is not None]
    table = columns("", "model_type", ">total", ">published", ">active", ">published")
    for one in loads:
        table.add_row(
            Text(one.public.name, style="bold"),
            one.model.model_type if one.model else "",
            billions(one.total),
            one.public.total,
            billions(one.active) if one.public.active else "",
            one.public.active,
        )
    refused = columns("", "why")
    for one in outcomes:
        if one.model is None:
            refused.add_row(Text(one.public.name, style="bold"), _why(one.refusal))
    return [
        *section(f"{len(loads)} of {len(outcomes)} public models load", table, note("counted as the published are")),
        *section(f"{len(outcomes) - len(loads)} are refused", refused),
    ]


def _why(refusal: str) -> str:
    """A refusal without the file's name and the pointer to the how-to."""
    return refusal.removeprefix("config.json: ").partition("; docs/howto")[0]


def public_dict(outcomes: Sequence[Tried]) -> dict[str, Any]:
    """The same as JSON."""
    return {"schema": "foretrain.public-models/1", "models": [_tried_dict(one) for one in outcomes]}


def _tried_dict(one: Tried) -> dict[str, Any]:
    public = one.public
    return {
        "name": public.name,
        "page": public.page,
        "config_from": public.config_from,
        "loads": one.model is not None,
        "refusal": one.refusal,
        "notes": list(one.notes),
        "model_type": one.model.model_type if one.model else public.config.get("model_type"),
        "total": one.total or None,
        "total_counts": public.total_counts,
        "total_published": public.total or None,
        "active": one.active or None,
        "active_counts": public.active_counts,
        "active_published": public.active or None,
        "total_transformers": public.transformers or None,
        "note": public.note,
    }


def markdown(outcomes: Sequence[Tried]) -> str:
    """A page: what loads next to what is published, what is refused and why, and the types."""
    loads = [one for one in outcomes if one.model is not None]
    refused = [one for one in outcomes if one.model is None]
    exact = [one for one in loads if one.public.transformers]
    lines = [
        "# Public models",
        "",
        "Made by `foretrain show models --markdown FILE` from `workloads/facts/public_models.json`, which holds the"
        " configurations with their sources.",
        "",
        f"Of {len(outcomes)} public configurations {len(loads)} load as they are and {len(refused)} are refused. Of"
        f" {len(exact)} of those that load, transformers 5.24 has a class: the parameters of the model that it builds,"
        " on PyTorch's meta device, are ours to the last one (✓). Published figures are rounded, sometimes cut, and"
        " count different things: *with MTP* the multi-token-prediction modules, *layers* neither embedding nor head,"
        " *with embedding* the input embedding among the active ones. Where a publisher does not say what an active"
        " figure counts, the table names what fits. Configurations with a star were not copied from a published file,"
        " but written down as known; their counts agree with the published.",
        "",
        "## What loads",
        "",
        "| model | type | total | counts | published | difference | transformers | active | counts | published |",
        "|---|---|--:|---|--:|--:|:-:|--:|---|--:|",
        *(_loaded_row(one) for one in loads),
        "",
        "## What is refused",
        "",
        "| model | published | why |",
        "|---|--:|---|",
        *(f"| {_linked(one)} | {one.public.total or '–'} | {_cell(_why(one.refusal))} |" for one in refused),
        "",
        *_notes(loads),
        *_types(),
    ]
    return "\n".join(lines)


def _loaded_row(one: Tried) -> str:
    public = one.public
    difference = f"{100 * (one.total / published_number(public.total) - 1):+.2f} %" if public.total else "–"
    active = (billions(one.active), public.active_counts, public.active) if public.active else ("–", "", "–")
    same = "✓" if public.transformers and one.model and one.model.parameters() == public.transformers else ""
    cells = (
        _linked(one),
        f"`{one.model.model_type}`" if one.model else "",
        f"{one.total:,}",
        public.total_counts,
        public.total + ("" if agrees(one.total, public.total) else " (differs)"),
        difference,
        same,
        *active,
    )
    return "| " + " | ".join(cells) + " |"


def _linked(one: Tried) -> str:
    star = "" if one.public.config_from == "copy" else " *"
    page = one.public.page
    if page.startswith("arXiv "):
        page = f"arxiv.org/abs/{page.removeprefix('arXiv ')}"
    return f"[{one.public.name}](https://{page}){star}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _notes(loads: Iterable[Tried]) -> list[str]:
    rows = [f"* {one.public.name}: {text}." for one in loads for text in (*one.notes, one.public.note) if text]
    return ["## Notes", "", *rows, ""] if rows else []


def _types() -> list[str]:
    """The types that are read, and those that are known and refused."""
    rows = [
        f"| {', '.join(f'`{name}`' for name in names)} | {found.title} | {_kind(found.moe)} | {found.source} |"
        for names, found in _grouped(ARCHITECTURES.shipped)
    ]
    missing = [
        f"| `{name}` | {refusal.missing} | `{refusal.nearest}` |"
        for name, refusal in REFUSED.items()
        if name not in ARCHITECTURES
    ]
    return [
        "## Types that are read",
        "",
        "| `model_type` | models | kind | keys and shape from |",
        "|---|---|---|---|",
        *rows,
        "",
        "## Types that are known and refused",
        "",
        "| `model_type` | what the forecast does not have | nearest type |",
        "|---|---|---|",
        *missing,
        "",
    ]


# ---- one file ---------------------------------------------------------------------------------------------------


def reading(found: Reading) -> list[RenderableType]:
    """What was read of a config.json, what its type implied, what was ignored and why."""
    read = columns("", "", "is here")
    for key in found.read:
        read.add_row(key.key, _shown(key.value), Text("" if key.key == key.field else key.field, style="dim"))
    ignored = columns("", "", "why")
    for skipped in found.ignored:
        ignored.add_row(skipped.key, _shown(skipped.value), Text(skipped.why, style="dim"))
    implied = columns("", "")
    for name, value in found.implied:
        implied.add_row(name, _shown(value))
    parts = [*section("Read", read)]
    parts += section(f"Implied by {found.model.model_type}, or computed", implied) if found.implied else []
    parts += section("Ignored", ignored) if found.ignored else []
    parts += section("Notes", *(note(text) for text in found.notes)) if found.notes else []
    return parts


def reading_dict(found: Reading) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "read": [{"key": one.key, "value": one.value, "field": one.field} for one in found.read],
        "implied": {name: list(value) if isinstance(value, tuple) else value for name, value in found.implied},
        "ignored": [{"key": one.key, "value": one.value, "why": one.why} for one in found.ignored],
        "notes": list(found.notes),
    }


def parameters_dict(spec: ModelSpec) -> dict[str, int]:
    """Parameters of a model by component, all of them, and those that a token meets."""
    tree = spec.parameter_tree()
    return {
        **{part.name: getattr(tree, part.name) for part in fields(tree)},
        "total": tree.total,
        "total_with_mtp": tree.total_with_mtp,
        "active": spec.activated_parameters(),
        "active_with_embedding": spec.activated_parameters(embedding=True),
    }


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
