"""Traces in Mooncake's and Azure's formats, and files that are none."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.serving.load.lines import LONGEST_LINE
from simulator.serving.load.traces import requests_of
from simulator.serving.request import Request

MOONCAKE = {"timestamp": 1500, "input_length": 1100, "output_length": 5, "hash_ids": [4, 5, 6]}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def _file(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_mooncake_has_milliseconds_and_hashes_of_whole_blocks(tmp_path: Path) -> None:
    rows = [MOONCAKE, MOONCAKE | {"timestamp": 4000, "input_length": 1024, "hash_ids": [4, 5]}]
    found = list(requests_of(_file(tmp_path, "\n".join(map(json.dumps, rows)) + "\n")))
    assert found == [Request(0, 0.0, 1100, 5, (4, 5), 512), Request(1, 2.5, 1024, 5, (4, 5), 512)]


def test_azure_has_dates_of_any_precision(tmp_path: Path) -> None:
    text = AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:16:50.9951690,396,109\n"
    found = list(requests_of(_file(tmp_path, text)))
    assert [(one.input_tokens, one.output_tokens, one.hashes) for one in found] == [(374, 44, ()), (396, 109, ())]
    assert found[1].arrival == pytest.approx(64.314579, abs=1e-6)
    zoned = AZURE + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:00.017335+00:00,2399,6\n"
    assert list(requests_of(_file(tmp_path, zoned)))[1].arrival == pytest.approx(0.007405, abs=1e-6)


def test_csv_with_mooncakes_names(tmp_path: Path) -> None:
    text = "output_length,timestamp,input_length,hash_ids\n7,0,1030,1 2 3\n8,250,20,\n"
    assert list(requests_of(_file(tmp_path, text))) == [
        Request(0, 0.0, 1030, 7, (1, 2), 512),
        Request(1, 0.25, 20, 8, (), 512),
    ]


def _mooncake(**changes: object) -> str:
    return json.dumps(MOONCAKE) + "\n" + json.dumps(MOONCAKE | changes) + "\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "trace: holds no requests"),
        ("\n \n", "trace: holds no requests"),
        (AZURE, "trace: holds no requests"),
        ("{", "trace:1: is no JSON object"),
        ("[1]\n", "trace:1: timestamp, input_length, output_length: missing; the first line must name"),
        ("a,b\n1,2\n", "trace:1: timestamp, input_length, output_length: missing; the first line must name"),
        ("TIMESTAMP,ContextTokens\n", "trace:1: GeneratedTokens: missing; the first line must name"),
        ('{"timestamp": 1}\n', "trace:1: input_length, output_length: missing"),
        (json.dumps(MOONCAKE) + "\n7\n", "trace:2: is no JSON object; every line must be one, as the first"),
        (_mooncake(timestamp=1499), "trace:2: timestamp: '1499': is earlier than the line before; sort the file by it"),
        (_mooncake(timestamp=-1), "trace:2: timestamp: '-1': must be milliseconds, at least 0"),
        (_mooncake(timestamp="soon"), "trace:2: timestamp: 'soon': must be milliseconds, at least 0"),
        (_mooncake(timestamp=None), "trace:2: timestamp: 'None': must be milliseconds, at least 0"),
        (_mooncake(input_length=-5), "trace:2: input_length: '-5': must be a whole number of tokens from 1"),
        (_mooncake(output_length=0), "trace:2: output_length: '0': must be a whole number of tokens from 1"),
        (_mooncake(output_length=1.5), "trace:2: output_length: '1.5': must be a whole number of tokens"),
        (_mooncake(output_length=True), "trace:2: output_length: 'True': must be a whole number of tokens"),
        (_mooncake(input_length=10**30), "trace:2: input_length: '1000"),
        (_mooncake(input_length=[1]), "trace:2: input_length: '\\[1\\]': must be a whole number"),
        (_mooncake(hash_ids=["x", 1]), "trace:2: hash_ids: .*: must be a list of whole numbers"),
        (_mooncake(hash_ids=3), "trace:2: hash_ids: '3': must be a list of whole numbers"),
        (AZURE + "yesterday,1,2\n", "trace:2: TIMESTAMP: 'yesterday': must be a date and time"),
        (AZURE + "2023-11-16 18:15:46,1\n", "trace:2: has 2 columns; the first line has 3"),
        (AZURE + "2023-11-16 18:15:46,-1,2\n", "trace:2: ContextTokens: '-1': must be a whole number"),
        (AZURE + "2023-11-16 18:15:46,many,2\n", "trace:2: ContextTokens: 'many': must be a whole number"),
    ],
)
def test_what_is_no_trace_is_one_line(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(InputError, match=error) as caught:
        list(requests_of(_file(tmp_path, text)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_bytes_and_endless_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="trace:1: is no text in UTF-8"):
        list(requests_of(path))
    path.write_bytes(b"x" * (LONGEST_LINE + 10))
    with pytest.raises(InputError, match="trace:1: is longer than"):
        list(requests_of(path))
    with pytest.raises(InputError, match="cannot be read"):
        list(requests_of(tmp_path / "none"))


def test_a_long_trace_takes_the_memory_of_a_line(tmp_path: Path) -> None:
    row = json.dumps(MOONCAKE) + "\n"
    path = _file(tmp_path, row * 40_000)
    tracemalloc.start()
    assert sum(1 for _ in requests_of(path)) == 40_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000 < path.stat().st_size
