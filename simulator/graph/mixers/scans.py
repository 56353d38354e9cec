"""Kernels of recurrent layers in chunks: what each computes and moves, from the sizes of a state alone.

Those of the delta rule are flash-linear-attention's (fla-core 0.6, fla/ops/{gated_delta_rule,kda}/chunk*.py): scaled
k k^T and its inverse in one kernel, w and u, the states between chunks, the output; backward makes w, u and the states
again. Classes with `@kda` are those with a decay for each channel. Mamba-2's are mamba_ssm's (2.3,
mamba_ssm/ops/triton/ssd_*.py). Their FLOP are those of `workloads/reference/layers/mixers`; what Mamba-2's kernels of
the decays' gradients compute a second time is not among them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

from simulator.dtypes import BF16, FP32
from simulator.ops import Scan, Streaming, seen_keys
from simulator.spec.mixer import StateShape

VALUES = 32
"""Columns of the state that a CTA of the kernel over the states holds: fla's autotuned BV is 32 or 64."""
SPLITS = 4
"""Partial sums of the gradients of c, b and c b^T that Mamba-2's kernels leave for others to add up: 17 us of such a
sum for 4,096 tokens of 8 groups of 128 on an H200 are four (table h200_recurrent)."""
BLOCK = 64
"""Tokens of a tile of pairs within a chunk; the decays' gradients pass over those up to the diagonal one by one."""


