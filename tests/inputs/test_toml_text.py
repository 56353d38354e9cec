"""TOML as it is written: what is read back is what was put in, and rows of numbers stay on one line."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.terminal.showing.show_tables import job_toml
from simulator.inputs import load_job, load_stack
from simulator.inputs.toml_text import toml_text
from simulator.spec.states import Optimizer, resolved

JOB = load_job("deepseek-v3-pretrain")
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(values=st.dictionaries(st.text(max_size=8), VALUES, max_size=5))
def test_what_is_read_back_is_what_was_written(values: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(values)) == values


def test_arrays_stand_on_one_line() -> None:
    values = {"tiles": ((64, 32), (64, 64)), "loads": [0.5, 1.5], "none": [], "t": {"names": ["a", "b, c"]}}
    assert toml_text(values) == (
        'tiles = [[64, 32], [64, 64]]\nloads = [0.5, 1.5]\nnone = []\n\n[t]\nnames = ["a", "b, c"]\n'
    )


@pytest.mark.parametrize(
    "change",
    [
        {"layout": replace(JOB.layout, stages=(2, 1))},
        {"routing": replace(JOB.routing, kind="given", loads=(0.5, 1.5))},
        {"run": replace(JOB.run, tokens=1.5e9, price_per_gpu_hour=None)},
        {"stack": 'one "quoted" \\ name'},
    ],
    ids=["stages", "loads", "unset", "quoted"],
)
def test_a_job_shown_is_the_job(tmp_path: Path, change: dict[str, Any]) -> None:
    job = replace(JOB, **change)
    file = tmp_path / "mine.toml"
    states = resolved(job.optimizer, load_stack("megatron-core").optimizer)
    file.write_text(job_toml(job, states), encoding="utf-8")
    assert load_job(str(file)) == replace(job, optimizer=Optimizer(**asdict(states)))
