"""A profile compared with the simulation of the same job: by kernel class, by phase, and for the span of the pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simulator.errors import InputError
from simulator.profile.label import by_kind, label
from simulator.profile.match import Matched, match
from simulator.profile.pair import Layers, OpSpan, Rows, simulated
from simulator.profile.recording import Kernel, Recording, busy, intervals, late
from simulator.results.intervals import length, merged
from simulator.results.simulate import prepare
from simulator.spec.scenario import Scenario

SCHEMA = "foretrain.trace-compare/2"
COMPUTE_PHASES = ("attn(F)", "mlp(B)", "mlp(W)", "mlp(F)", "attn(B)", "attn(W)")
COMM_PHASES = ("dispatch(F)", "dispatch(B)", "combine(F)", "combine(B)")
FORWARD_ROWS = ("moe.up_gate.save_fp8", "moe.unpermute.fwd")
BACKWARD_ROWS = ("moe.up_gate.quant_g", "moe.unpermute.grad")
"""Ops whose grid has one CTA per row of the local experts, and per token received."""
MOST_COPIES = 64
"""Rows of one token on one rank, at most: grids that say more are those of other kernels."""
COMPLETE = 0.8
"""Part of a phase's ops that must be found for its period to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassError:
    """Prediction of a kernel class.

    Parameters
    ----------
    cls : kernel class.
    ops : ops matched.
    kernels : kernels of the profile.
    measured, predicted : total time [s].
    mape : mean absolute relative error.
    past_clock : the same, without what half a tick of the profile's clock per kernel explains.
    calibrated : whether the class was measured on this GPU.
    """

    cls: str
    ops: int
    kernels: int
    measured: float
    predicted: float
    mape: float
    past_clock: float
    calibrated: bool

    @property
    def error(self) -> float:
        """Of the sum."""
        return self.predicted / self.measured - 1.0 if self.measured else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseError:
    """A phase over all complete periods; the barrier before an all-to-all is not counted.

    Parameters
    ----------
    phase : name of the phase.
    periods : complete periods.
    span : from the start of its first kernel to the end of its last [s].
    late : part of the span in which the next kernel was not launched yet [s]; no simulated kernel waits for the CPU.
    predicted_span : simulated span [s].
    busy : time in kernels [s].
    predicted_busy : simulated time in kernels [s].
    """

    phase: str
    periods: int
    span: float
    late: float
    predicted_span: float
    busy: float
    predicted_busy: float

    @property
    def error(self) -> float:
        """Of the time that kernels run."""
        return self.predicted_busy / self.busy - 1.0 if self.busy else 0.0

    @property
    def span_error(self) -> float:
        """Of the span without its late launches."""
        return self.predicted_span / (self.span - self.late) - 1.0 if self.span > self.late else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairError:
    """The overlapped pair, from the start of its first compute kernel to the end of its last.

    Parameters
    ----------
    periods : the layers of each period.
    measured : span in the profile [s].
    late : see `PhaseError` [s].
    predicted : simulated span [s].
    compute_busy, predicted_compute_busy : time in kernels of compute streams within the span [s].
    comm_busy, predicted_comm_busy : time in kernels of communication streams within the span [s].
    """

    periods: tuple[Layers, ...]
    measured: float
    late: float
    predicted: float
    compute_busy: float
    predicted_compute_busy: float
    comm_busy: float
    predicted_comm_busy: float

    @property
    def error(self) -> float:
        """Of the span without its late launches."""
        return self.predicted / (self.measured - self.late) - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamUse:
    """A stream of the profile.

    Parameters
    ----------
    stream : its number.
    kind : what runs on it.
    kernels : number of kernels.
    busy : time in kernels [s].
    """

    stream: int
    kind: str
    kernels: int
    busy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything `trace compare` shows."""

    recording: Recording
    scenario: Scenario
    streams: tuple[StreamUse, ...]
    pair: PairError
    phases: tuple[PhaseError, ...]
    classes: tuple[ClassError, ...]
    matched: tuple[Matched, ...]
    unmatched: tuple[Kernel, ...]

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        pair = self.pair
        return {
            "schema": SCHEMA,
            "trace": self.recording.path,
            "job": self.scenario.name,
            "hardware": self.scenario.cluster.name,
            "kernels": len(self.recording.kernels),
            "span_s": self.recording.span,
            "busy_s": busy(self.recording.kernels),
            "idle_s": self.recording.span - busy(self.recording.kernels),
            "streams": [
                {"stream": s.stream, "kind": s.kind, "kernels": s.kernels, "busy_s": s.busy} for s in self.streams
            ],
            "pair": {
                "measured_s": pair.measured,
                "late_s": pair.late,
                "predicted_s": pair.predicted,
                "error": pair.error,
                "compute_busy_s": pair.compute_busy,
                "predicted_compute_busy_s": pair.predicted_compute_busy,
                "comm_busy_s": pair.comm_busy,
                "predicted_comm_busy_s": pair.predicted_comm_busy,
                "layers": [
                    {
                        "forward_routed_tokens": p.forward.rows,
                        "forward_received_tokens": p.forward.received,
                        "backward_routed_tokens": p.backward.rows,
                        "backward_received_tokens": p.backward.received,
                    }
                    for p in pair.periods
                ],
            },
            "phases": [
                {
                    "phase": p.phase,
                    "periods": p.periods,
                    "measured_s": p.busy,
                    "predicted_s": p.predicted_busy,
                    "error": p.error,
                    "span_s": p.span,
                    "late_s": p.late,
                    "predicted_span_s": p.predicted_span,
                    "span_error": p.span_error,
                }
                for p in self.phases
            ],
            "classes": [
                {
                    "class": c.cls,
                    "ops": c.ops,
                    "kernels": c.kernels,
                    "measured_s": c.measured,
                    "predicted_s": c.predicted,
                    "error": c.error,
                    "mape": c.mape,
                    "mape_past_clock": c.past_clock,
                    "calibrated": c.calibrated,
                }
                for c in self.classes
            ],
            "ops": [
                {
                    "op": m.span.priced.op.name,
                    "class": m.span.priced.op.cls,
                    "phase": m.span.phase,
                    "period": m.span.period,
                    "kernels": len(m.kernels),
                    "measured_us": m.measured * 1e6,
                    "predicted_us": m.predicted * 1e6,
                }
                for m in self.matched
            ],
            "unmatched": [
                {"kernel": k.name[:120], "class": k.cls, "phase": k.phase, "us": k.seconds * 1e6}
                for k in self.unmatched
            ],
        }


def compare(recording: Recording, scenario: Scenario) -> Comparison:
    """Hold a profile against the job. Raises InputError where the profile shows no layer pair of it."""
    built = prepare(scenario, typical=True)[0]
    gap = scenario.kernel_gap
    label(recording, built)
    count = 1 + max((k.period for k in recording.kernels if k.phase in COMPUTE_PHASES), default=-1)
    plain = Layers(forward=Rows(), backward=Rows())
    first = match(recording.kernels, simulated(built, [plain] * count), gap) if count else []
    complete = _complete_periods(first)
    if not complete:
        raise InputError(
            f"{recording.path}: no whole layer pair of {scenario.name} is found among its "
            f"{len(recording.kernels)} kernels; is it the profile of another job?"
        )
    periods = [_rows_of(first, period) for period in complete]
    spans = simulated(built, periods)
    kernels = [k for k in recording.kernels if k.period in complete and k.phase]
    for kernel in kernels:
        kernel.period -= complete[0]
    matched = match(kernels, spans, gap)
    found = {id(k) for one in matched for k in one.kernels}
    return Comparison(
        recording=recording,
        scenario=scenario,
        streams=_streams(recording),
        pair=_pair(kernels, spans, tuple(periods), gap),
        phases=tuple(_phases(kernels, spans, matched)),
        classes=tuple(_classes(matched, recording.clock)),
        matched=tuple(one for one in matched if one.kernels),
        unmatched=tuple(k for k in kernels if id(k) not in found),
    )


def _complete_periods(matched: Sequence[Matched]) -> list[int]:
    """The first unbroken row of periods of which every compute phase is there."""
    found: dict[int, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for one in matched:
        if one.span.phase in COMPUTE_PHASES:
            found[one.span.period][one.span.phase].append(one.complete)
    out: list[int] = []
    for period in sorted(found):
        if all(sum(hits) >= COMPLETE * len(hits) for hits in found[period].values()):
            out.append(period)
        elif out:
            break
    return out


def _rows_of(matched: Sequence[Matched], period: int) -> Layers:
    grids = {
        one.span.priced.op.name: one.kernels[0].grid[0]
        for one in matched
        if one.span.period == period and len(one.kernels) == 1 and one.kernels[0].grid
    }

    def rows(names: tuple[str, str]) -> Rows:
        rows, received = grids.get(names[0], 0), grids.get(names[1], 0)
        return Rows(rows=rows, received=received) if rows >= received > rows / MOST_COPIES else Rows()

    return Layers(forward=rows(FORWARD_ROWS), backward=rows(BACKWARD_ROWS))


def _streams(recording: Recording) -> tuple[StreamUse, ...]:
    comm = {k.stream for k in by_kind(recording)[1]}
    return tuple(
        StreamUse(
            stream=stream,
            kind="communication" if stream in comm else "compute",
            kernels=len(kernels),
            busy=busy(kernels),
        )
        for stream, kernels in recording.streams().items()
    )


def _pair(kernels: Sequence[Kernel], spans: Sequence[OpSpan], periods: tuple[Layers, ...], gap: float) -> PairError:
    compute = [k for k in kernels if k.phase in COMPUTE_PHASES]
    comm = [k for k in kernels if k.phase not in COMPUTE_PHASES]

    def simulated_busy(stream: str) -> float:
        ran = [s for s in spans if s.priced.op.stream == stream]
        return length(merged((s.start, max(s.start, s.end - gap)) for s in ran))

    return PairError(
        periods=periods,
        measured=_span([(k.start, k.end) for k in compute]),
        late=late(compute),
        predicted=_span([(s.start, s.end) for s in spans if s.priced.op.stream == "compute"]),
        compute_busy=busy(compute),
        predicted_compute_busy=simulated_busy("compute"),
        comm_busy=busy(comm),
        predicted_comm_busy=simulated_busy("comm"),
    )


def _phases(kernels: Sequence[Kernel], spans: Sequence[OpSpan], matched: Sequence[Matched]) -> list[PhaseError]:
    out = []
    for phase in COMPUTE_PHASES + COMM_PHASES:
        comm = phase in COMM_PHASES
        keep = _communicates if comm else _computes
        own = [k for k in kernels if k.phase == phase and keep(k.cls)]
        if not own or not phase_spans(spans, phase):
            continue
        numbers = sorted({k.period for k in own})
        out.append(
            PhaseError(
                phase=phase,
                periods=len(numbers),
                span=sum(_span([(k.start, k.end) for k in own if k.period == n]) for n in numbers),
                late=sum(late([k for k in own if k.period == n]) for n in numbers),
                predicted_span=sum(phase_spans(spans, phase)),
                busy=sum(length(intervals([k for k in own if k.period == n])) for n in numbers),
                predicted_busy=sum(
                    m.predicted for m in matched if m.span.phase == phase and m.complete and keep(m.span.priced.op.cls)
                ),
            )
        )
    return out


def phase_spans(spans: Sequence[OpSpan], phase: str) -> list[float]:
    """Simulated span of a phase in each period [s]; of an all-to-all's phase without the barrier before it."""
    keep = _communicates if phase in COMM_PHASES else _computes
    ran = [s for s in spans if s.phase == phase and keep(s.priced.op.cls)]
    return [_span([(s.start, s.end) for s in ran if s.period == n]) for n in sorted({s.period for s in ran})]


