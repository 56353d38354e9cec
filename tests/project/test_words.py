"""Pages, output, docstrings and comments are written in the field's standard words: no coined word comes back."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import foretrain

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
HELP = sorted((ROOT / "tests" / "golden" / "cli").glob("*.txt"))
GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"

RETIRED = {
    r"exchang(?:e|es|ed|ing)": "all-to-all, dispatch, combine",
    r"beside": "overlapped with, concurrent with; next to, of a place",
    r"products?": "GEMM",
    r"habits?": "setting",
    r"fullest": "most loaded, highest peak",
    r"hungriest": "GPU with the highest power demand",
    r"drawn (?:anew|again)|redrawn": "resampled",
    r"(?:expert|routed) rows?|rows? (?:of|a|per|in) (?:every |each )?(?:expert|group)s?": "tokens per expert",
    r"moments?": "time",
    r"dirty": "l2_writeback",
    r"sized": "grid_from_expected_m",
    r"walks?": "tiles_per_cta",
    r"stranded": "unusable_sms",
    r"uncached": "first_dispatch_factor",
    r"@tall": "@tile256",
    r"told|tells?": "say what it does: prints, shows, names",
    r"lasting load": "sustained load",
    r"runs? of (?:kernels|every stream|each stream)": "kernel sequence",
}
"""Word of earlier versions -> what to write. Matched as whole words, also as parts of `names_like_this`."""

ALLOWED = (
    r"(?:first|second)_moment|each moment [\d.]+ B a parameter|(?:BF16|FP32|FP8|8-bit|two|both) moments|moments in BF16"
    r"|^\| moments \||(?:first|second) moment\b|moment_bytes",  # Adam's
    r"selective[\s=\"]+products",  # the value of a setting
    r"scaled_dot_product_attention",
    r"^\| GEMM \| a matrix product",  # what the glossary explains it by
    r"--beside",  # an option that is still accepted
)
_WORDS = re.compile("|".join(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])" for word in RETIRED), re.IGNORECASE)
_EXCUSED = re.compile("|".join(ALLOWED))


def retired(text: str, where: str) -> list[str]:
    """Every retired word in a text, each with its place and what to write."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        for match in _WORDS.finditer(_EXCUSED.sub("", line)):
            better = next(to for word, to in RETIRED.items() if re.fullmatch(word, match[0], re.IGNORECASE))
            found.append(f"{where}:{number}: {match[0]!r}: write {better}")
    return found


@pytest.mark.parametrize("file", [*PAGES, *HELP], ids=lambda file: str(file.relative_to(ROOT)))
def test_pages_and_recorded_output_use_standard_words(file: Path) -> None:
    found = retired(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))
    assert not found, "\n".join(found)


COMMANDS = (
    "simulate tiny-dualpipe -v",
    "simulate tiny-dualpipe --json",
    "simulate llama-3-8b -v",
    "explain tiny-dualpipe --no-sensitivity",
    "explain tiny-dualpipe --json --no-sensitivity",
    "memory tiny-dualpipe --measures",
    "memory tiny-dualpipe --json",
    "compare tiny-dualpipe --vary layout.schedule=1f1b,dualpipe --json",
    "check tiny-dualpipe",
    "show stack torch",
    "show stack megatron-core",
    "show hardware h200",
    "show models",
    "show models --public",
    "show model deepseek-v3 --keys",
    "show architecture hunyuan_v1_moe",
    "show architecture nemotron",
    "show graph tiny-dualpipe -v",
    "kernel gemm --hardware h200 --m 4096 --n 24576 --k 1536",
    "kernel all-to-all --tokens 4096 --hidden 7168 --top-k 8 --node-limit 4 --ep 64 --json",
)


def printed(command: str) -> str:
    """What a command prints, as wide as a page so that no sentence is broken."""
    run = CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1"}).invoke(foretrain, command.split())
    assert run.exit_code == 0, run.stderr
    assert run.stdout.strip()
    return run.stdout + run.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_output_uses_standard_words(command: str) -> None:
    found = retired(printed(command), f"foretrain {command}")
    assert not found, "\n".join(found)


VISIBLE = sorted((ROOT / "reports" / "html" / "templates").glob("*.html"))
DATA = [
    *sorted((ROOT / "workloads" / "stacks").glob("*.toml")),
    *sorted((ROOT / "workloads" / "jobs").glob("*.toml")),
    *sorted((ROOT / "hardware_profiles").glob("*.toml")),
    *sorted((ROOT / "hardware_profiles" / "fabric").glob("*.toml")),
    *sorted((ROOT / "hardware_profiles" / "kernels").glob("*.toml")),
    *sorted((ROOT / "hardware_profiles" / "calibration").glob("*.md")),
    ROOT / "hardware_profiles" / "calibration" / "tables" / "README.md",
]


