"""One engine: continuous batching, step by step, with the KV cache in blocks.

Steps in which the same sequences only decode are run through in one go, up to the next end of a sequence, lack of
blocks, or arrival. That changes no number: their times follow a straight line in the context (`step_times.Pace`).
"""

from __future__ import annotations

from math import inf
from typing import Protocol

from simulator.serving.engine.decode_batch import DecodeBatch
from simulator.serving.engine.draft_batch import DraftBatch
from simulator.serving.engine.held import Held
from simulator.serving.engine.kv_blocks import KvBlocks
from simulator.serving.engine.kv_tiers import TierRoom
from simulator.serving.engine.messages import Messages
from simulator.serving.engine.prompts import most_of_a_rank
from simulator.serving.request import Sequence
from simulator.serving.step_times import Pace, StepTimes
from simulator.spec.scheduler import Scheduler

EQUAL = 1e-3
"""Relative difference of step times below which consecutive gaps between tokens are recorded as one."""


class Listener(Protocol):
    """Who is to know what happens in an engine."""

    def gap(self, seconds: float, count: int) -> None:
        """So many messages with tokens came this long after the ones before them [s]."""

    def along(self, count: int) -> None:
        """So many tokens came in one message with the token before them."""

    def finished(self, sequence: Sequence, now: float) -> None:
        """A sequence has its last token."""

    def stepped(self, since: float, until: float, engine: Engine) -> None:
        """Steps ran between two times, and are over; what the engine holds is as it was in them."""


class Engine(Held):
    """Waiting and running sequences of one engine, and the steps that it runs.

    Parameters
    ----------
    times : time of each step.
    scheduler : how steps are put together.
    blocks : blocks of its KV cache.
    listener : who is to know.
    drafts : probability that each drafted token is accepted (multi-token prediction); none are drafted without.
    seed : seed of what is accepted.
    tiers : where the prefix cache goes on below HBM; nowhere without.
    ranks : data-parallel ranks in lock-step; a step lasts as long as on the one with most to do.
    balanced : a sequence goes to the rank with the fewest, not to one rank after the other.
    """

    def __init__(
        self,
        times: StepTimes,
        scheduler: Scheduler,
        blocks: int,
        listener: Listener,
        drafts: tuple[float, ...] = (),
        seed: int = 0,
        tiers: TierRoom | None = None,
        ranks: int = 1,
        balanced: bool = False,
    ) -> None:
        block = scheduler.block
        kv = KvBlocks(blocks, block, prefix_cache=scheduler.prefix_cache, tiers=tiers)
        decoding = DraftBatch(block, drafts, seed, ranks) if drafts else DecodeBatch(block, ranks)
        super().__init__(kv, scheduler, decoding, balanced=balanced)
        self.times, self.scheduler, self.listener = times, scheduler, listener
        self.messages = Messages(scheduler.stream_interval, listener) if scheduler.stream_interval > 1 else None
        self.lost = False
        self.orphans: list[Sequence] = []

    def submit(self, sequence: Sequence, now: float) -> None:
        """A sequence arrives; `now` is not later than `until`."""
        waiting = self.prompts.waiting
        if self.ahead > 1 and not waiting and self.running < self.scheduler.sequences:
            self.shorten(now)
        waiting.append(sequence)
        sequence.queued = now
        self.load += 1
        if not self.works and self.until > now:  # awake, but others may arrive at the same time
            self.since = self.until = now

    def fail(self, now: float) -> None:
        """The engine is lost with the step that runs at `now`; what it held is in `orphans` then."""
        self.lost = True
        if not self.works:
            self.since = self.until = now
        elif self.ahead > 1:
            self.shorten(now)

    def _lose(self) -> None:
        """Give up all sequences, to be computed anew elsewhere."""
        self.prompts.drop_loading()
        while self.running:
            self._preempt()
        self.orphans = list(self.prompts.waiting)
        self.prompts.waiting.clear()
        self.load = 0
        self.ahead, self.chunks, self.until = 0, [], inf

    def complete(self) -> None:
        """What runs now is over, at `until`; the next step begins."""
        now = self.until
        self.prompts.decided = self._last_began() if self.scheduler.decided_ahead and self.works else now
        if self.works:
            self.listener.stepped(self.since, now, self)
        if self.ahead:
            self._decoded(now)
        for sequence, count in self.chunks:
            sequence.computed += count
            if sequence.computed >= sequence.target:
                self._prefilled(sequence, now)
        self._begin(now)

    def _decoded(self, now: float) -> None:
        """The decode steps that were ahead are over, the last at `now`."""
        decoding, steps, listener = self.decoding, self.ahead, self.listener
        if self.messages is not None:
            self.messages.decoded(decoding, steps, self)
        else:
            _first_gaps(listener, decoding, self.since + self.first if steps > 1 else now)
        if self.messages is None and steps > 1:
            _gaps(listener, self.first + self.slope, self.slope, len(decoding.members), steps - 1)
        growth = decoding.growth(steps)
        if growth:
            self.prompts.grow(growth)
        for sequence in decoding.advance(steps, now):
            self.prompts.release(sequence)
            self.load -= 1
            listener.finished(sequence, now)

    def _prefilled(self, sequence: Sequence, now: float) -> None:
        """A prompt is computed: its first token (or, behind a preemption, the next) is there."""
        self.prompts.cache(sequence)
        if not sequence.made:
            sequence.first = sequence.sent_at = now
            sequence.sent = 1
        elif self.messages is not None:
            self.messages.made(sequence, sequence.made + 1, now)
        else:
            self.listener.gap(now - sequence.last, 1)
        sequence.made += 1
        sequence.last = now
        if sequence.left:
            self.decoding.join(sequence)
        else:
            if self.keeps:
                self.prompts.kept += 1
            else:
                self.prompts.release(sequence)
            self.load -= 1
            self.listener.finished(sequence, now)

    def _begin(self, now: float) -> None:
        """Put the next step together."""
        self.since = now
        if self.lost:
            self._lose()
            return
        waiting = self.prompts.waiting
        if self.prompts.asking or self.prompts.arrived:
            self._join_arrived()
        while waiting and waiting[0].computed and self.running < self.scheduler.sequences:
            if not self.prompts.receive(waiting[0]):
                break
            self.decoding.join(waiting.popleft())
        if self.scheduler.prefill == "first":
            self.ahead = 0
            self._fill(now, admit=True)
            preempted = not self.chunks and self._make_room()
            if not self.chunks and self.decoding.members:
                self.ahead = 1
        else:
            preempted = self._make_room()
            self.ahead = 1 if self.decoding.members else 0
            self._fill(now, admit=not preempted)
        if self.chunks:
            self._time_mixed(now)
        elif self.decoding.members:
            self._time_decode(now, most=1 if preempted else None)  # who was put back may be admitted next
        elif self.prompts.waiting and (preempted or not (self.prompts.loading or self.prompts.elsewhere)):
            self.until = now  # all were put back
        else:
            self.until = self.prompts.next_loaded()

    def _fill(self, now: float, *, admit: bool) -> None:
        """Choose the prompts of the step."""
        prompts, batch = self.prompts, len(self.decoding.members)
        self.chunks = []
        prompts.loads = []
        if not prompts.prefilling and not (prompts.waiting and admit) and prompts.next_loaded() > now:
            return
        spare, each = self.kv.available, self.scheduler.step_tokens // self.ranks
        left = [each] * self.ranks
        if self.ahead:
            left, spare = [each - decode for decode in self.decoding.on_rank], spare - self.decoding.needed()
        self.chunks = prompts.chosen(left, spare, batch, now, admit=admit)

    def _time_mixed(self, now: float) -> None:
        """A step with prompts in it."""
        tokens, attended, prompts = most_of_a_rank(self.chunks, self.ranks)
        batch = len(self.decoding.members) if self.ahead else 0
        if batch:
            self.decoding.draw()
        mean, most = (self.decoding.context / batch, self.decoding.most) if batch else (0.0, 0)
        seconds = self.kv.with_tiers(self.times.mixed(most, mean, tokens, attended), self.prompts.loads)
        self.first, self.slope = _with_host(self.scheduler, seconds, most + prompts), 0.0
        self.until = now + self.first

    def _time_decode(self, now: float, most: int | None) -> None:
        """As many decode steps as nothing can change."""
        decoding = self.decoding
        decoding.draw()
        most_of_rank = decoding.most
        pace = self.times.decode(most_of_rank, decoding.context / len(decoding.members))
        if 0 < self.prompts.short <= decoding.needed():
            most = 1  # once these blocks are taken, less is still to come: who waits may fit before the next one is
        room = self.kv.free if self.prompts.hoped else self.kv.at_once
        steps = decoding.steps_in(room, most or min(pace.steps, decoding.first_end()))
        waits = self.kv.with_tiers(pace.seconds, ())
        if self.prompts.late:
            steps = 1  # who came too late for this step may be in the next
        if waits > pace.seconds:
            steps, pace = 1, Pace(waits, 0.0, 1)
        steps, seconds, slope = _paced(self.scheduler, pace, most_of_rank, steps)
        self.ahead, self.first, self.slope = steps, seconds, slope
        self.until = now + self.span(steps)
        if self.prompts.next_loaded() < self.until:
            self.shorten(self.prompts.next_loaded())


