"""What DeepSeek says of its serving, and what follows from our inputs: statements of the DeepSeek-V3 report (arXiv
2412.19437, sections 3.4 and 5.4.3), of the paper on its hardware (arXiv 2505.09343, section 2.3.2), and of a day of its
fleet (github.com/deepseek-ai/open-infra-index, day 6, 2025-03). Nothing is fitted to what is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from simulator.dtypes import BF16, FP8
from simulator.engine.kernel_sequence import ALONE
from simulator.engine.lower import PricedModel, price_model
from simulator.estimate.serving_step import paced_step
from simulator.inputs import load_model, load_scenario
from simulator.ops import Gemm
from simulator.results.serving_metrics import serving_rates
from simulator.spec.model import BlockKind
from simulator.spec.serving import expert_slots
from simulator.units import DAY, GB

REPORT = "DeepSeek-V3, 3.4"
HARDWARE = "arXiv 2505.09343, 2.3.2"
FLEET = "open-infra-index, day 6"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement, what is published, what follows here, whether the two agree, the source, and a remark."""

    statement: str
    published: str
    ours: str
    agrees: bool
    source: str
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """DeepSeek's fleet from 2025-02-27 to 28, as published.

    Parameters
    ----------
    inputs, hits, outputs : tokens of prompts, those of them found in the cache on disk, and tokens generated.
    prefill_node, decode_node : tokens/s of a node of 8 H800; those of prompts with what the cache holds.
    nodes : mean number of nodes in use.
    gpus, hour : GPUs of a node, and the price of a GPU-hour that it counts with [USD].
    price_hit, price_miss, price_out : prices of DeepSeek-R1 [USD per 10^6 tokens].
    """

    inputs: float = 608e9
    hits: float = 342e9
    outputs: float = 168e9
    prefill_node: float = 73.7e3
    decode_node: float = 14.8e3
    nodes: float = 226.75
    gpus: int = 8
    hour: float = 2.0
    price_hit: float = 0.14
    price_miss: float = 0.55
    price_out: float = 2.19

    @property
    def cost(self) -> float:
        """What the nodes cost in the day [USD]."""
        return self.nodes * self.gpus * 24.0 * self.hour

    @property
    def revenue(self) -> float:
        """What the tokens would bring at R1's prices [USD]."""
        paid = self.hits * self.price_hit + (self.inputs - self.hits) * self.price_miss + self.outputs * self.price_out
        return paid / 1e6

    def needed(self, prefill_node: float, decode_node: float) -> float:
        """Nodes that the day's tokens need at such rates of a node [tokens/s]."""
        return self.inputs / DAY / prefill_node + self.outputs / DAY / decode_node


@cache
def _rates(job: str, *changes: str) -> dict[str, float]:
    scenario = load_scenario(job, changes)
    return serving_rates(paced_step(scenario), scenario)


@cache
def _priced(job: str) -> PricedModel:
    return price_model(load_scenario(job), 1)


def claims() -> list[Claim]:
    """All statements, in the order of their sources."""
    return [*_experts(), *_decode(), *_drafts(), *_bound(), *_fleet()]


def _experts() -> list[Claim]:
    prefill, model = load_scenario("deepseek-v3-prefill"), load_model("deepseek-v3")
    serving = prefill.job.serving
    assert serving is not None
    ep = prefill.job.layout.ep
    hosted = expert_slots(model, serving) // ep
    active = model.n_routed_experts // ep + model.n_shared_experts
    matrices = 3 * model.hidden_size * model.moe_intermediate_size
    layers = sum(kind == BlockKind.MOE for kind in model.layer_kinds())
    extra = (16 - hosted) * matrices * layers * FP8 / GB
    return [
        Claim(
            statement="Prefill on 32 GPUs with 32 redundant experts: experts that a GPU holds",
            published="8 and one more",
            ours=f"{hosted}",
            agrees=hosted == 9,
            source=REPORT,
            remark=f"{expert_slots(model, serving)} slots over {ep} ranks (`deepseek-v3-prefill`).",
        ),
        Claim(
            statement="Of 16 experts that a GPU would host with dynamic redundancy, those active in a step",
            published="9",
            ours=f"{active}",
            agrees=active == 9,
            source=REPORT,
            remark=f"{model.n_routed_experts} experts run once each on {ep} GPUs, and the shared one on each."
            f" {16 - hosted} more would take {extra:.1f} GB of a GPU in FP8.",
        ),
    ]