@pytest.mark.parametrize("file", [*VISIBLE, *DATA], ids=lambda file: str(file.relative_to(ROOT)))
def test_templates_and_sources_use_standard_words(file: Path) -> None:
    found = retired(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))
    assert not found, "\n".join(found)


CODE = [
    ROOT / "cli.py",
    *(
        file
        for folder in ("simulator", "reports", "hardware_profiles")
        for file in sorted((ROOT / folder).rglob("*.py"))
    ),
    *sorted((ROOT / "workloads" / "facts").glob("*.py")),
    *(file for file in sorted((ROOT / "tests").rglob("*.py")) if "reference" not in file.parts),
]
"""The reference model and its tests are left out: they multiply vectors, whose product is the usual word."""
MEANT = {
    "simulator/spec/stack.py": r"products: keep",  # a value of a setting
    "hardware_profiles/calibration/measuring/measure_collectives.py": r"\bexchange\b",  # a value of a column
    "tests/reports/export/test_saved.py": r"What form 1 called .*",  # names of an earlier version
    "tests/project/test_words.py": r".*",  # it lists them
}
"""File -> words of its prose and names that are meant as they are."""
ADAMS = re.compile(r"moments|(?<!any )(?<!that )(?<!every )(?<!last )(?<! a )(?<!the )moment")
"""Adam's moments, of which code speaks often; a moment of time has an article before it."""


def prose(file: Path) -> str:
    """A file's docstrings, comments, and names of functions and classes, each on its line; all else left out."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    kept = [""] * len(lines)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            span = slice(node.lineno - 1, node.end_lineno)
            kept[span] = lines[span]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            kept[node.lineno - 1] += f" {node.name}"
    with file.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            if token.type == tokenize.COMMENT:
                kept[token.start[0] - 1] += f" {token.string}"
    return "\n".join(kept)


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_comments_and_names_use_standard_words(file: Path) -> None:
    name = str(file.relative_to(ROOT))
    text = re.sub(MEANT[name], "", prose(file)) if name in MEANT else prose(file)
    found = retired(ADAMS.sub("", text), name)
    assert not found, "\n".join(found)


def test_prose_is_found_on_its_line_and_code_is_not(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text('def fullest(told):\n    """Beside."""\n    habits = "moment"  # a walk\n', encoding="utf-8")
    places = [line.partition(": write ")[0] for line in retired(prose(file), "some.py")]
    assert places == ["some.py:1: 'fullest'", "some.py:2: 'Beside'", "some.py:3: 'walk'"]
    assert retired(ADAMS.sub("", "both moments, the first moment"), "x") == []
    assert len(retired(ADAMS.sub("", "at any moment, for a moment, the moment it ends"), "x")) == 3


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("compute and communication run beside each other", "beside"),
        ("Expert exchanges by deepep", "exchanges"),
        ("FP8 products", "products"),
        ("the fullest moment", "fullest"),
        ("the term walk_s", "walk"),
        ('{"beside_us": 1.0}', "beside"),
        ("120 rows a group", "rows a group"),
        ("expert rows of pair 0", "expert rows"),
        ("Adam's moments at this moment", "moments"),
        ("a run of kernels", "run of kernels"),
    ],
)
def test_a_retired_word_is_found_with_its_line(line: str, word: str) -> None:
    found = retired(f"fine\n{line}\n", "page.md")
    assert found
    assert found[0].startswith(f"page.md:2: {word!r}: write ")


def test_allowed_contexts_hide_nothing_else() -> None:
    assert retired("moment_bytes = 2.0", "x") == []
    assert retired("moment_bytes = 2.0 at that moment", "x") == ["x:1: 'moment': write time"]


def terms() -> Iterator[tuple[str, str]]:
    """Term and meaning of every row of the glossary."""
    for line in GLOSSARY.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[0] != "term":
            yield cells[0], cells[1]


def test_every_term_of_the_glossary_has_a_meaning_once() -> None:
    names = [name for name, _ in terms()]
    assert len(names) > 60
    assert len(names) == len(set(names))
    assert all(meaning for _, meaning in terms())


def test_the_glossary_is_linked() -> None:
    assert "(reference/glossary.md)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert "(docs/reference/glossary.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
