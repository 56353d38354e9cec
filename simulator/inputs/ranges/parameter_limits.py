"""What numbers of kernel, communication and power parameters may be: one table, by what each number is.

A number that something is divided by must be above 0, times and shares have plausible ends, so that neither a zero nor
a forgotten 1e-6 becomes a crash or a forecast. A test holds that every number of these types is listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from simulator.inputs.limits import Range, advice
from simulator.inputs.problems import problem

_TIME = Range(low=0, high=1, unit="s", factors=("e-6", "e-9"))
_SPEED = Range(low=1e6, high=1e16, unit="B/s", factors=("e9", "e12"))
_SPEED_OR_NONE = Range(low=1e6, high=1e16, unit="B/s", factors=("e9", "e12"), or_zero=True)
_SHARE = Range(low=1e-4, high=100)
"""Of a peak or of a bandwidth. Above 1 where a GPU stands in for a slower one of the same architecture."""
_SHARE_OR_NONE = Range(low=1e-4, high=100, or_zero=True)
_PART = Range(low=0, high=1)
_ABOVE_NONE = Range(low=1e-3, high=1)
_SLOWDOWN = Range(low=0, high=100)
_FACTOR = Range(low=1e-3, high=1e3)
_COUNT = Range(low=1, high=1e5)
_COUNT_OR_NONE = Range(low=0, high=1e6)
_STEPS = Range(low=0, high=100)
_WATTS = Range(low=0, high=1e5, unit="W", factors=("e3",))

PARAMETERS: Mapping[str, Mapping[str, Range]] = {
    "GemmParams": {
        **dict.fromkeys(("tiles", "k_block", "split", "row_align", "tiles_per_cta", "cluster"), _COUNT),
        **dict.fromkeys(("rate", "power_rate", "bandwidth"), _SHARE),
        "loop_rate": _SHARE_OR_NONE,
        **dict.fromkeys(("block_time", "tile_time", "launch", "reset", "group_time", "fill"), _TIME),
        "store_rate": _SPEED,
        "load_rate": _SPEED_OR_NONE,
        **dict.fromkeys(("streams", "unusable_sms", "cluster_sms", "few", "large", "one_wave"), _COUNT_OR_NONE),
        "traffic": _SLOWDOWN,
        "l2_writeback": _PART,
    },
    "AttentionRate": {"d_qk": _COUNT, "d_v": _COUNT, "rate": _SHARE},
    "AttentionParams": {
        **dict.fromkeys(("block_q", "block_kv"), _COUNT),
        **dict.fromkeys(("tile_time", "launch"), _TIME),
        **dict.fromkeys(("power_rate", "bandwidth"), _SHARE),
        **dict.fromkeys(("mask_blocks", "tail", "passes", "sums"), _STEPS),
        "loop_clock": _SHARE,
        "traffic": _SLOWDOWN,
    },
    "DecodeAttentionParams": {
        **dict.fromkeys(("block_q", "block_kv", "resident", "most"), _COUNT),
        **dict.fromkeys(("rate", "power_rate", "bandwidth"), _SHARE),
        **dict.fromkeys(("block_time", "tile_time", "launch", "merge", "merge_step"), _TIME),
        **dict.fromkeys(("overhead", "whole_q", "whole_kv"), _COUNT_OR_NONE),
        **dict.fromkeys(("full", "keep"), _ABOVE_NONE),
        "l2_writeback": _PART,
        "traffic": _SLOWDOWN,
    },
    "StreamParams": {
        **dict.fromkeys(("launch", "concurrent_delay", "cta_time", "cta_most"), _TIME),
        "bandwidth": _SHARE,
        **dict.fromkeys(("sm_rate", "cta_rate"), _SPEED_OR_NONE),
        "value_rate": Range(low=1e6, high=1e13, unit="1/s", factors=("e9",), or_zero=True),
        "l2_gain": _FACTOR,
        **dict.fromkeys(("wave_time", "traffic"), _SLOWDOWN),
        "resident": _COUNT_OR_NONE,
    },
    "ScanParams": {
        **dict.fromkeys(("rate", "bandwidth"), _SHARE),
        "value_rate": Range(low=1e6, high=1e13, unit="1/s", factors=("e9",), or_zero=True),
        **dict.fromkeys(("step_time", "launch"), _TIME),
        "resident": _COUNT,
        **dict.fromkeys(("wide", "traffic"), _SLOWDOWN),
    },
    "FixedParams": {"time": _TIME},
    "Release": {"longer": _SLOWDOWN},
    "Kernels": {"gap": _TIME, "comm_traffic": _SPEED},
    "Protocol": {
        "alpha": _TIME,
        "step": Range(low=0, high=1e4),
        "payload": _ABOVE_NONE,
        "drift": Range(low=0, high=1e-3),
    },
    "Tier": {"local_copy": _SPEED, "all_to_all_alpha": _TIME, "sms": _COUNT},
    "DirectAllReduce": {
        **dict.fromkeys(("one_alpha", "one_peer", "two_alpha", "two_peer"), _TIME),
        **dict.fromkeys(("one_rate", "two_rate"), _SPEED),
        **dict.fromkeys(("below", "most"), Range(low=0, high=1e15)),
        "sms": _COUNT,
    },
    "P2p": {"alpha": _TIME},
    "Channels": {
        "count": _COUNT,
        **dict.fromkeys(("rate", "fill", "both_fill"), _SPEED),
        **dict.fromkeys(("overlap", "both_overlap"), Range(low=0.1, high=1e3)),
        **dict.fromkeys(("ll_alpha", "both_alpha"), _TIME),
        "ll_payload": _ABOVE_NONE,
    },
    "EpParams": {
        **dict.fromkeys(("send_rate", "forward_rate"), _SPEED),
        "overlap": Range(low=0.1, high=1e3),
        "sm_overlap": Range(low=0.1, high=1e3, or_zero=True),
        **dict.fromkeys(("startup", "startup_combine"), _TIME),
        **dict.fromkeys(
            ("concurrent_dispatch_factor", "concurrent_combine_factor", "first_dispatch_factor", "weighted", "reduce"),
            _FACTOR,
        ),
    },
    "LowLatency": {
        **dict.fromkeys(("alpha_dispatch", "alpha_combine", "hop"), _TIME),
        **dict.fromkeys(("staging_dispatch", "staging_combine"), _SPEED),
    },
    "NotifyParams": dict.fromkeys(("alpha", "hop", "layout_alpha", "layout_per_token"), _TIME),
    "Network": {
        **dict.fromkeys(("planes", "ports"), _COUNT),
        "oversubscription": Range(low=1, high=1e3),
        "pod": Range(low=0, high=1e9),
        **dict.fromkeys(("base_latency", "hop_latency"), _TIME),
        "collisions": _ABOVE_NONE,
    },
    "Power": {
        "cap_of_tdp": Range(low=0.01, high=10),
        **dict.fromkeys(("idle", "memory", "tensor", "attention", "split"), _WATTS),
        **dict.fromkeys(("unvectorized", "update", "scatter", "attention_mixed"), _WATTS),
        "attention_lag": Range(low=1, high=10),
        "exponent": Range(low=0, high=10),
        "pause": _TIME,
        **dict.fromkeys(("spread", "dither"), _PART),
    },
}
"""Type -> field -> range of its numbers (of all, where it holds several)."""


def check_parameters(value: Any, source: str, prefix: str) -> None:
    """Raise InputError for the first number below `value` that is out of its range in `PARAMETERS`."""
    for path, limit, number in _limited(value, prefix):
        if not limit.holds(number):
            raise problem(source, path, number, advice(limit, number))


def _limited(value: Any, path: str) -> Iterator[tuple[str, Range, float]]:
    """Dotted path, range and value of every number in a tree of parameters."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _limited(part, f"{path}.{key}")
    elif isinstance(value, tuple):
        for part in value:
            yield from _limited(part, path)
    elif is_dataclass(value):
        ranges = PARAMETERS.get(type(value).__name__, {})
        for field in fields(value):
            here, part = f"{path}.{field.name}", getattr(value, field.name)
            if field.name in ranges:
                each = part.items() if isinstance(part, dict) else [("", part)]
                for key, held in each:
                    at = f"{here}.{key}" if key else here
                    yield from ((at, ranges[field.name], number) for number in _flat(held))
            else:
                yield from _limited(part, here)


def _flat(value: Any) -> Iterator[float]:
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value
