"""How far interpolated step times are from forecasts of the very steps that ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

from simulator.serving.deployment import Deployment
from simulator.serving.recorder import Ran


@dataclass(frozen=True, slots=True, kw_only=True)
class TableError:
    """Errors of the table of step times over some steps of a replay.

    Parameters
    ----------
    checked : steps that were forecast by themselves.
    mean : mean of |interpolated / forecast - 1|.
    most : the largest.
    """

    checked: int
    mean: float
    most: float


def table_error(deployment: Deployment, ran: Iterable[Ran]) -> TableError:
    """Forecast each of these steps directly and compare."""
    errors = [abs(_interpolated(deployment, one) / _direct(deployment, one) - 1.0) for one in ran]
    return TableError(checked=len(errors), mean=mean(errors) if errors else 0.0, most=max(errors, default=0.0))


def _interpolated(deployment: Deployment, one: Ran) -> float:
    batch, table = one.batch, deployment.table
    if not one.prompts:
        return table.decode(batch, one.context).seconds
    return table.mixed(batch, one.context, one.prompts * one.tokens, one.cached + one.tokens / 2)


def _direct(deployment: Deployment, one: Ran) -> float:
    """The step as it is, without interpolation; several prompts next to decodes are one with as much attention."""
    table, batch = deployment.table, one.batch
    forecasts = table.forecasts
    if not one.prompts:
        padded = table.padded(batch)
        return forecasts.decode(padded, round(one.context * batch / padded), graph=batch <= table.largest)
    tokens = one.prompts * one.tokens
    graph = tokens + batch <= table.scheduler.captured_prefill
    if not batch:
        return forecasts.prefill(one.prompts, one.tokens, one.cached, graph=graph)
    cached = max(0, round(one.cached + one.tokens / 2 - tokens / 2))
    return forecasts.mixed(batch, round(one.context), tokens, cached, graph=graph)
