"""Memory that communication sets aside for the whole step."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.dtypes import BF16
from simulator.graph.shapes import Shapes
from simulator.memory.assumptions import Assumptions
from simulator.memory.memory_report import Item
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario
from simulator.spec.stack import LIBRARY

_INDICES = 128 * (8 + 4 + 4)
"""Bytes of a token's queue entry besides its values: 128 expert ids, weights and scales [B]."""
_META = 8  # bytes of a token's source
_PEERS = 8  # ranks of one node that DeepEP's kernels address over NVLink


def queue_bytes(hidden_bytes: float, ranks: int, sms: int, nvl_tokens: int, rdma_tokens: int) -> tuple[float, float]:
    """NVLink and RDMA queues of DeepEP's kernels for tokens of `hidden_bytes` over `ranks` ranks [B].

    A channel is two SMs. NVLink: a queue per channel and rank of the node. RDMA: a send and a receive queue per channel
    and node (github.com/deepseek-ai/DeepEP, csrc/config.hpp, buffer size hints; counters of a few bytes left out).
    """
    channels, entry = sms // 2, hidden_bytes + _INDICES + _META
    nvlink = channels * min(ranks, _PEERS) * nvl_tokens * entry
    rdma = 2.0 * channels * (ranks // _PEERS) * rdma_tokens * entry if ranks > _PEERS else 0.0
    return nvlink, rdma


def buffer_items(
    scenario: Scenario, shapes: Shapes, stages: Sequence[Sequence[BlockKind]], assumed: Assumptions
) -> list[Item]:
    """Queues of the all-to-all, and buffers that the pipeline receives into, of a rank that holds `stages`."""
    job, hidden = scenario.job, scenario.model.expert_hidden
    items = []
    if shapes.local_experts and job.layout.ep > 1 and scenario.stack.dispatcher not in LIBRARY:
        nvlink, rdma = queue_bytes(
            hidden * BF16, job.layout.ep, job.overlap.comm_sms, assumed.nvl_tokens, assumed.rdma_tokens
        )
        items.append(Item(group="buffers", name="expert all-to-all, NVLink queues", bytes=nvlink))
        items.append(Item(group="buffers", name="expert all-to-all, RDMA queues", bytes=rdma))
    if job.layout.pp > 1:
        message = shapes.tokens / (job.layout.tp if job.layout.sp else 1) * scenario.model.sent_width * BF16
        count = 2 * assumed.receive_buffers * len(stages)
        if scenario.stack.pipeline_buffers == "each":  # the first stage receives no activations, the last no gradients
            kinds = [kind for blocks in stages for kind in blocks]
            ends = (BlockKind.EMBED in kinds) + (BlockKind.HEAD in kinds)
            count = (2 * len(stages) - ends) * job.microbatches
        size = count * message
        items.append(Item(group="buffers", name="pipeline receive buffers", bytes=size))
    return items
