"""Headline numbers of every shipped job: whoever changes one says so in the changelog under Numbers.

REWRITE_GOLDEN=1 records them anew; the failure message shows each delta.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from simulator.inputs import list_names, load_scenario
from simulator.results.simulate import simulate

GOLDEN = Path(__file__).parents[1] / "golden" / "numbers.json"
KEYS = ("step_time_s", "mfu_causal", "bubble_ratio", "bubble_ratio_worst", "exposed_comm_s", "run_cost_usd")
SERVING_KEYS = ("step_time_s", "tokens_per_s_per_gpu", "mfu", "exposed_comm_s", "peak_memory_bytes", "largest_batch")
DIGITS = 6


def numbers(job: str) -> dict[str, float]:
    """The headline numbers of one job, rounded."""
    scenario = load_scenario(job)
    found = simulate(scenario).metrics
    keys = SERVING_KEYS if scenario.workload.serves else KEYS
    return {key: float(f"{found[key]:.{DIGITS}g}") for key in keys}


@pytest.mark.long
@pytest.mark.parametrize("job", list_names("job"))
def test_headline_numbers_are_those_on_record(job: str) -> None:
    record = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    today = numbers(job)
    if os.environ.get("REWRITE_GOLDEN"):
        record[job] = today
        GOLDEN.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    known = record.get(job, {})
    deltas = {k: f"{known.get(k)} -> {v}" for k, v in today.items() if known.get(k) != pytest.approx(v, rel=1e-5)}
    assert not deltas, f"{job}: {deltas}; if meant, record them anew and say so in CHANGELOG.md under Numbers"
