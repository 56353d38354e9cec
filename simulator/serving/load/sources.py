"""Where requests come from: a file, a random process, or users who wait for their answer before they ask again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from math import inf
from pathlib import Path
from typing import Protocol

import numpy as np

from simulator.errors import InputError
from simulator.serving.load.lengths import lengths
from simulator.serving.load.lines import Progress
from simulator.serving.load.traces import requests_of
from simulator.serving.request import Request

FORMS = "a file, poisson:RATE, gamma:RATE,CV or closed:USERS"
PER_USER = 10
"""Requests for each user of a closed loop where `--count` does not say (as InferenceX's benchmarks)."""
COUNT = 1000
"""Requests of a random process where `--count` does not say."""
_BATCH = 4096


class Load(Protocol):
    """Requests in order of arrival.

    Attributes
    ----------
    rate : mean rate of arrivals that does not depend on answers [1/s]; None where it does, or is not known.
    """

    rate: float | None

    def next_time(self) -> float:
        """When the next request arrives; infinity where none is to come [s]."""

    def take(self) -> Request:
        """The next request."""

    def finished(self, now: float) -> None:
        """A request was answered, or refused, at `now` [s]."""


class Stream:
    """Requests that arrive whatever happens to others."""

    def __init__(self, requests: Iterator[Request], rate: float | None) -> None:
        self.rate = rate
        self._requests = requests
        self._next = next(requests, None)

    def next_time(self) -> float:
        """See `Load`."""
        return inf if self._next is None else self._next.arrival

    def take(self) -> Request:
        """See `Load`."""
        found = self._next
        assert found is not None
        self._next = next(self._requests, None)
        return found

    def finished(self, now: float) -> None:
        """Nobody waits for it."""


class Closed:
    """A number of users, each of whom asks again as soon as the answer is there."""

    rate: float | None = None

    def __init__(self, users: int, count: int, inputs: Iterator[int], outputs: Iterator[int]) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._left, self._number = max(0, count - users), 0
        self._due: deque[float] = deque([0.0] * min(users, count))

    def next_time(self) -> float:
        """See `Load`."""
        return self._due[0] if self._due else inf

    def take(self) -> Request:
        """See `Load`."""
        number = self._number
        self._number += 1
        return Request(number, self._due.popleft(), next(self._inputs), next(self._outputs))

    def finished(self, now: float) -> None:
        """The user asks again, while there are requests left."""
        if self._left:
            self._left -= 1
            self._due.append(now)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """Requests as the command line asks for them.

    Parameters
    ----------
    requests : a file, `poisson:RATE`, `gamma:RATE,CV` (rates in requests per second) or `closed:USERS`.
    input_tokens, output_tokens : lengths (`simulator.serving.load.lengths`), where no file has them.
    count : requests to replay (None: all of a file, `COUNT` of a process, `PER_USER` for each user).
    seed : seed of everything that is random.
    """

    requests: str
    input_tokens: str | None = None
    output_tokens: str | None = None
    count: int | None = None
    seed: int = 0

    @property
    def kind(self) -> str:
        """`file`, `poisson`, `gamma` or `closed`."""
        word = self.requests.partition(":")[0]
        return word if word in ("poisson", "gamma", "closed") and ":" in self.requests else "file"

    @property
    def whole(self) -> int:
        """Requests in all; 0 where the file's end decides."""
        if self.kind == "file":
            return 0
        return self.count or (PER_USER * _users(self.requests) if self.kind == "closed" else COUNT)


def open_load(spec: LoadSpec, progress: Progress | None = None) -> Load:
    """The requests of a spec, from the first on.

    Raises
    ------
    InputError : a form that is not known, lengths that are missing or too much, a file that cannot be read.
    """
    if spec.kind == "file":
        return _of_file(spec, progress)
    missing = [f"--{name}-tokens" for name in ("input", "output") if getattr(spec, f"{name}_tokens") is None]
    if missing:
        raise InputError(f"{' and '.join(missing)}: missing: --requests {spec.requests} has no lengths, as in 1024")
    seeds = np.random.SeedSequence(spec.seed).spawn(3)
    arrivals, first, second = (np.random.default_rng(seed) for seed in seeds)
    inputs = lengths(spec.input_tokens or "", "--input-tokens", first)
    outputs = lengths(spec.output_tokens or "", "--output-tokens", second)
    if spec.kind == "closed":
        users = _users(spec.requests)
        return Closed(users, spec.whole, inputs, outputs)
    rate, cv = _process(spec)
    times = _arrivals(rate, cv, arrivals)
    made = (Request(number, time, next(inputs), next(outputs)) for number, time in enumerate(islice(times, spec.whole)))
    return Stream(made, rate)


def _of_file(spec: LoadSpec, progress: Progress | None) -> Load:
    path = Path(spec.requests)
    if not path.is_file():
        path = _shipped(spec.requests)
    for name in ("input", "output"):
        if getattr(spec, f"{name}_tokens") is not None:
            raise InputError(f"--{name}-tokens: changes nothing: the lengths are those of {path}")
    return Stream(islice(requests_of(path, progress), spec.count), None)


def _shipped(name: str) -> Path:
    """The trace of this name that comes with the program."""
    for one in resources.files("workloads.traces").iterdir():
        if one.name == f"{name}.jsonl":
            return Path(str(one))
    raise InputError(f"--requests: {name[:80]!r}: is neither a file nor a process: must be {FORMS}; `chat` is shipped")


def _users(text: str) -> int:
    number = text.partition(":")[2]
    if not number.isdigit() or not 1 <= int(number) <= 1_000_000:
        raise InputError(f"--requests: {text[:80]!r}: must be closed:USERS with 1 to 1,000,000 users, as in closed:64")
    return int(number)


def _process(spec: LoadSpec) -> tuple[float, float]:
    """Rate [1/s] and coefficient of variation of the times between arrivals."""
    kind, _, text = spec.requests.partition(":")
    right = "poisson:RATE, as in poisson:2.5" if kind == "poisson" else "gamma:RATE,CV, as in gamma:2.5,3"
    parts = text.split(",")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) != (1 if kind == "poisson" else 2) or not all(1e-6 <= value <= 1e6 for value in values):
        raise InputError(f"--requests: {spec.requests[:80]!r}: must be {right} (requests/s, each from 1e-6 to 1e6)")
    return values[0], 1.0 if kind == "poisson" else values[1]


def _arrivals(rate: float, cv: float, rng: np.random.Generator) -> Iterator[float]:
    """Times of arrivals: the gaps between them are gamma variates of this coefficient of variation [s]."""
    now, shape = 0.0, cv**-2
    while True:
        for gap in rng.gamma(shape, 1.0 / (rate * shape), size=_BATCH).tolist():
            now += gap
            yield now
