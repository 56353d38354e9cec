"""Where tokens go: the node limit, and the balance of experts (DeepSeek-V3 sections 2.1.2 and 3.2.2)."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workloads.reference.balance import BalanceTrace, Skew, balance_run, gate_config, max_over_mean
from workloads.reference.claims.claim import Claim
from workloads.reference.claims.plot import draw, labels, line
from workloads.reference.parallel.traffic import Layout, Traffic, sampled_traffic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

V3 = Layout(experts=256, ranks=64, nodes=8)


def node_limit(out: Path, *, quick: bool) -> list[Claim]:
    """Nodes and ranks a token reaches, by node limit and top-k."""
    tokens = 4_000 if quick else 40_000
    limits, ks = range(1, 9), (2, 4, 8, 16)
    reach = {k: [sampled_traffic(V3, tokens=tokens // 4, top_k=k, topk_group=m, seed=m) for m in limits] for k in ks}
    t = sampled_traffic(V3, tokens=tokens, top_k=8, topk_group=4, seed=0)

    def nodes(ax: "Axes") -> None:
        for i, k in enumerate(ks):
            line(ax, i, limits, [r.nodes_per_token for r in reach[k]], f"top-{k}")
        labels(ax, "Nodes: 256 experts on 64 ranks of 8 nodes", "node limit", "nodes a token reaches")

    def ranks(ax: "Axes") -> None:
        for i, k in enumerate(ks):
            line(ax, i, limits, [r.ranks_per_token for r in reach[k]], f"top-{k}")
        labels(ax, "Ranks", "node limit", "ranks a token reaches")

    figure = draw(out / "node_limit.png", [nodes, ranks])
    most = most_experts(tokens // 4)
    return [
        Claim(
            key="routing.nodes",
            claim="A token reaches at most 4 of 8 nodes; mean number of nodes and ranks",
            published="at most 4",
            ours=f"{t.nodes_per_token:.2f} nodes, {t.ranks_per_token:.2f} ranks of 64",
            source="DeepSeek-V3, 2.1.2",
            figure=figure,
            agrees=3.9 < t.nodes_per_token <= 4,
            values=(
                ("nodes", t.nodes_per_token),
                ("ranks", t.ranks_per_token),
                ("across_nodes", t.across_nodes / t.tokens),
                ("across_nvlink", t.across_nvlink / t.tokens),
            ),
            remark=f"Own node included; {t.across_nodes / t.tokens:.2f} copies cross a NIC and "
            f"{t.across_nvlink / t.tokens:.2f} cross NVLink. Random affinities, groups chosen by their two best.",
        ),
        Claim(
            key="routing.most_experts",
            claim="Experts a token may choose before NVLink, not InfiniBand, limits dispatch",
            published="13 (4 nodes of 3.2)",
            ours=f"{most}",
            source="DeepSeek-V3, 3.2.2",
            agrees=13 <= most <= 16,
            figure=figure,
            values=(("most_experts", float(most)),),
            remark="Counted traffic at 160 and 50 GB/s. The report multiplies 4 nodes by the ratio 3.2; a few more "
            "fit, because some of a token's experts share a rank and their copy travels once.",
        ),
    ]


def most_experts(tokens: int) -> int:
    """Largest top-k whose NVLink traffic takes no longer than its InfiniBand traffic, at 160 and 50 GB/s."""
    fits = [
        k for k in range(8, 33) if _nvlink_hidden(sampled_traffic(V3, tokens=tokens, top_k=k, topk_group=4, seed=k))
    ]
    return max(fits)


def _nvlink_hidden(t: Traffic) -> bool:
    return t.across_nvlink / 160e9 <= t.across_nodes / 50e9


def balancing(out: Path, *, quick: bool) -> list[Claim]:
    """Busiest expert over the mean, with nothing, the bias, and the auxiliary loss."""
    steps = 200 if quick else 600
    cfg, skew = gate_config(64, 6, 8, 4), Skew(sequences=64, length=32)
    runs: dict[str, BalanceTrace] = {
        "nothing": balance_run(cfg, steps=steps, seed=0, skew=skew),
        "bias, speed 0.001": balance_run(cfg, steps=steps, seed=0, speed=1e-3, skew=skew),
        "bias, speed 0.01": balance_run(cfg, steps=steps, seed=0, speed=1e-2, skew=skew),
        "auxiliary loss": balance_run(cfg, steps=steps, seed=0, alpha=1e-2, learning_rate=30.0, skew=skew),
    }

    def panel(which: str, title: str) -> "Callable[[Axes], None]":
        def drawn(ax: "Axes") -> None:
            for i, (name, run) in enumerate(runs.items()):
                line(ax, i, np.arange(steps), getattr(run, which), name, marker=False, width=1.1)
            ax.set_ylim(bottom=1.0)
            labels(ax, title, "step", "busiest expert / mean")

        return drawn

    figure = draw(
        out / "balance.png",
        [panel("per_batch", "Load within a batch"), panel("per_sequence", "Load within a sequence, mean")],
    )
    tail = slice(-steps // 4, None)
    batch, sequence, over = (
        {name: float(f(r)) for name, r in runs.items()}
        for f in (
            lambda r: r.per_batch[tail].mean(),
            lambda r: r.per_sequence[tail].mean(),
            lambda r: max_over_mean(r.loads[tail].sum(axis=0)),
        )
    )
    bias = "bias, speed 0.001" if not quick else "bias, speed 0.01"
    return [
        Claim(
            key="balance.batch",
            claim="A bias moved by a small speed after each step balances load without a loss",
            published="stated (speed 0.001)",
            source="DeepSeek-V3, 2.1.2 and 4.2",
            figure=figure,
            ours=f"{batch['nothing']:.1f} to {batch[bias]:.2f} per batch, {over[bias]:.2f} over many batches",
            agrees=batch[bias] < 0.5 * batch["nothing"],
            values=tuple((f"batch {k}", v) for k, v in batch.items()),
            remark=f"Busiest expert over mean, {bias}, synthetic skewed tokens, batches of 2048. An auxiliary loss "
            f"reaches {batch['auxiliary loss']:.2f}. Topics resampled per batch keep single batches uneven.",
        ),
        Claim(
            key="balance.sequence",
            claim="Batch-wise balance does not force balance within each sequence",
            published="stated",
            source="DeepSeek-V3, 4.5.3",
            figure=figure,
            ours=f"{sequence[bias]:.1f} within a sequence against {batch[bias]:.2f} within a batch",
            agrees=sequence[bias] > 1.5 * batch[bias],
            values=tuple((f"sequence {k}", v) for k, v in sequence.items()),
            remark="Sequences keep their topics' favourite experts, which is the point: experts may specialise.",
        ),
    ]
