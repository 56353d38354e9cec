"""`foretrain trace compare` of profiles without marks of layers: phases, steps, layers and families found in them."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from cli import foretrain
from simulator.cost.price import launches_of
from simulator.engine.tasks import LANES, SYNC
from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.profile import StepComparison, compare_any, read_recording
from simulator.profile.names import FAMILIES, PATTERNS, family, known_class
from simulator.profile.phases import give_phases, repeated, whole_steps
from simulator.profile.recording import Kernel
from simulator.profile.scopes import BACKWARD, FORWARD, OPTIMIZER, PHASES
from simulator.profile.step import _phase, family_of, forecast_by_phase
from simulator.results.simulate import prepare, simulate
from simulator.spec.model import BlockKind
from simulator.spec.stack import LIBRARY

JOB = "llama-3-8b"
SMALL = ("model.num_hidden_layers=4", "layout.pp=1", "batch.global_batch_size=16", "batch.sequence_length=2048")
SET = [word for path in SMALL for word in ("--set", path)]
MAIN, AUTOGRAD = 11, 12
NAMES = {
    "GEMM": "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT",
    "attention forward": "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>",
    "attention backward": "void flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<128>",
    "norm": "void transformer_engine::normalization::ln_fwd_tuned_kernel<bf16>",
    "grouped GEMM": "void cutlass::device_kernel<GemmUniversal<GroupProblemShape>>",
    "routing and permutation": "_permute_kernel",
    "casts and transposes": "void transformer_engine::cast_transpose_kernel",
    "other communication": "ncclDevKernel_Generic_4",
    "embedding": "void at::native::indexSelectLargeIndex<bf16>",
    "optimizer": "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>",
    "all-gather": "ncclDevKernel_AllGather_RING_LL",
    "reduce-scatter": "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL",
    "all-reduce": "ncclDevKernel_AllReduce_Sum_bf16_RING_LL",
    "send, receive, all-to-all": "ncclDevKernel_SendRecv",
    "softmax and loss": "void at::native::cunn_SoftMaxForward<8, float>",
    "elementwise and copies": "void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor<float>>",
}


@functools.cache
def forecast(settings: tuple[str, ...] = SMALL) -> Any:
    return simulate(load_scenario(JOB, settings))


@functools.cache
def step_events(rank: int = 0, settings: tuple[str, ...] = SMALL) -> tuple[tuple[str, str, float, float], ...]:
    """(kernel name, phase, start, duration) [s] of every kernel of one step of a pipeline rank, as an eager program
    would run it."""
    timeline = forecast(settings).timeline
    tasks = timeline.tasks
    phases = {task: action.phase for action in tasks.actions for task in range(action.first, action.last)}
    out = []
    for task, sequence in enumerate(tasks.sequence):
        if tasks.lane[task] // LANES != rank:
            continue
        phase = _phase(phases.get(task, OPTIMIZER), sequence.first.segment)
        for priced, (start, end) in zip(sequence.ops, timeline.op_spans(task), strict=True):
            name = family_of(priced.op, library=True)
            if not name or end <= start:
                continue
            kernel = NAMES[name]
            if name == "norm" and phase == BACKWARD:
                kernel = kernel.replace("fwd", "bwd")
            count = launches_of(priced.op)
            own = BACKWARD if tasks.lane[task] % LANES == SYNC and task not in phases else phase
            out += [(kernel, own, start + n * (end - start) / count, (end - start) / count) for n in range(count)]
    return tuple(sorted(out, key=lambda event: event[2]))


def trace(
    steps: int = 2,
    *,
    cpu: bool = True,
    launches: bool = True,
    marked: bool = True,
    settings: tuple[str, ...] = SMALL,
) -> list[dict[str, Any]]:
    """A Kineto trace of some steps: launches a millisecond ahead; backward nodes on a thread of their own."""
    length = forecast(settings).timeline.makespan + 1e-3
    events: list[dict[str, Any]] = []

    def cpu_range(category: str, name: str, thread: int, start: float, end: float) -> None:
        events.append(
            {
                "ph": "X",
                "cat": category,
                "name": name,
                "pid": 1,
                "tid": thread,
                "ts": 1e6 * start,
                "dur": 1e6 * (end - start),
            }
        )

    for step in range(steps):
        zero = step * length
        if marked:
            cpu_range("user_annotation", f"ProfilerStep#{step}", MAIN, zero - 2e-3, zero + length - 2e-3 - 1e-7)
        for name, phase, start, took in step_events(settings=settings):
            number = len(events)
            args = {"device": 0, "stream": 27 if name.startswith("nccl") else 7, "correlation": number}
            at = zero + start
            events.append({"ph": "X", "cat": "kernel", "name": name, "ts": 1e6 * at, "dur": 1e6 * took, "args": args})
            thread = AUTOGRAD if phase == BACKWARD else MAIN
            if launches:
                cpu_range("cuda_runtime", "cudaLaunchKernel", thread, at - 1e-3, at - 1e-3 + 1e-7)
                events[-1]["args"] = {"correlation": number}
            if cpu and phase == BACKWARD:
                node = "autograd::engine::evaluate_function: MmBackward0"
                cpu_range("cpu_op", node, AUTOGRAD, at - 1e-3 - 1e-8, at - 1e-3 + 1e-8)
            if cpu and phase == OPTIMIZER and not name.startswith("nccl"):
                cpu_range("user_annotation", "Optimizer.step#AdamW.step", MAIN, at - 1e-3 - 1e-8, at - 1e-3 + 1e-8)
    return events


def write(path: Path, events: list[dict[str, Any]], gpu: str = "NVIDIA H800") -> Path:
    head = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": gpu}]}
    path.write_text(json.dumps({**head, "traceEvents": events}), encoding="utf-8")
    return path


def compared(path: Path, events: list[dict[str, Any]], settings: tuple[str, ...] = SMALL) -> StepComparison:
    found = compare_any(read_recording(write(path, events)), load_scenario(JOB, settings), 0)
    assert isinstance(found, StepComparison)
    return found


def run(*args: str) -> Result:
    return CliRunner().invoke(foretrain, ["trace", "compare", *args])


def test_a_forecast_written_as_a_profile_is_found_again(tmp_path: Path) -> None:
    """Every family in every phase has the forecast's calls and time (it divides a slowed sequence's time evenly,
    so that families differ by a few percent and phases do not); the step its length; nothing is left over."""
    found = compared(tmp_path / "t.json", trace())
    assert found.steps == 2
    assert found.phases_from == "the CPU's ranges"
    assert found.strangers == ()
    assert found.matched == pytest.approx(1.0)
    predicted = forecast_by_phase(forecast().timeline, [0])
    assert {(r.phase, r.family) for r in found.rows} == set(predicted)
    for row in found.rows:
        assert row.measured.seconds == pytest.approx(predicted[row.phase, row.family].seconds, rel=0.08), row
        assert row.measured.calls == pytest.approx(predicted[row.phase, row.family].calls), row
    for phase in PHASES:
        assert found.total(phase)[0] == pytest.approx(found.total(phase)[1], rel=0.01), phase
    assert found.step[0] == pytest.approx(forecast().metrics["step_time_s"] + 5e-4, rel=1e-3)  # the gap of one of two
    assert found.exposed == pytest.approx(found.predicted_exposed, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        ("model=mixtral-8x7b", "layout.ep=8", "layout.tp=1"),
        ("stack=torchtitan", "layout.zero=3", "layout.tp=1", "layout.recompute=full"),
    ],
    ids=["experts", "fsdp"],
)
def test_experts_and_sharded_parameters_are_found_again(tmp_path: Path, changes: tuple[str, ...]) -> None:
    """Experts wait for counts that the host reads, which is no communication; gathers of parameters run next to
    layers."""
    settings = (*changes[:1], *SMALL, *changes[1:])
    found = compared(tmp_path / "t.json", trace(1, settings=settings), settings)
    assert found.steps == 1
    assert found.matched == pytest.approx(1.0)
    assert found.layers is not None
    assert found.same_layers
    for phase in (FORWARD, BACKWARD, "communication"):
        assert found.total(phase)[0] == pytest.approx(found.total(phase)[1], rel=0.03), phase
    assert found.exposed == pytest.approx(found.predicted_exposed, rel=1e-6)


@pytest.mark.parametrize(("cpu", "launches"), [(False, True), (False, False)])
def test_phases_are_found_without_the_cpu(tmp_path: Path, cpu: bool, launches: bool) -> None:
    """By names alone the gradients of the head count as forward: they run the same kernels, before any that only a
    backward has. They are a third of four layers, and a sixth of these eight."""
    eight = ("model.num_hidden_layers=8", *SMALL[1:])
    whole = compared(tmp_path / "t.json", trace(2, settings=eight), eight)
    found = compared(tmp_path / "t.json", trace(2, cpu=cpu, launches=launches, marked=launches, settings=eight), eight)
    assert found.phases_from == ("the threads that launched kernels" if launches else "kernel names")
    for phase in (FORWARD, BACKWARD, OPTIMIZER):
        assert found.total(phase)[0] == pytest.approx(whole.total(phase)[0], rel=0.02 if launches else 0.35), phase


def test_steps_are_found_by_their_optimizer(tmp_path: Path) -> None:
    """Three steps without `profiler.step()`, the first of them begun in the middle: two are whole."""
    events = trace(3, marked=False)
    length = 1e6 * (forecast().timeline.makespan + 1e-3)
    cut = [event for event in events if event["ts"] > 0.3 * length]
    found = compared(tmp_path / "t.json", cut)
    assert found.steps == 2
    assert found.step[0] == pytest.approx(forecast().metrics["step_time_s"], rel=0.02)


def test_a_part_of_a_step_is_held_against_that_part(tmp_path: Path) -> None:
    names = [event for event in trace(1, cpu=False, launches=False, marked=False) if event["cat"] == "kernel"]
    first = next(n for n, event in enumerate(names) if "flash_bwd" in event["name"])
    forwards = sum("flash_fwd" in event["name"] for event in names[:first])
    found = compared(tmp_path / "t.json", names[:first])
    assert found.steps == 0
    assert found.by == "attention forward"
    wanted = forecast_by_phase(forecast().timeline, [0])[FORWARD, "attention forward"].calls
    assert found.part == pytest.approx((forwards - 1) / wanted)  # the last one is recomputation
    assert FORWARD in {row.phase for row in found.rows}
    assert OPTIMIZER not in {row.phase for row in found.rows}


def test_what_has_no_match_is_listed_by_time(tmp_path: Path) -> None:
    events = trace(1)
    begin = min(e["ts"] for e in events if e["cat"] == "kernel")
    extra = [("mystery_kernel", 5.0), ("implicit_convolve_sgemm", 9.0), ("mystery_kernel", 7.0)]
    for number, (name, took) in enumerate(extra):
        args = {"device": 0, "stream": 7, "correlation": f"x{number}"}
        events.append({"ph": "X", "cat": "kernel", "name": name, "ts": begin + number, "dur": took, "args": args})
    found = compared(tmp_path / "t.json", events)
    assert [(s.name, s.family, round(s.spent.seconds * 1e6), s.spent.calls) for s in found.strangers] == [
        ("mystery_kernel", "", 12, 2),
        ("implicit_convolve_sgemm", "", 9, 1),
    ]


def test_the_verb_prints_both_ways(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", trace(1), gpu="NVIDIA A100-SXM4-80GB")
    text = run(str(path), JOB, *SET, "--rank", "0")
    assert text.exit_code == 0, text.stderr
    assert "attention backward" in text.stdout
    assert "It was recorded on NVIDIA A100" in " ".join(text.stdout.split())
    assert all(len(line) <= 80 for line in text.stdout.splitlines())
    found = json.loads(run(str(path), JOB, *SET, "--json", "-q").stdout)
    assert found["whole_steps"] == 1
    assert found["schema"].startswith("foretrain.trace-compare-step/")
    assert run(str(path), JOB, *SET, "--rank", "99").exit_code == 2


KERNEL = {"ph": "X", "cat": "kernel", "ts": 1, "dur": 2}


@pytest.mark.parametrize(
    ("events", "gpu", "said"),
    [
        ([{"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1, "dur": 2}], "", "1 ranges in it are of the CPU"),
        ([{**KERNEL, "name": "k"}], "AMD Instinct MI300X", "recorded on AMD Instinct MI300X; only profiles of NVIDIA"),
        ([{**KERNEL, "name": "Cijk_Alik_Bljk_BBS"}], "", "an AMD GPU"),
        ([{**KERNEL, "name": "volta_scudnn_128x64"}], "Tesla V100", 'record_function("forward")'),
        ([{"name": "cuMemAlloc_v2", "ph": "X", "ts": 1, "dur": 2}], "", "none of its events has a category (cat)"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(
    tmp_path: Path, events: list[dict[str, Any]], gpu: str, said: str
) -> None:
    result = run(str(write(tmp_path / "t.json", events, gpu=gpu)), JOB)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_profiles_of_2021_are_read(tmp_path: Path) -> None:
    """Other categories, streams as text, nodes named without the engine."""
    fresh = trace(1)
    kinds = {"kernel": "Kernel", "cuda_runtime": "Runtime", "cpu_op": "Operator", "user_annotation": "Operator"}
    old = [
        {**e, "cat": kinds[e["cat"]], "name": e["name"].removeprefix("autograd::engine::evaluate_function: ")}
        for e in fresh
    ]
    found, wanted = compared(tmp_path / "a.json", old), compared(tmp_path / "b.json", fresh)
    assert found.rows == wanted.rows
    assert found.steps == wanted.steps


def test_too_many_kernels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.profile.recording.MOST_KERNELS", 10)
    monkeypatch.setattr("simulator.profile.recording.COUNTED_EVERY", 16)
    path = write(tmp_path / "t.json", [{**KERNEL, "name": "k"}] * 40)
    with pytest.raises(InputError, match="more than 10 kernels; record fewer steps"):
        read_recording(path)


def kernels(names: str, every: float = 1.0) -> list[Kernel]:
    return [Kernel(name, "elem", 7, every * n, 0.5, (), every * n) for n, name in enumerate(names)]


@given(st.integers(3, 12), st.integers(4, 9), st.text("xyz", max_size=5), st.text("uvw", max_size=5))
def test_a_repeated_sequence_is_found_wherever_it_stands(count: int, size: int, before: str, after: str) -> None:
    layer = "abcdefghi"[:size]
    found = repeated(kernels(before + count * layer + after, every=2.0))
    assert found is not None
    assert (found.count, found.kernels) == (count, size)
    assert found.seconds == pytest.approx(2.0 * size)


@given(st.integers(3, 6), st.integers(3, 12), st.text("xyz", max_size=5), st.text("uvw", max_size=5))
def test_layers_are_found_within_repeated_microbatches(microbatches: int, layers: int, before: str, after: str) -> None:
    """Embedding, layers and head of each microbatch; a loop of three within a layer is no layer."""
    loop = "".join(kernel + "rst" for kernel in "qkv")
    layer = "abcdefgh" + loop + "ijklmnop"
    found = repeated(kernels(microbatches * (before + layers * layer + after)))
    assert found is not None
    assert (found.kernels, found.count * found.within) == (len(layer), layers * microbatches)
    assert found.within == (microbatches if before or after else 1)


def test_what_does_not_repeat_is_no_layer() -> None:
    assert repeated(kernels("abcdefghijklmnop")) is None
    assert repeated(kernels("aaaaaaaaaaaaaaaa")) is None
    assert repeated([]) is None


def test_clipping_and_gathering_behind_an_update_do_not_begin_a_step(tmp_path: Path) -> None:
    """forward, backward, norm of gradients, a square root, Adam, a cast: two steps, not four."""
    one = ["flash_fwd_kernel", "flash_bwd_kernel", "multi_tensor_apply_kernel<L2Norm>", "vectorized_elementwise_kernel"]
    one += ["multi_tensor_apply_kernel<Adam>", "ncclDevKernel_AllGather_RING_LL", "vectorized_elementwise_kernel"]
    events = [{**KERNEL, "name": name, "ts": 10 * n} for n, name in enumerate(2 * one)]
    recording = read_recording(write(tmp_path / "t.json", events))
    give_phases(recording)
    assert [len(step.kernels) for step in whole_steps(recording)] == [len(one)] * 2
    assert [step.seconds for step in whole_steps(recording)] == pytest.approx([70e-6, 62e-6])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("void cudnn::cnn::wgrad_alg0_engine<float, 128, 6>", ""),
        ("implicit_convolve_sgemm<float, float>", ""),
        ("ampere_sgemm_128x64_nn", "GEMM"),
        ("nvjet_qqtst_128x128_128x6_1x2_h_bz_TNT", "GEMM, FP8"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", "GEMM"),
        ("void at::native::(anonymous namespace)::lambda_kernel(int)", ""),
        ("at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "elementwise and copies"),
        ("void multi_tensor_apply_kernel<TensorListMetadata<4>, AdamFunctor<float>>", "optimizer"),
        ("void at::native::multi_tensor_apply_kernel<CopyFunctor<float>>", "elementwise and copies"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3", "norm"),
        ("triton_poi_fused_mul_silu_2", "elementwise and copies"),
        ("ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)", "other communication"),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxBackward<4, float>", "softmax and loss"),
        ("Memcpy DtoD (Device -> Device)", "elementwise and copies"),
        ("pytorch_flash::flash_bwd_convert_dq_kernel", "attention backward"),
        ("void hybrid_ep::dispatch_kernel<8, 4>", "dispatch"),
        ("void userbuffers_fp16_sum_inplace_gpu_rr_rs_oop<4>", "reduce-scatter"),
        ("void userbuffers_fp16_sum_inplace_gpu_mc_ag<8>", "all-gather"),
        ("kuserbuffers_pushsend", "send, receive, all-to-all"),
        ("Memcpy PtoP (Device -> Device)", "send, receive, all-to-all"),
        ("void transformer_engine::multi_tensor_swizzle_row_scaling_kernel<128>", "casts and transposes"),
        ("void transformer_engine::HadamardTransformKernel<bf16, 16>", "casts and transposes"),
        ("void transformer_engine::fused_moe_aux_loss_forward_kernel<float>", "routing and permutation"),
        ("void transformer_engine::context_parallel::thd_lse_kernel<double>", "elementwise and copies"),
        ("bmm_MxE4m3_MxE2m1MxE4m3_Fp32_t128x16x256u2_s3_rM_TN_transOut_schedP2x1x2x3_biasM_bN", "grouped GEMM"),
        ("void moe::dev::finalize::finalizeKernelVecLoad<Params>", "routing and permutation"),
        ("void moe::dev::routing::routingIndicesHistogramKernel<Params>", "routing and permutation"),
        ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>", "elementwise and copies"),
        ("void vllm::scaled_fp8_quant_kernel_strided<c10::BFloat16>", "casts and transposes"),
        ("void vllm::act_and_mul_kernel<c10::BFloat16, &silu_kernel>", "elementwise and copies"),
        ("void flashinfer::BatchDecodeWithPagedKVCacheKernel<true>", "attention forward"),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_256x64>", ""),
        ("void dot_kernel<float, 128, 0, cublasDotParams<cublasGemvTensorStridedBatched<bf16>>>", "GEMM"),
    ],
)
def test_names_of_real_profiles_have_their_family(name: str, wanted: str) -> None:
    assert family(known_class(name)) == wanted


@pytest.mark.parametrize(
    ("dispatcher", "wanted"),
    [
        ("deepep", {"dispatch", "combine"}),
        ("nccl", {"send, receive, all-to-all"}),
        ("allgather", {"all-gather", "reduce-scatter"}),
    ],
)
def test_tokens_travel_in_the_kernels_of_their_dispatcher(dispatcher: str, wanted: set[str]) -> None:
    """What a profile calls SendRecv or AllGather is a dispatch of Megatron-Core's own dispatchers."""
    scenario = load_scenario(JOB, ("model=mixtral-8x7b", "layout.ep=8", *SMALL, f"stack.dispatcher={dispatcher}"))
    built = prepare(scenario)[0]
    ops = [op for op in built.blocks[BlockKind.MOE].ops() if op.cls in ("comm.dispatch", "comm.combine")]
    assert {family_of(op, library=dispatcher in LIBRARY) for op in ops} == wanted


