"""The result of one simulation, as it is printed and saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from simulator.engine.lower import PricedModel
from simulator.engine.tasks import Timeline
from simulator.memory import MemoryReport
from simulator.results.metrics import ClassTime, RankTimes
from simulator.schedule import Schedule
from simulator.spec.scenario import Scenario
from simulator.spec.uneven import ExpertCounts

if TYPE_CHECKING:
    from simulator.engine.ranks.whole_step import UnevenStep
    from simulator.results.rank_waits import RankWaits

SCHEMA = "foretrain.result/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One simulated step.

    Parameters
    ----------
    scenario : what was simulated.
    metrics : headline numbers; names end in their unit.
    breakdown_s : mean over ranks of each phase [s]; they add up to the step time.
    ranks : times of each pipeline rank.
    classes : kernel classes, longest first.
    stages : blocks on each stage.
    memory : peaks by rank.
    warnings : what the forecast leaves out or assumes.
    provenance : versions and inputs.
    timeline, built, schedule : what reports read.
    uneven : the step on each rank where ranks differ; the timeline is then that of a rank with the mean load.
    waits : of uneven ranks, who waits for whom.
    """

    scenario: Scenario
    metrics: dict[str, float]
    breakdown_s: dict[str, float]
    ranks: list[RankTimes]
    classes: list[ClassTime]
    stages: list[str]
    memory: MemoryReport
    warnings: list[str]
    provenance: dict[str, Any]
    timeline: Timeline
    built: PricedModel
    schedule: Schedule
    uneven: UnevenStep | None = None
    waits: RankWaits | None = None

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints; the same inputs give the same bytes."""
        resolved = plain(self.scenario)
        return {
            "schema": SCHEMA,
            "scenario": {**resolved, "hash": digest(resolved)},
            "metrics": self.metrics,
            "breakdown_s": self.breakdown_s,
            "ranks": [
                {
                    "rank": r.rank,
                    **r.phases,
                    "exposed_comm": r.exposed_comm,
                    "compute_busy": r.compute_busy,
                    "bubble_ratio": r.phases["bubble"] / self.metrics["step_time_s"],
                }
                for r in self.ranks
            ],
            "classes": [plain(c) for c in self.classes],
            "stages": self.stages,
            "memory": self.memory.verdict(),
            "warnings": self.warnings,
            "provenance": self.provenance,
            **({"uneven": self.waits.as_dict()} if self.waits is not None else {}),
        }


def plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as JSON-able values; of recorded tokens per expert only which they are."""
    if isinstance(value, ExpertCounts):
        return {"source": value.source, "digest": value.digest, "microbatches": value.microbatches}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def digest(resolved: Any) -> str:
    """Short hash of a resolved scenario: equal inputs, equal hash."""
    import hashlib  # OpenSSL takes as long to load as a small step

    text = json.dumps(resolved, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
