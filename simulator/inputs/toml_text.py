"""Values as TOML text; tomli-w writes what the standard library only reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SPREAD = re.compile(r"\[\n\s+([^\[\]\n]+(?:,\n\s+[^\[\]\n]+)*),\n\s*\]")
"""An array of numbers or short names as tomli-w writes it, an element a line."""
_NESTED = re.compile(r"\[\n\s+(\[[^\[\]\n]*\](?:,\n\s+\[[^\[\]\n]*\])*),\n\s*\]")
"""An array of such arrays after they were put on one line each."""


def toml_text(values: Mapping[str, Any]) -> str:
    """`values` as a TOML document, each array on one line: tiles and loads are read as rows of numbers."""
    import tomli_w

    text = tomli_w.dumps(values)
    for spread in (_SPREAD, _NESTED):
        text = spread.sub(lambda found: "[" + re.sub(r",\n\s+", ", ", found[1]) + "]", text)
    return text
