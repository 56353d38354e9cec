"""`foretrain trace compare`: profiles read in bounded memory, labelled, and held against the simulation."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import foretrain
from simulator.cost.price import launches_of
from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.profile import compare, read_recording
from simulator.profile.align import Item, align
from simulator.profile.events import trace_events
from simulator.profile.match import alone
from simulator.profile.names import kernel_class
from simulator.profile.pair import Layers, OpSpan, Rows, simulated
from simulator.profile.recording import Kernel, late
from simulator.results.simulate import prepare

JOB = "deepseek-v3-pretrain"
SHARED = Path(__file__).parents[3] / "shared" / "facts"
HALF = SHARED / "h800_train_trace_first_half.json.gz"
LABELLED = SHARED / "h800_train_kernels.csv"
NAMES = {
    "gemm.fp8": "fp8_ptp128c::GemmKernel",
    "gemm.fp8.wgrad": "fp8_dptp128c_acc::GemmKernel",
    "gemm.fp8.grouped": "m_grouped_fp8_ptp128c::GemmKernel",
    "gemm.bf16": "sm90_xmma_gemm_bf16",
    "attn.fwd": "flash::compute_attn_ws",
    "attn.bwd": "flash::FlashAttnBwd<",
    "attn.bwd_aux": "flash::FlashAttnBwdPreprocess",
    "quant.token": "per_token_cast_to_fp8_with_channels",
    "quant.chan_t": "per_channel_cast_and_transpose",
    "quant.special": "per_token_cast_back_special_fmt",
    "scale_t": "dpsk::grouped_gemm::cuda::utils::transpose",
    "weight_t": "cuda::batched_transpose",
    "dequant": "cast_back_impl",
    "swiglu": "swiglu_backward",
    "rope": "rotary_kernel",
    "kvcopy": "_copy_tensor_kernel",
    "norm.fwd": "ln_fwd_kernel",
    "norm.bwd": "ln_bwd_kernel",
    "permute.expand": "expand_to_fused",
    "permute.reduce": "reduce_fused_impl",
    "permute.map": "get_fused_mapping",
    "router.topk": "gatherTopK",
    "comm.dispatch": "dpsk::ep::internode::dispatch<false>",
    "comm.combine": "dpsk::ep::internode::combine<false>",
    "comm.notify": "cached_notify",
    "comm.layout": "get_dispatch_layout",
}
GRIDS = {
    "moe.up_gate.save_fp8": 33024,
    "moe.unpermute.fwd": 30000,
    "moe.up_gate.quant_g": 31488,
    "moe.unpermute.grad": 29000,
}


def name_of(cls: str) -> str:
    """A kernel name of a class, or of the class it is a kind of."""
    while cls:
        if cls in NAMES:
            return NAMES[cls]
        cls = cls.rpartition(".")[0]
    return "vectorized_elementwise_kernel"


def events_of(spans: list[OpSpan], gap: float) -> list[dict[str, Any]]:
    """A profile whose kernels last as the simulation says."""
    events: list[dict[str, Any]] = []
    for span in spans:
        count = max(1, launches_of(span.priced.op))
        step = (span.end - span.start) / count
        for n in range(count):
            start = span.start + n * step
            took = step - gap if span.priced.op.count > 1 or count == 1 else alone(span.priced, gap)
            events.append(
                {
                    "ph": "X",
                    "cat": "kernel",
                    "name": name_of(span.priced.op.cls),
                    "ts": 1e6 * start,
                    "dur": 1e6 * max(took, 1e-7),
                    "pid": 0,
                    "tid": 7 if span.priced.op.stream == "compute" else 27,
                    "args": {"device": 0, "grid": [GRIDS.get(span.priced.op.name, 1), 1, 1]},
                }
            )
    return events


def made(periods: int = 2) -> tuple[list[dict[str, Any]], list[OpSpan]]:
    """Events and ops of a simulated pair with rows of its own."""
    scenario = load_scenario(JOB)
    built, _ = prepare(scenario, typical=True)
    layers = Layers(forward=Rows(rows=33024, received=30000), backward=Rows(rows=31488, received=29000))
    spans = simulated(built, [layers] * periods)
    return events_of(spans, scenario.stack.kernel_gap), spans


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": events, "traceName": "x"}), encoding="utf-8")
    return path


def run(*args: str) -> Result:
    return CliRunner().invoke(foretrain, ["trace", "compare", *args])


def test_a_simulated_profile_is_found_again(tmp_path: Path) -> None:
    events, spans = made()
    found = compare(read_recording(write(tmp_path / "t.json", events)), load_scenario(JOB))
    assert len(found.pair.periods) == 2
    assert found.pair.periods[0].forward == Rows(rows=33024, received=30000)
    assert found.pair.periods[1].backward.rows == 31488
    assert abs(found.pair.error) < 0.01
    assert all(abs(phase.error) < 0.03 for phase in found.phases)
    assert {phase.phase for phase in found.phases} >= {"attn(F)", "mlp(B)", "mlp(W)", "dispatch(F)", "combine(B)"}
    assert all(c.mape < 0.03 for c in found.classes if c.cls.startswith(("gemm", "attn")))
    assert len(found.matched) >= 0.98 * len(spans)


def test_a_profile_may_begin_and_end_anywhere(tmp_path: Path) -> None:
    events, spans = made(3)
    end = max(span.end for span in spans) * 1e6
    cut = [event for event in events if 0.2 * end < event["ts"] < 0.85 * end]
    found = compare(read_recording(write(tmp_path / "t.json", cut)), load_scenario(JOB))
    assert len(found.pair.periods) == 1
    assert abs(found.pair.error) < 0.02


def test_the_verb_prints_both_ways(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", made(1)[0])
    text = run(str(path), JOB)
    assert text.exit_code == 0, text.stderr
    assert "attn(F)" in text.stdout
    assert all(len(line) <= 80 for line in text.stdout.splitlines())
    found = json.loads(run(str(path), JOB, "--json", "-q").stdout)
    assert found["pair"]["measured_s"] > 0
    assert {"phase", "measured_s", "predicted_s", "error"} <= set(found["phases"][0])
    assert found["busy_s"] + found["idle_s"] == pytest.approx(found["span_s"])


def test_packed_and_bare_lists_are_read_too(tmp_path: Path) -> None:
    events = [{"ph": "X", "cat": "kernel", "name": f"k{n}", "ts": n, "dur": 1} for n in range(3)]
    packed = tmp_path / "t.json.gz"
    packed.write_bytes(gzip.compress(json.dumps({"a": [1, {"b": 2}], "traceEvents": events}).encode()))
    bare = tmp_path / "t.json"
    bare.write_text(json.dumps(events), encoding="utf-8")
    marked = tmp_path / "bom.json"
    marked.write_text("\n " + json.dumps(events), encoding="utf-8-sig")
    assert list(trace_events(packed)) == events
    assert list(trace_events(bare)) == events
    assert list(trace_events(marked)) == events


def test_brackets_in_names_are_no_nesting(tmp_path: Path) -> None:
    events = [{"name": "[", "ts": n} for n in range(5000)]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
    assert list(trace_events(path)) == events


def test_what_holds_no_event_for_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.profile.events.LONGEST", 1 << 20)
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"traceEvents": [{"name": "x" * (1 << 21)}]}), encoding="utf-8")
    with pytest.raises(InputError, match="no event in 1 MiB"):
        list(trace_events(path))


def test_events_are_read_whatever_the_size_of_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [{"name": 'é"\\ \u2028', "ts": -1.25, "x": [True, False, None, 10**20]} for _ in range(5)]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"traceEvents": events, "n": 12345}, ensure_ascii=False), encoding="utf-8")
    for piece in (1, 2, 3, 7, 64):
        monkeypatch.setattr("simulator.profile.events.PIECE", piece)
        assert list(trace_events(path)) == events


def test_memory_does_not_grow_with_what_is_skipped(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "big.json"
    noise = json.dumps({"ph": "X", "cat": "cpu_op", "name": "aten::mul", "ts": 1, "args": {"x": "y" * 200}})
    with path.open("w", encoding="utf-8") as file:
        file.write('{"traceEvents": [')
        for _ in range(60_000):
            file.write(noise + ",")
        file.write('{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "dur": 1}]}')
    seen: list[float] = []
    tracemalloc.start()
    recording = read_recording(path, seen.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(recording.kernels) == 1
    assert path.stat().st_size > 15e6
    assert peak < 12e6
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


WHOLE = '{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "dur": 2}]}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WHOLE[:-1], "truncated"),
        (WHOLE[:40], "truncated"),
        (WHOLE[:60], "truncated"),
        ("", "it is empty"),
        ("hello", "it begins with 'h'"),
        ("{}", "it has no traceEvents"),
        ('{"a": 1}', "it has no traceEvents"),
        ('{"traceEvents": [3]}', "no event"),
        ('{"traceEvents": [{"ph" 3}]}', "separated by a colon"),
        ('{"traceEvents": 5}', "it has no traceEvents"),
        ('{"traceEvents": [{"ts": NaN}]}', "invalid char"),
        ('{"traceEvents": []}', "no GPU kernels"),
        ("[]", "no GPU kernels"),
        ('{"a": ' + 9000 * "[", "nested too deeply"),
        ('{"traceEvents": [{"a": ' + 9000 * '{"b":', "nested too deeply"),
        ('{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k"}]}', "event 'k' cannot be read"),
        ('{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "ts": 1e30}]}', "event 'k' cannot be read"),
        (
            '{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "dur": -1}]}',
            "event 'k' cannot be read",
        ),
        (
            '{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "args": 3}]}',
            "event 'k' cannot be read",
        ),
        ('{"traceEvents": [{"a": ' + 9000 * "9" + "}]}", "a number of thousands of digits"),
        ('{"a": ' + (1 << 21) * "9" + "}", "a number of thousands of digits"),
        ('{"a": "' + (1 << 21) * "x" + '"}', "a text in it has more than 1 MiB"),
        ('{"a": [' + (1 << 24) * "1," + "1]}", "there is no event in 16 MiB"),
        (WHOLE, "none of its 1 kernels is one that"),
    ],
)
def test_what_is_no_trace_of_the_job_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text, encoding="utf-8")
    result = run(str(path), JOB)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_packed_file_that_ends_early_is_said(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    whole = gzip.compress(json.dumps({"traceEvents": made(1)[0]}).encode())
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in run(str(path), JOB).stderr
    assert "cannot be read" in run(str(tmp_path / "none.json"), JOB).stderr


def test_only_time_before_a_late_launch_is_late() -> None:
    """A gap on the GPU, one the CPU makes, one it makes in part; then a launch nobody recorded."""
    times = [(0, 0, 10), (1, 15, 5), (30, 32, 8), (45, 60, 5), (80, 80, 5)]  # launched, start, duration
    kernels = [Kernel("k", "elem", 7, start, took, (), launched) for launched, start, took in times]
    assert late(kernels) == (30 - 20) + (45 - 40)
    assert late(kernels[::-1]) == late(kernels)
    assert late([]) == late(kernels[:2]) == 0.0


def test_a_late_start_of_a_profile_is_no_error_of_the_simulation(tmp_path: Path) -> None:
    """The CPU launches the first kernel, and the others only a millisecond later."""
    events, _ = made()
    first = min((e for e in events if e["tid"] == 7), key=lambda e: e["ts"])
    launches = []
    for number, event in enumerate(events):
        event["args"]["correlation"] = number
        launched = event["ts"] - 5.0
        if event is not first:
            event["ts"] += 1000.0
            launched = max(launched, 990.0)
        launches.append({"ph": "X", "cat": "cuda_runtime", "ts": launched, "dur": 1, "args": {"correlation": number}})
    found = compare(read_recording(write(tmp_path / "t.json", events + launches)), load_scenario(JOB))
    assert found.pair.late == pytest.approx(1e-3, rel=0.1)
    assert abs(found.pair.error) < 0.01


def test_alignment_keeps_order_and_skips_strangers() -> None:
    ops = [Item("norm.fwd", 1e-4), Item("gemm.fp8", 3e-4), Item("gemm.fp8", 1e-5), Item("rope", 1e-5)]
    kernels = [Item("elem", 1e-6), Item("norm.fwd", 1e-4), Item("gemm.fp8", 1.1e-5), Item("rope", 2e-5)]
    assert align(kernels, ops) == [-1, 0, 2, 3]
    assert align([], ops) == []
    assert align(kernels, []) == [-1] * 4


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "comm.all_reduce"),
        ("ncclDevKernel_SendRecv", "comm.p2p"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", "gemm.bf16"),
        ("void deep_gemm::fp8_gemm_kernel<4096u>", "gemm.fp8"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>", "attn.fwd"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma", "attn.bwd"),
        ("something_else", "elem"),
    ],
)
def test_kernels_of_other_libraries_are_known(name: str, cls: str) -> None:
    assert kernel_class(name) == cls


@pytest.mark.skipif(not HALF.is_file(), reason="the public training profile is not part of the project")
def test_the_public_training_profile(tmp_path: Path) -> None:
    """Labels are those of the labelled table; the pair, its phases and the large classes are where they should be."""
    recording = read_recording(HALF)
    found = compare(recording, load_scenario(JOB))
    with LABELLED.open(encoding="utf-8") as file:
        labels = {(int(r["start_us"]), int(r["stream"]), r["op"]): r for r in csv.DictReader(file)}
    phases = {(start, stream): (r["phase"], int(r["period"])) for (start, stream, _), r in labels.items()}
    for kernel in recording.kernels:
        key = (round(kernel.start * 1e6), kernel.stream)
        if key in phases and kernel.seconds > 0:
            assert (kernel.phase, kernel.period) == phases[key]
    named = [one for one in found.matched if not one.span.priced.op.name.startswith("router")]
    hits = [
        (round(one.kernels[0].start * 1e6), one.kernels[0].stream, one.span.priced.op.name) in labels for one in named
    ]
    assert sum(hits) >= 0.97 * len(hits)
    assert [p.forward.rows for p in found.pair.periods] == [31104, 30976]
    assert abs(found.pair.error) < 0.05
    assert all(abs(p.error) < 0.05 and abs(p.span_error) < 0.05 for p in found.phases)
    assert [p.phase for p in found.phases if p.late > 0] == ["attn(F)"]
    assert all(c.mape < 0.05 for c in found.classes if c.cls.startswith("gemm."))
    assert found.recording.clock == 1e-6
    streaming = [c for c in found.classes if not c.cls.startswith(("gemm.", "attn.", "comm."))]
    assert len(streaming) > 20
    assert {c.cls: c.past_clock for c in streaming if c.past_clock > 0.12} == {}
