"""The op graph of one block of a job, in each action that the job's schedule runs it in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import networkx as nx

from simulator.engine.des import simulate as run_events
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import PricedModel, Programs
from simulator.engine.op_graph import critical_path, op_graph, tasks_alone
from simulator.engine.program import Program
from simulator.errors import InputError
from simulator.graph.stage import block_kinds
from simulator.results.simulate import Engine, prepare
from simulator.schedule import Action, Pair, Schedule, Step
from simulator.spec.model import BlockKind, ModelSpec
from simulator.spec.precision import Precision
from simulator.spec.scenario import Scenario

ActionKind = Literal["pair", "F", "B", "I", "W"]
ACTIONS: tuple[ActionKind, ...] = get_args(ActionKind)
"""An overlapped pair; forward; full backward; gradients of the inputs alone; of the weights alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGraph:
    """One block in one action: its op graph as simulated with nothing else on the rank, and its critical path.

    `overlapped`: whether the two halves of a pair are overlapped; software may run them one after the other.
    """

    block: str
    action: ActionKind
    overlapped: bool
    graph: nx.DiGraph[str]
    path: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Time of the action [s]."""
        return float(self.graph.graph["seconds"])


def block_graphs(
    scenario: Scenario, block: str | None = None, actions: Sequence[ActionKind] = (), *, engine: Engine = "events"
) -> tuple[BlockGraph, ...]:
    """The op graphs of a block.

    Parameters
    ----------
    block : its kind, or its number in the model's order; the kind of most layers by default.
    actions : the actions to show; by default the overlapped pair where the schedule has pairs, else all it has.

    Raises
    ------
    InputError : there is no such block, or nothing of it runs in an action that was asked for.
    """
    kind = kind_of(block, scenario.model, scenario.job.precision)
    built, schedule = prepare(scenario)
    found = []
    for action in actions or actions_in(schedule):
        program = program_of(built, kind, action)
        if program.steps:
            found.append(_graph(built, program, kind, action, engine))
        elif actions:
            raise InputError(f"--action: {action}: nothing of a block of kind {kind} runs in it")
    return tuple(found)


def kind_of(block: str | None, model: ModelSpec, precision: Precision | None = None) -> str:
    """The kind of a block that is given by kind, by number, or not at all."""
    kinds = block_kinds(model, precision)
    if block is None:
        return Counter(model.layer_kinds()).most_common(1)[0][0]
    if block in kinds:
        return block
    if block.isdecimal() and int(block) < len(kinds):
        return kinds[int(block)]
    raise InputError(
        f"--block: {block}: {model.name} has the kinds {', '.join(dict.fromkeys(kinds))}"
        f" and the numbers 0 (the embedding) to {len(kinds) - 1}"
    )


def actions_in(schedule: Schedule) -> tuple[ActionKind, ...]:
    """The pair, if the schedule overlaps any; else the lone actions that it has."""
    steps = [step for row in schedule.rows for step in row]
    if any(isinstance(step, Pair) for step in steps):
        return ("pair",)
    lone = {step.kind for step in steps if isinstance(step, Action)}
    return tuple(action for action in ACTIONS if action in lone)


def program_of(built: PricedModel, kind: str, action: ActionKind) -> Program:
    """The program that the engines run where a stage is this block and nothing else."""
    step: Step = Pair(Action("F", 0, 0), Action("B", 0, 1)) if action == "pair" else Action(action, 0, 0)
    return Programs(replace(built, stages=((BlockKind(kind),),))).of(step)


def _graph(built: PricedModel, program: Program, kind: str, action: ActionKind, engine: Engine) -> BlockGraph:
    tasks = tasks_alone(built, program)
    graph = op_graph(longest_path(tasks) if engine == "longest-path" else run_events(tasks))
    return BlockGraph(
        block=kind,
        action=action,
        overlapped=built.scenario.stack.overlaps_pairs,
        graph=graph,
        path=tuple(critical_path(graph)),
    )
