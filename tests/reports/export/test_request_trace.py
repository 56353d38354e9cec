"""The trace of a replay: each request is at every time in exactly one phase, and the phases are those of the steps."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reports.export.request_trace import REQUESTS, RequestTrace
from simulator.serving.engine.engine import Engine
from simulator.serving.handover import Handover, KvLink
from simulator.serving.load.sources import Stream
from simulator.serving.recorder import Recorder
from simulator.serving.replay import Fleet, replay
from simulator.serving.request import Request
from simulator.serving.routers import router_of
from tests.replays import PLAIN, Linear, at_once

Phases = list[tuple[str, float, float]]


def _traced(tmp_path: Path, requests: list[Request], window: tuple[float, float], **settings: Any) -> list[Any]:
    seen = RequestTrace(*window)
    recorder = Recorder(answered=(seen.finished,), watched=seen.stepped)
    engine = Engine(Linear(step=1.0), PLAIN, settings.pop("blocks", 1000), recorder)
    engine.name = "engine 0"
    replay(Stream(iter(requests), None), Fleet(engines=[engine], router=router_of("round-robin")), recorder)
    path = tmp_path / "trace.json.gz"
    count = seen.write(path)
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    assert len(events) == count
    return list(events)


def _phases(events: list[Any]) -> dict[str, Phases]:
    """Phases of every request [s]; lanes hold one request after the other, and phases lie inside it without gaps."""
    found: dict[str, Phases] = {}
    lanes: dict[int, list[Any]] = {}
    for event in events:
        if event["ph"] == "X" and event["pid"] == REQUESTS:
            lanes.setdefault(event["tid"], []).append(event)
    for lane in lanes.values():
        free, at, ends, name = 0.0, 0.0, 0.0, ""
        for event in lane:
            since, until = event["ts"], event["ts"] + event["dur"]
            if event["name"].startswith("request"):
                assert since >= free
                assert at == pytest.approx(ends)
                at, free, ends, name = since, until, until, event["name"]
                found[name] = []
            else:
                assert since == pytest.approx(at)
                found[name].append((event["name"], since / 1e6, until / 1e6))
                at = until
        assert at == pytest.approx(ends)
    return found


def test_a_request_that_is_put_back_waits_again(tmp_path: Path) -> None:
    events = _traced(tmp_path, at_once((16, 17), (16, 17)), (0.0, 100.0), blocks=3)
    phases = _phases(events)
    assert phases["request 0"] == [("prefill", 0.0, 1.0), ("decode", 1.0, 17.0)]
    # Two prompts in step 1; then one block is missing until the first has ended.
    assert phases["request 1"] == [
        ("prefill", 0.0, 1.0),
        ("waiting", 1.0, 17.0),
        ("prefill", 17.0, 18.0),
        ("decode", 18.0, 33.0),
    ]


def test_steps_are_single_ones_and_fill_the_busy_time(tmp_path: Path) -> None:
    events = _traced(tmp_path, at_once((10, 5), (10, 8)), (0.0, 100.0))
    steps = [event for event in events if event["ph"] == "X" and event["pid"] != REQUESTS]
    assert [event["name"] for event in steps] == ["prefill 20", *["decode 2"] * 4, *["decode 1"] * 3]
    assert [event["ts"] for event in steps] == [at * 1e6 for at in range(8)]
    assert sum(event["dur"] for event in steps) == pytest.approx(8e6)
    assert [event["args"]["cached_tokens"] for event in steps[1:5]] == [20, 22, 24, 26]


def test_a_window_keeps_what_meets_it(tmp_path: Path) -> None:
    events = _traced(tmp_path, [Request(0, 0.0, 10, 20), Request(1, 50.0, 10, 3)], (4.5, 6.5))
    steps = [event for event in events if event["ph"] == "X" and event["pid"] != REQUESTS]
    assert [event["ts"] for event in steps] == [4e6, 5e6, 6e6]
    assert _phases(events) == {"request 0": [("decode", 4.0, 7.0)]}


def test_a_kv_cache_travels_between_prefill_and_decode(tmp_path: Path) -> None:
    seen = RequestTrace(0.0, 100.0)
    recorder = Recorder(answered=(seen.finished,), watched=seen.stepped)
    link = KvLink(sending=0.01, receiving=0.01, latency=0.25, layers=10)
    after = Engine(Linear(step=1.0), PLAIN, 1000, recorder)
    handover = Handover(recorder, link, [after])
    before = Engine(Linear(step=1.0), PLAIN, 1000, handover)
    before.name, after.name = "prefill engine 0", "decode engine 0"
    fleet = Fleet(engines=[before], router=router_of("round-robin"), decoders=[after], handover=handover)
    replay(Stream(iter(at_once((100, 5))), None), fleet, recorder)
    path = tmp_path / "trace.json"
    seen.write(path)
    phases = _phases(json.loads(path.read_text())["traceEvents"])["request 0"]
    assert [name for name, _, _ in phases] == ["prefill", "KV transfer", "decode"]
    assert [end for _, _, end in phases] == pytest.approx([1.0, 1.35, 5.35])


def test_a_request_that_only_waits_in_the_window_is_shown(tmp_path: Path) -> None:
    seen = RequestTrace(2.2, 3.8)
    recorder = Recorder(answered=(seen.finished,), watched=seen.stepped)
    engine = Engine(Linear(step=1.0), replace(PLAIN, sequences=1), 1000, recorder)
    replay(
        Stream(iter(at_once((10, 10), (10, 2))), None),
        Fleet(engines=[engine], router=router_of("round-robin")),
        recorder,
    )
    path = tmp_path / "trace.json"
    seen.write(path)
    phases = _phases(json.loads(path.read_text())["traceEvents"])
    assert phases == {"request 0": [("decode", 2.0, 4.0)], "request 1": [("waiting", 2.2, 3.8)]}
