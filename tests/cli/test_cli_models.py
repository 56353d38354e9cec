"""`foretrain show models`, and what `show model` says of a file's keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.inputs import ARCHITECTURES, list_names, load_model
from simulator.validation.public_models import tried

QWEN = {
    "model_type": "qwen3",
    "vocab_size": 1000,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": True,
}


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN))
    return str(path)


def test_models_lists_types_and_shipped_models(run: Any) -> None:
    told = json.loads(run("show", "models", "--json").stdout)
    assert told["schema"] == "foretrain.models/1"
    assert [one["model_type"] for one in told["types"]] == list(ARCHITECTURES)
    assert {one["name"]: one["parameters"] for one in told["shipped"]} == {
        name: load_model(name).parameters() for name in list_names("model")
    }
    assert all(one["source"] for one in told["shipped"])
    assert "bloom" in {one["model_type"] for one in told["refused"]}
    page = words(run("show", "models").stdout)
    assert "deepseek_v3 671.03B 36.63B" in page
    for model_type in ARCHITECTURES:
        assert model_type in page


def test_public_models_stand_next_to_what_is_published(run: Any) -> None:
    told = json.loads(run("show", "models", "--public", "--json").stdout)["models"]
    assert [one["name"] for one in told] == [one.public.name for one in tried()]
    page = words(run("show", "models", "--public").stdout)
    assert "DBRX dbrx 131.60B 132B 35.85B 36B" in page
    loads = sum(one.model is not None for one in tried())
    assert f"{loads} of {len(tried())} public models load" in page
    assert 'BLOOM-176B model_type: "bloom": not supported: ALiBi' in page


def test_the_page_is_written(run: Any, tmp_path: Path) -> None:
    result = run("show", "models", "--markdown", str(tmp_path / "page.md"))
    assert result.exit_code == 0
    assert result.stdout == ""
    assert (tmp_path / "page.md").read_text(encoding="utf-8").startswith("# Public models\n")
    assert run("show", "models", "--markdown", str(tmp_path / "nowhere" / "page.md")).exit_code == 2


def test_show_model_explains_a_file(run: Any, file: str) -> None:
    page = words(run("show", "model", file).stdout)
    assert "hidden_size 96" in page
    assert "Implied by qwen3, or computed qk_norm true" in page
    assert "rope_theta 1000000.0 angles of the rotary embedding, not its width" in page
    assert "sliding_window null not set: null says nothing" in page
    assert "norms of queries and keys for each head" in page


def test_show_model_explains_what_it_is_asked_to(run: Any, file: str) -> None:
    assert "Ignored" not in run("show", "model", "deepseek-v3").stdout
    assert "Ignored" in run("show", "model", "deepseek-v3", "--keys").stdout
    assert "Ignored" not in run("show", "model", file, "--no-keys").stdout
    keys = json.loads(run("show", "model", file, "--json").stdout)["keys"]
    assert {"key": "rope_theta", "value": 1e6, "why": "angles of the rotary embedding, not its width"} in keys[
        "ignored"
    ]
    assert {"key": "vocab_size", "value": 1000, "field": "vocab_size"} in keys["read"]
    parameters = json.loads(run("show", "model", "deepseek-v3", "--json").stdout)["parameters"]
    assert parameters["total"] == 671_026_419_200
    assert parameters["active_with_embedding"] - parameters["active"] == parameters["embedding"] == 129280 * 7168
    assert "keys" not in json.loads(run("show", "model", "deepseek-v3", "--json").stdout)


def test_show_architecture_says_all_of_a_type(run: Any) -> None:
    page = words(run("show", "architecture", "falcon").stdout)
    assert "models Falcon 7B, 40B, 180B and Falcon 2 11B" in page
    assert "alibi False, else ALiBi" in page
    assert "ff_factor ffn_hidden_size says it" in page
    told = json.loads(run("show", "architecture", "falcon", "--json").stdout)
    assert told["only"]["alibi"]["values"] == [False]
    assert told["moe"] is False


def test_show_model_of_a_block_that_is_not_llamas(run: Any, tmp_path: Path) -> None:
    neox = {
        "model_type": "gpt_neox",
        "vocab_size": 1000,
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "intermediate_size": 160,
    }
    (tmp_path / "config.json").write_text(json.dumps(neox))
    page = words(run("show", "model", str(tmp_path)).stdout)
    assert "block attention and feed-forward part side by side, a norm each" in page
    assert "rotary embedding of 25.0 % of each head" in page


@pytest.mark.parametrize("model_type", ["olmo2", "glm4", "gpt_neox", "phi"])
def test_a_block_that_is_not_llamas_goes_through_the_whole_program(model_type: str, run: Any, tmp_path: Path) -> None:
    keys = {key: value for key, value in QWEN.items() if key != "num_key_value_heads" or model_type != "gpt_neox"}
    (tmp_path / "config.json").write_text(json.dumps(keys | {"model_type": model_type, "hidden_size": 512}))
    result = run("simulate", "llama-3-8b", "--set", f"model={tmp_path}", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["metrics"]["step_time_s"] > 0