def _first_gaps(listener: Listener, decoding: DecodeBatch, end: float) -> None:
    """Gaps before the tokens of a step that ends at `end`."""
    settled = len(decoding.members) - len(decoding.fresh)
    if settled:
        listener.gap(end - decoding.last, settled)
    for sequence in decoding.fresh:
        listener.gap(end - sequence.last, 1)
    if decoding.extra:
        listener.along(decoding.extra)  # accepted drafts come together with the token before them


def _gaps(listener: Listener, first: float, slope: float, batch: int, steps: int) -> None:
    """Gaps between the tokens of consecutive steps behind the first: in parts whose times are nearly equal."""
    parts = min(steps, 1 + int(slope * steps / (first * EQUAL))) if first > 0 else 1
    begun = 0
    for part in range(1, parts + 1):
        end = steps * part // parts
        listener.gap(first + slope * (begun + end - 1) / 2, batch * (end - begun))
        begun = end


def _with_host(s: Scheduler, seconds: float, sequences: int) -> float:
    """Time of a step with the host's part [s]."""
    host = s.host_step + s.host_sequence * sequences
    return max(seconds, host) if s.host_overlapped else seconds + host


def _paced(s: Scheduler, pace: Pace, batch: int, steps: int) -> tuple[int, float, float]:
    """Steps that can be run through in one go, time of the first, and what each later one adds [s]."""
    seconds, slope = _with_host(s, pace.seconds, batch), pace.slope
    if s.host_overlapped and seconds > pace.seconds:  # the host is slower until the context has grown
        steps = min(steps, max(1, int((seconds - pace.seconds) / slope))) if slope > 0 else steps
        slope = 0.0
    return steps, seconds, slope
