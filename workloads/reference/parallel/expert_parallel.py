"""Expert parallelism executed: tokens travel between simulated ranks and nodes, and every transfer is counted.

The path is DeepEP's (DeepSeek-V3 section 3.2.2): a token crosses the network once per node, to the rank with the
sender's place in that node, which forwards it over NVLink once per rank that holds one of its experts. Results return
the same way, added up at each hop.
"""

from dataclasses import dataclass, field

import numpy as np

from workloads.reference.count import Array, Run, Weights
from workloads.reference.layers.gate import Route, route
from workloads.reference.layers.linear import linear
from workloads.reference.layers.moe import experts_forward
from workloads.reference.parallel.traffic import Layout


@dataclass(slots=True)
class Wires:
    """Tokens (rows) that crossed each kind of border, dispatch and combine apart."""

    layout: Layout
    rows: dict[tuple[str, str], int] = field(default_factory=dict)  # ("dispatch" | "combine", "ib" | "nvlink")

    def carry(self, what: str, source: int, target: int, rows: Array) -> Array:
        """Hand rows [n, hidden] from rank to rank; only what leaves a rank is counted."""
        if source != target:
            near = source // self.layout.ranks_per_node == target // self.layout.ranks_per_node
            key = what, "nvlink" if near else "ib"
            self.rows[key] = self.rows.get(key, 0) + len(rows)
        return rows.copy()

    def bytes(self, what: str, link: str, row_bytes: float) -> float:
        """Bytes over a kind of link at `row_bytes` a token [B]."""
        return self.rows.get((what, link), 0) * row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """Some of a source rank's tokens on their way, with what the receiver needs of their routes."""

    index: Array  # [n] position in the sender's list
    rows: Array  # [n, hidden]
    experts: Array  # [n, k], -1 where not meant for the receiver
    weights: Array  # [n, k]

    def only(self, keep: Array) -> "Packet":
        """The tokens with at least one chosen expert where `keep` [n, k] holds; other choices are blanked."""
        experts = np.where(keep, self.experts, -1)
        some = keep.any(axis=1)
        return Packet(
            index=np.flatnonzero(some), rows=self.rows[some], experts=experts[some], weights=self.weights[some]
        )


def expert_parallel_routed(run: Run, p: Weights, tokens: list[Array], layout: Layout) -> tuple[list[Array], Wires]:
    """Routed experts' output for each rank's tokens [T_r, hidden], and what crossed which border."""
    if len(tokens) != layout.ranks:
        raise ValueError(f"{len(tokens)} token shards given for {layout.ranks} ranks")
    wires = Wires(layout)
    outputs = []
    for rank, x in enumerate(tokens):
        r = route(run.cfg, linear(run, "router.gate", x, p["router.gate"]), p.get("router.bias"))
        outputs.append(_from_rank(run, p, wires, rank, _packet(x, r)))
    return outputs, wires


def _packet(x: Array, r: Route) -> Packet:
    return Packet(index=np.arange(len(x)), rows=x, experts=r.experts, weights=r.weights)


def _from_rank(run: Run, p: Weights, wires: Wires, source: int, packet: Packet) -> Array:
    """One rank's tokens out to every node that needs them, and the sum of what comes back."""
    layout, out = wires.layout, np.zeros_like(packet.rows)
    node_of = layout.node_of(layout.rank_of(packet.experts))
    for node in range(layout.nodes):
        part = packet.only(node_of == node)
        relay = int(layout.relay(np.asarray(source), np.asarray(node)))
        part = _sent(wires, source, relay, part)
        back = _from_relay(run, p, wires, relay, part)
        out[part.index] += wires.carry("combine", relay, source, back)
    return out


def _from_relay(run: Run, p: Weights, wires: Wires, relay: int, packet: Packet) -> Array:
    """A node's share of some tokens out to its ranks, and the sum of their answers."""
    layout, out = wires.layout, np.zeros_like(packet.rows)
    first = relay - relay % layout.ranks_per_node
    rank_of = np.where(packet.experts < 0, -1, layout.rank_of(packet.experts))
    for rank in range(first, first + layout.ranks_per_node):
        part = _sent(wires, relay, rank, packet.only(rank_of == rank))
        out[part.index] += wires.carry("combine", rank, relay, _local_experts(run, p, layout, rank, part))
    return out


def _sent(wires: Wires, source: int, target: int, packet: Packet) -> Packet:
    rows = wires.carry("dispatch", source, target, packet.rows)
    return Packet(index=packet.index, rows=rows, experts=packet.experts, weights=packet.weights)


def _local_experts(run: Run, p: Weights, layout: Layout, rank: int, packet: Packet) -> Array:
    """What a rank's own experts make of the tokens it received [n, hidden]; it holds only its own weights."""
    n = layout.experts_per_rank
    mine = slice(rank * n, rank * n + n)
    token, choice = np.nonzero(packet.experts >= 0)
    local = packet.experts[token, choice] - rank * n
    order = np.argsort(local, kind="stable")
    token, choice, local = token[order], choice[order], local[order]
    y, _ = experts_forward(
        run,
        p["moe.up_gate"][mine],
        p["moe.down"][mine],
        packet.rows[token],
        packet.weights[token, choice],
        np.bincount(local, minlength=n),
    )
    out = np.zeros_like(packet.rows)
    np.add.at(out, token, y)
    return out
