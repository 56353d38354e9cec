"""Latent attention of decoding, against kernels that no parameter was fitted to."""

from __future__ import annotations

from statistics import mean

import pytest

from hardware_profiles.calibration.evaluate import GPUS
from hardware_profiles.calibration.sample import rows
from simulator.cost.decode_cost import latent_decode_cost
from tests.cost.profiles import kernels_of

H800, KERNELS = GPUS["h800"], kernels_of("h800")
MEASURED = [row for row in rows("h800_kernels.csv") if row["kind"] == "mla_decode"]


def off(row: dict[str, str]) -> float:
    forecast = latent_decode_cost(int(row["batch_size"]), int(row["kv_len"]), H800, KERNELS)
    return forecast.duration / (1e-6 * float(row["latency_us"])) - 1.0


def test_measured_kernels_that_nothing_was_fitted_to() -> None:
    assert len(MEASURED) == 17
    assert mean(abs(off(row)) for row in MEASURED) < 0.15
    assert mean(abs(off(row)) for row in MEASURED if float(row["latency_us"]) > 100) < 0.1


def test_by_hand() -> None:
    """128 sequences, 8192 keys: 128 x 128 x 8192 x 1088 x 2 FLOP on 1.21 GB."""
    cost = latent_decode_cost(128, 8192, H800, KERNELS)
    p, terms = KERNELS.attention["attn.fwd"], dict(cost.terms)
    assert terms["power_s"] == pytest.approx(2 * 128 * 128 * 8192 * 1088 / (p.power_rate * 989e12))
    assert terms["memory_s"] == pytest.approx(2 * (128 * 8192 * 576 + 128 * 128 * 1088) / (p.bandwidth * 3.35e12))
    assert max(terms["power_s"], terms["tensor_s"]) < cost.duration - p.launch < 2.0 * terms["power_s"]


def test_fewer_heads_than_a_tile_cost_a_tile_and_twice_as_many_less_than_twice() -> None:
    """One tile of heads is bound by memory, whose latents a second tile reads again for nothing."""
    few, tile, more = (latent_decode_cost(64, 65536, H800, KERNELS, heads=h).duration for h in (16, 64, 128))
    assert few == pytest.approx(tile, rel=1e-2)
    assert 1.1 * tile < more < 1.5 * tile
