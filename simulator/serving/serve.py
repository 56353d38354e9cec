"""`serve`: requests through a deployment, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from simulator.serving.deployment import Deployment
from simulator.serving.engine.engine import Engine
from simulator.serving.engine.kv_tiers import KvTiers
from simulator.serving.load.sources import Closed, LoadSpec, open_load
from simulator.serving.recorder import Recorder
from simulator.serving.replay import replay
from simulator.serving.request import Sequence
from simulator.serving.table_error import TableError, table_error
from simulator.spec.scenario import Scenario

DRAIN = 0.25
"""Time after the last arrival, over the time of arrivals, from which on it is asked whether the queue has a bound."""
LEFT = 0.02
"""Waiting requests at the end of a file, over all, from which on its end decides on latencies."""
NEAR = 0.95
"""Rate over capacity from which on queues are long."""
WAVES = 8
"""Requests of a saturated run, over those that run at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """Requests come faster than they can be answered.

    Parameters
    ----------
    rate : rate of arrivals [1/s].
    capacity : most requests of these lengths that the deployment answers [1/s].
    """

    rate: float
    capacity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A replay.

    Parameters
    ----------
    deployment : what answered.
    load : what was asked.
    recorder : what users saw.
    preemptions : times that a sequence was put back.
    evicted : hashes of past prompts that HBM gave up.
    below : what the tiers below HBM hold at the end, of each engine that has them.
    backlog : requests waiting when the last one arrived.
    rate : rate of arrivals [1/s]; None where it depends on answers, or is not known.
    capacity : most requests of these lengths that can be answered [1/s]; None where it was not asked.
    overload : set if requests come faster than that.
    errors : how far interpolated step times are off.
    """

    deployment: Deployment
    load: LoadSpec
    recorder: Recorder
    preemptions: int
    evicted: int
    below: tuple[KvTiers, ...]
    backlog: int
    rate: float | None
    capacity: float | None
    overload: Overload | None
    errors: TableError

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing the numbers."""
        return list(_warnings(self))


def _warnings(served: Served) -> Iterator[str]:
    recorder, scenario = served.recorder, served.deployment.scenario
    if served.overload is not None:
        over = served.overload
        yield (
            f"overload: {over.rate:g} requests/s are above the capacity of {over.capacity:.4g}: the queue grows without"
            " bound; latencies are not given, rates are those at capacity"
        )
    elif served.load.kind == "file" and served.backlog > LEFT * recorder.arrived:
        yield (
            f"{served.backlog:,} requests waited when the last one of the file arrived: it asks for more than the"
            " deployment answers, and latencies depend on where it ends"
        )
    elif served.capacity is not None and served.rate is not None and served.capacity * NEAR < served.rate:
        yield f"the rate is near the capacity of {served.capacity:.4g} requests/s: queues are long and far from settled"
    if recorder.refused:
        yield f"{recorder.refused:,} requests are longer than the model's positions or the KV cache, and were refused"
    if served.deployment.ranks > 1:
        yield (
            "every step lasts as long as on the data-parallel rank with most sequences or prompt tokens, whose experts"
            " are taken to get as many from all; contexts are the mean of all, blocks are shared by all"
        )
    yield from assumed_of_scheduler(scenario, disaggregated=served.deployment.prompts is not None)


def assumed_of_scheduler(scenario: Scenario, *, disaggregated: bool) -> Iterator[str]:
    """The warning that names settings of the scheduler which are assumed; nothing where none is."""
    every = (name.removeprefix("scheduler.") for name in scenario.stack.assumed if name.startswith("scheduler."))
    assumed = [name for name in every if disaggregated or name != "kv_handover"]
    if assumed:
        names = ", ".join(assumed)
        yield f"assumed of the scheduler (foretrain show stack {scenario.stack.name}): {names}"


def serve(
    deployment: Deployment,
    load: LoadSpec,
    *,
    limits: Mapping[str, float] | None = None,
    answered: Items[Callable[[Sequence, float], None]] = (),
    watched: Callable[[float, float, Engine], None] | None = None,
    progress: Callable[[float], None] | None = None,
    judged: bool = True,
) -> Served:
    """Replay a load.

    Parameters
    ----------
    limits : service level of a request, bounds on some of ttft, tpot and e2e [s].
    answered : each called with every answered sequence and the time of its last token.
    watched : called with beginning, end and engine of steps that ran.
    progress : called with the part that is done (0 to 1).
    judged : whether it is found out if the rate is above capacity, and how far interpolated steps are off.
    """
    recorder = Recorder(limits, answered, watched)
    fleet = deployment.start(recorder)
    engines = [*fleet.engines, *fleet.decoders]
    source = open_load(load, progress if load.kind == "file" else None)
    whole = load.whole

    def watch(number: int) -> None:
        if progress is not None and whole:
            progress(min(1.0, number / whole))

    replay(
        source,
        fleet,
        recorder,
        longest=deployment.scenario.model.max_position_embeddings or None,
        progress=watch,
    )
    capacity, overload = None, None
    if judged and source.rate is not None and _may_be_too_much(recorder):
        capacity = saturation(deployment, load)
        overload = Overload(rate=source.rate, capacity=capacity) if source.rate >= capacity else None
    return Served(
        deployment=deployment,
        load=load,
        recorder=recorder,
        preemptions=sum(engine.prompts.preemptions for engine in engines),
        evicted=sum(engine.kv.evicted for engine in engines),
        below=tuple(engine.kv.tiers for engine in engines if engine.kv.tiers is not None),
        backlog=recorder.backlog,
        rate=source.rate,
        capacity=capacity,
        overload=overload,
        errors=table_error(deployment, recorder.ran if judged else ()),
    )


def _may_be_too_much(recorder: Recorder) -> bool:
    """Whether the queue may grow for as long as requests come: some waited at the end, or answers came long after."""
    return recorder.backlog > 0 or recorder.end - recorder.last_arrival > DRAIN * (
        recorder.last_arrival - recorder.begin
    )


def saturation(deployment: Deployment, load: LoadSpec) -> float:
    """Requests of these lengths that the deployment answers in a second while others always wait [1/s].

    Between the first and the last quarter of a long run, so that neither its start nor its end counts.
    """
    most = deployment.engines * deployment.ranks * deployment.scheduler.sequences
    users = 2 * most
    count = max(400, WAVES * most)
    marks: list[tuple[int, float]] = []
    seen = 0

    def note(_sequence: Sequence, now: float) -> None:
        nonlocal seen
        seen += 1
        if seen in (count // 4, count * 3 // 4):
            marks.append((seen, now))

    recorder = Recorder(answered=(note,))
    source = open_load(replace(load, requests=f"closed:{users}", count=count))
    assert isinstance(source, Closed)
    replay(source, deployment.start(recorder), recorder)
    if len(marks) < 2 or marks[1][1] <= marks[0][1]:
        return recorder.finished_count / max(recorder.end, 1e-12)
    return (marks[1][0] - marks[0][0]) / (marks[1][1] - marks[0][1])
