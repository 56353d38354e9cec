"""The answer of a simulation in one sentence, and what it rests on."""

from __future__ import annotations

from reports.views import words
from reports.views.trust import Doubt
from simulator.memory import needed
from simulator.results.metrics import price_of
from simulator.results.result import Result
from simulator.spec.scenario import Scenario


def answer_of(result: Result) -> str:
    """What came out, for someone who did not run it."""
    m, scenario = result.metrics, result.scenario
    model, gpu = scenario.model, scenario.cluster.gpu
    fits = "" if result.memory.fits else f"DOES NOT FIT into memory: {needed(result.memory.verdict())}. "
    return (
        f"{fits}One training step of {model.name} ({words.large(model.parameters())} parameters, "
        f"{words.of_precision(scenario.job.precision)}) on {scenario.job.gpus} {gpu.name} is forecast to take "
        f"{words.seconds(m['step_time_s'])}: {words.large(m['tokens_per_day'])} tokens a day at "
        f"{words.percent(m['mfu_causal'])} of the BF16 peak; the run of {words.large(scenario.job.run.tokens)} tokens "
        f"would take {_days(m['run_days'])} and cost {words.dollars(m['run_cost_usd'])}."
    )


def _days(days: float) -> str:
    return f"{days:.1f} days" if days >= 1 else f"{24 * days:.2g} hours"


def doubt_in_words(doubt: Doubt, hardware: str) -> str:
    """How sure that is, from what is known of the costs; nothing is said where nothing is known."""
    said = []
    if doubt.error is None:
        said.append(f"No kernel class has a known error on {hardware}.")
    else:
        said.append(
            f"Uncertainty: kernels whose errors are known ({words.percent(doubt.covered)} of kernel time) were off by "
            f"{words.percent(doubt.error)} on average on measurements kept out of their calibration (on fitted ones "
            "where none were)."
        )
    if doubt.uncalibrated > 0:
        said.append(
            f"{words.percent(doubt.uncalibrated)} of kernel time is priced by classes not calibrated on {hardware}."
        )
    rest = 1.0 - doubt.covered - doubt.uncalibrated
    if rest > 0.001:
        said.append(f"For the other {words.percent(rest)}, calibrated without samples to spare, no error can be given.")
    said.append("Routing, network congestion and software settings are assumptions, with no error bar.")
    return " ".join(said)


def assumptions_of(scenario: Scenario) -> list[tuple[str, str]]:
    """What the forecast takes for granted: (what, how)."""
    job, layout, stack = scenario.job, scenario.job.layout, scenario.stack
    degrees = {"tensor": layout.tp, "pipeline": layout.pp, "expert": layout.ep, "context": layout.cp, "data": job.dp}
    each = words.counted(job.batch.microbatch_size, "sequence")
    all_to_alls = f", all-to-all by {stack.dispatcher}" if layout.ep > 1 else ""
    copies = f" in {layout.replicas} replicas" if layout.replicas > 1 else ""
    shown = ", ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1) or "none"
    return [
        (
            "what is simulated",
            f"one pipeline of {words.counted(layout.pp, 'rank')}; all {job.dp} replicas of it are assumed to be equal",
        ),
        ("parallelism", f"{shown}; ZeRO stage {layout.zero}{copies}"),
        ("schedule", f"{layout.schedule}, {words.counted(job.microbatches, 'microbatch')} of {each}"),
        ("batch", f"{job.batch.global_batch_size} sequences of {job.batch.sequence_length} tokens"),
        ("precision", words.of_precision(job.precision)),
        ("recomputation", words.of_recompute(layout, stack)),
        (
            "routing",
            words.of_training_loads(scenario) if scenario.model.n_routed_experts else "no routed experts",
        ),
        ("communication SMs", _communication_sms(scenario)),
        ("software", f"{stack.name}: {stack.kernel_gap * 1e6:.1f} µs behind each kernel{all_to_alls}"),
        ("price", f"{words.dollars(price_of(scenario)[0])} per GPU-hour, {price_of(scenario)[1]}"),
        ("not included", "failures, restarts, checkpoints, evaluation and data loading"),
    ]


def _communication_sms(scenario: Scenario) -> str:
    """The SMs that communication takes from compute, of how many."""
    job, stack, fabric = scenario.job, scenario.stack, scenario.cluster.fabric
    takers = []
    if job.layout.ep > 1 and stack.dispatcher != "nccl":
        takers.append(f"{job.overlap.comm_sms} for the all-to-all")
    if job.layout.zero >= 2 or stack.grad_sync_overlap or stack.param_gather_overlap:
        takers.append(f"{fabric.nic.sms} a NIC and at most {fabric.nvlink.sms} for collectives")
    return f"of {scenario.cluster.gpu.sms}, {', '.join(takers)}" if takers else "none"
