"""Pages made from the program while the documentation is built: the command line, validation, models' equations.

A mkdocs hook. `<!-- module simulator.cost.gemm_cost -->` in a page is replaced by that module's own docstring, so that
equations stand in one place only; `<!-- run foretrain ... -->` by that command and what it prints today.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
_MARK = re.compile(r"^<!-- module ([\w.]+) -->$", re.MULTILINE)
_RUN = re.compile(r"^<!-- run foretrain (.+) -->$", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    sys.path.insert(0, str(ROOT))
    pages = {
        "reference/cli.md": command_line(),
        "reference/validation.md": validation(),
        "reference/public-models.md": public_models(),
        "reference/serving-claims.md": serving_claims(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put docstrings, tables of what-ifs and schedules, and what commands print where a page asks for them."""
    filled = markdown.replace("<!-- what-ifs -->", what_ifs()).replace("<!-- schedules -->", schedules())
    text = _MARK.sub(lambda found: equations(found[1]), filled)
    return _RUN.sub(lambda found: printed(found[1]), text)


def serving_claims() -> str:
    """What DeepSeek says of its serving, next to what follows here."""
    from simulator.validation.serving.serving_claims import claims, markdown

    head = (
        "# What DeepSeek says of serving DeepSeek-V3\n\n`foretrain validate --claims` makes this page: every number"
        " under *ours* follows from the inputs (model, hardware, software, jobs) and the published numbers that the"
        " remark names; none is fitted.\n\n"
    )
    return head + markdown(claims()) + "\n"


def printed(arguments: str) -> str:
    """A command and what it prints, as a console shows them."""
    run = subprocess.run(
        [sys.executable, "-m", "cli", *shlex.split(arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "96", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        raise RuntimeError(f"foretrain {arguments}: {run.stderr}")
    return f"```console\n$ foretrain {arguments}\n{run.stdout.strip()}\n```"


def what_ifs() -> str:
    """A row per what-if."""
    from simulator.studies.whatif import WHAT_IFS

    return "\n".join(f"| `{name}` | {one.asks} | {one.assumes} ({one.source}) |" for name, one in WHAT_IFS.items())


def schedules() -> str:
    """The shipped schedules: a row each."""
    from simulator.schedule import SCHEDULES

    rows = [f"| `{one.name}` | {one.description} | {one.source} |" for one in SCHEDULES.shipped.values()]
    return "\n".join(["| name | what it does | source |", "|---|---|---|", *rows])


# ---- equations --------------------------------------------------------------------------------------------------


def equations(module: str) -> str:
    """The docstring of a module as Markdown, and where it lives."""
    file = ROOT / (module.replace(".", "/") + ".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return f"{_escaped(text)}\n\n*From `{file.relative_to(ROOT)}`.*"


def _escaped(text: str) -> str:
    """Underscores and stars outside code would be taken for emphasis."""
    lines = []
    for line in text.splitlines():
        parts = re.split(r"(`[^`]*`)", line)
        plain = [part if part.startswith("`") else re.sub(r"([*_<])", r"\\\1", part) for part in parts]
        lines.append(line if line.startswith("    ") else "".join(plain))
    return "\n".join(lines)


# ---- command line -----------------------------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its help, as the program prints it."""
    from cli import foretrain

    parts = [
        "# Command line",
        "Made from the program itself. `foretrain COMMAND --help` prints the same.",
        *_command(foretrain, ["foretrain"]),
    ]
    return "\n\n".join(parts) + "\n"


def _command(command: click.Command, names: list[str], above: click.Context | None = None) -> Iterator[str]:
    context = click.Context(command, parent=above, info_name=names[-1], terminal_width=80, **command.context_settings)
    yield f"{'#' * min(4, len(names) + 1)} {' '.join(names)}"
    yield f"```text\n{command.get_help(context).strip()}\n```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                yield from _command(found, [*names, name], context)


# ---- validation -------------------------------------------------------------------------------------------------


def validation() -> str:
    """What `foretrain validate --markdown` writes, and the errors of the last calibration. DOCS_VALIDATE names the
    sections where all of them take too long."""
    only = [word for section in os.environ.get("DOCS_VALIDATE", "").split() for word in ("--only", section)]
    return f"{_written('validate', '--quiet', *only).strip()}\n\n{_calibration()}\n"


def public_models() -> str:
    """What `foretrain show models --markdown` writes."""
    return _written("show", "models")


def _written(*words: str) -> str:
    """The page that a command writes with `--markdown`."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "page.md"
        command = [sys.executable, "-m", "cli", *words, "--markdown", str(file)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode not in (0, 3):
            raise RuntimeError(f"foretrain {' '.join(words)} --markdown: {run.stderr}")
        return file.read_text(encoding="utf-8")


def _calibration() -> str:
    folder = ROOT / "hardware_profiles" / "calibration"
    reports = (folder / "report.md", folder / "report_fabric.md")
    return "\n\n".join(_below(report.read_text(encoding="utf-8")) for report in reports if report.is_file())


def _below(text: str) -> str:
    """The same with every heading one level down; there is one title a page."""
    return re.sub(r"^#", "##", text.strip(), flags=re.MULTILINE)
