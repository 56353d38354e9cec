"""The documentation: its examples run, its commands exist, its pages are generated from the program."""

from __future__ import annotations

import json
import os
import re
import shlex
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
REWRITE = bool(os.environ.get("REWRITE_GOLDEN"))


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


BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```\n(?:<!-- recorded -->\n```text\n(.*?)```\n)?", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"<!-- file (\S+) -->\s*```\w+\n(.*?)```", re.DOTALL)
NOT_RUN = {"make", "python", "pip", "pipx", "uv", "git", "eval", "curl"}
"""First words of commands that set a machine up, need a network, or take the better part of an hour: not run."""


def commands(block: str) -> list[str]:
    """Command lines of an `sh` block, continued lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def with_commands() -> list[Path]:
    return [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def public_config(name: str) -> dict[str, Any]:
    """A public model's config.json, which a page lets its reader download."""
    text = (DOCS.parent / "workloads" / "facts" / "public_models.json").read_text(encoding="utf-8")
    return next(dict(one["config"]) for one in json.loads(text)["models"] if one["name"] == name)


def piped(text: str, filters: list[str]) -> str:
    """`text` through `head -N`, `tail -N` and `grep -A N TEXT`."""
    lines = text.splitlines()
    for one in filters:
        match shlex.split(one):
            case ["head", count]:
                lines = lines[: -int(count)]
            case ["tail", count]:
                lines = lines[int(count) :]
            case ["grep", "-A", count, wanted]:
                first = next(at for at, line in enumerate(lines) if wanted in line)
                lines = lines[first : first + 1 + int(count)]
            case _:
                pytest.fail(f"a filter that this test does not know: {one}")
    return "".join(f"{line.rstrip()}\n" for line in lines)


def printed(line: str) -> str:
    """What a command line of a page prints, its filters and redirections done."""
    command, _, target = line.partition(" > ")
    first, *filters = command.split(" | ")
    words = shlex.split(first, comments=True)
    if words[0] in NOT_RUN or words[:2] == ["foretrain", "calibrate"]:  # a GPU of one's own, or its table
        return ""
    assert words[0] == "foretrain", line
    done = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(foretrain, words[1:])
    assert done.exit_code in (0, 3), f"{line}\n{done.stderr}"  # 3: it says that something does not fit
    if target:
        Path(target.split()[0]).write_text(done.stdout, encoding="utf-8")
    return piped(done.stdout, filters)


@pytest.mark.slow
@pytest.mark.parametrize("page", with_commands(), ids=lambda page: page.stem)
def test_every_command_of_the_documentation_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, in a folder with the files that it shows; what it shows of their output is today's."""
    folder = tmp_path / "qwen3-30b-a3b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    text = page.read_text(encoding="utf-8")
    for name, content in NAMED.findall(text):
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(public_config("Qwen3-30B-A3B")), encoding="utf-8")
    for found in list(BLOCK.finditer(text)):
        block, recorded = found.groups()
        shown = [printed(line) for line in commands(block)][-1]
        if recorded is not None and recorded != shown:
            assert REWRITE, f"{page.name}: REWRITE_GOLDEN=1 records it anew:\n{block}{shown}"
            new = found.group().replace(f"```text\n{recorded}```", f"```text\n{shown}```")
            text = text.replace(found.group(), new)
    if REWRITE:
        page.write_text(text, encoding="utf-8")


def test_commands_can_be_copied_as_they_stand() -> None:
    """No prompt before them, no output between them."""
    for page in [*PAGES, DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        assert "```console" not in text, page
        assert not re.search(r"^ *\$ (?!per )", text, re.MULTILINE), page  # a price is no prompt


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
