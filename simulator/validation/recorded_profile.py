"""The overlapped pair of DeepSeek's public training profile, simulated with the rows its gate chose [ms]."""

from __future__ import annotations

from functools import lru_cache

from simulator.inputs import load_scenario
from simulator.profile.comparison import phase_spans
from simulator.profile.pair import Layers, OpSpan, Rows, simulated
from simulator.results.intervals import length, merged
from simulator.results.simulate import prepare
from simulator.validation.cannot import CannotCompute
from simulator.validation.figures import Figure
from simulator.validation.training_figures import V3


@lru_cache(maxsize=2)
def _pair(periods: tuple[Layers, ...]) -> list[OpSpan]:
    built = prepare(load_scenario(V3, ["routing.kind=uniform"]), typical=True)[0]  # loads are the gate's
    return simulated(built, periods)


def trace_pair(figure: Figure) -> float:
    """Span of the pair, busy time of its compute streams, or span of a phase [ms]."""
    c = figure.config
    ahead = zip(c["forward_rows"], c["forward_received"], strict=True)
    back = zip(c["backward_rows"], c["backward_received"], strict=True)
    layers = tuple(
        Layers(forward=Rows(rows=f[0], received=f[1]), backward=Rows(rows=b[0], received=b[1]))
        for f, b in zip(ahead, back, strict=True)
    )
    spans = _pair(layers)
    compute = [(s.start, s.end) for s in spans if s.priced.op.stream == "compute"]
    if figure.quantity == "pair_span":
        return (max(end for _, end in compute) - min(start for start, _ in compute)) * 1e3
    if figure.quantity == "compute_busy":
        gap = load_scenario(V3).stack.kernel_gap
        return length(merged((start, max(start, end - gap)) for start, end in compute)) * 1e3
    name, _, direction = figure.id.rpartition(".")[2].rpartition("_")
    phase = f"{name}({direction})"
    found = phase_spans(spans, phase)
    if not found:
        raise CannotCompute(f"no phase {phase} in the pair")
    return sum(found) * 1e3
