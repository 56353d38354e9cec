"""Measure forward and backward of Llama-shaped layers under context parallelism: figures of our own to compare with.

    python -m torch.distributed.run --nproc-per-node N workloads/facts/measure_cp.py OUT.csv [--budget SECONDS]

Nothing is calibrated with these. Every rank has two of 2 N chunks of the sequence, one from each end, so that all have
the same work under a causal mask. `how`:

- ring: keys and values go from rank to rank (isend, irecv on a stream of their own) while attention runs on those at
  hand, chunk by chunk; outputs are merged by their log-sum-exp in FP32; in backward the gradients of keys and values
  travel, too (Liu et al., arXiv 2310.01889; as Transformer Engine's p2p).
- allgather: keys and values are gathered, then each of the two chunks of queries attends to its prefix; in backward
  their gradients are reduce-scattered (arXiv 2407.21783, section 3.3.2).
- ulysses: an all-to-all before and after attention turns a part of the sequence into a part of the heads
  (arXiv 2309.14509); the sequence is cut in order.
- none: the whole sequence of one rank's length, no communication, on each rank.

FlashAttention-2 as PyTorch ships it; keys and values of grouped-query heads are repeated before the kernel and sent
before that. BF16. compile: what lies before and after attention, and the merging, through torch.compile. `step_ms` is
forward and backward without an optimizer and without the gradients' reduction; `*_ms`, `launches` as in the other
tables; `peak_gb` of every rank.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from step_runner import (  # type: ignore[import-not-found]  # a script next to it
    DEVICE,
    SPLIT,
    Row,
    Sensors,
    arguments,
    gpu,
    kernels,
    peaks,
    record,
    settled,
    warm,
)
from torch import nn

Sizes = dict[str, int]
MODELS: dict[str, Sizes] = {
    "7b": {"hidden": 4096, "inner": 11008, "heads": 32, "kv_heads": 32},
    "8b": {"hidden": 4096, "inner": 14336, "heads": 32, "kv_heads": 8},
}
TINY = {"hidden": 64, "inner": 128, "heads": 4, "kv_heads": 2}


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (batch, seq, heads, d), causal to the end of the keys, and its log-sum-exp (batch, heads, seq)."""
    if DEVICE == "cuda":
        sizes = (None, None, q.shape[1], k.shape[1], 0.0, causal, False)
        out = torch.ops.aten._flash_attention_forward(q, k, v, *sizes, scale=q.shape[-1] ** -0.5)
        return out[0], out[1]
    scores = masked(torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * q.shape[-1] ** -0.5, causal)
    lse = scores.logsumexp(-1)
    return torch.einsum("bhqk,bkhd->bqhd", (scores - lse[..., None]).exp(), v.float()).to(q.dtype), lse


def masked(scores: torch.Tensor, causal: bool) -> torch.Tensor:
    """Scores with minus infinity where a query may not look, the last query at the last key."""
    if not causal:
        return scores
    queries, keys = scores.shape[-2:]
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return scores.masked_fill(~allowed, float("-inf"))


