"""One line of CSV for every answered request of a replay, written as it is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reports.export.files import replacing
from simulator.serving.request import Sequence

COLUMNS = (
    "number",
    "arrival_s",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "started_s",
    "first_token_s",
    "last_token_s",
    "preemptions",
)


@contextmanager
def recording(path: Path | None) -> Iterator[Callable[[Sequence, float], None] | None]:
    """A function that writes a line for a sequence and the time of its last token; None without a path."""
    if path is None:
        yield None
        return
    with replacing(path) as file:
        file.write((",".join(COLUMNS) + "\n").encode())

        def note(sequence: Sequence, now: float) -> None:
            r = sequence.request
            cells = (r.number, r.arrival, r.input_tokens, r.output_tokens, sequence.hits, sequence.started)
            line = ",".join(map(repr, (*cells, sequence.first, now, sequence.preemptions)))
            file.write(f"{line}\n".encode())

        yield note
