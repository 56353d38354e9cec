"""Writes `chat.jsonl`: ten minutes of conversations, made up, in Mooncake's format.

`python -m workloads.traces.make_chat > workloads/traces/chat.jsonl`. Conversations begin at random times (Poisson) with
one of a few system prompts; every turn repeats all that was said before, so that its prompt begins like the last one's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np

BLOCK = 512
"""Tokens of a hash [tokens]."""
MINUTES, PER_MINUTE = 10, 12
"""Length of the trace, and conversations that begin in a minute."""
SYSTEM = (512, 1536, 3072)
"""System prompts [tokens]."""


def rows(seed: int = 0) -> list[dict[str, object]]:
    """The requests in order of arrival."""
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.uniform(0.0, 60.0 * MINUTES, size=MINUTES * PER_MINUTE))
    found = [row for number, start in enumerate(starts.tolist()) for row in _conversation(number, start, rng)]
    return sorted(found, key=lambda row: row["timestamp"])  # type: ignore[arg-type,return-value]


def _conversation(number: int, start: float, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    """The turns of one conversation: a question of a few hundred tokens, an answer, time to read and type."""
    system = int(rng.integers(len(SYSTEM)))
    shared = [system * 100 + at for at in range(SYSTEM[system] // BLOCK)]
    length, now = SYSTEM[system], start
    for _ in range(int(rng.geometric(0.4))):
        question, answer = (1 + int(rng.lognormal(mean, 0.9)) for mean in (5.0, 5.2))
        length += question
        own = [10_000 + number * 1000 + at for at in range(-(-length // BLOCK) - len(shared))]
        yield {
            "timestamp": int(now * 1000),
            "input_length": length,
            "output_length": answer,
            "hash_ids": shared + own,
        }
        length += answer
        now += answer * 0.02 + float(rng.exponential(20.0))


if __name__ == "__main__":
    sys.stdout.writelines(json.dumps(row) + "\n" for row in rows())
