"""What a waiting sequence finds in the prefix cache, and what its first part needs."""

from __future__ import annotations

from typing import NamedTuple

from simulator.serving.engine.kv_blocks import Found, KvBlocks
from simulator.serving.request import Sequence


class FirstChunk(NamedTuple):
    """The first part of a prompt that is computed.

    Attributes
    ----------
    tokens : its tokens.
    hits : hashes of the prompt's beginning that are in the cache.
    found : tokens that these stand for.
    cached : blocks that these stand for.
    here : where they are.
    below : blocks of HBM that what is loaded from lower tiers takes.
    idle : blocks among them that nobody reads now.
    need : further blocks.
    """

    tokens: int
    hits: int
    found: int
    cached: int
    here: Found
    below: int
    idle: int
    need: int


def first_chunk(kv: KvBlocks, sequence: Sequence, budget: int, *, chunked: bool, first: bool) -> FirstChunk | None:
    """The first part of up to `budget` tokens; None: the prompt is longer, may not be cut (`chunked`), and is not the
    `first` of its step."""
    request = sequence.request
    hits = kv.matched(request.hashes) if request.hashes else 0
    while hits and hits * request.hash_tokens >= sequence.target:
        hits -= 1  # the last token is computed in any case
    each = request.hash_tokens // kv.size
    found, cached = hits * request.hash_tokens, hits * each
    tokens = sequence.target - found
    if tokens > budget:
        if not (chunked or first):
            return None
        tokens = budget if chunked else tokens
    here = kv.located(request.hashes[:hits])
    return FirstChunk(
        tokens=tokens,
        hits=hits,
        found=found,
        cached=cached,
        here=here,
        below=len(here.below) * each,
        idle=kv.idle_among(here.hbm) if hits else 0,
        need=kv.of_tokens(found + tokens) - cached,
    )
