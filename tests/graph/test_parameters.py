"""What ranks hold adds up to the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.graph.parameters import held_by_block
from simulator.graph.stage import block_kinds
from simulator.inputs import load_scenario
from simulator.validation.public_models import Tried, tried

LOADED = [one for one in tried() if one.model is not None]


@pytest.mark.parametrize("one", LOADED, ids=lambda one: one.public.name)
def test_the_blocks_of_a_model_hold_its_parameters(one: Tried) -> None:
    """On one rank; the MTP modules, which share embedding and head, aside."""
    assert one.model is not None
    model = replace(one.model, num_nextn_predict_layers=0)
    job = load_scenario("llama-3-8b", ["layout.tp=1", "layout.pp=1"]).job
    held = sum(held_by_block(kind, model, job).total for kind in block_kinds(model))
    assert held == model.parameters()
