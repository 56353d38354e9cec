"""`foretrain numerics`: the table, the page, JSON, exit codes, and loads as a job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cli
from workloads.reference import claims
from workloads.reference.claims import Claim


def run(*args: str) -> Result:
    result = CliRunner().invoke(cli.foretrain, ["numerics", *args], prog_name="foretrain")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def claim(key: str, agrees: bool | None) -> Claim:
    return Claim(
        key=key,
        claim=f"Something said about {key}",
        published="2 %",
        ours="2.3 %",
        source="DeepSeek-V3, 3.3.2",
        remark=f"Why {key} comes out so.",
        values=(("value", 0.023),),
        agrees=agrees,
    )


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Claim]:
    """Three claims instead of minutes of arithmetic; a test may change the list."""
    three = [claim("sums", True), claim("loads", True), claim("words", None)]

    def fake(out_dir: Path, *, quick: bool, report: Callable[[str], None]) -> list[Claim]:
        report("sums")
        out_dir.mkdir(exist_ok=True)
        (out_dir / "claims.md").write_text(f"quick {quick}", encoding="utf-8")
        return three

    monkeypatch.setattr(claims, "run_claims", fake)
    return three


def test_table_and_verdict(found: list[Claim]) -> None:
    result = run("--quick")
    assert result.exit_code == 0
    assert "2 of 2 claims agree; 1 cannot be compared" in result.stdout
    assert "Something said about" in result.stdout
    assert "Why sums comes out so. (DeepSeek-V3, 3.3.2)" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert result.stderr == "running: sums\n"
    assert run("--quick", "--quiet").stderr == ""


def test_a_claim_that_disagrees_is_exit_code_3(found: list[Claim]) -> None:
    found[1] = claim("loads", False)
    result = run()
    assert result.exit_code == 3
    assert "NO" in result.stdout
    assert "1 of 2 claims agree" in result.stdout


def test_json_is_one_object(found: list[Claim]) -> None:
    printed = json.loads(run("--json", "--quick").stdout)
    assert printed["schema"] == "foretrain.numerics/1"
    assert (printed["quick"], printed["agree"]) == (True, True)
    assert [c["agrees"] for c in printed["claims"]] == [True, True, None]
    assert printed["claims"][0]["values"] == {"value": 0.023}


def test_page_goes_where_it_is_wanted(found: list[Claim], tmp_path: Path) -> None:
    result = run("--out", str(tmp_path / "page"))
    assert (tmp_path / "page" / "claims.md").read_text(encoding="utf-8") == "quick False"
    assert f"wrote {tmp_path / 'page' / 'claims.md'}" in result.stderr
    (tmp_path / "file").write_text("", encoding="utf-8")
    refused = run("--out", str(tmp_path / "file"))
    assert refused.exit_code == 2
    assert "is a file; give a directory" in refused.stderr


def test_loads_become_a_job(tmp_path: Path) -> None:
    file = tmp_path / "loads.toml"
    result = run("--loads-out", str(file), "--job", "tiny-1f1b", "--balancing", "none", "--steps", "8")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "the busiest of 16 ranks gets" in result.stderr
    assert 'extends = "tiny-1f1b"' in file.read_text(encoding="utf-8")
    simulated = CliRunner().invoke(cli.foretrain, ["simulate", str(file), "--engine", "longest-path"])
    assert simulated.exit_code == 0
    assert "loads of the 16 expert-parallel ranks are given" in " ".join(simulated.stdout.split())


def test_a_dense_model_has_no_loads(tmp_path: Path) -> None:
    result = run("--loads-out", str(tmp_path / "x.toml"), "--job", "llama-3-8b")
    assert result.exit_code == 2
    assert "llama-3-8b has no experts to load" in result.stderr
