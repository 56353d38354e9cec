"""How much longer kernels of earlier releases of libraries take, as shipped and as measured."""

from __future__ import annotations

from statistics import fmean

import pytest

from hardware_profiles.calibration.layers.libraries import RELEASES, longer, pairs, releases
from tests.cost.profiles import kernels_of


@pytest.mark.parametrize("gpu", ["h20", "h100", "h200", "h800"])
def test_hopper_profiles_hold_what_the_tables_give(gpu: str) -> None:
    assert kernels_of(gpu).releases == releases()


@pytest.mark.parametrize("gpu", ["a100", "b200", "gb300"])
def test_other_gpus_hold_none(gpu: str) -> None:
    assert kernels_of(gpu).releases == {}


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_a_release_fits_shapes_that_it_was_not_taken_from(name: str) -> None:
    for cls, times in pairs(name).items():
        factor = longer(times[::2])
        off = [abs(factor * now / before - 1.0) for before, now in times[1::2]]
        assert fmean(off) < 0.045, cls


def test_the_factor_is_the_ratio_of_sums() -> None:
    assert longer([(3.0, 2.0), (1.0, 2.0)]) == 1.0
    assert longer([(3.0, 2.0), (3.0, 2.0)]) == 1.5
