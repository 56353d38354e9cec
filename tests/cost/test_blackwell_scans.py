"""Recurrent layers' kernels on Blackwell: what others measured on both architectures, and what the profiles hold."""

from __future__ import annotations

import pytest

from hardware_profiles.calibration.evaluate import GPUS
from hardware_profiles.calibration.layers import blackwell_scans as scans
from hardware_profiles.calibration.sample import rows
from simulator.cost.cost import Share
from simulator.cost.scan_cost import scan_cost
from simulator.cost.streaming_cost import streaming_cost
from simulator.ops import Scan, Streaming
from tests.cost.profiles import kernels_of

OPS = ("delta.chunk", "kda.chunk", "conv")


@pytest.mark.parametrize("gpu", scans.GPUS)
@pytest.mark.parametrize("op", OPS)
def test_shapes_held_out_take_the_same_share(gpu: str, op: str) -> None:
    held = scans.measured_pace(op, gpu, held_out=True)
    assert held == pytest.approx(scans.measured_pace(op, gpu), rel=0.08)
    assert GPUS["h200"].hbm_bandwidth / GPUS[gpu].hbm_bandwidth < held < 1.0  # less than memory alone would gain


def test_backward_gains_what_forward_gains() -> None:
    """From an H100 to a B200, of runs of a millisecond and more: nobody timed it on an H200."""
    pairs: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {}
    for row in rows(f"{scans.TABLE}.csv"):
        if row["program"] == "Helion" and row["op"].startswith(("delta", "kda")):
            kind, _, way = row["op"].partition(".")
            pairs.setdefault((kind, row["batch"], row["heads"]), {})[way] = float(row["h100"]), float(row["b200"])
    long = [pair for pair in pairs.values() if pair["chunk"][0] > 1000.0]
    assert len(long) == 6
    for pair in long:
        (ahead_then, ahead), (both_then, both) = pair["chunk"], pair["chunk+backward"]
        gained = (both - ahead) / (both_then - ahead_then)
        assert gained == pytest.approx(ahead / ahead_then, rel=0.15)


def test_what_is_carried_takes_the_measured_share_of_its_time() -> None:
    """Without its launch, and where waves of CTAs are many enough not to matter."""
    there, share = kernels_of("h200"), {gpu: Share(sms=GPUS[gpu].sms, partner_traffic=0.0) for gpu in GPUS}
    scan = Scan(flops=4e12, read=8e9, written=4e9, ctas=200_000)
    stream = Streaming(read=6e9, written=3e9)
    checked = 0
    for gpu in scans.GPUS:
        own = kernels_of(gpu)
        for cls, p in own.scan.items():
            pace = scans.scan_pace(cls, gpu, "h200") if cls in there.scan else None
            if pace and not p.value_rate and "assumed: below" not in p.source:
                then = scan_cost(scan, cls, GPUS["h200"], there, share["h200"]).duration - p.launch
                now = scan_cost(scan, cls, GPUS[gpu], own, share[gpu]).duration - p.launch
                assert now / then == pytest.approx(pace, rel=0.02), (gpu, cls)
                checked += 1
        for cls in ("conv", "conv.bwd", "scan.pass", "scan.pass.bwd", "scan.sums"):
            launch = own.stream[cls].launch
            then = streaming_cost(stream, cls, GPUS["h200"], there, share["h200"]).duration - launch
            now = streaming_cost(stream, cls, GPUS[gpu], own, share[gpu]).duration - launch
            assert now / then == pytest.approx(scans.scan_pace(cls, gpu, "h200"), rel=0.02)
            assert own.stream[cls].assumed is (cls != "conv")
    assert checked > 80


def test_each_class_is_of_one_library_or_of_none() -> None:
    assert scans.library("scan.out") == "delta.chunk"
    assert scans.library("scan.out@ssd") == "ssd.chunk"
    assert scans.library("scan.out.bwd@kda") == "kda.chunk"
    assert scans.library("conv.bwd") == "conv"
    assert scans.library("scan.token@ssd") is None
    assert scans.library("elem") is None
    assert scans.scan_pace("conv", "b200", "h100") is None