def _decode() -> list[Claim]:
    scenario, built = load_scenario("deepseek-v3-decode"), _priced("deepseek-v3-decode")
    serving, model = scenario.job.serving, scenario.model
    assert serving is not None
    tokens = scenario.job.dp * serving.sequences * model.num_experts_per_tok / model.n_routed_experts
    experts = [op for op in built.blocks[BlockKind.MOE].ops() if op.scales_with_load and isinstance(op.work, Gemm)]
    bounds = {built.price(op).cost.bound_by for op in experts}
    return [
        Claim(
            statement="Decode on 320 GPUs: tokens of an expert in a step",
            published="at most 256, usually",
            ours=f"{tokens:.0f}",
            agrees=tokens <= 256,
            source=REPORT,
            remark=f"{serving.sequences} sequences for each of {scenario.job.dp} groups are assumed; 102 give 256.",
        ),
        Claim(
            statement="What limits the experts' GEMMs then",
            published="memory access",
            ours=" and ".join(sorted(bounds)),
            agrees=bounds == {"memory"},
            source=REPORT,
            remark="So few SMs suffice for them, which leaves the others to attention.",
        ),
        _attention_longest(built),
    ]


def _attention_longest(built: PricedModel) -> Claim:
    parts = {"attention": 0.0, "experts": 0.0}
    for segment in built.blocks[BlockKind.MOE].forward:
        kind = "attention" if segment.name in ("prepare.F", "attn.F") else "experts"
        if segment.stream == "compute":
            parts[kind] += sum(built.price(op).durations[ALONE] for op in segment.ops)
    share = parts["attention"] / sum(parts.values())
    return Claim(
        statement="Attention in the compute time of a decode layer",
        published="the larger part, overlapped with dispatch, experts and combine of the other microbatch",
        ours=f"{share:.0%}",
        agrees=share > 0.5,
        source=REPORT,
        remark="Projections, core and gate against experts. The page of `deepseek-v3-decode` shows the overlap.",
    )


def _drafts() -> list[Claim]:
    found = []
    for acceptance in (0.85, 0.90):
        gains = {}
        for sequences in (8, 96):
            own = f"serving.sequences={sequences}"
            plain = _rates("deepseek-v3-decode", own)
            drafted = _rates("deepseek-v3-decode", own, "serving.mtp_depth=1", f"serving.mtp_acceptance={acceptance}")
            gains[sequences] = drafted["tokens_per_s_per_user"] / plain["tokens_per_s_per_user"]
        found.append(
            Claim(
                statement=f"Tokens/s with one drafted token, {acceptance:.0%} accepted",
                published="1.8 times",
                ours=f"{gains[8]:.2f} times, of 96 sequences {gains[96]:.2f}",
                agrees=abs(gains[8] / 1.8 - 1.0) < 0.05,
                source="DeepSeek-V3, 5.4.3",
                remark=f"Of at most {1 + acceptance:.2f}: the module and the second token take the rest. 8 sequences"
                " of each group wait for weights; at 96 the second token is no longer free.",
            )
        )
    return found


def all_to_all_bound(bandwidth: float, *, tokens: int = 32, experts: int = 9, hidden: int | None = None) -> float:
    """Time per output token if nothing but the two all-to-alls of each layer took time [s].

    FP8 there and BF16 back, over `bandwidth` [B/s], for two microbatches of `tokens` tokens a GPU, each of which goes
    to 8 routed experts and the shared one (arXiv 2505.09343, section 2.3.2).
    """
    model = load_model("deepseek-v3")
    width = model.hidden_size if hidden is None else hidden
    return 2.0 * (FP8 + BF16) * tokens * experts * width / bandwidth * model.num_hidden_layers


_BOUNDS = ((50e9, 14.76e-3), (900e9, 0.82e-3))
"""Bandwidth [B/s] and the time per output token that the paper gives for it [s]."""


