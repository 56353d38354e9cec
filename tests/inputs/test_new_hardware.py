"""Racks of 72 GPUs and a GPU with few tensor cores, through whole jobs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reports.terminal.console import rendered
from reports.terminal.showing.show_tables import hardware
from simulator.inputs import load_hardware, load_scenario
from simulator.inputs.check import check
from simulator.results.simulate import Result, simulate

V3 = "deepseek-v3-pretrain"
RACK = ("hardware=gb200", "hardware.node.gpus=64")


H20 = 'extends = "h100"\n[gpu]\nsms = 78\ntdp = 400.0\n{}[gpu.peak]\nbf16 = 148e12\nfp8 = 296e12\nfp32 = 44e12\n'
"""What a stranger writes first."""


def step(*overrides: str) -> Result:
    return simulate(load_scenario(V3, overrides), engine="longest-path")


def nic_bytes(result: Result, kind: str) -> float:
    ops = {op.name: op for op in result.built.blocks["moe"].ops()}
    return sum(result.built.price(op).cost.nic_bytes for op in ops.values() if op.cls == f"comm.{kind}")


def test_expert_parallelism_of_a_rack_stays_on_nvlink() -> None:
    """64 ranks of 256 experts fit into one NVLink domain: nothing crosses a NIC; over nodes of 8 it does."""
    rack, nodes = step(*RACK), step("hardware=b200")
    for kind in ("dispatch", "combine"):
        assert nic_bytes(rack, kind) == 0.0
        assert nic_bytes(nodes, kind) > 1e6


def test_racks_cut_the_exposed_all_to_alls() -> None:
    equal = "routing.kind=uniform"
    rack, nodes = step(*RACK, equal).metrics, step("hardware=b200", equal).metrics
    assert rack["exposed_comm_s"] / rack["step_time_s"] < 0.5 * nodes["exposed_comm_s"] / nodes["step_time_s"]


def test_hybrid_ep_beats_deepep_on_a_rack() -> None:
    """It moves a byte with a quarter of the SMs' time (6.7 against 1.5e10 B/s an SM)."""
    times = [step(*RACK, f"stack.dispatcher={name}").metrics["step_time_s"] for name in ("hybrid_ep", "deepep")]
    assert times[0] < times[1]


def test_72_gpus_and_256_experts_do_not_fit_and_the_advice_does() -> None:
    problems = check(load_scenario(V3, ("hardware=gb200",)))
    assert [p.rule for p in problems] == ["whole nodes", "expert parallelism over nodes"]
    for problem in problems:
        assert problem.suggestion.endswith("or set hardware.node.gpus=64 to use 64 of each node's 72")
    assert not check(load_scenario(V3, RACK))


def test_no_advice_to_leave_a_quarter_of_a_node_idle() -> None:
    problems = check(load_scenario(V3, ("gpus=100",)))
    assert problems
    assert all("hardware.node.gpus" not in p.suggestion for p in problems)


def test_kernels_of_an_all_to_all_that_a_profile_lacks_are_refused() -> None:
    (problem,) = check(load_scenario(V3, ("stack.dispatcher=hybrid_ep",)))
    assert str(problem) == (
        "stack.dispatcher: hybrid_ep: h800 has no parameters of these kernels;"
        " use deepep or deepep_v2 or nccl or allgather"
    )


def test_h20_is_bound_by_its_tensor_cores() -> None:
    """A sixth of H800's tensor peak at nearly its bandwidths: compute takes most of the step, at more of the peak."""
    h20, h800 = step("hardware=h20"), step()
    assert 3.0 < h20.metrics["step_time_s"] / h800.metrics["step_time_s"] < 1979 / 296
    assert h20.metrics["mfu_causal"] > h800.metrics["mfu_causal"]


@pytest.mark.parametrize("name", ["h20", "gb300"])
def test_reports_say_what_nobody_measured(name: str) -> None:
    (warning,) = [w for w in step(f"hardware={name}", *RACK[1:] * (name != "h20")).warnings if "not calibrated" in w]
    assert warning.startswith(f"not calibrated on {name}")
    assert ("gemm.fp8.grouped" in warning) == (name == "gb300")


def test_a_profile_leaves_out_a_table_of_the_one_it_extends(tmp_path: Path) -> None:
    """H100's power draw says nothing of a GPU with a sixth of its tensor cores."""
    file = tmp_path / "mine.toml"
    file.write_text(H20.format(""))
    kept = load_hardware(str(file))
    file.write_text(H20.format('power = "none"\n'))
    left_out = load_hardware(str(file))
    assert kept.gpu.power is not None
    assert left_out.gpu.power is None
    assert "gpu.power.tensor" in kept.sources
    assert not [path for path in left_out.sources if path.startswith("gpu.power")]
    assert "gpu.l2_bytes" in left_out.sources


def test_numbers_without_a_source_show(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(H20.format(""))
    page = rendered(*hardware(load_hardware(str(file))), columns=80, colour=False)
    assert re.search(r"gpu.sms +78 +no source", page)
    assert re.search(r"h100: \d+ of \d+ measured there or on the same SM", page)
