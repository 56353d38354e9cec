"""How serving software decides what each step works on: the `[scheduler]` table of a stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KvHandover = Literal["layers", "chunks", "pull"]
"""How a KV cache goes from engines for prompts to those that go on (`Scheduler.kv_handover`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """Settings of continuous batching (Yu et al., Orca, OSDI 2022), per engine.

    An engine is one attention-data-parallel rank. It runs steps one behind the other and decides anew before each.

    Parameters
    ----------
    prefill : mixed: running sequences take one token each, and what is left of `step_tokens` goes to prompts;
        first: prompts run in steps of their own, before any sequence goes on.
    chunked : a prompt may be cut where a step is full; otherwise it waits for a step that holds all of it.
    step_tokens : most tokens of a step that prompts are in [tokens].
    sequences : most sequences that run at once.
    reserved_output : share of the output still to come of running sequences that admission leaves room for, next to all
        of the new one's. 1: no sequence is ever put back; 0: prompts are admitted while they fit.
    block : size of a block of the KV cache [tokens].
    prefix_cache : blocks of past prompts stay while there is room, and prompts that begin the same reuse them.
    host_cache : part of a GPU's host memory in which the prefix cache goes on [B]; 0: none.
    disk_cache : part of its disk in which that goes on [B]; 0: none.
    cache_writes : through: blocks are copied to the host as soon as their prompt is computed; back: when they must
        leave HBM, for which the next step waits.
    cache_loads : layers: a step computes each layer as soon as its part of what is cached below HBM is loaded; before:
        a request is admitted when all of it is, while others run.
    kv_handover : of engines that go on from prompts computed elsewhere. layers, chunks: they take blocks before the
        prompt is computed, and its cache travels as soon as a layer, or a chunk, is there; pull: they take blocks when
        it is computed, and then fetch all of it from the engine that computed it, which keeps it until then.
    captured : batch sizes for which CUDA graphs are captured; a decode step is padded to the next, and larger ones are
        issued kernel by kernel. Empty: no padding and no graphs.
    captured_prefill : most tokens of a step with prompts for which graphs are captured, too [tokens]; 0: none are.
    host_step : time of the host between two steps, to decide and to prepare inputs [s].
    host_sequence : the part of it that grows with the batch, for each sequence in the step [s].
    host_overlapped : the host prepares the next step while this one runs, so that only what is longer shows.
    decided_ahead : the next step is put together when this one begins, so that what arrives meanwhile waits for one
        more (where nothing is left to run, for none).
    stream_interval : tokens that a message to the client brings, behind the first. What fewer messages save the host
        is not modelled.
    frontend : time of a request outside the engine: tokenising, queues between processes, sending back [s].
    """

    prefill: Literal["mixed", "first"]
    chunked: bool
    step_tokens: int
    sequences: int
    reserved_output: float
    block: int
    prefix_cache: bool
    host_cache: float
    disk_cache: float
    cache_writes: Literal["through", "back"]
    cache_loads: Literal["layers", "before"]
    kv_handover: KvHandover
    captured: tuple[int, ...]
    captured_prefill: int
    host_step: float
    host_sequence: float
    host_overlapped: bool
    decided_ahead: bool
    stream_interval: int
    frontend: float
