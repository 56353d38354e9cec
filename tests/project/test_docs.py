"""The documentation: its examples run, its commands exist, its pages are generated from the program."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import VERBS, foretrain
from simulator import plugins
from simulator.inputs import ARCHITECTURES
from simulator.inputs.hf_config import read_config
from simulator.schedule import SCHEDULES, build, parse_schedule, validate

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def test_the_cells_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = re.findall(
        r"```python\n(.*?)```", (DOCS / "reference" / "python.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(cells) >= 6
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell, "python.md", "exec"), names)
    assert names["best"] == "dualpipe"
    assert (tmp_path / "step.html").is_file()
    assert names["files"]
    assert all(file.is_file() for file in names["files"])


def test_the_schedule_of_the_how_to_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "howto" / "schedule.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setattr(SCHEDULES, "registered", {})
    monkeypatch.setattr(plugins, "_registered", set())
    exec(compile(code, "schedule.md", "exec"), {})
    assert build("early-1f1b", pp=4, microbatches=8).ranks == 4
    (written,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    validate(parse_schedule(written, source="schedule.md"))


def test_the_architecture_of_the_how_to_reads_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "howto" / "model.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setattr(ARCHITECTURES, "registered", {})
    monkeypatch.setattr(plugins, "_registered", set())
    exec(compile(code, "model.md", "exec"), {})
    keys = {
        "vocab_size": 100,
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "ffn_multiple": 3,
        "init_seed": 1,
    }
    found = read_config({"model_type": "nova", **keys}, "nova", "config.json")
    assert (found.model.intermediate_size, found.model.qk_norm) == (192, True)
    assert [(one.key, one.why) for one in found.ignored] == [("init_seed", "training only")]


SCRIPTS = re.compile(r"^ *```sh\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"<!-- file (\S+) -->\s*```\w+\n(.*?)```", re.DOTALL)
NOT_RUN = {"make", "python", "pip", "pipx", "uv", "git", "eval"}
"""First words of commands that set a machine up or take the better part of an hour: not run."""


def commands(text: str) -> list[str]:
    """Command lines of the `sh` blocks of a page, continued lines joined."""
    lines = "\n".join(SCRIPTS.findall(text)).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def with_commands() -> list[Path]:
    return [page for page in PAGES if commands(page.read_text(encoding="utf-8"))]


@pytest.mark.long
@pytest.mark.parametrize("page", with_commands(), ids=lambda page: page.stem)
def test_every_command_of_the_documentation_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, in a folder with the files that the page shows."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    for name, content in NAMED.findall(text):
        (tmp_path / name).write_text(content, encoding="utf-8")
    shutil.copy(DOCS.parent / "workloads" / "models" / "qwen3-235b-a22b" / "config.json", tmp_path / "config.json")
    for line in commands(text):
        command, _, target = line.partition(" > ")
        words = shlex.split(command, comments=True)
        if words[0] in NOT_RUN:
            continue
        assert words[0] == "foretrain", line
        done = CliRunner().invoke(foretrain, words[1:])
        assert done.exit_code in (0, 3), f"{line}\n{done.stderr}"  # 3: it says that something does not fit
        if target:
            (tmp_path / target.split()[0]).write_text(done.stdout, encoding="utf-8")


def test_commands_can_be_copied_as_they_stand() -> None:
    """No prompt before them, no output between them."""
    for page in [*PAGES, DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        assert "```console" not in text, page
        assert not re.search(r"^ *\$ ", text, re.MULTILINE), page


def test_every_picture_exists() -> None:
    pictures = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert pictures
    assert [(page, target) for page, target in pictures if not (page.parent / target).is_file()] == []


def test_every_module_that_a_page_shows_exists() -> None:
    marked = {
        name for page in PAGES for name in re.findall(r"^<!-- module ([\w.]+) -->$", page.read_text(), re.MULTILINE)
    }
    assert len(marked) > 5
    assert {name for name in marked if not (DOCS.parent / f"{name.replace('.', '/')}.py").is_file()} == set()


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_generated_pages_say_what_the_program_says() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        import generate
    finally:
        sys.path.remove(str(DOCS))
    text = generate.command_line()
    for verb in VERBS:
        assert f"### foretrain {verb}" in text
    for name, record in SCHEDULES.shipped.items():
        assert f"| `{name}` | {record.description} |" in generate.schedules()
    assert "t = launch + reset + (" in generate.equations("simulator.cost.gemm_cost")
    assert "generate" in sys.modules
