"""What numerics checked of the DeepSeek-V3 report, for the terminal and as JSON; and a model's gate for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, section
from simulator.spec.model import ModelSpec
from workloads.reference.balance import gate_config
from workloads.reference.claims import Claim
from workloads.reference.config import RefConfig

SCHEMA = "foretrain.numerics/1"
VERDICT = {True: ("yes", "#009e73"), False: ("NO", "bold #d55e00"), None: ("-", "dim")}


def report(claims: Sequence[Claim]) -> list[RenderableType]:
    """The claims with their verdicts, then what there is to say about each."""
    judged = [claim.agrees for claim in claims if claim.agrees is not None]
    title = f"{sum(judged)} of {len(judged)} claims agree; {len(claims) - len(judged)} cannot be compared"
    return [
        *section("Claims of the DeepSeek-V3 report", _table(claims)),
        *section("Remarks", _remarks(claims)),
        Text(f"\n{title}", style="bold"),
    ]


def _table(claims: Sequence[Claim]) -> Table:
    table = columns(">", "claim", "published", "ours", "agrees")
    for number, claim in enumerate(claims, start=1):
        word, style = VERDICT[claim.agrees]
        table.add_row(str(number), claim.claim, claim.published, claim.ours, Text(word, style=style))
    return table


def _remarks(claims: Sequence[Claim]) -> Table:
    table = columns(">", "")
    for number, claim in enumerate(claims, start=1):
        table.add_row(str(number), f"{claim.remark} ({claim.source})")
    return table


def as_dict(claims: Sequence[Claim], *, quick: bool) -> dict[str, Any]:
    """The object that `--json` prints."""
    return {
        "schema": SCHEMA,
        "quick": quick,
        "agree": all(claim.agrees is not False for claim in claims),
        "claims": [
            {
                "key": claim.key,
                "claim": claim.claim,
                "published": claim.published,
                "ours": claim.ours,
                "agrees": claim.agrees,
                "source": claim.source,
                "remark": claim.remark,
                "values": {name: float(value) for name, value in claim.values},
            }
            for claim in claims
        ],
    }


def gate_of(model: ModelSpec) -> RefConfig:
    """The reference's gate with this model's experts, groups and choices."""
    limited = model.is_node_limited
    return gate_config(
        model.n_routed_experts,
        model.num_experts_per_tok,
        model.n_group if limited else 1,
        model.topk_group if limited else 1,
    )
