"""`foretrain kernel decode-attention`, and the same in tables."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import foretrain

TABLE = Path("hardware_profiles/calibration/tables/h200_decode_attention.csv")
MLA = ("--heads", "128", "--kv-heads", "1", "--d-qk", "576", "--d-v", "512")


def run(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(foretrain, ["kernel", *args], input=stdin)


def decode(*args: str) -> dict[str, object]:
    result = run("decode-attention", *args, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_a_latent_is_known_by_its_widths() -> None:
    mla = decode("--batch", "128", "--kv-len", "4096", *MLA)
    assert mla["class"] == "attn.decode.mla"
    assert mla["calibrated"]
    assert 250 < float(str(mla["time_us"])) < 330  # 292 measured
    assert decode("--batch", "128", "--kv-len", "4096", "--heads", "32", "--kv-heads", "8")["class"] == "attn.decode"


def test_all_options_that_are_missing_are_named_at_once() -> None:
    for given, lacks in (((), "--heads, --kv-len"), (("--batch", "4"), "--heads, --kv-len")):
        result = run("decode-attention", *given)
        assert result.exit_code == 2
        assert f"Missing options {lacks} (see" in result.output
    assert "Missing option '--kv-len'" in run("decode-attention", "--heads", "32").output


def test_the_kernels_measured_on_a_gpu_are_its_own() -> None:
    grouped = ("--batch", "64", "--heads", "32", "--kv-heads", "8", "--kv-len", "8192")
    h200 = ("--hardware", "h200", *grouped)
    assert decode(*h200)["time_us"] == decode(*h200, "--impl", "fa2")["time_us"]
    assert decode(*grouped)["time_us"] == decode(*grouped, "--impl", "flashinfer")["time_us"]
    assert decode(*h200, "--impl", "flashinfer")["time_us"] != decode(*h200)["time_us"]


def test_a_table_of_measurements_is_priced_row_by_row() -> None:
    text = TABLE.read_text(encoding="utf-8")
    result = run("table", "-", "--hardware", "h200", stdin=text)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 122
    assert sum(abs(float(row["error"])) for row in rows) / len(rows) < 0.05


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--kv-len", "64", "--heads", "32", "--kv-heads", "5"), "--kv-heads: '5': must divide the 32 query heads"),
        (("--kv-len", "4", "--heads", "8", "--q-len", "9"), "--q-len: '9': new tokens must be among the 4"),
        (("--kv-len", "4", "--heads", "8", "--impl", "flashmla"), "--impl: 'flashmla': choose one of library, fa2"),
        (("--kv-len", "0", "--heads", "8"), "--kv-len"),
        (("--heads", "8"), "--kv-len"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(args: tuple[str, ...], said: str) -> None:
    result = run("decode-attention", *args)
    assert result.exit_code == 2
    assert said in result.output


def test_attention_of_one_query_is_sent_to_decode_attention() -> None:
    result = run("attention", "--heads", "32", "--seq", "1", "--seq-kv", "4096")
    assert result.exit_code == 2
    assert "ask decode-attention" in result.output
    assert "decode-attention" in run("table", "-", stdin="op,seq,kv_len,heads\nattention,1,4096,32\n").output
