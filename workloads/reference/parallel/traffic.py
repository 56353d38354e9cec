"""Which nodes and ranks tokens go to, given the experts chosen for them."""

from dataclasses import dataclass

import numpy as np

from workloads.reference.count import Array
from workloads.reference.layers.gate import select


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Experts spread evenly, in order, over ranks; ranks in order over nodes."""

    experts: int
    ranks: int
    nodes: int

    def __post_init__(self) -> None:
        if self.experts % self.ranks or self.ranks % self.nodes:
            raise ValueError(
                f"{self.experts} experts over {self.ranks} ranks over {self.nodes} nodes: "
                "each must be a multiple of the next"
            )

    @property
    def experts_per_rank(self) -> int:
        return self.experts // self.ranks

    @property
    def ranks_per_node(self) -> int:
        return self.ranks // self.nodes

    def rank_of(self, expert: Array) -> Array:
        rank: Array = expert // self.experts_per_rank
        return rank

    def node_of(self, rank: Array) -> Array:
        node: Array = rank // self.ranks_per_node
        return node

    def relay(self, source: Array, node: Array) -> Array:
        """The rank of `node` with the source's place in its own node: where traffic enters (section 3.2.2)."""
        rank: Array = node * self.ranks_per_node + source % self.ranks_per_node
        return rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Tokens counted once per place they visit, by the rank they come from."""

    layout: Layout
    to_node: Array  # [ranks, nodes] (token, node) pairs, own node included
    to_rank: Array  # [ranks, ranks] (token, rank) pairs, own rank included
    via_relay: Array  # [ranks] (token, rank) pairs forwarded over NVLink by each relay (or by the source at home)
    rows: Array  # [ranks] (token, expert) pairs each rank computes
    tokens: int

    @property
    def nodes_per_token(self) -> float:
        return float(self.to_node.sum() / self.tokens)

    @property
    def ranks_per_token(self) -> float:
        return float(self.to_rank.sum() / self.tokens)

    @property
    def across_nodes(self) -> int:
        """(token, node) pairs that cross a NIC: the token's own node left out."""
        own = np.arange(self.layout.ranks)
        return int(self.to_node.sum() - self.to_node[own, self.layout.node_of(own)].sum())

    @property
    def across_nvlink(self) -> int:
        """(token, rank) pairs that cross NVLink: what a relay keeps for itself does not."""
        return int(self.via_relay.sum())


def traffic(experts: Array, source: Array, layout: Layout) -> Traffic:
    """Traffic of one dispatch for experts [T, k] chosen by tokens that lie on ranks `source` [T]."""
    tokens = experts.shape[0]
    ranks = np.zeros((tokens, layout.ranks), bool)
    np.put_along_axis(ranks, layout.rank_of(experts), True, axis=1)
    nodes = ranks.reshape(tokens, layout.nodes, layout.ranks_per_node).any(axis=2)
    to_node = np.zeros((layout.ranks, layout.nodes), np.int64)
    to_rank = np.zeros((layout.ranks, layout.ranks), np.int64)
    np.add.at(to_node, source, nodes)
    np.add.at(to_rank, source, ranks)
    every = np.arange(layout.ranks)
    entry = layout.relay(every[:, None], layout.node_of(every)[None, :])  # [source, destination] -> relay
    forwarded = np.where(entry == every[None, :], 0, to_rank)
    via_relay = np.zeros(layout.ranks, np.int64)
    np.add.at(via_relay, entry, forwarded)
    rows = np.bincount(layout.rank_of(experts).reshape(-1), minlength=layout.ranks)
    return Traffic(layout=layout, to_node=to_node, to_rank=to_rank, via_relay=via_relay, rows=rows, tokens=tokens)


def sampled_traffic(
    layout: Layout, *, tokens: int, top_k: int, topk_group: int, seed: int, skew: float = 0.0
) -> Traffic:
    """Traffic of random tokens through the node-limited gate, groups being nodes.

    Affinities are normal; `skew` adds fixed normal offsets of that size per expert, so that some are popular. The mean
    number of nodes depends a little on the distribution (3.94 to 3.98 for several), that of ranks hardly.
    """
    rng = np.random.default_rng(seed)
    choice = rng.standard_normal((tokens, layout.experts)) + skew * rng.standard_normal(layout.experts)
    experts = select(choice, top_k=top_k, n_group=layout.nodes, topk_group=topk_group)
    return traffic(experts, np.arange(tokens) % layout.ranks, layout)
