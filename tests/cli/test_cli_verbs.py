"""What each verb prints, exits with and writes; numbers of the model itself are tested elsewhere."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.export.trace import process
from reports.verbs.options import WHAT_IFS as NAMES
from simulator.studies.whatif import WHAT_IFS


def layers(run: Any) -> str:
    """An even split of the tiny model over four stages."""
    count = json.loads(run("show", "model", "deepseek-v3-tiny", "--json").stdout)["num_hidden_layers"]
    return "layout.stages=" + str([count // 4 + (at < count % 4) for at in range(4)]).replace(" ", "")


def numbers(run: Any, *args: str) -> Any:
    """The object that a command prints with --json."""
    result = run(*args, "--json")
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_simulate_puts_the_answer_first_and_nothing_but_the_report_on_stdout(run: Any) -> None:
    result = run("simulate", "tiny-dualpipe")
    assert result.exit_code == 0
    titles = [line for line in result.stdout.splitlines() if line and not line.startswith(" ")]
    assert titles[0] == "One training step of tiny-dualpipe"
    assert titles[4:] == [
        "The answer",
        "Where the time goes",
        "Per rank [ms]",
        "Layers on stages",
        "The five most expensive kernel classes",
        "Assumptions and warnings",
    ]
    assert "tasks by events in" in result.stderr
    assert "tasks by" not in result.stdout


def test_report_is_plain_and_narrow_where_nobody_watches(run: Any) -> None:
    lines = run("simulate", "tiny-dualpipe").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)


def test_same_inputs_give_the_same_bytes(run: Any) -> None:
    assert run("simulate", "tiny-dualpipe").stdout == run("simulate", "tiny-dualpipe").stdout
    assert run("simulate", "tiny-1f1b", "--json").stdout == run("simulate", "tiny-1f1b", "--json").stdout


def test_colour_where_it_is_forced(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = run("show", "schedule", "1f1b").stdout
    assert "\x1b[" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "38;" not in run("show", "schedule", "1f1b").stdout


def test_json_of_simulate_holds_what_programs_read(run: Any) -> None:
    result = numbers(run, "simulate", "tiny-dualpipe")
    assert result["schema"] == "foretrain.result/2"
    assert {"scenario", "metrics", "breakdown_s", "ranks", "warnings", "provenance"} <= set(result)
    assert sum(result["breakdown_s"].values()) == pytest.approx(result["metrics"]["step_time_s"])
    assert len(result["ranks"]) == 4


def test_json_comes_with_its_warnings_on_stderr(run: Any) -> None:
    result = run("simulate", "tiny-dualpipe", "--json")
    said = [line for line in result.stderr.splitlines() if line.startswith("foretrain: warning: ")]
    assert len(said) == len(json.loads(result.stdout)["warnings"])


def test_quiet_means_quiet(run: Any, tmp_path: Path) -> None:
    result = run("simulate", "tiny-dualpipe", "-q", "--json", "--trace", str(tmp_path / "t.json.gz"))
    assert result.stderr == ""


def test_verbose_lists_every_kernel_class(run: Any) -> None:
    classes = numbers(run, "simulate", "tiny-dualpipe")["classes"]
    printed = run("simulate", "tiny-dualpipe", "--verbose").stdout
    table = printed.partition("Kernel classes")[2].partition("Shares of")[0]
    assert len([line for line in table.splitlines() if line.strip()]) > len(classes)


def test_set_changes_the_scenario(run: Any) -> None:
    result = numbers(run, "simulate", "tiny-1f1b", "--set", "layout.pp=2", "--set", "hardware.gpu.sms=100")
    assert result["scenario"]["job"]["layout"]["pp"] == 2
    assert result["scenario"]["cluster"]["gpu"]["sms"] == 100
    assert len(result["ranks"]) == 2


def test_engine_is_chosen_and_shown(run: Any) -> None:
    result = run("simulate", "tiny-1f1b", "--engine", "longest-path", "--json")
    assert json.loads(result.stdout)["provenance"]["engine"] == "longest-path"
    assert "by longest-path in" in result.stderr


def test_trace_is_written_whole_and_selected(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "step.json.gz"
    result = run("simulate", "tiny-1f1b", "--trace", str(file), "--ranks", "1,2")
    assert result.exit_code == 0
    assert f"events to {file}" in result.stderr
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert {event["pid"] for event in events if event["ph"] in "XC"} == {process(1), process(2)}
    assert [path.name for path in tmp_path.iterdir()] == ["step.json.gz"]


def test_a_wrong_selection_is_reported_before_anything_is_simulated(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.results.simulate.simulate", None)
    for option, value in (("--ranks", "4"), ("--window", "2:1"), ("--ranks", "")):
        result = run("simulate", "tiny-1f1b", "--trace", str(tmp_path / "t.json"), option, value)
        assert result.exit_code == 2
        assert option in result.stderr


# ---- what-ifs ---------------------------------------------------------------------------------------------------


def test_names_in_the_help_are_those_there_are() -> None:
    assert tuple(WHAT_IFS) == NAMES


def test_what_ifs_add_up_and_say_what_they_assume(run: Any) -> None:
    result = numbers(run, "simulate", "tiny-dualpipe", "--what-if", "coprocessor", "--what-if", "fused-casts")
    assert result["provenance"]["what_if"] == ["coprocessor", "fused-casts"]
    assert result["scenario"]["job"]["overlap"]["comm_sms"] == 0
    assert result["scenario"]["stack"]["fused_quant"]
    assert [text.partition(":")[0] for text in result["warnings"][:2]] == ["What if", "What if"]
    assert "what_if" not in numbers(run, "simulate", "tiny-dualpipe")["provenance"]


@pytest.mark.parametrize("verb", ["simulate", "compare"])
def test_a_wrong_what_if_names_the_nearest(verb: str, run: Any) -> None:
    result = run(verb, "tiny-dualpipe", "--what-if", "nvlink900")
    assert result.exit_code == 2
    assert "did you mean nvlink-900?" in result.stderr


def test_compare_puts_what_ifs_next_to_the_job_as_it_is(run: Any) -> None:
    args = ("compare", "tiny-dualpipe", "--what-if", "coprocessor", "--what-if", "fused-casts")
    runs = numbers(run, *args, "--vary", "batch.microbatch_size=1,2")["variants"]
    assert [one["what_if"] for one in runs] == [None, "coprocessor", "fused-casts"] * 2
    alone = numbers(run, "simulate", "tiny-dualpipe", "--what-if", "coprocessor")["metrics"]["step_time_s"]
    assert runs[1]["result"]["metrics"]["step_time_s"] == alone
    printed = run(*args).stdout
    assert "as it is" in printed
    assert "What if, and what is assumed" in printed
    assert "What if" not in run("compare", "tiny-dualpipe").stdout


def test_sensitivity_is_of_the_job_itself(run: Any, tmp_path: Path) -> None:
    result = run(
        "simulate", "tiny-1f1b", "--html", str(tmp_path / "p.html"), "--sensitivity", "--what-if", "nvlink-900"
    )
    assert result.exit_code == 2
    assert "--what-if" in result.stderr


def test_warnings_name_kernel_classes_in_words(run: Any) -> None:
    warnings = numbers(run, "simulate", "tiny-dualpipe")["warnings"]
    assert any("comm.notify" in text for text in warnings)
    for result in (run("simulate", "tiny-dualpipe"), run("simulate", "tiny-dualpipe", "--json")):
        said = result.stderr + (result.stdout if not result.stdout.startswith("{") else "")
        assert "comm.notify" not in said
        assert "all-to-all notify (token counts); sends between stages" in " ".join(said.split())


def test_schedule_of_a_job_with_simulated_times(run: Any) -> None:
    printed = run("show", "schedule", "tiny-dualpipe", "--times").stdout
    assert "Simulated: tiny-dualpipe" in printed
    printed = numbers(run, "show", "schedule", "tiny-dualpipe", "--times")
    assert [len(row) for row in printed["starts_s"]] == [len(row) for row in printed["rows"]]
    assert min(row[0] for row in printed["starts_s"]) == 0
    step = numbers(run, "simulate", "tiny-dualpipe")["metrics"]["step_time_s"]
    assert 0 < printed["makespan_s"] < step
    assert run("show", "schedule", "dualpipe", "--times").exit_code == 2


def test_an_interrupt_is_reported_and_exits_with_130(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulator.results.simulate.simulate", interrupted)
    result = run("simulate", "tiny-1f1b")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "foretrain: interrupted\n")


def test_compare_tries_every_combination_in_order(run: Any) -> None:
    result = numbers(run, "compare", "tiny-1f1b", "--vary", "layout.schedule=gpipe,1f1b", "--vary", "layout.pp=2,4")
    assert result["schema"] == "foretrain.compare/2"
    assert [entry["set"] for entry in result["variants"]] == [
        {"layout.schedule": schedule, "layout.pp": pp} for schedule in ("gpipe", "1f1b") for pp in ("2", "4")
    ]
    assert all(entry["error"] is None for entry in result["variants"])


@pytest.mark.slow
def test_compare_says_what_a_slow_gpu_costs_under_each_schedule(run: Any) -> None:
    args = ("compare", "tiny-1f1b", "--vary", "layout.schedule=1f1b,gpipe", "--what-if", "narrow-nic")
    table = run(*args).stdout.partition("What each what-if does to the step time")[2].split("\n\n")[0]
    found = [line.split() for line in table.strip().splitlines()]
    assert [line[0] for line in found] == ["schedule", "1f1b", "gpipe"]
    assert found[0][1:] == ["narrow-nic"]
    assert all(line[1].startswith("+") and line[2] == "%" for line in found[1:])


def test_compare_gives_each_variant_what_simulate_gives(run: Any) -> None:
    both = numbers(run, "compare", "tiny-1f1b", "--set", "layout.zero=0", "--vary", "layout.pp=2,4")["variants"]
    alone = numbers(run, "simulate", "tiny-1f1b", "--set", "layout.zero=0", "--set", "layout.pp=4")
    assert both[1]["result"] == alone


def test_compare_keeps_what_breaks_a_rule_with_its_reason(run: Any) -> None:
    result = run("compare", "tiny-dualpipe", "--vary", "layout.pp=4,5")
    assert result.exit_code == 0
    assert "Not possible" in result.stdout
    assert "dualpipe needs an even pp: pp is 5" in " ".join(result.stdout.split())
    entries = numbers(run, "compare", "tiny-dualpipe", "--vary", "layout.pp=4,5")["variants"]
    assert [entry["result"] is None for entry in entries] == [False, True]
    assert "needs an even pp" in entries[1]["error"]


def test_compare_exits_with_2_if_nothing_is_possible(run: Any) -> None:
    result = run("compare", "tiny-dualpipe", "--vary", "layout.pp=3,5")
    assert result.exit_code == 2
    printed = " ".join((result.stdout + result.stderr).split())
    assert "pp is 3" in printed
    assert "pp is 5" in printed


def test_compare_of_jobs_shows_how_they_differ(run: Any) -> None:
    lines = run("compare", "tiny-dualpipe", "tiny-1f1b").stdout.splitlines()
    header = next(line for line in lines if "step [ms]" in line)
    assert header.split()[:2] == ["job", "schedule"]


def test_check_says_fine_and_what_follows(run: Any, golden: Callable[[str, str], None]) -> None:
    result = run("check", "tiny-dualpipe", "--set", layers(run))
    assert result.exit_code == 0
    golden("cli/check-fine.txt", result.stdout)


def test_check_lists_every_broken_rule_at_once(run: Any, golden: Callable[[str, str], None]) -> None:
    result = run("check", "deepseek-v3-pretrain", "--set", "layout.pp=15", "--set", "layout.ep=48")
    assert result.exit_code == 2
    golden("cli/check-broken.txt", result.stdout)


def test_json_of_check(run: Any) -> None:
    fine = numbers(run, "check", "deepseek-v3-pretrain")
    assert fine["fine"]
    assert fine["derived"]["data_parallel"] == 128
    assert fine["derived"]["expert_data_parallel"] == 2
    assert fine["derived"]["microbatches"] == 120
    assert len(fine["stages"]) == 16
    broken = run("check", "deepseek-v3-pretrain", "--set", "layout.pp=15", "--json")
    assert broken.exit_code == 2
    assert {p["rule"] for p in json.loads(broken.stdout)["problems"]} >= {"world size", "schedule"}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("show-model", ("model", "deepseek-v3")),
        ("show-model-dense", ("model", "llama-3-8b", "--sequence-length", "8192")),
        ("show-schedule", ("schedule", "dualpipe", "--pp", "8", "--microbatches", "20")),
        ("show-schedule-wrapped", ("schedule", "zb1p", "--pp", "8", "--microbatches", "32", "--wrap")),
        ("show-schedule-text", ("schedule", "interleaved", "--text")),
        ("show-job", ("job", "tiny-1f1b", "--set", "layout.stages=[2,2,2,2]")),
    ],
)
def test_show_prints_the_recorded_page(
    name: str, args: tuple[str, ...], run: Any, golden: Callable[[str, str], None]
) -> None:
    result = run("show", *args)
    assert result.exit_code == 0
    golden(f"cli/{name}.txt", result.stdout)


@pytest.mark.parametrize("kind", ["model", "hardware", "job", "stack", "schedule"])
def test_show_without_a_name_lists_names_that_it_shows(kind: str, run: Any) -> None:
    names = run("show", kind).stdout.split()
    assert names
    for name in names:
        assert run("show", kind, name).exit_code == 0


def test_show_hardware_gives_every_number_its_source(run: Any) -> None:
    page = " ".join(run("show", "hardware", "h800").stdout.split())
    assert "node.nic.bandwidth 50 GB/s arXiv 2412.19437" in page
    assert "gpu.hbm_bandwidth 3.35 TB/s" in page


def test_show_takes_changes(run: Any) -> None:
    assert numbers(run, "show", "model", "deepseek-v3", "--set", "model.topk_group=2")["topk_group"] == 2
    assert numbers(run, "show", "hardware", "h100", "--set", "hardware.gpu.sms=99")["gpu"]["sms"] == 99
    assert numbers(run, "show", "stack", "torch", "--set", "stack.kernel_gap=1e-6")["kernel_gap"] == 1e-6


def test_a_shown_job_can_be_run(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(run("show", "job", "tiny-1f1b", "--set", "layout.pp=2").stdout, encoding="utf-8")
    mine, shipped = numbers(run, "simulate", str(file)), numbers(run, "simulate", "tiny-1f1b", "--set", "layout.pp=2")
    assert mine["metrics"] == shipped["metrics"]


def test_a_shown_schedule_can_be_run_and_shown(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(run("show", "schedule", "tiny-1f1b", "--text").stdout, encoding="utf-8")
    mine = numbers(run, "simulate", "tiny-1f1b", "--set", f"layout.schedule={file}")
    assert mine["metrics"] == numbers(run, "simulate", "tiny-1f1b")["metrics"]
    assert run("show", "schedule", str(file)).stdout == run("show", "schedule", "tiny-1f1b").stdout


def test_schedule_of_a_job_has_its_numbers(run: Any) -> None:
    shown = numbers(run, "show", "schedule", "deepseek-v3-pretrain")
    assert (shown["name"], shown["stages"], shown["microbatches"], len(shown["rows"])) == ("dualpipe", 16, 120, 16)