def flash_back(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `flash`."""
    if DEVICE == "cuda":
        sizes = (None, None, q.shape[1], k.shape[1], 0.0, causal)
        state = torch.zeros(2, dtype=torch.uint64, device=DEVICE), torch.zeros((), dtype=torch.uint64, device=DEVICE)
        back = torch.ops.aten._flash_attention_backward
        found = back(grad, q, k, v, out, lse, *sizes, *state, scale=q.shape[-1] ** -0.5)
        return found[0], found[1], found[2]
    scale = q.shape[-1] ** -0.5
    scores = masked(torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * scale, causal)
    share, up = (scores - lse[..., None]).exp(), grad.float()
    inner = torch.einsum("bqhd,bkhd->bhqk", up, v.float()) - (up * out.float()).sum(-1).transpose(1, 2)[..., None]
    of_scores = share * inner * scale
    dq, dk = (
        torch.einsum("bhqk,bkhd->bqhd", of_scores, k.float()),
        torch.einsum("bhqk,bqhd->bkhd", of_scores, q.float()),
    )
    return dq.to(q.dtype), dk.to(q.dtype), torch.einsum("bhqk,bqhd->bkhd", share, up).to(q.dtype)


def merge(
    out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, lse_more: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of attention to two sets of keys, in one."""
    both = torch.logaddexp(lse, lse_more)
    old, new = (lse - both).exp().transpose(1, 2)[..., None], (lse_more - both).exp().transpose(1, 2)[..., None]
    return out * old + more.float() * new, both


class Ring:
    """Buffers that travel to the next rank while this one computes."""

    def __init__(self) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.stream = torch.cuda.Stream() if DEVICE == "cuda" else None

    def send(self, buffer: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        """Start to send; what will be received."""
        into = torch.empty_like(buffer)
        after, before = (self.rank + 1) % self.ranks, (self.rank - 1) % self.ranks
        ops = [dist.P2POp(dist.isend, buffer, after), dist.P2POp(dist.irecv, into, before)]
        if self.stream is None:
            return into, dist.batch_isend_irecv(ops)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            return into, dist.batch_isend_irecv(ops)

    def part(self, step: int) -> str:
        """Which part of the work the keys of a step are: all, those of a rank before, or after."""
        source = (self.rank - step) % self.ranks
        return "own" if step == 0 else "before" if source < self.rank else "after"


def repeated(kv: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (2, batch, seq, kv heads, d), repeated for every query head."""
    times = heads // kv.shape[3]
    k, v = (kv if times == 1 else kv.repeat_interleave(times, dim=3)).unbind(0)
    return k, v


def summed(grads: tuple[torch.Tensor, torch.Tensor], kv_heads: int) -> torch.Tensor:
    """Gradients of repeated keys and values, summed over the repetitions."""
    both = torch.stack(grads)
    times = both.shape[3] // kv_heads
    return both if times == 1 else both.unflatten(3, (kv_heads, times)).sum(4)


class RingAttention(torch.autograd.Function):  # type: ignore[misc,unused-ignore]
    """Attention over keys and values that travel round the ranks."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, kv: torch.Tensor, merging: Any) -> torch.Tensor:
        """(batch, seq of the rank, heads, d); keys and values (2, batch, seq of the rank, kv heads, d)."""
        ring, half = Ring(), q.shape[1] // 2
        out = lse = torch.empty(0)
        at = kv
        for step in range(ring.ranks):
            arriving = ring.send(at) if step + 1 < ring.ranks else None
            part = ring.part(step)
            k, v = repeated(at[:, :, :half] if part == "before" else at, q.shape[2])
            if part == "own":
                some, lse = flash(q, k, v, True)
                out = some.float()
            elif part == "before":
                out, lse = merging(out, lse, *flash(q, k, v, False))
            else:
                more, lse_more = flash(q[:, half:].contiguous(), k, v, False)
                late, lse_late = merging(out[:, half:], lse[:, :, half:], more, lse_more)
                out, lse = torch.cat((out[:, :half], late), 1), torch.cat((lse[:, :, :half], lse_late), 2)
            if arriving is not None:
                at = arrived(arriving)
        whole = out.to(q.dtype)
        ctx.save_for_backward(q, kv, whole, lse.contiguous())
        return whole

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Gradients; those of keys and values travel with them."""
        q, kv, out, lse = ctx.saved_tensors
        ring, half, grad = Ring(), q.shape[1] // 2, grad.contiguous()
        dq, at = torch.zeros_like(q, dtype=torch.float32), kv
        coming: Any = None
        for step in range(ring.ranks):
            arriving = ring.send(at) if step + 1 < ring.ranks else None
            part, mine = ring.part(step), torch.zeros_like(kv, dtype=torch.float32)
            k, v = repeated(at[:, :, :half] if part == "before" else at, q.shape[2])
            if part == "after":
                late = (x[:, half:].contiguous() for x in (grad, q, out))
                g, some, y = late
                found = flash_back(g, some, k, v, y, lse[:, :, half:].contiguous(), False)
                dq[:, half:] += found[0]
            else:
                found = flash_back(grad, q, k, v, out, lse, part == "own")
                dq += found[0]
            mine[:, :, : k.shape[1]] += summed((found[1], found[2]), kv.shape[3])
            if coming is not None:
                mine += arrived(coming)
            coming = ring.send(mine)
            if arriving is not None:
                at = arrived(arriving)
        return dq.to(q.dtype), arrived(coming).to(q.dtype), None


def arrived(sent: tuple[torch.Tensor, list[Any]]) -> torch.Tensor:
    """Wait for a message."""
    buffer, work = sent
    for one in work:
        one.wait()
    return buffer


class GatherAttention(torch.autograd.Function):  # type: ignore[misc,unused-ignore]
    """Attention to keys and values gathered from all ranks."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, kv: torch.Tensor, _merging: Any) -> torch.Tensor:
        """As of the ring."""
        whole, outs, rank, ranks = ordered(kv), [], dist.get_rank(), dist.get_world_size()
        chunk, saved = q.shape[1] // 2, []
        for at, number in enumerate((rank, 2 * ranks - 1 - rank)):
            k, v = repeated(whole[:, :, : (number + 1) * chunk], q.shape[2])
            some = q[:, at * chunk : (at + 1) * chunk].contiguous()
            out, lse = flash(some, k, v, True)
            outs.append(out)
            saved += [some, out, lse]
        ctx.save_for_backward(whole, *saved)
        return torch.cat(outs, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Gradients of the rank's own queries, keys and values."""
        whole, *saved = ctx.saved_tensors
        rank, ranks, chunk = dist.get_rank(), dist.get_world_size(), grad.shape[1] // 2
        total, dq = torch.zeros_like(whole), []
        for at, number in enumerate((rank, 2 * ranks - 1 - rank)):
            some, out, lse = saved[3 * at : 3 * at + 3]
            k, v = repeated(whole[:, :, : (number + 1) * chunk], some.shape[2])
            g = grad[:, at * chunk : (at + 1) * chunk].contiguous()
            found = flash_back(g, some, k, v, out, lse, True)
            dq.append(found[0])
            total[:, :, : k.shape[1]] += summed((found[1], found[2]), whole.shape[3])
        return torch.cat(dq, 1), scattered(total), None


def ordered(kv: torch.Tensor) -> torch.Tensor:
    """All ranks' keys and values, in the order of the sequence."""
    ranks, chunk = dist.get_world_size(), kv.shape[2] // 2
    parts = kv.new_empty((ranks, *kv.shape))
    dist.all_gather_into_tensor(parts.flatten(0, 1), kv.contiguous())
    chunks = [parts[r][:, :, :chunk] for r in range(ranks)] + [parts[r][:, :, chunk:] for r in reversed(range(ranks))]
    return torch.cat(chunks, 2)


def scattered(total: torch.Tensor) -> torch.Tensor:
    """The sum over ranks of this rank's chunks of gradients."""
    ranks = dist.get_world_size()
    chunks = total.chunk(2 * ranks, dim=2)
    by_rank = torch.cat([torch.cat((chunks[r], chunks[2 * ranks - 1 - r]), 2) for r in range(ranks)])
    out = torch.empty_like(by_rank[: len(total)])
    dist.reduce_scatter_tensor(out, by_rank)
    return out


class SeqToHeads(torch.autograd.Function):  # type: ignore[misc,unused-ignore]
    """All-to-all that turns a part of the sequence into a part of the heads, or back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, to_heads: bool) -> torch.Tensor:
        """(batch, seq, heads, d) to the same."""
        ctx.to_heads = to_heads
        return swapped(x, to_heads)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The other way."""
        return swapped(grad, not ctx.to_heads), None


def swapped(x: torch.Tensor, to_heads: bool) -> torch.Tensor:
    """One all-to-all and the copies round it."""
    ranks = dist.get_world_size()
    sent = torch.stack(x.chunk(ranks, dim=2 if to_heads else 1))
    got = torch.empty_like(sent)
    dist.all_to_all_single(got, sent)
    return torch.cat(tuple(got), 1 if to_heads else 2)


class Layer(nn.Module):  # type: ignore[misc,unused-ignore]
    """One Llama layer on the part of the sequence that the rank has."""

    def __init__(self, c: Sizes, how: str, mode: str) -> None:
        super().__init__()
        h, self.heads, self.kv, self.how = c["hidden"], c["heads"], c["kv_heads"], how
        self.d = h // self.heads
        self.qkv = nn.Linear(h, (self.heads + 2 * self.kv) * self.d, bias=False)
        self.o = nn.Linear(h, h, bias=False)
        self.up_gate, self.down = nn.Linear(h, 2 * c["inner"], bias=False), nn.Linear(c["inner"], h, bias=False)
        self.norm_attn, self.norm_ffn = nn.RMSNorm(h), nn.RMSNorm(h)
        compiled = mode == "compile"
        self.before = torch.compile(self._before, dynamic=False) if compiled else self._before
        self.after = torch.compile(self._after, dynamic=False) if compiled else self._after
        self.merging = torch.compile(merge, dynamic=False) if compiled else merge

    def rope(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary embedding."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def _before(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        b, s, h = x.shape
        parts = self.qkv(self.norm_attn(x)).split([h, self.kv * self.d, self.kv * self.d], dim=-1)
        q, k, v = (part.view(b, s, -1, self.d) for part in parts)
        return self.rope(q, cos, sin), torch.stack((self.rope(k, cos, sin), v))

    def _after(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x + self.o(y.flatten(2))
        gate, up = self.up_gate(self.norm_ffn(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def attend(self, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Attention to all that comes before."""
        if self.how == "ring":
            return RingAttention.apply(q, kv, self.merging)
        if self.how == "allgather":
            return GatherAttention.apply(q, kv, None)
        k, v = kv.unbind(0)
        if self.how == "ulysses":
            q, k, v = (SeqToHeads.apply(x, True) for x in (q, k, v))
        y = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True)
        y = y.transpose(1, 2)
        return SeqToHeads.apply(y, False) if self.how == "ulysses" else y

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(batch, seq of the rank, hidden) to the same."""
        return self.after(x, self.attend(*self.before(x, cos, sin)))


def positions(how: str, seq: int) -> torch.Tensor:
    """Where the tokens of this rank stand in the sequence."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if how == "none":
        return torch.arange(seq // ranks)
    if how == "ulysses":
        return torch.arange(seq).chunk(ranks)[rank]
    chunks = torch.arange(seq).chunk(2 * ranks)
    return torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]))


def measure(name: str, layers: int, how: str, mode: str, seq: int, mbs: int) -> Row:
    """Forward and backward of one configuration in a settled state."""
    c = TINY if ARGS.tiny else MODELS[name]
    seq, layers = (64, 2) if ARGS.tiny else (seq, layers)
    torch.manual_seed(1)
    d = c["hidden"] // c["heads"]
    model = nn.ModuleList(Layer(c, how, mode) for _ in range(layers)).to(DEVICE, torch.bfloat16)
    angle = torch.outer(positions(how, seq), 5e5 ** (-torch.arange(0, d, 2) / d))[None, :, None].to(DEVICE)
    cos, sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
    held = angle.shape[1]
    inputs = torch.randn(mbs, held, c["hidden"], device=DEVICE, dtype=torch.bfloat16, requires_grad=True)

    def step() -> None:
        x = inputs
        for layer in model:
            x = layer(x, cos, sin)
        x.backward(torch.ones_like(x))
        model.zero_grad(set_to_none=True)

    warm(step)
    with Sensors() as sensors:
        times = settled(step, ARGS.seconds)
    middle = median(times)
    out: Row = {"gpu": gpu(), "gpus": dist.get_world_size(), "how": how, "mode": mode, "model": name, **c}
    out |= {"layers": layers, "seq": seq, "mbs": mbs, "step_ms": round(middle * 1e3, 3), "steps": len(times)}
    return out | {"step_ms_min": round(min(times) * 1e3, 3)} | sensors.readings() | peaks() | kernels(step)


COLUMNS = [
    *("gpu", "gpus", "how", "mode", "model", "hidden", "inner", "heads", "kv_heads", "layers", "seq", "mbs", "step_ms"),
    *("step_ms_min", "steps", "peak_gb", "reserved_gb", "gpu_ms", *SPLIT, "launches", "power_w", "sm_mhz"),
    *("attention_kernel", "took_s"),
]
PLAN = tuple(
    (name, 8, how, mode, seq, 1)
    for name, mode, seq in (
        ("8b", "eager", 16384),
        ("8b", "compile", 16384),
        ("7b", "eager", 8192),
        ("8b", "eager", 32768),
    )
    for how in ("ring", "allgather", "ulysses", "none")
)

if __name__ == "__main__":
    ARGS = arguments(__doc__ or "")
    record(PLAN, measure, COLUMNS, ARGS)
