"""A pass of the MTP module: it drafts the next token of each sequence (DeepSeek-V3 report, arXiv 2412.19437, sections
2.2 and 5.4.3).

Norms of the state and of the next token's embedding, joined and projected; one layer; the head that it shares with the
main model. The first pass runs over all tokens that were verified, so that its cache has them, as SGLang extends its
draft model behind every verification (sgl-project/sglang, python/sglang/srt/speculative/eagle_worker.py, 2025); each
further one over the token drafted before. All read the same module where the model has one, as engines do.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.dtypes import BF16
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.mixers import hyper
from simulator.graph.norm import norm_forward
from simulator.graph.parallel import sharded_tokens
from simulator.graph.serving.linear import add_up, linear
from simulator.graph.serving.shapes import ServingShapes


def projection(s: ServingShapes) -> Segment:
    """`mtp.F`: embedding of the next tokens, both norms, and the projection of the two."""
    own, h = sharded_tokens(s), s.model.hidden_size
    builder = SegmentBuilder("mtp.F", "F", s)
    builder.add("mtp.embed", "embedding", cast(s.tokens * h, BF16, BF16))
    add_up(builder, "mtp.embed", s, s.tokens, h)
    rows = {"h": own * s.model.hc_mult, "e": own}
    for which, many in rows.items():
        norm_forward(builder, f"mtp.norm_{which}", many, h)
    if not hyper.mixes(s):
        builder.add("mtp.concat", "kvcopy", cast(own * 2 * h, BF16, BF16))
        linear(builder, "mtp.proj", s, own, h, 2 * h)
        if s.fuses_norms:
            norm_forward(builder, "mtp.norm_attn", own, h)  # no all-reduce stands before it
        return builder.done()
    for which, many in rows.items():  # each stream by itself, and the embedding's added (`simulator.graph.ends`)
        linear(builder, f"mtp.proj_{which}", s, many, h, h)
    builder.add("mtp.sum", "elem", cast(rows["h"] * h, 2 * BF16, BF16))
    return builder.done()


def sampled_once(s: ServingShapes) -> ServingShapes:
    """The shapes of the head behind it: one row for each sequence, however many tokens ran through the layer."""
    return replace(s, tokens=s.batch, seq=1, chunk=0, drafts=())
