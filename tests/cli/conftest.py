"""Running the command line in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

import cli

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("simulate", "tiny-1f1b")`: exit code, stdout and stderr; a crash is raised."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*args: str) -> Result:
        result = CliRunner().invoke(cli.foretrain, list(args), prog_name="foretrain")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "this is a fault of foretrain" not in result.stderr, result.stderr
        return result

    return invoke
