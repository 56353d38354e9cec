"""How far the numbers can be trusted: where every kernel class comes from and how large its errors were.

Errors are those of the last calibration: mean absolute relative error on measurements made after the fit (`unseen`),
where there are none on those that took no part in it (`held out`), else on the fitted ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.engine.kernel_sequence import KernelSequence
from simulator.results.metrics import ClassTime
from simulator.results.result import Result
from simulator.studies.known_errors import KnownError, known_errors, measured_as


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTrust:
    """One kernel class and the error of its times.

    Parameters
    ----------
    cls : kernel class.
    seconds : its time on a mean rank [s].
    calibrated : whether it was measured on this GPU.
    error : mean absolute relative error (None: not known).
    samples : samples behind it.
    kind : kind of these samples.
    source : where the class comes from, in words.
    """

    cls: str
    seconds: float
    calibrated: bool
    error: float | None
    samples: int
    kind: str
    source: str


def trust_of(result: Result) -> list[ClassTrust]:
    """All kernel classes used, by time."""
    sources = _sources(result.timeline.tasks.sequence)
    stack, kernels = result.scenario.stack, result.scenario.cluster.kernels
    measured = known_errors(kernels.name)
    found: dict[str, ClassTrust] = {}
    for item in result.classes:
        before = found.get(item.cls)
        known = measured.get(measured_as(item.cls, stack, kernels))
        found[item.cls] = _trust(item, known, sources, before.seconds if before else 0.0)
    return sorted(found.values(), key=lambda item: (-item.seconds, item.cls))


def _trust(item: ClassTime, known: KnownError | None, sources: dict[str, str], more: float) -> ClassTrust:
    judged = known if item.calibrated else None
    return ClassTrust(
        cls=item.cls,
        seconds=item.seconds + more,
        calibrated=item.calibrated,
        error=judged.mape if judged else None,
        samples=judged.samples if judged else 0,
        kind=judged.part if judged else "",
        source=sources.get(item.cls, ""),
    )


def _sources(sequences: Sequence[KernelSequence]) -> dict[str, str]:
    """Kernel class -> where its parameters come from."""
    out: dict[str, str] = {}
    for sequence in {id(sequence): sequence for sequence in sequences}.values():
        for priced in sequence.ops:
            out.setdefault(priced.op.cls, priced.cost.source)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """What is known of the error of kernel times: the time-weighted mean error of the classes that have one, the share
    of kernel time they cover, and the share that is not calibrated on this GPU."""

    error: float | None
    covered: float
    uncalibrated: float


def doubt_of(trust: Sequence[ClassTrust]) -> Doubt:
    """Sum up the classes."""
    total = sum(item.seconds for item in trust) or 1.0
    known = [item for item in trust if item.error is not None]
    covered = sum(item.seconds for item in known)
    weighted = sum(item.seconds * (item.error or 0.0) for item in known)
    return Doubt(
        error=weighted / covered if covered else None,
        covered=covered / total,
        uncalibrated=sum(item.seconds for item in trust if not item.calibrated) / total,
    )
