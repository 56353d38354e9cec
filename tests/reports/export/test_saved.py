"""Saved results: what was written once can be read for ever, and what cannot be read says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import foretrain
from reports.export.saved import read_saved
from reports.views.sidebyside import input_differences, sentence, table
from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.inputs.renamed import RENAMED
from simulator.results.result import SCHEMA
from simulator.results.simulate import simulate

STORED = Path(__file__).parents[2] / "golden" / "saved"


def stored() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((STORED / "result-1.json").read_text(encoding="utf-8"))
    return value


@pytest.mark.parametrize("file", sorted(STORED.glob("result-*.json")), ids=lambda file: file.stem)
def test_every_form_ever_written_can_be_read_and_compared(file: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.json"
    new.write_text(json.dumps(simulate(load_scenario("tiny-1f1b")).as_dict()))
    run = CliRunner().invoke(foretrain, ["report", "compare", str(file), str(new), "--html", str(tmp_path / "p.html")])
    assert run.exit_code == 0, run.output
    assert "step time" in run.output
    assert "results side by side" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_a_comparison_holds_its_results(tmp_path: Path) -> None:
    run = CliRunner().invoke(
        foretrain, ["compare", "tiny-dualpipe", "--vary", "layout.schedule=1f1b,dualpipe", "--json", "-q"]
    )
    file = tmp_path / "both.json"
    file.write_text(run.stdout)
    assert [one.title for one in read_saved(file)] == ["layout.schedule=1f1b", "layout.schedule=dualpipe"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "foretrain.result/99"}, "this version reads foretrain.result/2"),
        ({"schema": 3}, "is not a saved result"),
        ({"metrics": []}, "metrics: is missing or not a table"),
        ({"ranks": {}}, "ranks: is missing or not a list"),
        ({"metrics": {"step_time_s": "long"}}, "metrics.step_time_s: is missing or not a number"),
        ({"metrics": stored()["metrics"] | {"step_time_s": True}}, "metrics.step_time_s: is missing or not a number"),
        ({"metrics": stored()["metrics"] | {"step_time_s": 0}}, "a step lasts longer than 0 s"),
        ({"metrics": stored()["metrics"] | {"mfu_causal": float("nan")}}, "metrics.mfu_causal: nan: must be a finite"),
        ({"metrics": stored()["metrics"] | {"run_cost_usd": -1}}, "metrics.run_cost_usd: -1: must be a finite number"),
        ({"breakdown_s": {"attn.F": None}}, "breakdown_s.attn.F: null: must be a finite number"),
        ({"classes": [{"cls": 2, "seconds": 1}]}, r"classes\[0\]: .*must be a table with cls"),
        ({"warnings": [3]}, r"warnings\[0\]: 3: must be a string"),
        ({"scenario": {"job": []}}, "scenario.job: .*must be a table"),
    ],
)
def test_what_cannot_be_read_says_why_in_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(stored() | change))
    with pytest.raises(InputError, match=said) as error:
        read_saved(file)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00"])
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(InputError):
        read_saved(file)


def test_a_comparison_of_the_form_before_holds_its_results_too(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    entry = {"job": "tiny-1f1b", "set": {"layout.pp": "4"}, "what_if": None, "result": stored(), "error": None}
    broken = entry | {"result": None, "error": "cannot be"}
    file.write_text(json.dumps({"schema": "foretrain.compare/1", "runs": [entry, broken]}))
    (one,) = read_saved(file)
    assert one.title == "layout.pp=4"
    assert one.result["schema"] == SCHEMA
    assert one.result["metrics"] == stored()["metrics"]


def test_a_comparison_without_its_list_says_which_key_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "none.json"
    for schema, key in (("foretrain.compare/1", "runs"), ("foretrain.compare/2", "variants")):
        file.write_text(json.dumps({"schema": schema}))
        with pytest.raises(InputError, match=f"{key}: is missing"):
            read_saved(file)


def test_settings_of_the_first_form_have_todays_names(tmp_path: Path) -> None:
    """What form 1 called `walk`, `dirty`, `sized`, `stranded`, `beside` and `uncached`."""
    (one,) = read_saved(STORED / "result-1.json")
    old, new = stored()["scenario"]["cluster"]["kernels"]["gemm"], one.result["scenario"]["cluster"]["kernels"]["gemm"]
    assert old.keys() == new.keys()
    for cls, params in old.items():
        for was, now in RENAMED.items():
            assert was not in new[cls]
            if was in params:
                assert new[cls][now] == params[was]
    assert any(was in params for params in old.values() for was in RENAMED)


def test_a_missing_file_exits_2() -> None:
    run = CliRunner().invoke(foretrain, ["report", "compare", "no.json", "none.json"])
    assert run.exit_code == 2
    assert "no.json" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_one_result_is_not_a_comparison() -> None:
    run = CliRunner().invoke(foretrain, ["report", "compare", str(STORED / "result-1.json")])
    assert run.exit_code == 2
    assert "at least two" in run.output


def test_changes_are_against_the_first_and_know_what_is_better() -> None:
    slow = stored()
    fast = json.loads(json.dumps(slow))
    fast["metrics"]["step_time_s"] *= 0.8
    fast["metrics"]["mfu_causal"] /= 0.8
    cells = {metric.key: row for metric, row in table([slow, fast])}
    assert cells["step_time_s"][0].change is None
    assert cells["step_time_s"][1].change == pytest.approx(-0.2)
    assert cells["step_time_s"][1].verdict == "better"
    assert cells["mfu_causal"][1].verdict == "better"
    assert cells["bubble_ratio"][1].verdict == ""
    assert sentence(["slow", "fast"], [slow, fast]).startswith("fast is the fastest of 2")


def test_only_inputs_that_differ_are_listed() -> None:
    one, other = stored(), stored()
    assert input_differences([one, other]) == []
    other["scenario"]["job"]["layout"]["pp"] = 64
    assert input_differences([one, other]) == [("job.layout.pp", [str(one["scenario"]["job"]["layout"]["pp"]), "64"])]