def test_every_class_of_the_forecasts_has_a_family_and_every_pattern_a_source() -> None:
    classes = {c.cls for c in forecast().classes} - {"wait.host"}  # no kernel: a trace has a gap there
    for cls in classes | {"gemm.fp8.grouped", "norm.bwd@compiled", "comm.tp.all_gather"}:
        assert family(cls), cls
    assert family("gemm.bf16.grouped@streams") == "GEMM"
    assert all(source for _, _, source in PATTERNS)
    assert len({pattern for pattern, _ in FAMILIES}) == len(FAMILIES)


def test_an_input_copied_from_the_host_begins_the_next_forward(tmp_path: Path) -> None:
    """forward, backward, Adam and its cast; the batch's copy, then a convolution: of the next step."""
    one = ["Memcpy HtoD (Pinned -> Device)", "cudnn::implicit_convolve_sgemm", "flash_fwd_kernel", "flash_bwd_kernel"]
    one += ["multi_tensor_apply_kernel<Adam>", "vectorized_elementwise_kernel"]
    events = [{**KERNEL, "name": name, "ts": 10 * n} for n, name in enumerate(2 * one)]
    recording = read_recording(write(tmp_path / "t.json", events))
    give_phases(recording)
    steps = whole_steps(recording)
    assert [[k.phase for k in step.kernels] for step in steps] == [[FORWARD] * 3 + [BACKWARD] + [OPTIMIZER] * 2] * 2


