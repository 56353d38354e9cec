"""A whole step on uneven ranks, and what of it the event engine needs: the tasks of a rank with the mean load."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.engine.lower import lower, price_model
from simulator.engine.priced_model import PricedModel
from simulator.engine.ranks.columns import Columns
from simulator.engine.ranks.rendezvous import RankTimeline, run
from simulator.engine.ranks.tables import Tables
from simulator.engine.ranks.uneven import columns_of, range_of
from simulator.engine.ranks.waits import met
from simulator.engine.tasks import Tasks
from simulator.schedule import Schedule

SLOWER = 1.25
"""How much longer tensor kernels last where they are priced again; their times grow evenly, so that any other does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnevenStep:
    """A step on ranks that differ.

    Parameters
    ----------
    columns : the ranks.
    timeline : when each task ran on each of them, where links are not shared.
    tasks : the tasks of a rank with the mean load, with what it meets at rendezvous.
    """

    columns: Columns
    timeline: RankTimeline
    tasks: Tasks


def uneven_step(built: PricedModel, schedule: Schedule) -> UnevenStep:
    """Run a step on the uneven ranks of its scenario."""
    mean = replace(built, rendezvous=None)
    tasks = lower(mean, schedule)
    columns = columns_of(built.scenario, schedule.ranks, built.watts)
    slower = None
    if (columns.pace != 1.0).any():
        slower = price_model(built.scenario, schedule.stages, pace=SLOWER * built.pace).price
    tables = Tables(mean, *range_of(built.scenario, columns), slower=slower and (slower, SLOWER))
    ran = run(tasks, mean, columns, tables)
    return UnevenStep(columns=columns, timeline=ran, tasks=met_tasks(tasks, ran))


def met_tasks(tasks: Tasks, ran: RankTimeline) -> Tasks:
    """The tasks of the mean rank as its group makes them."""
    sequences = list(tasks.sequence)
    for task in ran.wait.keys() | ran.flows.keys():
        wait = float(ran.wait[task][-1]) if task in ran.wait else 0.0
        flow = ran.flows.get(task)
        if wait > 0.0 or flow is not None:
            sequences[task] = met(sequences[task], wait, flow)
    return replace(tasks, sequence=sequences)
