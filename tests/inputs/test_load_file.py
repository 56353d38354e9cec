"""Recorded tokens per expert: what is read, and one line for what is wrong."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.inputs.recorded.load_file import read_expert_counts
from simulator.results.simulate import prepare, simulate

GOOD = "layer,expert,tokens\n" + "".join(f"{layer},{e},{10 + e}\n" for layer in (1, 3) for e in range(3))


def written(folder: Path, text: str, name: str = "loads.csv") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_recording_is_read_by_layer_and_microbatch(tmp_path: Path) -> None:
    rows = [f"{m},{layer},{e},{10 + m + (e - 1)}" for m in (4, 7) for layer in (1, 3) for e in range(3)]
    counts = read_expert_counts(written(tmp_path, "step,layer,expert,tokens\n" + "\n".join(rows)), (1, 3), 3)
    assert counts.microbatches == 2
    assert counts.tokens[3].tolist() == [[13.0, 14.0, 15.0], [16.0, 17.0, 18.0]]
    assert len(counts.digest) == 16


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")
def test_parquet_holds_the_same(tmp_path: Path) -> None:
    import pandas as pd

    csv = written(tmp_path, GOOD)
    pd.read_csv(csv).to_parquet(tmp_path / "loads.parquet")
    one, other = (read_expert_counts(str(tmp_path / name), (1, 3), 3) for name in ("loads.csv", "loads.parquet"))
    assert {k: v.tolist() for k, v in one.tokens.items()} == {k: v.tolist() for k, v in other.tokens.items()}
    (tmp_path / "text.parquet").write_text("no table", encoding="utf-8")
    with pytest.raises(InputError, match=r"text\.parquet: cannot be read as Parquet"):
        read_expert_counts(str(tmp_path / "text.parquet"), (1, 3), 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the columns layer, expert, tokens are missing"),
        ("layer,tokens\n", "the columns expert are missing"),
        ("layer,expert,tokens\n", "holds no rows"),
        ("layer,expert,tokens,rank\n1,1,1,1\n", "column 'rank' is not known"),
        (GOOD.replace("1,0,10", "1,0"), "row 2 has 2 cells, the header 3"),
        (GOOD.replace("1,0,10", "1,0,-10"), "tokens: -10.0: must be a finite number from 0 .row 2."),
        (GOOD.replace("1,0,10", "1,0,nan"), "tokens: nan: must be a finite number from 0"),
        (GOOD.replace("1,0,10", "1,0,many"), 'tokens: "many": must be a number'),
        (GOOD.replace("1,0,10", "1,0.5,10"), "expert: 0.5: must be a whole number"),
        (GOOD.replace("1,0,10", "1,3,10"), "expert: 3: the model's experts are 0 to 2"),
        (GOOD.replace("1,0,10", "0,0,10"), "layer: 0: no MoE layer; they are 1, 3"),
        (GOOD.split("3,0")[0], "layers 3 are missing; the model's MoE layers are 1, 3"),
        (GOOD.replace("1,0,10\n", ""), "expert 0 of layer 1 has no row"),
        (GOOD + "1,0,10\n", "stands in two rows"),
        (GOOD.replace("1,0,10", "1,0,90"), "the experts of layer [13] got .* every layer sees the same tokens"),
        ("layer,expert,tokens\n" + "".join(f"{n},{e},0\n" for n in (1, 3) for e in range(3)), "are 0"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        read_expert_counts(written(tmp_path, text), (1, 3), 3)
    assert "\n" not in str(error.value)


def test_a_job_names_its_recording_from_its_own_folder(tmp_path: Path) -> None:
    base = load_scenario("tiny-1f1b")
    model, kinds = base.model, base.model.layer_kinds()
    layers = [i for i in range(len(kinds) + model.num_nextn_predict_layers) if model.layer_kind(i) == "moe"]
    experts = model.n_routed_experts
    rows = [f"{layer},{e},{8 if e else 8 + 8 * experts}" for layer in layers for e in range(experts)]
    written(tmp_path, "layer,expert,tokens\n" + "\n".join(rows))
    job = tmp_path / "job.toml"
    job.write_text('extends = "tiny-1f1b"\n[routing]\nkind = "measured"\nfile = "loads.csv"\n', encoding="utf-8")
    loaded = load_scenario(str(job))
    assert loaded.counts is not None
    assert prepare(loaded)[0].shapes.imbalance > 5.0
    step = simulate(loaded, engine="longest-path")
    assert step.metrics["step_time_s"] > simulate(base, engine="longest-path").metrics["step_time_s"]
    assert step.as_dict()["scenario"]["counts"]["digest"] == loaded.counts.digest


def test_measured_routing_needs_a_recording() -> None:
    with pytest.raises(InputError, match=r"routing\.file: .*needs a recording of tokens per layer and expert"):
        prepare(load_scenario("tiny-1f1b", ["routing.kind=measured"]))
    with pytest.raises(InputError, match=r"routing\.file: 'none\.csv' is no readable file"):
        load_scenario("tiny-1f1b", ["routing.kind=measured", "routing.file=none.csv"])
