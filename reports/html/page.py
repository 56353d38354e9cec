"""Rendering: templates with escaping, styles and scripts inlined, nothing loaded from anywhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reports.export.files import replacing
from reports.views import palette, words
from simulator.units import si

SCRIPTS = ("timeline.js", "page.js")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("reports.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["seconds"] = words.seconds
    made.filters["percent"] = words.percent
    made.filters["large"] = words.large
    made.filters["dollars"] = words.dollars
    made.filters["kernel_class"] = words.of_class
    made.filters["bound"] = words.of_bound
    made.filters["warning"] = words.of_warning
    made.filters["si"] = si
    made.globals["PHASES"] = words.PHASES
    made.globals["COLOURS"] = palette.PHASES
    return made


def _static(name: str) -> str:
    return files("reports.html").joinpath("static", name).read_text(encoding="utf-8")


def render(template: str, context: Mapping[str, Any]) -> str:
    """One page as text. A policy in its head lets nothing run but the project's own script."""
    script = "\n".join(_static(name) for name in SCRIPTS)
    digest = b64encode(sha256(script.encode()).digest()).decode("ascii")
    own = {"script": Markup(script), "style": Markup(_static("page.css")), "script_hash": digest}
    return _environment().get_template(template).render(**own, **context)


def write(template: str, context: Mapping[str, Any], file: Path) -> None:
    """One page as a file."""
    text = render(template, context)
    with replacing(file) as out:
        out.write(text.encode("utf-8"))
