"""Published serving steps (`workloads/facts/serving_steps.csv`, and those of `published.toml`) by what simulated steps
make of them. Compared with, never fitted to.

A closed loop of N sequences on GPUs that also compute prompts runs N / output prompts for each token of all N: the time
per output token is that of a decode step at the mean length, and of that many prompts. Where other GPUs compute the
prompts, it is the decode step alone. Queues, and what an engine does between steps, are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from simulator.estimate.serving_step import paced_step
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.results.serving_metrics import serving_rates
from simulator.spec.scenario import Scenario
from simulator.validation.cannot import CannotCompute
from simulator.validation.figures import Figure, table_figures
from simulator.validation.public_models import public_model

TABLE = "serving_steps.csv"
CHUNK = 8192
"""Tokens of prompts that one prefill step computes at most, as vLLM and SGLang do by default on 80 GB and more
(docs.vllm.ai, docs.sglang.io, 2026)."""
SIZES: Mapping[str, tuple[str, ...]] = {
    "Qwen3-14B": (
        "model=qwen3-32b",
        "model.num_hidden_layers=40",
        "model.num_attention_heads=40",
        "model.intermediate_size=17408",
    ),
    "Qwen3-1.7B": (
        "model=qwen3-32b",
        "model.hidden_size=2048",
        "model.num_hidden_layers=28",
        "model.num_attention_heads=16",
        "model.intermediate_size=6144",
        "model.tie_word_embeddings=true",
    ),
}
"""Models of a family by the sizes in which they differ from a shipped one (huggingface.co/Qwen, 2025; recalled)."""
MANY = 1_000_000
"""Positions [tokens]: engines extend them where a benchmark is longer than the model was made for."""


def serving_rows() -> list[Figure]:
    """The figures of the table."""
    return table_figures(TABLE, "S")


def serving_step(figure: Figure) -> float:
    """A step of the table [ms]."""
    c = figure.config
    prompt, output, sequences = (int(c[key]) for key in ("prompt", "output", "sequences"))
    if figure.quantity == "ttft":
        return 1e3 * _timed(c, "prefill", sequences, prompt)
    decode = _timed(c, "decode", sequences, prompt + output // 2)
    together = max(1, min(sequences, CHUNK // prompt))
    prompts = _timed(c, "prefill", together, prompt) / together if c["prefills"] == "1" else 0.0
    if figure.quantity == "batch_latency":
        return 1e3 * (output * decode + sequences * prompts)
    return 1e3 * (decode + sequences / output * prompts)


JOB = ("model", "hardware", "stack", "gpus", "tp", "etp", "ep", "recipe")
"""Columns that a step's job follows from, besides its work."""


def _timed(c: Mapping[str, str], workload: str, sequences: int, tokens: int) -> float:
    return _once(tuple(c[key] for key in JOB), workload, sequences, tokens)


@cache
def _once(job: tuple[str, ...], workload: str, sequences: int, tokens: int) -> float:
    """A step's time [s]; rows that share one time it once."""
    return _step(scenario_of(dict(zip(JOB, job, strict=True)), workload, sequences, tokens))


def scenario_of(
    c: Mapping[str, str], workload: str, sequences: int, tokens: int, settings: tuple[str, ...] | None = None
) -> Scenario:
    """The step of one row: decode of sequences behind so many tokens, or prompts of that length. With `settings`, what
    else its source says, the job that replays requests."""
    sizes = SIZES.get(c["model"], () if public_model(c["model"]) else (f"model={c['model']}",))
    own = [*sizes, f"hardware={c['hardware']}", f"stack={c['stack']}", f"gpus={c['gpus']}"]
    own += [f"layout.{key}={c[key]}" for key in ("tp", "etp", "ep")]
    own.append(f"precision.recipe={c['recipe']}")
    if settings is None:
        own += [f"serving.sequences={sequences}"]
        own += [f"serving.context={tokens}"] if workload == "decode" else [f"serving.tokens={tokens}"]
    scenario = load_scenario(f"llama-3-8b-{workload}", [*own, *(settings or ())], replayed=settings is not None)
    known = public_model(c["model"])
    model = scenario.model if known is None or c["model"] in SIZES else known
    software = scenario.stack.serving
    if c["tp"] == "1" and software is not None:  # nothing is reduced: kernels for it need not be known of the hardware
        scenario = replace(scenario, stack=replace(scenario.stack, serving=replace(software, all_reduce="nccl")))
    return replace(scenario, model=replace(model, max_position_embeddings=MANY))


def _step(scenario: Scenario) -> float:
    """Step time of a scenario [s]; CannotCompute where it breaks a rule."""
    broken = next((str(problem) for problem in check(scenario) if problem.severity == "error"), None)
    if broken is not None:
        raise CannotCompute(broken)
    return paced_step(scenario)


def _metric(job: str, changes: tuple[str, ...], key: str) -> float:
    scenario = load_scenario(job, changes)
    return serving_rates(_step(scenario), scenario)[key]


def sglang_prefill(figure: Figure) -> float:
    """Input tokens/s on a node of SGLang's prefill on 32 H100."""
    length = int(figure.config["isl"])
    prompts = int(figure.config["tokens_per_gpu"]) // length
    changes = (f"serving.tokens={length}", f"serving.sequences={prompts}")
    return _metric("deepseek-v3-prefill-sglang", changes, "tokens_per_s_per_node")


def sglang_decode(figure: Figure) -> float:
    """Output tokens/s on a node of SGLang's decode on 72 H100."""
    c = figure.config
    if "mtp" in c:
        raise CannotCompute("drafts were simulated there: neither depth nor acceptance are published")
    changes = (f"serving.sequences={c['batch_per_gpu']}", f"serving.context={c['kv_len']}")
    return _metric("deepseek-v3-decode-sglang", changes, "tokens_per_s_per_node")


def online_decode(figure: Figure) -> float:
    """Output tokens/s on a node of DeepSeek's own deployment, at the batch that its rates imply."""
    return _metric("deepseek-v3-decode-ep144", (), "tokens_per_s_per_node")
