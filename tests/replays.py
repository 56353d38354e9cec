"""Replays with made-up step times, whose answers are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from simulator.serving.engine.engine import Engine
from simulator.serving.engine.kv_tiers import TierRoom
from simulator.serving.load.sources import Load, Stream
from simulator.serving.recorder import Recorder
from simulator.serving.replay import Fleet, replay
from simulator.serving.request import Request, Sequence
from simulator.serving.routers import RouterName, router_of
from simulator.serving.step_times import Pace, StepTimes
from simulator.spec.scheduler import Scheduler

PLAIN = Scheduler(
    prefill="mixed",
    chunked=True,
    step_tokens=8192,
    sequences=256,
    reserved_output=0.0,
    block=16,
    prefix_cache=True,
    host_cache=0.0,
    disk_cache=0.0,
    cache_writes="through",
    cache_loads="layers",
    kv_handover="layers",
    captured=(),
    captured_prefill=0,
    host_step=0.0,
    host_sequence=0.0,
    host_overlapped=False,
    decided_ahead=False,
    stream_interval=1,
    frontend=0.0,
)
"""A scheduler like vLLM's, without any time of the host."""


class Linear:
    """Step times that are a sum: a constant, and so much for each cached token and each new one [s]."""

    def __init__(self, *, step: float = 0.0, cached: float = 0.0, new: float = 0.0, ahead: int = 1 << 30) -> None:
        self.step, self.cached, self.new, self.ahead = step, cached, new, ahead

    def decode(self, batch: int, context: float) -> Pace:
        return Pace(self.step + self.cached * batch * context, self.cached * batch, self.ahead)

    def mixed(self, batch: int, context: float, tokens: int, attended: float) -> float:
        return self.step + self.cached * batch * context + self.new * tokens


class Noted:
    """Answered requests: the sequence as it was, and when its last token came."""

    def __init__(self) -> None:
        self.ends: dict[int, float] = {}
        self.firsts: dict[int, float] = {}
        self.starts: dict[int, float] = {}
        self.preemptions: dict[int, int] = {}
        self.hits: dict[int, int] = {}
        self.below: dict[int, tuple[int, int]] = {}
        self.order: list[int] = []

    def __call__(self, sequence: Sequence, now: float) -> None:
        number = sequence.request.number
        assert number not in self.ends, "every request ends once"
        assert sequence.made == sequence.request.output_tokens
        self.ends[number], self.firsts[number] = now, sequence.first
        self.starts[number], self.preemptions[number] = sequence.started, sequence.preemptions
        self.hits[number] = sequence.hits
        self.below[number] = (sequence.host_hits, sequence.disk_hits)
        self.order.append(number)


def run(
    requests: Iterable[Request] | Load,
    times: StepTimes,
    *,
    blocks: int = 100_000,
    engines: int = 1,
    router: RouterName = "round-robin",
    drafts: tuple[float, ...] = (),
    loss: tuple[int, float] | None = None,
    tiers: TierRoom | None = None,
    ranks: int = 1,
    balanced: bool = False,
    **settings: Any,
) -> tuple[Recorder, Noted, list[Engine]]:
    """What became of the requests, and the engines as they were at the end."""
    noted = Noted()
    recorder = Recorder(answered=(noted,))
    scheduler = replace(PLAIN, **settings)
    made = [Engine(times, scheduler, blocks, recorder, drafts, 0, tiers, ranks, balanced) for _ in range(engines)]
    load: Load = Stream(iter(requests), None) if isinstance(requests, Iterable) else requests
    replay(load, Fleet(engines=made, router=router_of(router), loss=loss), recorder)
    return recorder, noted, made


def at_once(*lengths: tuple[int, int]) -> list[Request]:
    """Requests that all arrive at time 0: lengths of prompts and answers."""
    return [Request(number, 0.0, inputs, outputs) for number, (inputs, outputs) in enumerate(lengths)]
