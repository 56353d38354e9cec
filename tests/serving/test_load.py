"""Loads: processes, users who wait, lengths; what cannot be one."""

from __future__ import annotations

import json
from importlib import resources
from itertools import islice
from math import inf
from pathlib import Path
from statistics import mean, pstdev

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.serving.load.lengths import lengths
from simulator.serving.load.sources import COUNT, PER_USER, LoadSpec, open_load
from workloads.traces.make_chat import rows


def _times(requests: str, count: int = 40_000, seed: int = 1) -> list[float]:
    load = open_load(LoadSpec(requests=requests, input_tokens="10", output_tokens="10", count=count, seed=seed))
    out = []
    while load.next_time() < inf:
        out.append(load.take().arrival)
    return out


@pytest.mark.parametrize(("requests", "cv"), [("poisson:5", 1.0), ("gamma:5,0.5", 0.5), ("gamma:5,3", 3.0)])
def test_processes_have_their_rate_and_spread(requests: str, cv: float) -> None:
    times = _times(requests)
    gaps = np.diff([0.0, *times])
    assert mean(gaps) == pytest.approx(0.2, rel=0.04)
    assert pstdev(gaps) / mean(gaps) == pytest.approx(cv, rel=0.04)
    assert times == sorted(times)


def test_a_seed_gives_the_same_requests_and_another_gives_others() -> None:
    assert _times("poisson:5", 50) == _times("poisson:5", 50)
    assert _times("poisson:5", 50) != _times("poisson:5", 50, seed=2)


def test_users_ask_again_when_they_are_answered() -> None:
    load = open_load(LoadSpec(requests="closed:2", input_tokens="7", output_tokens="3", count=3))
    assert [load.take().arrival, load.take().arrival] == [0.0, 0.0]
    assert load.next_time() == inf
    load.finished(4.5)
    assert (load.next_time(), load.take()[:4]) == (4.5, (2, 4.5, 7, 3))
    load.finished(9.0)
    assert load.next_time() == inf


def test_counts_where_nobody_says() -> None:
    spec = LoadSpec(requests="closed:3", input_tokens="1", output_tokens="1")
    assert spec.whole == 3 * PER_USER
    assert LoadSpec(requests="poisson:1").whole == COUNT
    assert LoadSpec(requests="a-file").whole == 0


def test_lengths_of_each_form(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    assert list(islice(lengths("512", "--x", rng), 3)) == [512] * 3
    found = list(islice(lengths("uniform:0.8-1.0x1024", "--x", rng), 20_000))
    assert (min(found), max(found)) == (819, 1024)
    assert mean(found) == pytest.approx((819 + 1024) / 2, rel=0.01)
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n3,4\n")
    assert list(islice(lengths(f"{table}:b", "--x", rng), 5)) == [2, 4, 2, 4, 2]
    rows = tmp_path / "t.jsonl"
    rows.write_text('{"n": 5}\n{"n": 6}\n')
    assert list(islice(lengths(f"{rows}:n", "--x", rng), 3)) == [5, 6, 5]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("0", "--x: '0': must be from 1 to"),
        ("-3", "--x: '-3': must be a number"),
        ("99999999", "must be from 1 to 4,194,304 tokens"),
        ("uniform:0.8-1.0", "must be a number, uniform:"),
        ("gamma:0x100", "coefficient of variation must be from 0.01 to 10"),
        ("gamma:1.0", "must be a number, uniform:"),
        ("uniform:1.0-0.5x100", "from 100 to 50 tokens: must rise"),
        ("uniform:1..2-3x100", "must be a number, uniform:"),
        ("normal:3", "normal: cannot be read"),
        ("", "must be a number"),
    ],
)
def test_what_is_no_length_is_one_line(text: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        next(lengths(text, "--x", np.random.default_rng(0)))


def test_columns_that_do_not_do(tmp_path: Path) -> None:
    rng, table = np.random.default_rng(0), tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n3,x\n")
    with pytest.raises(InputError, match="has no column 'c'; it has a, b"):
        lengths(f"{table}:c", "--x", rng)
    with pytest.raises(InputError, match=r"t.csv:3: b: 'x': must be a whole number"):
        lengths(f"{table}:b", "--x", rng)
    table.write_text("a,b\n")
    with pytest.raises(InputError, match="has no lengths"):
        lengths(f"{table}:b", "--x", rng)


@pytest.mark.parametrize(
    ("requests", "error"),
    [
        ("poisson:0", "must be poisson:RATE"),
        ("poisson:-1", "must be poisson:RATE"),
        ("poisson:nan", "must be poisson:RATE"),
        ("poisson:1,2", "must be poisson:RATE"),
        ("gamma:1", "must be gamma:RATE,CV"),
        ("closed:0", "must be closed:USERS"),
        ("closed:2.5", "must be closed:USERS"),
        ("no-such-file", "is neither a file nor a process"),
        ("normal:3", "is neither a file nor a process"),
    ],
)
def test_what_is_no_load_is_one_line(requests: str, error: str) -> None:
    lengths_of = {} if requests in ("no-such-file", "normal:3") else {"input_tokens": "1", "output_tokens": "1"}
    with pytest.raises(InputError, match=error):
        open_load(LoadSpec(requests=requests, **lengths_of))


def test_lengths_belong_to_processes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--input-tokens and --output-tokens: missing"):
        open_load(LoadSpec(requests="poisson:1"))
    with pytest.raises(InputError, match=r"^--output-tokens: missing"):
        open_load(LoadSpec(requests="closed:1", input_tokens="3"))
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 1, "output_length": 1}\n')
    with pytest.raises(InputError, match="--input-tokens: changes nothing"):
        open_load(LoadSpec(requests=str(trace), input_tokens="3"))


def test_the_shipped_trace_is_what_its_script_writes() -> None:
    shipped = resources.files("workloads.traces").joinpath("chat.jsonl").read_text()
    assert shipped == "".join(json.dumps(row) + "\n" for row in rows())
    load = open_load(LoadSpec(requests="chat"))
    first, count = load.take(), 1
    while load.next_time() < inf:
        load.take()
        count += 1
    assert (first.arrival, count) == (0.0, len(shipped.splitlines()))


def test_gamma_lengths_have_their_mean_and_spread() -> None:
    found = np.array(list(islice(lengths("gamma:1.0x200", "--x", np.random.default_rng(1)), 50_000)))
    assert found.min() >= 1
    assert found.mean() == pytest.approx(200, rel=0.02)
    assert found.std() / found.mean() == pytest.approx(1.0, rel=0.03)
    assert np.mean(found > 400) == pytest.approx(np.exp(-2), rel=0.05)  # with a coefficient of 1 they are exponential
