"""Files with something wrong in them: every one gets an answer or one line, never a crash, and never half a JSON.

Each example is a file that works with one to three things changed: a value by an odd one, a line left out or doubled,
or bytes. In CI the same examples every time, for about a minute; `make fuzz FUZZ=1000` tries so many fresh ones of
each kind.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cli

FRESH = int(os.environ.get("FUZZ", "0"))
ODD = (
    *("0", "-1", "1", "3", "0.5", "-0.0", "1e308", "-1e308", "1e-308", "1000000", "99999999999999999999", "9" * 400),
    *("nan", "inf", "true", "none", '""', '"none"', '"\\u202e"', '"."', '"/dev/zero"', '"1f1b"', '"[red]"', "[]", "{}"),
    *("[" * 70 + "]" * 70, "[1, -1]", '["a"]', "{a = 1}", '"9"', '"' + "x" * 5000 + '"'),
)
"""What may stand in place of a value of a TOML file."""
ODD_JSON: tuple[Any, ...] = (
    *(0, -1, 1, 3, 0.5, 1e308, -1e308, 1e-308, 10**6, 10**20, 10**400, float("nan"), float("inf"), True, None),
    *("", "none", "\u202e", "\ud800", "a\nb", "\x00", [], {}, [[]], [1, -1], {"a": 1}, "9" * 50),
)
JOB = "\n".join(
    [
        'model = "./config.json"\nhardware = "./profile.toml"\nstack = "./stack.toml"\ngpus = 16\n',
        '[layout]\npp = 2\nep = 8\nschedule = "1f1b"\nzero = 1\ntp = 1\nvpp = 1\ncp = 1\nrecompute = "none"\n',
        "[batch]\nsequence_length = 1024\nmicrobatch_size = 1\nglobal_batch_size = 64\n",
        '[precision]\nrecipe = "fp8"\n[overlap]\ncomm_sms = 20\n',
        '[routing]\nkind = "sampled"\nmax_over_mean = 1.5\ncv = 0.1\n[run]\ntokens = 1e12\nprice_per_gpu_hour = 2.0\n',
    ]
)
SERVING = "\n".join(
    [
        'model = "./config.json"\nhardware = "h800"\nstack = "deepseek-serving"\nworkload = "decode"\ngpus = 16\n',
        "[layout]\ntp = 1\nep = 8\n",
        "[serving]\nsequences = 8\ncontext = 1024\ntokens = 1\n",
        'kv_dtype = "bf16"\ncuda_graphs = true\ntwo_batch_overlap = true\n',
    ]
)
CAMPAIGN = "\n".join(
    [
        'name = "mine"\njob = "tiny-1f1b"\nfallback_schedules = ["gpipe"]\n',
        '[[phases]]\nname = "ramp"\npart = "first"\ntokens = 1e8\nramp_from = 64\nramp_steps = 2\n',
        '[[phases]]\nname = "full"\npart = "first"\nsteps = 100\nset = ["batch.sequence_length=512"]\n',
        '[published]\n"first" = 2.0\n',
        "[failures]\nmtbf_gpu_hours = 50700\ncheckpoint_s = 60\nrestart_s = 900\ninterval_s = 0\nruns = 20\nseed = 0\n",
        "[power]\npue = 1.2\ngpu_share = 0.8\n",
    ]
)
REQUESTS = (
    "timestamp,input_length,output_length,hash_ids\n0,1600,40,1 2 3 4\n900,1900,60,1 2 3 5\n2500,300,20,6\n2600,1,1,\n"
)
CHAT = "".join(
    json.dumps({"timestamp": 400 * at, "input_length": 700, "output_length": 9, "hash_ids": [1, at]}) + "\n"
    for at in range(8)
)
SCHEDULE = (
    "# name=mine stages=2 microbatches=4\n0: 0F0 0F1 0B0 0F2 0B1 0F3 0B2 0B3\n1: 1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3\n"
)
TABLE = (
    "op,m,n,k,precision,groups,form,tokens,hidden,top_k,ep,bytes,ranks,time_us\n"
    "gemm,4096,4096,7168,fp8,,,,,,,,,300\n"
    "gemm,32768,4096,7168,fp8,8,grouped,,,,,,,\n"
    "dispatch,,,,,,,4096,7168,8,64,,,500\n"
    "all-gather,,,,,,,,,,,1e9,16,\n"
)


def _event(category: str, name: str, at: float, took: float, correlation: int) -> dict[str, Any]:
    args = {"device": 0, "stream": 7, "correlation": correlation, "grid": [132, 1, 1]}
    return {"ph": "X", "cat": category, "name": name, "pid": 0, "tid": 7, "ts": at, "dur": took, "args": args}


TRACE = {
    "traceEvents": [
        event
        for number in range(12)
        for event in (
            _event("cuda_runtime", "cudaLaunchKernel", 50.0 * number, 2.0, number),
            _event("kernel", ("flash_fwd", "gemm", "dispatch", "combine")[number % 4], 50.0 * number + 9, 30.0, number),
            _event("user_annotation", "attn(F)" if number % 2 else "mlp(F)", 50.0 * number, 20.0, number),
        )
    ]
}


def _shipped(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


FILES: dict[str, Callable[[], str]] = {
    "job.toml": lambda: JOB,
    "serving.toml": lambda: SERVING,
    "campaign.toml": lambda: CAMPAIGN,
    "config.json": lambda: _shipped("workloads", "models/deepseek-v3-tiny/config.json"),
    "profile.toml": lambda: _shipped("hardware_profiles", "h800.toml").replace(
        'kernels = "h800"', 'kernels = "./kernels.toml"'
    ),
    "kernels.toml": lambda: _shipped("hardware_profiles", "kernels/h800.toml"),
    "fabric.toml": lambda: _shipped("hardware_profiles", "fabric/h800.toml"),
    "stack.toml": lambda: _shipped("workloads", "stacks/deepseek.toml"),
    "requests.csv": lambda: REQUESTS,
    "chat.jsonl": lambda: CHAT,
    "schedule.txt": lambda: SCHEDULE,
    "table.csv": lambda: TABLE,
    "trace.json": lambda: json.dumps(TRACE),
}
COMMANDS = {
    "job.toml": "simulate job.toml --json -q",
    "serving.toml": "simulate serving.toml --json -q",
    "campaign.toml": "plan campaign.toml --json -q",
    "config.json": "simulate job.toml --json -q",
    "profile.toml": "simulate job.toml --json -q",
    "kernels.toml": "simulate job.toml --json -q",
    "fabric.toml": "simulate job.toml --json -q --set hardware=./with-fabric.toml",
    "stack.toml": "simulate job.toml --json -q",
    "requests.csv": "serve llama-3-8b-decode --requests requests.csv --json -q",
    "chat.jsonl": "serve llama-3-8b-decode --requests chat.jsonl --set stack=sglang --json -q",
    "schedule.txt": "show schedule schedule.txt",
    "table.csv": "kernel table table.csv --json -q",
    "trace.json": "trace compare trace.json tiny-1f1b --json -q",
    "saved.json": "report compare saved.json saved-before.json --json -q --html page.html",
}
"""File -> the command that reads it."""


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file as it works, and what a command printed of each."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name, text in FILES.items():
        (folder / name).write_text(text(), encoding="utf-8")
    (folder / "with-fabric.toml").write_text('extends = "h800"\nfabric = "./fabric.toml"\n', encoding="utf-8")
    before = CliRunner().invoke(cli.foretrain, ["simulate", "tiny-1f1b", "--json", "-q"])
    for name in ("saved.json", "saved-before.json"):
        (folder / name).write_text(before.stdout, encoding="utf-8")
    return folder


def _check(command: str) -> int:
    result = CliRunner().invoke(cli.foretrain, command.split(), prog_name="foretrain")
    assert result.exit_code in (0, 2, 3), result.stderr
    if result.exit_code == 2:
        assert result.stderr.startswith("foretrain: ")
        assert result.stderr.isprintable() or all(line.isprintable() for line in result.stderr.split("\n"))
    if result.exit_code == 0 and "--json" in command:
        json.loads(result.stdout, parse_constant=pytest.fail)
    return result.exit_code


def _in_toml(text: str, data: st.DataObject) -> str:
    lines = text.split("\n")
    keyed = [at for at, line in enumerate(lines) if re.match(r"\s*[\w.\"@-]+\s*=", line)]
    for at in data.draw(st.lists(st.sampled_from(keyed), min_size=1, max_size=3)):
        key = lines[at].partition("=")[0]
        what = data.draw(st.sampled_from(("odd",) * 8 + ("gone", "twice")))
        if what == "odd":
            lines[at] = f"{key}= {data.draw(st.sampled_from(ODD))}"
        else:
            lines[at] = "" if what == "gone" else f"{lines[at]}\n{lines[at]}"
    return "\n".join(lines)


def _in_json(text: str, data: st.DataObject) -> str:
    value = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        _change(value, data)
    return json.dumps(value)


def _change(value: Any, data: st.DataObject) -> None:
    """One value somewhere below `value` becomes odd, or is left out."""
    while value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(value[key], (dict, list)) and value[key] and data.draw(st.integers(0, 9)):
            value = value[key]
        elif data.draw(st.integers(0, 9)):
            value[key] = data.draw(st.sampled_from(ODD_JSON))
            return
        else:
            del value[key]
            return


def _in_words(text: str, data: st.DataObject) -> str:
    words = re.split(r"([ ,\n=:])", text)
    for at in data.draw(st.lists(st.integers(0, len(words) - 1), min_size=1, max_size=3)):
        words[at] = data.draw(st.sampled_from((*ODD, "\u202e", "", "\n", "0F0", "(0F1;0B0)", "1e-300")))
    return "".join(words)


def _in_bytes(data: bytes, draw: st.DataObject) -> bytes:
    at, end = sorted(draw.draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
    end = min(end, at + 20)
    return data[:at] + draw.draw(st.binary(max_size=8)) + data[end:]


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
@settings(
    max_examples=FRESH or 15,
    derandomize=not FRESH,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_file_breaks_the_program(
    room: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: st.DataObject
) -> None:
    monkeypatch.chdir(room)
    file = room / name
    good = file.read_bytes()
    change = {".toml": _in_toml, ".json": _in_json}.get(file.suffix, _in_words)
    if data.draw(st.integers(0, 7)):
        bad = change(good.decode(), data).encode(errors="surrogatepass")
    else:
        bad = _in_bytes(good, data)
    file.write_bytes(bad)
    try:
        _check(COMMANDS[name])
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_files_work_as_they_are(room: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(room)
    assert _check(COMMANDS[name]) == 0


@pytest.mark.long
@settings(max_examples=FRESH or 60, derandomize=not FRESH, database=None)
@given(path=st.data())
def test_no_setting_breaks_the_program(path: st.DataObject) -> None:
    from simulator.inputs import load_scenario, settable_paths

    where = path.draw(st.sampled_from(settable_paths(load_scenario("tiny-1f1b"))))
    value = path.draw(st.sampled_from(ODD))
    result = CliRunner().invoke(cli.foretrain, ["simulate", "tiny-1f1b", "--json", "-q", "--set", f"{where}={value}"])
    assert result.exit_code in (0, 2, 3), result.stderr
