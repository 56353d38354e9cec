"""A request, and a sequence: a request that an engine works on."""

from __future__ import annotations

from typing import NamedTuple


class Request(NamedTuple):
    """What a user asks for.

    Attributes
    ----------
    number : place in order of arrival, from 0.
    arrival : when it is sent [s].
    input_tokens : length of the prompt [tokens].
    output_tokens : length of the answer [tokens].
    hashes : names of the prompt's whole blocks; equal names mean that the prompts are equal up to there.
    hash_tokens : tokens of such a block [tokens].
    """

    number: int
    arrival: float
    input_tokens: int
    output_tokens: int
    hashes: tuple[int, ...] = ()
    hash_tokens: int = 512

    @property
    def longest(self) -> int:
        """Tokens in the KV cache at the end: the last one is not stored [tokens]."""
        return self.input_tokens + self.output_tokens - 1


class Sequence:
    """The state of a request in an engine. It changes from step to step, as the one thing here that does.

    Attributes
    ----------
    request : what was asked for.
    target : tokens that its prefill computes: the prompt, and after a preemption what was generated, too.
    computed : tokens of these that are in the KV cache.
    made : output tokens that were generated.
    shared : blocks of the prefix cache that it reads or has filled: this many of the request's hashes.
    hits : prompt tokens found in the prefix cache at the last admission.
    host_hits, disk_hits : of these, tokens found in the host's memory and on disk.
    started : when its first prefill began [s]; negative before.
    first, last : when its first and newest token came [s]; negative before.
    queued : when it came to the engine that it is in [s].
    sent, sent_at : output tokens that the client has, and since when it has the newest [s].
    received : when its KV cache had arrived from the engine that computed the prompt [s]; negative otherwise.
    rank : data-parallel rank of its engine that holds it.
    joined : decode steps that its engine had run when it began to decode.
    ends : decode steps that the engine will have run when its last token is there.
    preemptions : times that it was put back.
    """

    __slots__ = (
        "computed", "disk_hits", "ends", "first", "hits", "host_hits", "joined", "last", "made", "preemptions",
        "queued", "rank", "received", "request", "sent", "sent_at", "shared", "started", "target",
    )  # fmt: skip

    def __init__(self, request: Request) -> None:
        self.request = request
        self.target = request.input_tokens
        self.computed = self.made = self.shared = self.hits = 0
        self.host_hits = self.disk_hits = 0
        self.rank = self.joined = self.ends = self.preemptions = self.sent = 0
        self.queued = self.started = self.first = self.last = self.sent_at = self.received = -1.0

    @property
    def left(self) -> int:
        """Output tokens still to come."""
        return self.request.output_tokens - self.made


def received(request: Request, now: float) -> Sequence:
    """A sequence whose prompt was computed elsewhere, with its first token, and whose KV cache is here."""
    sequence = Sequence(request)
    sequence.computed, sequence.made, sequence.sent = request.input_tokens, 1, 1
    sequence.started = sequence.first = sequence.last = sequence.sent_at = sequence.received = now
    return sequence
