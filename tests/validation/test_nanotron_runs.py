"""Nanotron's published runs, as its own numbers of the same runs agree."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.validation.figures import load_figures
from simulator.validation.runs import nanotron_runs

FIGURES = {one.id: one for one in load_figures() if one.id.startswith("E.nanotron.")}


def test_flop_of_a_token_are_those_that_it_publishes() -> None:
    """Its sweep states both: 363.66 TFLOP/s are 14,167.25 tokens a second with tensor parallelism of two."""
    tokens = FIGURES["E.nanotron.tp.2"]
    flops = replace(tokens, unit="TFLOP/s/GPU")
    assert nanotron_runs.rate(flops) / nanotron_runs.rate(tokens) == pytest.approx(363.66 / 14167.25, rel=1e-3)


def test_every_best_configuration_trains_a_million_tokens_a_step() -> None:
    best = [one.config for name, one in FIGURES.items() if ".best." in name]
    assert len(best) == 26
    assert {c["dp"] * c["mbs"] * c["microbatches"] * c["seq"] for c in best} == {2**20}
    assert all(c["dp"] * c["tp"] * c["pp"] == c["gpus"] for c in best)


def test_blocks_are_dealt_out_by_their_flop() -> None:
    """A stage ends with the layer that exceeds its share: 10 of 20 are no more than a half of 16 layers and a head that
    counts as four; the first of 16 stages of 81.1 has 6 of 5.07."""
    assert nanotron_runs.stages(16, 2048, 8192, 2) == [11, 5]
    assert nanotron_runs.stages(80, 8192, 28672, 16) == [6, *[5] * 13, 6, 3]
    for ranks in (2, 4, 16, 32):
        assert sum(nanotron_runs.stages(80, 8192, 28672, ranks)) == 80
