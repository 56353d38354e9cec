"""Models of LLM Foundry's published runs have the parameters that it counts."""

from __future__ import annotations

import pytest

from simulator.inputs import load_scenario
from simulator.validation.figures import Figure, load_figures
from simulator.validation.runs import foundry_runs
from simulator.validation.training_figures import DENSE

FIGURES = [one for one in load_figures() if one.id.startswith("E.foundry.") and one.id.endswith("g128")]


@pytest.mark.parametrize("figure", FIGURES, ids=[one.id for one in FIGURES])
def test_sizes_are_those_of_its_parameters(figure: Figure) -> None:
    """All but the biases of LayerNorms and linear layers, less than one in a thousand."""
    scenario = load_scenario(DENSE, foundry_runs.run(figure))
    counted = scenario.model.parameters()
    assert counted == pytest.approx(figure.also["parameters"], rel=1e-3)
    assert scenario.job.microbatches == 1
