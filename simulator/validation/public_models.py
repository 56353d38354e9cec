"""Configurations of public models (`workloads/facts/public_models.json`): which load, which are refused, and why.

Publishers count differently: some leave the embedding and the head out, some count the multi-token-prediction modules.
The file says for each figure what it counts.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from functools import cache
from importlib import resources
from typing import Any, Literal

from simulator.errors import InputError
from simulator.inputs.hf_config import read_config
from simulator.spec.model import ModelSpec

FILE = "public_models.json"
TOLERANCE = 0.005
"""Share by which a count may differ from the published one."""
_SCALE = {"M": 1e6, "B": 1e9, "T": 1e12}

TotalCounts = Literal["all", "all with MTP", "layers", "layers with MTP", "without layer inputs"]
ActiveCounts = Literal["without embedding", "with embedding", "layers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicModel:
    """A public model: its config.json, and its parameters as published.

    `total` and `active` are as the page writes them ("30.5B"), and `total_counts` and `active_counts` what they count;
    empty where nothing is published. `transformers` is the number of parameters of the model that transformers 5.24
    builds of `config`; 0 where it has no class for it. `config_from` says whether the file was copied or recalled.
    """

    name: str
    page: str
    config: dict[str, Any]
    config_from: Literal["copy", "recalled"]
    total: str = ""
    total_counts: TotalCounts = "all"
    active: str = ""
    active_counts: ActiveCounts = "without embedding"
    transformers: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What became of a public model's file: the model, or the line that refuses it."""

    public: PublicModel
    model: ModelSpec | None = None
    refusal: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def total(self) -> int:
        """Parameters of the model, counted as the published figure counts them; 0 if it is refused."""
        return total_as(self.model, self.public.total_counts) if self.model else 0

    @property
    def active(self) -> int:
        """Parameters that a token meets, counted as the published figure counts them; 0 if it is refused."""
        return active_as(self.model, self.public.active_counts) if self.model else 0


def shipped_sources() -> dict[str, str]:
    """Where each shipped model is published, by name (`workloads/models/sources.toml`)."""
    text = resources.files("workloads").joinpath("models", "sources.toml").read_text(encoding="utf-8")
    return {name: str(source) for name, source in tomllib.loads(text).items()}


@cache
def public_models() -> tuple[PublicModel, ...]:
    """All of the file, in its order."""
    text = resources.files("workloads").joinpath("facts", FILE).read_text(encoding="utf-8")
    return tuple(PublicModel(**entry) for entry in json.loads(text)["models"])


def tried() -> tuple[Tried, ...]:
    """Every public model's file, read as a user's would be."""
    return tuple(_try(public) for public in public_models())


@cache
def public_model(name: str) -> ModelSpec | None:
    """The public model of that name, if there is one whose file can be read."""
    return next((_try(public).model for public in public_models() if public.name == name), None)


def _try(public: PublicModel) -> Tried:
    try:
        reading = read_config(public.config, public.name, "config.json")
    except InputError as error:
        return Tried(public=public, refusal=str(error))
    return Tried(public=public, model=reading.model, notes=reading.notes)


def total_as(model: ModelSpec, counts: TotalCounts) -> int:
    """Parameters of a model: of all of it or of its layers (and final norm) only, with or without MTP modules; or of
    all but the table of values that enter each layer (Gemma's "effective")."""
    tree = model.parameter_tree()
    if counts == "without layer inputs":
        return tree.total - model.per_layer_table
    total = tree.total - (tree.embedding + tree.head if counts.startswith("layers") else 0)
    return total + (tree.mtp if counts.endswith("with MTP") else 0)


def active_as(model: ModelSpec, counts: ActiveCounts) -> int:
    """Parameters that a token meets: with the input embedding, without it, or without both embedding and head."""
    if counts == "layers":
        head = model.vocab_size * model.hidden_size + (model.vocab_size if model.head_bias else 0)
        return model.activated_parameters() - head
    return model.activated_parameters(embedding=counts == "with embedding")


def published_number(text: str) -> float:
    """The number that "30.5B" or "1,644,417,024" stands for."""
    plain = text.replace(",", "")
    return float(plain.rstrip("MBT")) * _SCALE.get(plain[-1], 1.0)


def agrees(count: float, published: str) -> bool:
    """Whether a count is within 0.5 % of the published figure, or is that figure when rounded, or cut, as it is."""
    value = published_number(published)
    if abs(count / value - 1) <= TOLERANCE:
        return True
    unit = _last_digit(published)
    steps = Decimal(count) / Decimal(unit)
    wanted = round(value / unit)
    return wanted in (int(steps.to_integral_value(ROUND_HALF_UP)), int(steps.to_integral_value(ROUND_DOWN)))


def _last_digit(published: str) -> float:
    """What one step of the last significant digit is worth: 1e8 of "30.5B", 1e10 of "230B"."""
    plain = published.replace(",", "")
    digits, scale = plain.rstrip("MBT"), _SCALE.get(plain[-1], 1.0)
    if "." in digits:
        return float(scale * 10.0 ** -len(digits.partition(".")[2]))
    zeros = len(digits) - len(digits.rstrip("0"))
    return float(scale * 10.0**zeros)
