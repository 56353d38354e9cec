"""What a user reads who has written something wrong: the exact lines, exit code 2, and never a traceback."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

JOB = """model = "deepseek-v3-tiny"
hardware = "h800"
gpus = 64
[layout]
pp = 4
ep = 16
schedule = "dualpipe"
[batch]
sequence_length = 1024
microbatch_size = 1
global_batch_size = 160
"""

FILES = {
    "good.toml": JOB,
    "unknown-key.toml": JOB.replace("pp = 4", "pq = 4"),
    "wrong-type.toml": JOB.replace("gpus = 64", 'gpus = "64"'),
    "fraction.toml": JOB.replace("pp = 4", "pp = 4.5"),
    "nan.toml": JOB + "[run]\ntokens = nan\n",
    "zero.toml": JOB.replace("microbatch_size = 1", "microbatch_size = 0"),
    "negative.toml": JOB.replace("gpus = 64", "gpus = -64"),
    "broken.toml": JOB.replace("[layout]", "[layout"),
    "empty.toml": "",
    "broken-model.toml": JOB.replace('"deepseek-v3-tiny"', '"broken.json"'),
    "missing-model.toml": JOB.replace('"deepseek-v3-tiny"', '"nowhere.json"'),
    "unknown-model.toml": JOB.replace('"deepseek-v3-tiny"', '"deepseek-v4"'),
    "unknown-hardware.toml": JOB.replace('"h800"', '"h801"'),
    "broken.json": '{"model_type": "deepseek_v3",',
    "missing-key.toml": JOB.replace("gpus = 64\n", ""),
    "bad-schedule.txt": "# name=mine stages=2 microbatches=2\n0: 0F0 0F1\n1: 1F0 1B0 1F1 1B7\n",
    "not-text.toml": "\udcff",
}

LISTED = re.compile(r"(shipped are|choose one of) deepseek.*")
"""Names of all that is shipped: they may grow."""

CASES = (
    "simulate unknown-key.toml",
    "simulate wrong-type.toml",
    "simulate fraction.toml",
    "simulate nan.toml",
    "simulate zero.toml",
    "simulate negative.toml",
    "simulate broken.toml",
    "simulate empty.toml",
    "simulate missing-key.toml",
    "simulate not-text.toml",
    "simulate broken-model.toml",
    "simulate missing-model.toml",
    "simulate unknown-model.toml",
    "simulate unknown-hardware.toml",
    "simulate nowhere.toml",
    "simulate .",
    "simulate folder/",
    "simulate deepseek-v3-pretrian",
    "simulate ''",
    "simulate good.toml --set layout.ppp=8",
    "simulate good.toml --set layout.pp",
    "simulate good.toml --set layout.pp=eight",
    "simulate good.toml --set layout=8",
    "simulate good.toml --set layout.zero=-1",
    "simulate good.toml --set run.tokens=nan",
    "simulate good.toml --set run.tokens=inf",
    "simulate good.toml --set layout.schedule=dualpip",
    "simulate good.toml --set layout.schedule=nowhere.txt",
    "simulate good.toml --set layout.schedule=bad-schedule.txt",
    "simulate good.toml --set precision.recipe=fp4",
    "simulate good.toml --set hardware.node.nic.bandwidth=50",
    "simulate good.toml --set model.num_experts_per_tok=0",
    "simulate deepseek-v3-pretrain --set layout.pp=12",
    "simulate deepseek-v3-pretrain --set layout.pp=15",
    "simulate deepseek-v3-pretrain --set layout.ep=48",
    "simulate deepseek-v3-pretrain --set batch.global_batch_size=15000",
    "simulate deepseek-v3-pretrain --set batch.global_batch_size=2560",
    "simulate deepseek-v3-pretrain --set layout.pp=64",
    "simulate deepseek-v3-pretrain --set hardware=a100",
    "simulate good.toml --trace nowhere/step.json.gz",
    "simulate good.toml --trace folder",
    "simulate good.toml --trace step.json.gz --ranks 4",
    "simulate good.toml --trace step.json.gz --ranks 1,x",
    "simulate good.toml --trace step.json.gz --window 3",
    "simulate good.toml --trace step.json.gz --window 2:1",
    "simulate good.toml --trace step.json.gz --window 100:",
    "simulate good.toml --ranks 1",
    "simulate good.toml --engine quick",
    "simulate good.toml --jsno",
    "simulate",
    "siumlate good.toml",
    "frobnicate",
    "compare good.toml --vary layout.ppp=2,4",
    "compare good.toml --vary layout.pp",
    "compare good.toml --vary layout.pp=2,,4",
    "compare good.toml --vary layout.pp=2,2",
    "compare good.toml --vary layout.pp=2 --vary layout.pp=4",
    "compare good.toml nowhere.toml",
    "compare",
    "check good.toml --set layout.ppp=8",
    "show model deepseek-v33",
    "show hardware h8000",
    "show stack megatron",
    "show job tiny",
    "show schedule dualpip",
    "show schedule dualpipe --pp 5",
    "show schedule dualpipe --pp 8 --microbatches 10",
    "show schedule interleaved --pp 4 --microbatches 10",
    "show schedule bad-schedule.txt",
    "show schedule good.toml --pp 8",
    "show schedule dualpipe --set layout.pp=8",
    "show schedule 1f1b --start 1000",
    "show graph tiny-1f1b --block 99",
    "show graph tiny-1f1b --block moo",
    "show graph tiny-zb1p --block embed --action I",
    "show graph tiny-1f1b --svg graph.png",
    "show graph tiny-1f1b --html nowhere/graph.html",
    "show pictures",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files that are wrong in one way each."""
    for name, text in FILES.items():
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_mistake_gets_the_recorded_lines(folder: Path, run: Any, golden: Callable[[str, str], None]) -> None:
    shown = []
    for case in CASES:
        result = run(*shlex.split(case))
        assert result.exit_code == 2, case
        assert result.stdout == "", case
        shown.append(f"$ foretrain {case}\n" + LISTED.sub(r"\1 ...", result.stderr))
    golden("cli/errors.txt", "\n".join(shown))


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_reported_in_lines_that_name_the_program(case: str, folder: Path, run: Any) -> None:
    lines = run(*shlex.split(case)).stderr.splitlines()
    assert lines
    assert all(line.startswith("foretrain: ") for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_nothing_is_left_behind_by_a_trace_that_fails(folder: Path, run: Any) -> None:
    run("simulate", "good.toml", "--trace", "step.json.gz", "--ranks", "4")
    assert {path.name for path in folder.iterdir()} == {*FILES, "folder"}


@pytest.mark.parametrize("option", ["--trace", "--html"])
def test_what_the_system_says_of_a_file_is_one_line(option: str, folder: Path, run: Any) -> None:
    result = run("simulate", "good.toml", option, "a" * 300)
    assert result.exit_code == 2
    assert result.stderr == f"foretrain: {'a' * 300}: File name too long\n"


@pytest.mark.parametrize("verb", ["show", "kernel", "report", "trace"])
def test_a_verb_of_verbs_alone_shows_its_help(verb: str, run: Any) -> None:
    result = run(verb)
    assert result.exit_code == 2
    assert (result.stderr or result.stdout).startswith(f"Usage: foretrain {verb}")