def said_of(path: Path, events: list[dict[str, Any]], *more: str) -> str:
    result = run(str(write(path, events)), JOB, *SET, "-q", *more)
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split())


def test_a_step_of_another_batch_is_named_by_its_calls(tmp_path: Path) -> None:
    """The same step next to a job with four times as many microbatches, and next to its own."""
    events = trace(1)
    assert "Times are then not to be compared" not in said_of(tmp_path / "t.json", events, "--rank", "0")
    other = said_of(tmp_path / "t.json", events, "--set", "batch.global_batch_size=64")
    calls = forecast_by_phase(forecast().timeline, [0])[FORWARD, "attention forward"].calls
    assert f"{calls:,.0f} calls of attention forward in a forward, and {4 * calls:,.0f} in the job's" in other


def test_attention_by_a_softmax_is_named_with_the_setting_that_compares_it(tmp_path: Path) -> None:
    """Four layers of GEMMs around a softmax, as PyTorch's math attention and its fast path of encoders run them."""
    layer = ["ampere_sgemm_128x64_nn", "void at::native::(anonymous namespace)::transform_bias_rescale_qkv_kernel<f>"]
    layer += ["ampere_sgemm_64x64_nn", "void (anonymous namespace)::softmax_warp_forward<float, 8>", "gemv2T_kernel"]
    events = [{**KERNEL, "name": name, "ts": 10 * n} for n, name in enumerate(4 * layer)]
    said = said_of(tmp_path / "t.json", events)
    assert "compare with --set stack.attention_fused=false" in said
    assert "softmax_warp_forward<float, 8> not in the job" in said
    unfused = said_of(tmp_path / "t.json", events, "--set", "stack.attention_fused=false")
    assert "100.0 % of their time has a match" in unfused
    assert "attention_fused" not in unfused


def test_strangers_are_called_what_they_are(tmp_path: Path) -> None:
    """Names without the namespaces that all kernels of PyTorch have; a ratio instead of a percentage in thousands."""
    names = ["ampere_sgemm_128x64_nn", "cudnn_bn_fw_tr_1C11", "void at::native::(anonymous namespace)::odd<f>(int)"]
    said = said_of(tmp_path / "t.json", [{**KERNEL, "name": n, "dur": 0.001} for n in names])
    assert "cudnn_bn_fw_tr_1C11 batch norm" in said
    assert "odd<f> not known" in said
    assert re.search(r"GEMM forward 0\.000 1 [0-9.]+ 1 [0-9,]+ times", said)


def test_grids_written_as_text_are_read(tmp_path: Path) -> None:
    events = [{**KERNEL, "name": "ampere_sgemm_128x64_nn", "args": {"grid": "[128, 2, 1]"}}]
    assert read_recording(write(tmp_path / "t.json", events)).kernels[0].grid == (128, 2, 1)