def _bound() -> list[Claim]:
    found = []
    for bandwidth, published in _BOUNDS:
        exact, rounded = all_to_all_bound(bandwidth), all_to_all_bound(bandwidth, hidden=7000)
        found.append(
            Claim(
                statement=f"Time per output token by all-to-alls alone at {bandwidth / 1e9:.0f} GB/s",
                published=f"{published * 1e3:.2f} ms",
                ours=f"{exact * 1e3:.2f} ms",
                agrees=abs(exact / published - 1.0) < 0.03,
                source=HARDWARE,
                remark=f"The paper takes a hidden size of 7K for 7168; with 7000 it is {rounded * 1e3:.2f} ms.",
            )
        )
    own = _rates("deepseek-v3-decode-ep128", "serving.sequences=64")["tpot_s"]
    found.append(
        Claim(
            statement="A whole step of 64 sequences a GPU on H800 (EP128), against that bound at 50 GB/s",
            published="above it",
            ours=f"{own * 1e3:.1f} ms",
            agrees=own > _BOUNDS[0][1],
            source=HARDWARE,
            remark="Attention, weights and launches, which the bound leaves out.",
        )
    )
    return found


def _fleet() -> list[Claim]:
    day = Day()
    counted = day.needed(day.prefill_node, day.decode_node)
    fresh = 1.0 - day.hits / day.inputs
    prefill = _rates("deepseek-v3-prefill-online")["tokens_per_s_per_node"]
    decode = _rates("deepseek-v3-decode-ep144")["tokens_per_s_per_node"]
    forecast = day.needed(prefill / fresh, decode)
    margin = day.revenue / day.cost - 1.0
    cost = day.cost / day.nodes * forecast
    return [
        Claim(
            statement="Nodes that a day's tokens need at the published rates of a node",
            published=f"{day.nodes}",
            ours=f"{counted:.1f}",
            agrees=abs(counted / day.nodes - 1.0) < 0.01,
            source=FLEET,
            remark="608e9 tokens of prompts (56 % from the cache) at 73.7k tokens/s a node, 168e9 tokens out at 14.8k.",
        ),
        Claim(
            statement="Tokens/s of a prefill node, with what the cache holds",
            published=f"{day.prefill_node:,.0f}",
            ours=f"{prefill / fresh:,.0f}",
            agrees=abs(prefill / fresh / day.prefill_node - 1.0) < 0.15,
            source=FLEET,
            remark=f"{prefill:,.0f} new ones (`deepseek-v3-prefill-online`), busy all day, reading no cache from disk.",
        ),
        Claim(
            statement="Tokens/s of a decode node",
            published=f"{day.decode_node:,.0f}",
            ours=f"{decode:,.0f}",
            agrees=abs(decode / day.decode_node - 1.0) < 0.15,
            source=FLEET,
            remark="`deepseek-v3-decode-ep144` at 88 sequences a GPU: 1,850 tokens/s, 21 for each user.",
        ),
        Claim(
            statement="Nodes that the day's tokens need at the rates forecast",
            published=f"{day.nodes}",
            ours=f"{forecast:.1f}",
            agrees=abs(forecast / day.nodes - 1.0) < 0.15,
            source=FLEET,
            remark="The published number is a mean over a day on which nodes came and went with the load.",
        ),
        Claim(
            statement="Profit over cost at R1's prices",
            published="545 %",
            ours=f"{margin:.0%}, at the rates forecast {day.revenue / cost - 1.0:.0%}",
            agrees=abs(margin - 5.45) < 0.02,
            source=FLEET,
            remark=f"${day.revenue:,.0f} of revenue, ${day.cost:,.0f} for GPUs at $2 an hour.",
        ),
    ]


def markdown(found: Sequence[Claim]) -> str:
    """The statements as a table."""
    lines = ["| statement | published | ours | agrees | source | remark |", "|---|---|---|---|---|---|"]
    for one in found:
        agrees = "yes" if one.agrees else "no"
        lines.append(f"| {one.statement} | {one.published} | {one.ours} | {agrees} | {one.source} | {one.remark} |")
    return "\n".join(lines)