class Kernel(NamedTuple):
    """A kernel's name in its layer, its class, its work, and how many equal ones there are."""

    name: str
    cls: str
    work: Scan | Streaming
    many: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """`sequences` of `length` tokens in chunks under a state of `r`; `parts`: context-parallel ranks over its heads;
    `gates`: the kernels of the state multiply their output by the gate.

    With context parallelism a rank has all tokens of a part of its heads, which is as much as all heads of its own
    `tokens`.
    """

    tokens: int
    length: int
    sequences: int
    r: StateShape
    parts: int = 1
    gates: bool = False

    @property
    def pairs(self) -> float:
        """Pairs of tokens within chunks."""
        return self.tokens * 2.0 * seen_keys(0, self.length, 0, self.r.chunk)

    @property
    def state(self) -> float:
        """One GEMM of all chunks with the state: tokens x key_dim x value_dim [FLOP]."""
        return 2.0 * self.tokens * self.r.state_values

    @property
    def keys(self) -> float:
        """One GEMM within the chunks as wide as a key, of all heads [FLOP]."""
        return 2.0 * self.pairs * self.r.heads * self.r.key_dim

    @property
    def shared_keys(self) -> float:
        """The same of heads that share their keys [FLOP]."""
        return 2.0 * self.pairs * self.r.key_heads * self.r.key_dim

    @property
    def values(self) -> float:
        """One GEMM within the chunks as wide as a value [FLOP]."""
        return 2.0 * self.pairs * self.r.inner

    @property
    def inverse(self) -> float:
        """One GEMM of two matrices of pairs [FLOP]."""
        whole, rest = divmod(self.length, self.r.chunk)
        cubes = self.tokens * (whole * self.r.chunk**3 + rest**3) / self.length
        return 2.0 * cubes * self.r.heads

    @property
    def states_bytes(self) -> float:
        """The states between chunks in BF16 [B]."""
        return self.r.state_values * BF16 * self.tokens / self.r.chunk

    @property
    def key_bytes(self) -> float:
        """Queries, or keys, of all heads in BF16 [B]."""
        return self.tokens * self.r.heads * self.r.key_dim * BF16

    @property
    def value_bytes(self) -> float:
        """Values in BF16 [B]."""
        return self.tokens * self.r.inner * BF16

    @property
    def pair_values(self) -> float:
        """Values of a matrix of pairs of every chunk and head."""
        return float(self.tokens * self.r.heads * self.r.chunk)

    @property
    def suffix(self) -> str:
        """Of classes with a decay for each channel."""
        return "@kda" if self.r.rank else ""

    def scan(self, flops: float, read: float, written: float) -> Scan:
        """A kernel whose CTAs each work on a chunk of a head."""
        chunks = ceil(self.length / self.r.chunk)
        return Scan(flops=flops, read=read, written=written, ctas=self._heads * chunks)

    def serial(self, flops: float, read: float, written: float) -> Scan:
        """A kernel whose CTAs go from chunk to chunk."""
        chunks, columns = ceil(self.length / self.r.chunk), ceil(self.r.value_dim / VALUES)
        return Scan(flops=flops, read=read, written=written, ctas=self._heads * columns, steps=chunks)

    @property
    def _heads(self) -> int:
        return self.sequences * max(1, self.r.heads // self.parts)


def delta_forward(c: Chunks) -> tuple[Kernel, ...]:
    """The delta rule; the inverse of each chunk's matrix is zeroed before it is written."""
    decays = c.tokens * c.r.decays * FP32
    work = c.scan(c.state + c.keys + c.values, 2 * c.key_bytes + c.value_bytes + c.states_bytes, c.value_bytes)
    return (
        Kernel("decays", "elem", Streaming(read=decays, written=decays)),
        Kernel("kkt", f"scan.kkt{c.suffix}", c.scan(c.keys, c.key_bytes, 2 * c.pair_values * BF16)),
        *delta_states(c),
        Kernel("scan", f"scan.out{c.suffix}", work),
    )


def delta_states(c: Chunks) -> tuple[Kernel, ...]:
    """w, u and the states between chunks; made again in backward."""
    k, v = c.key_bytes, c.value_bytes
    return (
        Kernel("wu", f"scan.wu{c.suffix}", c.scan(c.keys + c.values, k + v + c.pair_values * BF16, k + v)),
        Kernel("state", f"scan.state{c.suffix}", c.serial(2 * c.state, 2 * k + v, v + c.states_bytes)),
    )


def delta_backward(c: Chunks) -> tuple[Kernel, ...]:
    """After w, u and the states: from the last chunk to the first, and within all chunks.

    With one decay a head, a kernel makes the gradients of queries, keys and w, and another those through w, u and the
    inverse; with a decay for each channel, the first also goes through w and u, and the other is of the pairs within a
    chunk.
    """
    k, v, pairs, states = c.key_bytes, c.value_bytes, c.pair_values, c.states_bytes
    within, through, inner = 3 * c.state + 2 * c.keys + c.values, 2 * c.keys + 2 * c.values, 3 * c.keys + 2 * c.inverse
    first, second = (within + through, inner) if c.r.rank else (within, through + inner)
    decays = c.tokens * c.r.decays * FP32
    name = "kkt" if c.r.rank else "wu"
    return (
        Kernel("dv", f"scan.dv{c.suffix}", c.scan(c.keys + c.values, 2 * k + v, v)),
        Kernel("state", f"scan.state.bwd{c.suffix}", c.serial(3 * c.state, 3 * k + 2 * v, v + states)),
        Kernel("scan", f"scan.out.bwd{c.suffix}", c.scan(first, 2 * k + 3 * v + 2 * states, 3 * k)),
        Kernel(name, f"scan.{name}.bwd{c.suffix}", c.scan(second, 2 * k + 2 * v + pairs * BF16, k + v + pairs * FP32)),
        Kernel("sums", "elem", Streaming(read=2 * k, written=k), 2 if c.r.rank else 1),
        Kernel("decays", "elem", Streaming(read=decays, written=decays)),
    )


def ssd_forward(c: Chunks) -> tuple[Kernel, ...]:
    """Mamba-2. Where the last kernel reads the gate, it writes the gated output as well."""
    x, steps = c.value_bytes, c.tokens * c.r.heads
    gated = x if c.gates else 0.0
    work = c.scan(c.state + c.values, x + _shared(c) + c.states_bytes + gated, x + gated)
    return (
        Kernel("decays", "elem", Streaming(read=steps * BF16, written=2 * steps * FP32)),
        *ssd_states(c),
        Kernel("scan", "scan.out@ssd", work),
    )


def _shared(c: Chunks) -> float:
    """b, or c, of all groups of heads in BF16 [B]."""
    return c.tokens * c.r.keys * BF16


def ssd_states(c: Chunks) -> tuple[Kernel, ...]:
    """States of the chunks, passed on from one to the next, and c b^T of each; made again in backward."""
    x, shared, states = c.value_bytes, _shared(c), c.states_bytes
    pairs = c.tokens * c.r.key_heads * c.r.chunk * FP32
    return (
        Kernel("state", "scan.chunk_state", c.scan(c.state, x + shared, 2 * states)),
        Kernel("pass", "scan.pass", Streaming(read=2 * states, written=states)),
        Kernel("cb", "scan.cb", c.scan(c.shared_keys, 2 * shared, pairs)),
    )


def ssd_backward(c: Chunks) -> tuple[Kernel, ...]:
    """Backward of Mamba-2's state, after the states and c b^T."""
    x, shared, states = c.value_bytes, _shared(c), c.states_bytes
    partial = SPLITS * c.tokens * c.r.keys * FP32
    pairs = c.tokens * c.r.key_heads * c.r.chunk * FP32
    blocks = ceil(c.r.chunk / BLOCK)
    decays = c.scan(0.0, 2 * x + pairs, c.tokens * c.r.heads * FP32)
    small = Streaming(read=2 * partial + SPLITS * pairs, written=2 * shared + pairs)
    return (
        Kernel("dstates", "scan.dstates", c.scan(c.state, x + shared, 2 * states)),
        Kernel("pass", "scan.pass.bwd", Streaming(read=3 * states, written=2 * states)),
        Kernel("dx", "scan.dx", c.scan(c.state + c.values, 2 * x + shared + pairs + states, x)),
        Kernel("db", "scan.db", c.scan(c.state, x + shared + states, partial)),
        Kernel("dc", "scan.dc", c.scan(c.state, x + shared + states, partial)),
        Kernel("dcb", "scan.dcb", c.scan(c.values, 2 * x, SPLITS * pairs)),
        Kernel("cb", "scan.cb.bwd", c.scan(c.shared_keys, shared + pairs, shared), 2),
        Kernel("decays", "scan.decays.bwd", replace(decays, steps=blocks * (blocks + 1) // 2)),
        Kernel("sums", "scan.sums", small),
    )
