"""Tables for pandas: they say the same as the result, and survive being written."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from reports.export.data_frames import tables, write_tables
from simulator.inputs import load_scenario
from simulator.results.result import Result
from simulator.results.simulate import simulate


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(load_scenario("tiny-dualpipe"))


def test_the_timeline_has_a_row_for_every_run(result: Result) -> None:
    frame = tables(result)["timeline"]
    assert len(frame) == len(result.timeline.start)
    assert frame["end_s"].max() == result.metrics["step_time_s"]
    assert (frame["end_s"] >= frame["start_s"]).all()


def test_actions_explain_the_phases(result: Result) -> None:
    found = tables(result)
    actions = found["actions"]
    spent = (actions["end_s"] - actions["start_s"]).groupby([actions["rank"], actions["phase"]]).sum()
    for rank in result.ranks:
        assert spent[rank.rank, "overlapped"] == pytest.approx(rank.phases["overlapped"])


def test_ranks_and_metrics_say_what_the_result_says(result: Result) -> None:
    found = tables(result)
    metrics = found["metrics"].set_index("metric")["value"]
    assert metrics["step_time_s"] == result.metrics["step_time_s"]
    phases = [f"{phase}_s" for phase in result.breakdown_s]
    assert found["ranks"][phases].mean().sum() == pytest.approx(result.metrics["step_time_s"])
    assert found["idle"]["seconds"].sum() == pytest.approx(
        result.metrics["step_time_s"] - found["ranks"]["compute_busy_s"].mean()
    )


def test_csv_files_hold_the_tables(result: Result, tmp_path: Path) -> None:
    files = write_tables(result, tmp_path / "new")
    found = tables(result)
    assert {file.stem for file in files} == set(found)
    for name, frame in found.items():
        back = pd.read_csv(tmp_path / "new" / f"{name}.csv", keep_default_na=False)
        assert list(back.columns) == list(frame.columns)
        assert len(back) == len(frame)
    again = pd.read_csv(tmp_path / "new" / "timeline.csv")
    assert again["start_s"].tolist() == found["timeline"]["start_s"].tolist()


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_files_hold_the_tables(result: Result, tmp_path: Path) -> None:
    write_tables(result, tmp_path)
    for name, frame in tables(result).items():
        back = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert len(back) == len(frame)
        assert list(back.columns) == list(frame.columns)
