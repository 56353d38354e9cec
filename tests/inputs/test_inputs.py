"""Input files: what loads, what `--set` changes, and every sentence that a mistake gets."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import ForetrainError, InputError
from simulator.inputs import (
    list_names,
    load_hardware,
    load_job,
    load_model,
    load_scenario,
    load_stack,
    settable_paths,
)
from simulator.inputs.overrides import paths
from simulator.spec.scenario import Scenario

JOB = """\
model = "deepseek-v3-tiny"
hardware = "h800"
gpus = 64
[layout]
pp = 4
ep = 16
[batch]
sequence_length = 1024
microbatch_size = 1
global_batch_size = 160
"""


def message(action: Any, *args: Any) -> str:
    """The error that a call ends in: one line."""
    with pytest.raises(InputError) as caught:
        action(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what is shipped


@pytest.mark.parametrize("name", list_names("job"))
def test_shipped_jobs_load(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    job = scenario.job
    if job.serving is None:
        assert job.batch.global_batch_size == job.microbatches * job.batch.microbatch_size * job.dp


@pytest.mark.parametrize("name", list_names("hardware"))
def test_shipped_hardware_loads_and_every_number_has_a_source(name: str) -> None:
    cluster = load_hardware(name)
    numbers = {
        path
        for path, value in _leaves(cluster)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and path.split(".")[0] not in _OWN_SOURCES
    }
    assert numbers - set(cluster.sources) == set()
    assert all(cluster.sources.values())


@pytest.mark.parametrize("name", list_names("stack"))
def test_shipped_stacks_load_and_every_setting_has_a_source(name: str) -> None:
    stack = load_stack(name)
    assert set(paths(stack)) == set(stack.sources)


def test_the_published_job(v3: Scenario) -> None:
    job = v3.job
    assert (job.dp, job.edp, job.microbatches) == (128, 2, 120)
    assert job.tokens_per_step == 15360 * 4096
    assert v3.cluster.node.nvlink.bandwidth == 160e9
    assert v3.cluster.node.nic.bandwidth == 50e9
    assert v3.cluster.price_per_gpu_hour == 2.0
    assert {path.rpartition(".")[0] for path in v3.cluster.assumed} == {"gpu.power", "node", "node.host"}  # an H100's


def test_siblings_differ_in_one_value(v3: Scenario) -> None:
    base = dict(_leaves(load_job(v3.name)))
    for name, key, value in [
        ("deepseek-v3-1f1b", "layout.schedule", "1f1b"),
        ("deepseek-v3-zb1p", "layout.schedule", "zb1p"),
        ("deepseek-v3-bf16", "precision.recipe", "bf16"),
    ]:
        other = dict(_leaves(load_job(name)))
        assert {k: v for k, v in other.items() if base[k] != v} == {key: value}


def test_names_ignore_case() -> None:
    assert load_hardware("H800") == load_hardware("h800")
    assert load_model("DeepSeek-V3") == load_model("deepseek-v3")


def test_an_extended_profile_keeps_no_source_of_a_number_it_changes() -> None:
    h200, h100 = load_hardware("h200"), load_hardware("h100")
    assert h200.gpu.sms == h100.gpu.sms
    assert h200.sources["gpu.sms"] == h100.sources["gpu.sms"]
    assert "139.80 GiB" in h200.sources["gpu.hbm_bytes"]


def test_importing_inputs_loads_nothing_heavy() -> None:
    code = "import sys, simulator.inputs; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"pandas", "matplotlib", "networkx", "numpy", "pydantic"} & set(loaded) == set()


# ---- own files


def test_own_files_by_path(folder: Path) -> None:
    config = json.loads(Path(__file__).parents[2].joinpath("workloads/models/deepseek-v3-tiny/config.json").read_text())
    (folder / "mine").mkdir()
    (folder / "mine/config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    (folder / "big.toml").write_text('extends = "h800"\n[gpu]\nhbm_bytes = 160e9\n')
    job = JOB.replace('"deepseek-v3-tiny"', '"./mine"').replace('"h800"', '"big.toml"')
    (folder / "job.toml").write_text(job)
    scenario = load_scenario("job.toml")
    assert (scenario.name, scenario.model.name, scenario.cluster.name) == ("job", "mine", "big")
    assert scenario.model.num_hidden_layers == 9
    assert scenario.cluster.gpu.hbm_bytes == 160e9
    assert "gpu.hbm_bytes" not in scenario.cluster.sources


def test_paths_in_a_job_start_from_its_folder(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/big.toml").write_text('extends = "h800"\n')
    (folder / "sub/job.toml").write_text(JOB.replace('"h800"', '"big.toml"'))
    assert load_scenario("sub/job.toml").cluster.name == "big"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (JOB.replace("pp = 4", "ppp = 4"), "job.toml: layout.ppp: 4: unknown key; did you mean pp?"),
        (JOB + "[overlaps]\n", "job.toml: overlaps: {}: unknown key; did you mean overlap?"),
        (JOB.replace("gpus = 64\n", ""), "job.toml: gpus: missing: must be an integer"),
        (JOB.replace("gpus = 64", 'gpus = "64"'), 'job.toml: gpus: "64": must be an integer; write 64 without quotes'),
        (JOB.replace("160", "160.0"), "job.toml: batch.global_batch_size: 160.0: must be an integer; write 160"),
        (JOB.replace("pp = 4", "pp = true"), "job.toml: layout.pp: true: must be an integer"),
        (JOB.replace("pp = 4", "pp = 0"), "job.toml: layout.pp: 0: must be at least 1"),
        (JOB.replace("gpus = 64", "gpus = -8"), "job.toml: gpus: -8: must be at least 1"),
        (JOB.replace("pp = 4", "zero = 4"), "job.toml: layout.zero: 4: must be from 0 to 3"),
        (
            JOB.replace("pp = 4", 'recompute = "some"'),
            'job.toml: layout.recompute: "some": must be "none", "selective", "full" or "deepseek" or a list, each '
            '"core_attn", "norm", "layernorm", "mla_up", "mla_up_proj", "swiglu", "moe_act", "mlp", "moe", '
            '"shared_experts", "ops" or "layer"',
        ),
        (
            JOB.replace("pp = 4", "stages = [1, 2.5]"),
            "job.toml: layout.stages[1]: 2.5: must be an integer",
        ),
        (JOB.replace("pp = 4", "stages = [7, -1]"), "job.toml: layout.stages: -1: must be at least 0"),
        (JOB + "[run]\ntokens = nan\n", "job.toml: run.tokens: nan: must be a finite number"),
        (JOB + "[run]\ntokens = -inf\n", "job.toml: run.tokens: -inf: must be a finite number"),
        (JOB + "[run]\ntokens = 0\n", "job.toml: run.tokens: 0.0: must be above 0, as in 14.8e12"),
        (JOB + "[run]\ntokens = 2026-01-01\n", 'job.toml: run.tokens: "2026-01-01": must be a finite number'),
        (
            JOB.partition("[batch]")[0],
            "job.toml: missing: batch.sequence_length (an integer), batch.microbatch_size (an integer),"
            " batch.global_batch_size (an integer)",
        ),
        ("layout = 3\nbatch = 4\n" + JOB.partition("[layout]")[0], "job.toml: layout: 3: must be a table"),
        ('model = "a\n', "job.toml: line 1, column 11: invalid TOML: Illegal character '\\n'"),
        (JOB + "gpus == 3\n", "job.toml: line 11, column 7: invalid TOML: Invalid value"),
        ("", "job.toml: the file is empty"),
        (" \n\n", "job.toml: the file is empty"),
        ("extends = 3\n", "job.toml: extends: 3: must be the name or path of a job"),
        ('extends = "tiny"\n', "job.toml: extends: job 'tiny' is not known: did you mean tiny-zb1p?"),
        (JOB + f"[run]\ntokens = {'1' * 5000}\n", "job.toml: invalid TOML: a number has thousands of digits"),
        (JOB.replace("gpus = 64", f"gpus = {10**30}"), f"job.toml: gpus: {10**30}: must be from 1 to 1e+15"),
        (JOB + "[run]\ntokens = 1e300\n", "job.toml: run.tokens: 1e+300: must be from 0 to 1e+20"),
        (JOB + "[routing]\nmax_over_mean = 0.5\n", "job.toml: routing.max_over_mean: 0.5: must be at least 1"),
        (JOB + "[routing]\ncv = 1e9\n", "job.toml: routing.cv: 1000000000.0: must be from 0 to 4"),
        ('extends = "./job.toml"\n', 'job.toml: extends: "./job.toml": the files extend each other in a circle'),
    ],
)
def test_bad_jobs(folder: Path, text: str, error: str) -> None:
    (folder / "job.toml").write_text(text)
    assert message(load_job, "job.toml") == error


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"model_type": "bloom"},
            'model_type: "bloom": not supported: ALiBi, a bias of the scores instead of rotary embedding, which the '
            "forecast does not have; the nearest supported type is falcon; docs/howto/model.md says how to add one",
        ),
        ({"model_type": "lamma"}, 'model_type: "lamma": not a known architecture: did you mean llama?; docs/howto/'),
        ({"model_type": None}, "model_type: null: not a known architecture: `foretrain show models` lists those that"),
        (
            {"index_topk": 2048},
            "index_topk: 2048: unknown key for deepseek_v3, it may change the shape",
        ),
        (
            {"n_routed_expert": 16},
            "n_routed_expert: 16: unknown key for deepseek_v3, it may change the shape; did you mean n_routed_experts?",
        ),
        ({"vocab_size": None}, "vocab_size: null: missing: must be an integer, at least 1"),
        ({"hidden_size": "512"}, 'hidden_size: "512": must be an integer; write 512 without quotes'),
        ({"hidden_size": 512.0}, "hidden_size: 512.0: must be an integer; write 512"),
        ({"hidden_size": 0}, "hidden_size: 0: must be at least 1"),
        ({"num_hidden_layers": -3}, "num_hidden_layers: -3: must be from 1 to 1024"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers: 1000000000000: must be from 1 to 1024"),
        ({"intermediate_size": math.nan}, "intermediate_size: nan: must be an integer"),
        ({"hidden_act": "tanh"}, 'hidden_act: "tanh": must be "silu", "gelu", "relu" or "relu2"'),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok: 17: must be from 1 to the 16 routed experts"),
        ({"n_group": 3}, "n_group: 3: must divide the 16 routed experts"),
        ({"topk_group": 5}, "topk_group: 5: must be from 1 to n_group 4"),
        ({"n_group": 16}, "topk_group: 2: reaches 2 experts, fewer than num_experts_per_tok 4"),
        (
            {"v_head_dim": 0},
            "kv_lora_rank: 128: multi-head latent attention needs qk_nope_head_dim, qk_rope_head_dim and v_head_dim,"
            " each at least 1",
        ),
    ],
)
def test_bad_models(folder: Path, changes: dict[str, Any], error: str) -> None:
    config = json.loads(Path(__file__).parents[2].joinpath("workloads/models/deepseek-v3-tiny/config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    assert message(load_model, "./config.json").startswith(f"config.json: {error}")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"mlp_only_layers": 5}, "mlp_only_layers: 5: must be a list, each an integer"),
        ({"mlp_only_layers": ["a"]}, 'mlp_only_layers[0]: "a": must be an integer'),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers: 1000000000000: must be from 1 to 1024"),
    ],
)
def test_bad_models_with_moe_layers_at_steps(folder: Path, changes: dict[str, Any], error: str) -> None:
    shipped = Path(__file__).parents[2] / "workloads/models/qwen3-235b-a22b/config.json"
    table = json.loads(shipped.read_text()) | {"decoder_sparse_step": 2} | changes
    (folder / "config.json").write_text(json.dumps(table))
    assert message(load_model, "config.json") == f"config.json: {error}"


def test_setting_a_value_of_an_unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bloom"}')
    shown = message(load_scenario, "tiny-1f1b", ["model=./config.json", "model.hidden_size=64"])
    assert shown.startswith('config.json: model_type: "bloom": not supported: ALiBi')


def test_a_number_of_thousands_of_digits(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": ' + "1" * 5000 + "}")
    assert message(load_model, "config.json") == "config.json: invalid JSON: a number has thousands of digits"


def test_broken_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",\n "vocab_size": }')
    assert message(load_model, "./config.json") == "config.json: line 2, column 16: invalid JSON: Expecting value"
    (folder / "config.json").write_text("[1]")
    assert message(load_model, "./config.json") == "config.json: must hold an object {…}, not list"
    (folder / "config.json").write_text('{"vocab_size": 3, "vocab_size": 4}')
    assert message(load_model, "./config.json") == "config.json: vocab_size: 4: the key is given twice; keep one"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("node.nvlink.bandwidth = 160.0", "node.nvlink.bandwidth: 160.0: 160 B/s is implausible: write 160e9"),
        ("node.nic.latency = 3.7", "node.nic.latency: 3.7: 3.7 s is implausible: write 3.7e-6"),
        ("gpu.peak.bf16 = 989.0", "gpu.peak.bf16: 989.0: 989 FLOP/s is implausible: write 989e12"),
        ("gpu.hbm_bytes = 80", "gpu.hbm_bytes: 80.0: 80 B is implausible: write 80e9"),
        ("gpu.boost_clock = 1.83", "gpu.boost_clock: 1.83: 1.83 Hz is implausible: write 1.83e9"),
        ("gpu.hbm_bandwidth = 3.35", "gpu.hbm_bandwidth: 3.35: 3.35 B/s is implausible: write 3.35e9"),
        ("gpu.tdp = -700.0", "gpu.tdp: -700.0: must be from 10 to 100000 W"),
        ("gpu.sms = 0", "gpu.sms: 0: must be from 1 to 4096"),
        ("gpu.peak.fp8 = -1.0", "gpu.peak.fp8: -1.0: must be 0, or from 1e+11 to 1e+18 FLOP/s"),
        (
            "node.nvlink.bandwidth = 210e9",
            "node.nvlink.bandwidth: 210000000000.0: is above the peak 2e+11; bandwidth is what can be attained",
        ),
        ('kernels = "h8000"', "kernels: kernels 'h8000' is not known: did you mean h800?"),
        ("gpu.smss = 3", "gpu.smss: 3: unknown key; did you mean sms?"),
    ],
)
def test_bad_profiles(folder: Path, line: str, error: str) -> None:
    (folder / "mine.toml").write_text(f'extends = "h800"\n{line}\n')
    assert message(load_hardware, "mine.toml") == f"mine.toml: {error}"


def test_files_that_are_none(folder: Path) -> None:
    (folder / "latin.toml").write_bytes(b'model = "caf\xe9"\n')
    (folder / "dir.toml").mkdir()
    assert message(load_job, "latin.toml") == "latin.toml: byte 12: not UTF-8; save the file as UTF-8 text"
    assert message(load_job, "dir.toml") == "dir.toml: is a directory; give the path of a job file"
    shipped = ", ".join(list_names("job"))
    assert message(load_job, "no.toml") == f"no.toml: no such file; shipped are {shipped}"
    assert message(load_job, "") == f"job: an empty name; choose one of {shipped}"
    assert message(load_hardware, "h801") == "hardware 'h801' is not known: did you mean h800?"
    assert message(load_model, "deepseekv3") == "model 'deepseekv3' is not known: did you mean deepseek-v3?"
    stacks = ", ".join(list_names("stack"))
    assert message(load_stack, "zzz") == f"stack 'zzz' is not known: choose one of {stacks}"


def test_a_byte_order_mark_is_no_error(folder: Path) -> None:
    (folder / "job.toml").write_bytes(b"\xef\xbb\xbf" + JOB.encode())
    assert load_job("job.toml").gpus == 64


# ---- --set


def test_set_reaches_job_model_hardware_kernels_fabric_and_stack() -> None:
    s = load_scenario(
        "tiny-dualpipe",
        [
            "layout.pp=2",
            "batch.global_batch_size=320",
            "layout.stages=[3,3]",
            "run.price_per_gpu_hour=none",
            "model.topk_group=1",
            "model.q_lora_rank=null",
            "hardware.node.nic.bandwidth=100e9",
            "hardware.kernels.comm_traffic=2e11",
            "hardware.fabric.p2p_nic.alpha=1e-6",
            "stack.kernel_gap=0",
            'layout.schedule="1f1b"',
        ],
    )
    assert (s.job.layout.pp, s.job.batch.global_batch_size, s.job.layout.stages) == (2, 320, (3, 3))
    assert s.job.run.price_per_gpu_hour is None
    assert (s.model.topk_group, s.model.q_lora_rank) == (1, None)
    assert s.cluster.node.nic.bandwidth == 100e9
    assert s.cluster.sources["node.nic.bandwidth"] == "set by the user"
    assert (s.cluster.kernels.comm_traffic, s.cluster.fabric.p2p_nic.alpha) == (2e11, 1e-6)
    assert (s.stack.kernel_gap, s.job.layout.schedule) == (0.0, "1f1b")


def test_set_reaches_keys_with_dots() -> None:
    name = next(iter(load_hardware("h800").kernels.stream))
    s = load_scenario("tiny-dualpipe", [f"hardware.kernels.stream.{name}.launch=1e-5"])
    assert s.cluster.kernels.stream[name].launch == 1e-5


def test_set_model_hardware_and_stack_by_name() -> None:
    s = load_scenario("deepseek-v3-pretrain", ["model=deepseek-v2", "stack=torch", "model.n_routed_experts=320"])
    assert (s.model.name, s.model.n_routed_experts, s.stack.name) == ("deepseek-v2", 320, "torch")


def test_the_last_set_wins() -> None:
    assert load_scenario("tiny-1f1b", ["layout.pp=2", "layout.pp=1"]).job.layout.pp == 1


def test_models_take_their_own_spelling_and_ours() -> None:
    own = load_scenario("llama-3-8b", ["model=mixtral-8x7b", "model.num_local_experts=16"])
    ours = load_scenario("llama-3-8b", ["model=mixtral-8x7b", "model.n_routed_experts=16"])
    assert own.model == ours.model
    wider = load_scenario("llama-3-8b", ["model=mixtral-8x7b", "model.intermediate_size=8192"])
    assert wider.model.moe_intermediate_size == 8192


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("pp=8", '--set: pp: "8": unknown key; did you mean layout.pp?'),
        ("optimizer.masters=fp64", '--set: optimizer.masters: "fp64": must be "fp32" or "none"'),
        ("layout.ppp=8", '--set: layout.ppp: "8": unknown key; did you mean layout.pp?'),
        ("layot.pp=8", '--set: layot.pp: "8": unknown key; did you mean layout.pp?'),
        (
            "zzz.yyy=8",
            '--set: zzz.yyy: "8": unknown key; choose one below layout, batch, precision, optimizer, memory, overlap,'
            " routing, run, model, hardware or stack, as in layout.pp",
        ),
        ("layout.pp=8.0", "--set: layout.pp: 8.0: must be an integer; write 8"),
        ("layout.pp=eight", '--set: layout.pp: "eight": must be an integer'),
        ("layout.pp=true", "--set: layout.pp: true: must be an integer"),
        ("layout.pp=0", "--set: layout.pp: 0: must be at least 1"),
        ("layout.sp=1", "--set: layout.sp: 1: must be true or false"),
        ("layout.pp", "--set: 'layout.pp': must be path=value, as in layout.pp=8"),
        ("layout.pp=", "--set: 'layout.pp=': must be path=value, as in layout.pp=8"),
        ("=3", "--set: '=3': must be path=value, as in layout.pp=8"),
        (
            "layout=3",
            '--set: layout: "3": is a table; set one of its values: layout.tp, layout.pp, layout.vpp, layout.ep',
        ),
        ("layout.pp.x=3", '--set: layout.pp.x: "3": unknown key; did you mean layout.pp?'),
        ("run.tokens=nan", "--set: run.tokens: nan: must be a finite number"),
        ("run.tokens=-1", "--set: run.tokens: -1.0: must be above 0, as in 14.8e12"),
        ("layout.cp_kind=tree", '--set: layout.cp_kind: "tree": must be "ring", "all_gather" or "all_to_all"'),
        ("model.topk_group=9", "--set: model.topk_group: 9: must be from 1 to n_group 4"),
        ("model.topkgroup=2", '--set: model.topkgroup: "2": unknown key; did you mean model.topk_group?'),
        ("hardware.gpu.smss=3", '--set: hardware.gpu.smss: "3": unknown key; did you mean hardware.gpu.sms?'),
        (
            "hardware.node.nvlink.bandwidth=400",
            "--set: hardware.node.nvlink.bandwidth: 400.0: 400 B/s is implausible: write 400e9",
        ),
        (
            "hardware.kernels.comm_traffic=-1",
            "--set: hardware.kernels.comm_traffic: -1.0: must be from 1e+06 to 1e+16 B/s",
        ),
        ("stack.kernel_gap=2", "--set: stack.kernel_gap: 2.0: 2 s is implausible: write 2e-6"),
        (
            "stack.dispatcher=mpi",
            '--set: stack.dispatcher: "mpi": must be "deepep", "deepep_v2", "hybrid_ep", "nvlink_one_sided", '
            '"nvlink_two_sided", "nccl" or "allgather"',
        ),
        ("hardware=h801", "hardware 'h801' is not known: did you mean h800?"),
        ("hardware.sources.gpu=x", '--set: hardware.sources.gpu: "x": unknown key; did you mean hardware.node.gpus?'),
    ],
)
def test_bad_overrides(override: str, error: str) -> None:
    assert message(load_scenario, "tiny-dualpipe", [override]) == error


@settings(max_examples=60)
@given(st.sampled_from(["layout.tp", "layout.pp", "layout.ep", "batch.microbatch_size", "gpus"]), st.integers(1, 10**6))
def test_an_integer_set_is_the_integer_got(path: str, value: int) -> None:
    scenario = load_scenario("tiny-dualpipe", [f"{path}={value}"])
    assert _at(scenario.job, path) == value


@settings(max_examples=60)
@given(st.floats(1e9, 1e14))
def test_a_float_set_is_the_float_got(value: float) -> None:
    scenario = load_scenario("tiny-dualpipe", [f"hardware.node.nic.bandwidth={value!r}"])
    assert scenario.cluster.node.nic.bandwidth == value


@settings(max_examples=150)
@given(st.data())
def test_whatever_is_set_either_works_or_is_explained(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(_PATHS) | st.text(max_size=12))
    value = data.draw(st.sampled_from(["0", "-1", "1e400", "nan", "[]", "[1,2]", "{}", "x", "true", "''"]) | st.text())
    shown = ""
    try:
        load_scenario("tiny-dualpipe", [f"{path}={value}"])
    except ForetrainError as error:
        shown = str(error)
    assert "\n" not in shown


@settings(max_examples=150)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_whatever_a_model_file_holds_is_read_or_explained(tmp_path: Path, value: Any) -> None:
    base = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(base | {"intermediate_size": value}))
    assert "intermediate_size" in message(load_model, str(path))


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not is_dataclass(value):
        return [(prefix[:-1], value)]
    return [leaf for f in fields(value) for leaf in _leaves(getattr(value, f.name), f"{prefix}{f.name}.")]


_OWN_SOURCES = ("kernels", "fabric")
_PATHS = settable_paths(load_scenario("tiny-dualpipe"))


def test_what_the_user_sets_of_a_stack_is_no_longer_assumed() -> None:
    before = load_scenario("deepseek-v3-pretrain").stack
    after = load_scenario("deepseek-v3-pretrain", ["stack.loss=plain"]).stack
    assert set(before.assumed) - set(after.assumed) == {"loss"}
    assert after.sources["loss"] == "set by the user"
