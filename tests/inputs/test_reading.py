"""Files of others: how large, which text, which values; and which numbers kernel and network parameters may be."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from simulator.errors import InputError, printable
from simulator.inputs import load_hardware, load_scenario, settable_paths
from simulator.inputs.files import files_behind
from simulator.inputs.ranges.parameter_limits import PARAMETERS
from simulator.inputs.reading import LARGEST, LARGEST_INTEGER, parse_json, parse_toml, read_text
from simulator.spec.comm_params import (
    Channels,
    DirectAllReduce,
    EpParams,
    LowLatency,
    Network,
    NotifyParams,
    P2p,
    Protocol,
    Tier,
)
from simulator.spec.hardware import Power
from simulator.spec.kernel_params import (
    AttentionParams,
    AttentionRate,
    DecodeAttentionParams,
    FixedParams,
    GemmParams,
    Kernels,
    Release,
    ScanParams,
    StreamParams,
)


def said(text: str, parse: Any) -> str:
    """The error of a text."""
    with pytest.raises(InputError) as error:
        parse(text, "x")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_endless_file_is_refused_with_its_limit() -> None:
    with pytest.raises(InputError, match="more than 4 MiB, the most that an input file may have"):
        read_text(Path("/dev/zero"), "/dev/zero")


def test_a_file_of_the_limit_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"a" * LARGEST["input"])
    assert len(read_text(file, "a")) == LARGEST["input"]
    file.write_bytes(b"a" * (LARGEST["input"] + 1))
    with pytest.raises(InputError):
        read_text(file, "a")


@pytest.mark.parametrize("kind", LARGEST)
def test_every_kind_of_file_may_begin_with_a_byte_order_mark(kind: Any, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes("\ufeffgpus = 1".encode())
    assert read_text(file, "a", kind) == "gpus = 1"


def test_nul_and_other_encodings_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"a\nb\0")
    with pytest.raises(InputError, match="line 2: holds a NUL"):
        read_text(file, "a")
    file.write_bytes(b"a\xff")
    with pytest.raises(InputError, match="byte 1: not UTF-8"):
        read_text(file, "a")


@pytest.mark.parametrize("parse", [parse_json, parse_toml])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("[" * 70 + "]" * 70, "nested too deeply"),
        ("9" * 5000, "a number has thousands of digits"),
        (str(LARGEST_INTEGER + 1), "a whole number of more than 30 digits"),
    ],
)
def test_values_that_nothing_can_mean_are_refused(parse: Any, value: str, why: str) -> None:
    text = f'{{"a": {value}}}' if parse is parse_json else f"a = {value}"
    assert why in said(text, parse)


def test_half_a_character_and_a_doubled_key_are_refused() -> None:
    assert "a.b: holds half a character" in said('{"a": {"b": "\\ud800"}}', parse_json)
    assert "given twice" in said('{"a": 1, "a": 2}', parse_json)


def test_what_a_terminal_would_not_show_is_escaped() -> None:
    assert printable("a\u202eb\0\ud800é\n") == "a\\u202eb\\x00\\ud800é\\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("layout.pp=2\ny=3", "write one line of plain text for each --set"),
        ("layout.pp=\0", "write one line"),
        ("layout.pp=\u202e2", "write one line"),
        ("layout.pp=" + "[" * 3000 + "]" * 3000, "layout.pp: "),
        ("layout.pp=" + "9" * 5000, "a number has thousands of digits"),
        ("layout.pp=" + "9" * 400, "a whole number of more than 30 digits"),
        ("layout.pp=1e308", "must be an integer"),
    ],
)
def test_odd_changes_are_one_short_line(text: str, why: str) -> None:
    with pytest.raises(InputError) as error:
        load_scenario("tiny-1f1b", [text])
    assert why in str(error.value)
    assert len(str(error.value)) < 200
    assert str(error.value).isprintable()


TYPES = (
    *(
        GemmParams,
        AttentionRate,
        AttentionParams,
        DecodeAttentionParams,
        StreamParams,
        ScanParams,
        FixedParams,
        Release,
        Kernels,
    ),
    *(Protocol, Tier, DirectAllReduce, Channels, P2p, EpParams, LowLatency, NotifyParams, Network, Power),
)


@pytest.mark.parametrize("cls", TYPES)
def test_every_number_of_the_parameters_has_a_range(cls: type) -> None:
    numeric = {f.name for f in fields(cls) if str(f.type) in ("int", "float") or str(f.type).startswith("tuple[tuple")}
    numeric |= {f.name for f in fields(cls) if str(f.type).startswith(("tuple[int", "dict[str, float"))}
    assert numeric == set(PARAMETERS[cls.__name__])


def test_the_types_listed_are_all_that_a_profile_has() -> None:
    def found(value: Any) -> set[str]:
        if isinstance(value, dict):
            return {name for part in value.values() for name in found(part)}
        if isinstance(value, tuple):
            return {name for part in value for name in found(part)}
        if not is_dataclass(value):
            return set()
        return {type(value).__name__}.union(*(found(getattr(value, f.name)) for f in fields(value)))

    profile = load_hardware("h200")
    own = found(profile.kernels) | found(profile.fabric) | found(profile.gpu.power)
    assert own - {"Fabric"} <= set(PARAMETERS) == {cls.__name__ for cls in TYPES}


@pytest.mark.slow
def test_no_setting_is_a_crash_at_an_odd_value() -> None:
    """Every settable name: refused in one line, or a scenario that is accepted."""
    scenario = load_scenario("tiny-1f1b")
    named = {path.rpartition(".")[2]: path for path in settable_paths(scenario)}
    refused = 0
    for path in named.values():
        for value in ("0", "-1", "1e308"):
            try:
                load_scenario("tiny-1f1b", [f"{path}={value}"])
            except InputError:
                refused += 1
    assert refused > len(named)


@pytest.mark.parametrize(
    "path",
    [
        "hardware.kernels.gemm.gemm.fp8.rate",
        "hardware.kernels.gemm.gemm.fp8.k_block",
        "hardware.kernels.stream.swiglu.l2_gain",
        "hardware.kernels.attention.attn.fwd.bandwidth",
        "hardware.kernels.comm_traffic",
        "hardware.fabric.nvlink.local_copy",
        "hardware.fabric.ep.deepep.send_rate",
        "hardware.fabric.nic.protocols.ll.payload",
    ],
)
def test_what_something_is_divided_by_is_not_zero(path: str) -> None:
    with pytest.raises(InputError, match=r"must be (from|at least)"):
        load_scenario("tiny-1f1b", [f"{path}=0"])


def test_a_config_that_lost_its_experts_is_no_dense_model(tmp_path: Path) -> None:
    from simulator.inputs.hf_config import model_from_config

    table = parse_json(Path("workloads/models/deepseek-v3-tiny/config.json").read_text(encoding="utf-8"), "c")
    del table["n_routed_experts"]
    with pytest.raises(InputError, match="is a mixture of experts, and says how many"):
        model_from_config(table, "tiny", "c")


def test_files_behind_a_job_are_those_it_names_and_they_name(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"\nmodel = "deepseek-v3"\n')
    (tmp_path / "b.toml").write_text('hardware = "./h.toml"\n[layout]\nschedule = "s.txt"\n')
    (tmp_path / "h.toml").write_text('extends = "h800"\n')
    (tmp_path / "s.txt").write_text("x")
    assert {file.name for file in files_behind(tmp_path / "a.toml")} == {"a.toml", "b.toml", "h.toml", "s.txt"}
