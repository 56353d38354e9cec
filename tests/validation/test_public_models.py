"""Public models: parameters next to the published, and what is refused."""

from __future__ import annotations

import pytest

from reports.terminal.showing import model_tables
from simulator.inputs import ARCHITECTURES, list_names
from simulator.inputs.architectures.refused import REFUSED
from simulator.validation.public_models import (
    Tried,
    agrees,
    public_models,
    published_number,
    shipped_sources,
    tried,
)

TRIED = tried()
LOADED = [one for one in TRIED if one.model is not None]


def by_name(name: str) -> Tried:
    return next(one for one in TRIED if one.public.name == name)


def test_at_least_fifty_are_tried_and_most_load() -> None:
    assert len(TRIED) >= 100
    assert len(LOADED) >= 80
    assert len({one.public.name for one in TRIED}) == len(TRIED)


@pytest.mark.parametrize("one", LOADED, ids=lambda one: one.public.name)
def test_parameters_agree_with_the_published(one: Tried) -> None:
    assert one.model is not None
    assert agrees(one.total, one.public.total)
    if one.public.active:
        assert agrees(one.active, one.public.active)
    if one.public.transformers:
        assert one.model.parameters() == one.public.transformers


def test_most_counts_are_those_of_transformers() -> None:
    assert sum(one.public.transformers > 0 for one in LOADED) >= 70


@pytest.mark.parametrize("one", [one for one in TRIED if one.model is None], ids=lambda one: one.public.name)
def test_a_refusal_names_what_is_missing_the_nearest_type_and_the_how_to(one: Tried) -> None:
    assert "\n" not in one.refusal
    nearest = one.refusal.partition("the nearest supported type is ")[2].partition(";")[0]
    assert nearest in ARCHITECTURES
    assert "not supported: " in one.refusal
    assert one.refusal.endswith("docs/howto/model.md says how to add one")


def test_refused_types_are_not_supported_and_name_one_that_is() -> None:
    assert set(REFUSED) & set(ARCHITECTURES.shipped) == set()
    assert {refusal.nearest for refusal in REFUSED.values()} <= set(ARCHITECTURES.shipped)


def test_every_shipped_model_has_a_source() -> None:
    assert set(shipped_sources()) == set(list_names("model"))


def test_every_shipped_type_says_what_it_is_and_from_where() -> None:
    assert [name for name, one in ARCHITECTURES.shipped.items() if not (one.title and one.source)] == []


@pytest.mark.parametrize(
    ("count", "published", "same"),
    [
        (30.53e9, "30.5B", True),
        (30.4e9, "30.5B", True),  # within 0.5 %
        (30.3e9, "30.5B", False),
        (228.69e9, "230B", True),
        (3.353e9, "3.3B", True),  # cut
        (3.353e9, "3.5B", False),
        (1.0264e12, "1T", True),
        (1_644_417_024, "1,644,417,024", True),
        (1_644_515_328 * 1.01, "1,644,417,024", False),
        (124_439_808, "124M", True),
    ],
)
def test_what_agreeing_means(count: float, published: str, same: bool) -> None:
    assert agrees(count, published) is same


def test_numbers_as_published() -> None:
    assert [published_number(text) for text in ("7B", "1T", "124M", "1,644,417,024")] == [7e9, 1e12, 124e6, 1644417024]


def test_glm_counts_its_layers_only() -> None:
    """The report counts MTP modules, not the embedding and the output layer."""
    glm = by_name("GLM-4.5")
    assert glm.model is not None
    tree = glm.model.parameter_tree()
    assert glm.total == tree.total_with_mtp - 2 * 151552 * 5120
    assert glm.active == glm.model.activated_parameters() - 151552 * 5120


def test_the_page_has_a_row_for_each() -> None:
    page = model_tables.markdown(TRIED)
    for public in public_models():
        assert page.count(f"| [{public.name}](https://") == 1
    assert f"Of {len(TRIED)} public configurations {len(LOADED)} load" in page
    assert "(differs)" not in page
    for name in (*ARCHITECTURES.shipped, *REFUSED):
        assert f"`{name}`" in page


def test_as_json_each_says_whether_it_loads() -> None:
    told = model_tables.public_dict(TRIED)["models"]
    assert [one["loads"] for one in told] == [one.model is not None for one in TRIED]
    assert all(bool(one["refusal"]) != one["loads"] for one in told)