def _communicates(cls: str) -> bool:
    return cls in ("comm.dispatch", "comm.combine")


def _computes(cls: str) -> bool:
    return not cls.startswith("comm.")


def _span(times: Sequence[tuple[float, float]]) -> float:
    return max(end for _, end in times) - min(start for start, _ in times) if times else 0.0


def _past_clock(one: Matched, clock: float) -> float:
    """Relative error of an op beyond what half a tick of the clock a kernel may be."""
    off = abs(one.predicted - one.measured) - len(one.kernels) * clock / 2
    return max(0.0, off) / one.measured


def _classes(matched: Sequence[Matched], clock: float) -> list[ClassError]:
    by: dict[str, list[Matched]] = defaultdict(list)
    for one in matched:
        if one.complete and one.kernels and one.measured > 0.0:
            by[one.span.priced.op.cls].append(one)
    out = [
        ClassError(
            cls=cls,
            ops=len(ops),
            kernels=sum(len(m.kernels) for m in ops),
            measured=sum(m.measured for m in ops),
            predicted=sum(m.predicted for m in ops),
            mape=sum(abs(m.predicted / m.measured - 1.0) for m in ops) / len(ops),
            past_clock=sum(_past_clock(m, clock) for m in ops) / len(ops),
            calibrated=all(m.span.priced.cost.calibrated for m in ops),
        )
        for cls, ops in by.items()
    ]
    return sorted(out, key=lambda c: (-c.measured, c.cls))
