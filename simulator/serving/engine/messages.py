"""Messages that a client gets: tokens that are held back and sent together, as engines do it to save the host work.

The first token of a request leaves at once, then a message as soon as `interval` more tokens are there, and the rest at
the end (--stream-interval of vllm-project/vllm, v1/engine/output_processor.py, and of sgl-project/sglang,
managers/scheduler_output_processor_mixin.py, 2026. TensorRT-LLM's stream_interval counts decode steps instead, which is
the same where each step has one token).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.serving.request import Sequence

if TYPE_CHECKING:
    from simulator.serving.engine.decode_batch import DecodeBatch
    from simulator.serving.engine.engine import Listener
    from simulator.serving.engine.running import Running


class Messages:
    """What is sent, of sequences whose tokens are held back.

    Parameters
    ----------
    interval : tokens of a message behind the first.
    listener : who is to know when messages come.
    """

    def __init__(self, interval: int, listener: Listener) -> None:
        self.interval, self._listener = interval, listener

    def decoded(self, decoding: DecodeBatch, steps: int, running: Running) -> None:
        """Decode steps are over, whose members have not been advanced yet."""
        since, end = running.since, running.until
        for sequence, made, count in decoding.tokens(steps):
            if steps == 1:
                self.made(sequence, made + count, end)
                continue
            due, last = sequence.sent + self.interval, made + steps
            while due <= last:
                self._send(sequence, due, since + running.span(due - made))
                due += self.interval
            self.made(sequence, last, end)

    def made(self, sequence: Sequence, made: int, now: float) -> None:
        """A sequence has so many tokens: they leave if they are enough, or all."""
        held = made - sequence.sent
        if held >= self.interval or (held and made >= sequence.request.output_tokens):
            self._send(sequence, made, now)

    def _send(self, sequence: Sequence, made: int, now: float) -> None:
        self._listener.gap(now - sequence.sent_at, 1)
        self._listener.along(made - sequence.sent - 1)
        sequence.sent, sequence.sent_at = made, now
