"""`foretrain memory`: the answer, its exit code, JSON and the figure."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from reports.verbs.memory import memory


def ask(*arguments):
    return CliRunner().invoke(memory, ["tiny-dualpipe", *arguments], standalone_mode=False)


def test_the_report_says_whether_it_fits():
    done = ask("--measures")
    assert done.return_value == 0
    assert "fits" in done.stdout
    assert "recompute RMSNorm" in done.stdout
    assert "slack of the allocator 3% of activations" in " ".join(done.stdout.split())


def test_json_is_one_object_and_repeats():
    first, second = ask("--json", "--measures"), ask("--json", "--measures")
    shown = json.loads(first.stdout)
    assert shown["fits"] is True
    assert len(shown["measures"]) == 8
    assert first.stdout == second.stdout


def test_what_does_not_fit_ends_with_three():
    done = ask("--set", "hardware.gpu.hbm_bytes=1e9")
    assert done.return_value == 3
    assert "does NOT fit" in done.stdout


def test_the_figure_is_written(tmp_path):
    file = tmp_path / "memory.png"
    done = ask("--figure", str(file), "--rank", "1")
    assert done.exit_code == 0
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["memory.xyz", "memory"])
def test_an_ending_that_no_figure_has_is_said_before_anything_is_computed(tmp_path, name):
    said = str(ask("--figure", str(tmp_path / name)).exception)
    assert said.startswith("--figure: ")
    assert "must end in .svg, .png, .pdf" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", ["-1", "4"])
def test_a_rank_that_is_not_there_is_named(rank):
    assert "ranks 0 to 3" in str(ask("--rank", rank).exception)
