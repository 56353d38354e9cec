"""What if one expert of every layer is persistently hot: which ranks hold it, and what users see of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulator.errors import InputError
from simulator.routing.loads import moe_layers
from simulator.serving.serve import Served
from simulator.serving.summary import metrics
from simulator.spec.scenario import Scenario

TOKENS = 4096
"""Tokens of a data-parallel rank at which loads are looked at; they do not depend on it."""
SEEN = (("ttft_s", "mean"), ("ttft_s", "p99"), ("tpot_s", "mean"), ("tpot_s", "p99"))
"""Latencies that are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HotExpert:
    """A replay with a hot expert next to the same without.

    Parameters
    ----------
    times : load of the expert over that of the mean one.
    ranks : expert-parallel ranks that hold it, or a copy of it, in the first layer with experts.
    load : tokens of the most loaded rank over the mean.
    before : metrics of the same requests with loads as the job has them.
    after : metrics with the hot expert.
    """

    times: float
    ranks: tuple[int, ...]
    load: float
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def rows(self) -> list[tuple[str, float | None, float | None]]:
        """Name, before and after of each latency [s] and of the throughput."""
        found = [(f"{name} {key}", self.before[name][key], self.after[name][key]) for name, key in SEEN]
        name = "output_tokens_per_s_per_gpu"
        return [*found, (name, self.before[name], self.after[name])]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "times_the_mean": self.times,
            "ranks": list(self.ranks),
            "load_over_mean": self.load,
            "metrics_before": self.before,
        }


def with_hot_expert(overrides: tuple[str, ...], times: float) -> tuple[str, ...]:
    """Overrides of a job whose expert 0 of every layer is that hot."""
    return (*overrides, "routing.kind=hot", f"routing.hot_expert={times:g}")


def compared(before: Served, after: Served) -> HotExpert:
    """What the hot expert of `after` changes.

    Raises
    ------
    InputError : no rank has other experts than the others.
    """
    scenario = after.deployment.scenario
    placed = _placed(scenario)
    return HotExpert(
        times=scenario.job.routing.hot_expert,
        ranks=placed[0],
        load=placed[1],
        before=metrics(before),
        after=metrics(after),
    )


def check_uneven(scenario: Scenario) -> None:
    """Raise InputError where experts are not spread over ranks."""
    if not scenario.model.is_moe:
        raise InputError(f"--hot-expert: {scenario.model.name} has no experts; use a mixture-of-experts model")
    if scenario.job.layout.ep == 1:
        raise InputError(
            "--hot-expert: layout.ep = 1: every GPU has a part of every expert, so that none is hotter; set layout.ep"
        )


def _placed(scenario: Scenario) -> tuple[tuple[int, ...], float]:
    """Ranks that hold expert 0, and the most loaded rank's load over the mean."""
    from simulator.routing.slot_loads import placements, slot_loads  # NumPy takes 0.1 s to load

    layer = moe_layers(scenario.model)[0]
    held = placements(scenario)(layer).slots
    loads = slot_loads(scenario, TOKENS * scenario.job.layout.ep)(layer, 0)
    return tuple(rank for rank, slots in enumerate(held) if 0 in slots), loads.imbalance
