"""The answer of a replay in numbers: headline metrics, cache, queues, series, and what each word means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from simulator.results.metrics import price_of
from simulator.serving.recorder import SERIES, Recorder
from simulator.serving.serve import Served
from simulator.serving.sketch import ERROR, Sketch
from simulator.units import HOUR

SCHEMA = "foretrain.serve/1"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
POINTS = 128
"""Most points of a time series."""

DEFINITIONS: Mapping[str, str] = {
    "ttft_s": "from the arrival of a request to its first output token, with queue and frontend",
    "tpot_s": "of a request, (end - first token) / (output tokens - 1); requests with one output token have none",
    "itl_s": "each gap between two tokens of a request, over all requests; 0 between tokens of one message",
    "message_gap_s": "each gap between two messages with tokens of a request, over all requests; messages bring several"
    " tokens where drafts are accepted, or with a stream interval. Benchmark clients that count messages call this ITL",
    "e2e_s": "from the arrival of a request to its last token",
    "queue_s": "from the arrival of a request to the first step that works on it",
    "output_tokens_per_s_per_gpu": "output tokens of all answered requests / makespan / all GPUs",
    "total_tokens_per_s_per_gpu": "the same with prompt tokens, cached ones too",
    "requests_per_s": "answered requests / makespan; makespan: from the first arrival to the last token",
    "goodput_per_s": "requests that hold every limit of --slo, each by itself / makespan; all where there is none",
    "usd_per_million_output_tokens": "GPUs x price of a GPU-hour / output tokens of an hour x 1e6",
}
TITLES = {
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
    "itl_s": "inter-token latency",
    "message_gap_s": "between messages",
    "e2e_s": "end to end",
    "queue_s": "of it in the queue",
}
LATENCIES = ("ttft_s", "tpot_s", "itl_s", "message_gap_s", "e2e_s", "queue_s")


def latencies(recorder: Recorder) -> dict[str, Sketch]:
    """Distributions by name."""
    found = (recorder.ttft, recorder.tpot, recorder.itl, recorder.gaps, recorder.e2e, recorder.queue)
    return dict(zip(LATENCIES, found, strict=True))


def _of(sketch: Sketch, known: bool) -> dict[str, float | None]:
    if not known:
        return dict.fromkeys(("mean", *QUANTILES))
    return {"mean": sketch.mean} | {name: sketch.quantile(share) for name, share in QUANTILES.items()}


def metrics(served: Served) -> dict[str, Any]:
    """Headline numbers. In overload latencies are None: they would depend on when one stops; rates are those at
    capacity."""
    recorder, gpus = served.recorder, served.deployment.gpus
    over = served.overload
    count = max(1, recorder.finished_count)
    span = max(recorder.end - recorder.begin, 1e-12)
    requests = recorder.finished_count / span if over is None else over.capacity
    outputs, inputs = recorder.outputs / count * requests, recorder.inputs / count * requests
    price = price_of(served.deployment.scenario)[0]
    out: dict[str, Any] = {name: _of(sketch, over is None) for name, sketch in latencies(recorder).items()}
    return out | {
        "output_tokens_per_s_per_gpu": outputs / gpus,
        "total_tokens_per_s_per_gpu": (outputs + inputs) / gpus,
        "requests_per_s": requests,
        "goodput_per_s": recorder.good / span if over is None else None,
        "usd_per_million_output_tokens": gpus * price / HOUR / outputs * 1e6 if outputs else None,
        "makespan_s": span,
    }


def _series(recorder: Recorder) -> dict[str, list[float]]:
    """Means over intervals of equal width."""
    rows, width = recorder.series.sums, recorder.series.width
    step = -(-len(rows) // POINTS) or 1
    out: dict[str, list[float]] = {name: [] for name in ("time_s", *SERIES)}
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        out["time_s"].append(first * width)
        for at, name in enumerate(SERIES):
            out[name].append(sum(row[at] for row in part) / (step * width))
    return out


def _tiers(served: Served) -> dict[str, dict[str, float]]:
    """Of every tier the share of prompt tokens found there; of those below HBM what they hold and gave up, too."""
    recorder = served.recorder
    inputs = max(1, recorder.inputs)
    out: dict[str, dict[str, float]] = {
        "hbm": {"hit_rate": (recorder.hits - recorder.host_hits - recorder.disk_hits) / inputs}
    }
    if served.below:
        hits = {"host": recorder.host_hits, "disk": recorder.disk_hits}
        for name, tiers in (("host", [one.host for one in served.below]), ("disk", [one.disk for one in served.below])):
            out[name] = {
                "hit_rate": hits[name] / inputs,
                "blocks": sum(one.most for one in tiers),
                "used_blocks": sum(one.held for one in tiers),
                "evicted": sum(one.evicted for one in tiers),
            }
        out["host"]["written_blocks"] = sum(one.written for one in served.below)
    return out


def as_dict(served: Served) -> dict[str, Any]:
    """Everything, ready for JSON."""
    deployment, recorder = served.deployment, served.recorder
    scenario, load = deployment.scenario, served.load
    found = metrics(served)
    span, sides = found["makespan_s"], deployment.sides
    engines, blocks = sum(one.engines for one in sides), sum(one.blocks * one.engines for one in sides)
    over = served.overload
    rates = {name: value for name, value in found.items() if not isinstance(value, dict)}
    return {
        "schema": SCHEMA,
        "job": scenario.name,
        "model": scenario.model.name,
        "hardware": scenario.cluster.name,
        "stack": scenario.stack.name,
        "gpus": deployment.gpus,
        "engines": deployment.engines,
        "ranks_in_lock_step": deployment.ranks,
        "router": deployment.router,
        "prefill_engines": deployment.prompts.engines if deployment.prompts is not None else 0,
        "kv_transfer": None if deployment.link is None else asdict(deployment.link),
        "load": {
            "requests": load.requests,
            "input_tokens": load.input_tokens,
            "output_tokens": load.output_tokens,
            "seed": load.seed,
        },
        "metrics": found,
        **rates,
        "overload": None if over is None else {"rate_per_s": over.rate, "capacity_per_s": over.capacity},
        "capacity_requests_per_s": served.capacity,
        "requests": {
            "arrived": recorder.arrived,
            "answered": recorder.finished_count,
            "refused": recorder.refused,
            "preempted": recorder.preempted,
            "within_slo": recorder.good,
            "input_tokens": recorder.inputs,
            "output_tokens": recorder.outputs,
        },
        "slo_s": recorder.limits,
        "queue": {
            "mean_waiting": recorder.areas[0] / span if over is None else None,
            "most_waiting": recorder.peak_waiting if over is None else None,
            "waiting_at_last_arrival": served.backlog if over is None else None,
            "mean_running": recorder.areas[1] / span,
            "most_running": recorder.peak_running,
            "preemptions": served.preemptions,
        },
        "kv_cache": {
            "blocks": blocks,
            "block_tokens": deployment.scheduler.block,
            "bytes_per_gpu": deployment.room.bytes,
            "mean_use": recorder.areas[2] / span / blocks,
            "most_use": recorder.peak_use,
            "prefix_hit_rate": recorder.hits / recorder.inputs if recorder.inputs else 0.0,
            "evicted_blocks": served.evicted,
            "tiers": _tiers(served),
        },
        "busy": recorder.areas[5] / span / engines,
        "steps": recorder.steps,
        "series": _series(recorder),
        "definitions": dict(DEFINITIONS),
        "quantile_error": ERROR,
        "step_times": {
            "forecasts": deployment.table.forecasts.made,
            "checked": served.errors.checked,
            "mean_error": served.errors.mean,
            "most_error": served.errors.most,
        },
        "warnings": served.warnings,
    }
