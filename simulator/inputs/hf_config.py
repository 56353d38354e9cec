"""Hugging Face config.json of many architectures -> `ModelSpec`.

A key is either read, known to leave the shape alone, or an error: nothing that changes the shape is dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.errors import InputError
from simulator.inputs.limits import MODEL, check_ranges
from simulator.inputs.problems import nearest, problem
from simulator.inputs.typed import build, field_names
from simulator.plugins import Registry
from simulator.spec.model import ModelSpec

Table = dict[str, Any]

_COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_act",
    "tie_word_embeddings",
)
_LATENT = (
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "attention_bias",
)
_DEEPSEEK_MOE = (
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_shared_experts",
    "first_k_dense_replace",
    "moe_layer_freq",
    "n_group",
    "topk_group",
    "topk_method",
    "num_nextn_predict_layers",
)
_QWEN_MOE = (
    "num_experts_per_tok",
    "moe_intermediate_size",
    "mlp_only_layers",
)

_HARMLESS = frozenset(
    """
    architectures torch_dtype dtype transformers_version use_cache auto_map model_type name bos_token_id
    eos_token_id pad_token_id unk_token_id decoder_start_token_id attention_dropout hidden_dropout resid_pdrop
    embd_pdrop attn_pdrop dropout initializer_range initializer_factor rms_norm_eps layer_norm_epsilon
    layer_norm_eps rope_theta rope_scaling rope_parameters rope_interleave partial_rotary_factor
    original_max_position_embeddings pretraining_tp quantization_config ep_size aux_loss_alpha seq_aux
    output_router_logits router_aux_loss_coef router_z_loss_coef router_jitter_noise max_window_layers
    output_attentions output_hidden_states return_dict is_encoder_decoder is_decoder summary_type summary_use_proj
    summary_activation summary_first_dropout summary_proj_to_labels task_specific_params n_ctx scale_attn_weights
    scale_attn_by_inverse_layer_idx reorder_and_upcast_attn gradient_checkpointing attn_implementation
    num_return_sequences chunk_size_feed_forward id2label label2id problem_type
    scoring_func norm_topk_prob routed_scaling_factor
    """.split()  # noqa: SIM905 - sixty quoted words are harder to read
)


def _same(table: Table) -> Table:
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How one `model_type` spells its shape: `keys` native -> ours, `fixed` what it implies, `finish` the rest."""

    keys: Mapping[str, str]
    fixed: Table = field(default_factory=dict)
    finish: Callable[[Table], Table] = _same


def _keys(*names: str, **renamed: str) -> dict[str, str]:
    return {name: name for name in (*_COMMON, *names)} | renamed


def _experts_as_wide_as_dense(table: Table) -> Table:
    return table | {"moe_intermediate_size": table.get("intermediate_size", 0)}


def _output_bias(table: Table) -> Table:
    return table | {"attention_out_bias": table.get("attention_bias", False)}


def _no_window(table: Table) -> Table:
    """Qwen names a window that counts only where `use_sliding_window` says so."""
    used = table.pop("use_sliding_window", False)
    return table if used else table | {"sliding_window": None}


def _sparse_step(table: Table) -> Table:
    """Qwen counts layers from 1: layer i is MoE where (i + 1) % step == 0."""
    step = table.pop("decoder_sparse_step", 1)
    layers, named = table.get("num_hidden_layers", 0), table.get("mlp_only_layers", [])
    if not (isinstance(step, int) and isinstance(layers, int) and step > 1):
        return table
    if not MODEL["num_hidden_layers"].holds(layers) or not _are_integers(named):
        return table  # told when the values are checked
    dense = {i for i in range(layers) if (i + 1) % step}
    return table | {"mlp_only_layers": sorted(dense | set(named))}


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _qwen_moe(table: Table) -> Table:
    return _sparse_step(_no_window(table))


def _gpt(table: Table) -> Table:
    hidden = table.get("hidden_size", 0)
    wide = 4 * hidden if isinstance(hidden, int) else hidden
    act = table.get("hidden_act", "gelu_new")
    return table | {
        "intermediate_size": table.get("intermediate_size", wide),
        "hidden_act": "gelu" if str(act).startswith("gelu") else act,
    }


_DEEPSEEK = _keys(*_LATENT, *_DEEPSEEK_MOE)
_WINDOW = {"sliding_window": "sliding_window", "use_sliding_window": "use_sliding_window"}
_EXPERTS = {"num_experts": "n_routed_experts", "decoder_sparse_step": "decoder_sparse_step"}

SHIPPED: Mapping[str, Architecture] = {
    "deepseek_v2": Architecture(keys=_DEEPSEEK, fixed={"topk_method": "greedy"}, finish=_output_bias),
    "deepseek_v3": Architecture(keys=_DEEPSEEK, fixed={"topk_method": "noaux_tc"}, finish=_output_bias),
    "kimi_k2": Architecture(keys=_DEEPSEEK, fixed={"topk_method": "noaux_tc"}, finish=_output_bias),
    "llama": Architecture(keys=_keys("head_dim", "attention_bias", "mlp_bias"), finish=_output_bias),
    "mistral": Architecture(keys=_keys("head_dim", "sliding_window")),
    "mixtral": Architecture(
        keys=_keys("head_dim", "sliding_window", "num_experts_per_tok", num_local_experts="n_routed_experts"),
        finish=_experts_as_wide_as_dense,
    ),
    "qwen2": Architecture(keys=_keys(**_WINDOW), fixed={"attention_bias": True}, finish=_no_window),
    "qwen2_moe": Architecture(
        keys=_keys(*_QWEN_MOE, "shared_expert_intermediate_size", qkv_bias="attention_bias", **_WINDOW, **_EXPERTS),
        fixed={"attention_bias": True, "shared_expert_gate": True},
        finish=_qwen_moe,
    ),
    "qwen3": Architecture(
        keys=_keys("head_dim", "attention_bias", **_WINDOW),
        fixed={"qk_norm": True},
        finish=lambda table: _output_bias(_no_window(table)),
    ),
    "qwen3_moe": Architecture(
        keys=_keys("head_dim", "attention_bias", *_QWEN_MOE, **_WINDOW, **_EXPERTS),
        fixed={"qk_norm": True},
        finish=lambda table: _output_bias(_qwen_moe(table)),
    ),
    "gpt2": Architecture(
        keys={
            "vocab_size": "vocab_size",
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "n_positions": "max_position_embeddings",
            "activation_function": "hidden_act",
            "tie_word_embeddings": "tie_word_embeddings",
        },
        fixed={
            "gated_mlp": False,
            "norm": "layer",
            "positions": "learned",
            "attention_bias": True,
            "attention_out_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        finish=_gpt,
    ),
}

ARCHITECTURES: Registry[Architecture] = Registry(
    kind="architecture", cls=Architecture, group="foretrain.architectures", shipped=SHIPPED, error=InputError
)
"""Architectures by `model_type`; `register_architecture` and installed packages add to the shipped ones."""


def register_architecture(model_type: str, architecture: Architecture) -> None:
    """Add an architecture for this process; raises InputError for a `model_type` that is known already.

    Worker processes of a search do not have it: a search with registered architectures runs in one process. A package
    that offers its `Architecture` as an entry point `foretrain.architectures` is known everywhere.
    """
    ARCHITECTURES.register(model_type, architecture)


def model_from_config(table: Table, name: str, source: str, changes: Table | None = None) -> ModelSpec:
    """The model of a parsed config.json; `changes` are laid over it, in the file's spelling or in ours.

    Errors name `source`, which may end in a key prefix: `--set: model.`.
    """
    architecture = _architecture(table, source)
    with ARCHITECTURES.guard(table["model_type"]):
        values = _values(table, architecture, source, changes or {})
        spelled = {v: k for k, v in architecture.keys.items()}
    values |= {"name": name, "model_type": table["model_type"]}
    for required in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    ):
        if values.get(required) is None:
            raise problem(source, spelled[required], None, "missing: must be an integer, at least 1")
    model = build(ModelSpec, values, source)
    check_ranges(model, MODEL, source)
    _consistent(model, source)
    return model


def _values(table: Table, architecture: Architecture, source: str, changes: Table) -> Table:
    """What the fields of `ModelSpec` are, by the architecture's spelling and what it implies."""
    native, ours = _sort_changes(architecture, changes)
    known = _known(table | native, architecture, source)
    values: Table = dict(architecture.fixed)
    for key, ours_key in architecture.keys.items():
        if key in known:
            values[ours_key] = known[key]
    values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
    return architecture.finish(values) | ours


def _architecture(table: Table, source: str) -> Architecture:
    kind = table.get("model_type")
    found = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    if found is not None:
        return found
    raise problem(source, "model_type", kind, f"not a known architecture; known are {', '.join(ARCHITECTURES)}")


def _known(table: Table, architecture: Architecture, source: str) -> Table:
    """The keys that shape the model; a null says nothing (of a rank or a window it is the default)."""
    shape: Table = {}
    for key, value in table.items():
        if key in architecture.keys:
            if value is not None:
                shape[key] = value
        elif value is not None and key not in _HARMLESS and not key.startswith("_"):
            near = nearest(key, architecture.keys)
            right = f"unknown key for {table['model_type']}, it may change the shape; {near}"
            raise problem(source, key, value, right if near.startswith("did") else right.partition(";")[0])
    return shape


def _sort_changes(architecture: Architecture, changes: Table) -> tuple[Table, Table]:
    """Changes in the file's own keys, and those only our spelling has."""
    spelled = {v: k for k, v in architecture.keys.items()}
    native: Table = {}
    ours: Table = {}
    for key, value in changes.items():
        if key in architecture.keys:
            native[key] = value
        elif key in spelled:
            native[spelled[key]] = value
        else:
            ours[key] = value
    return native, ours


def settable(model_type: str) -> dict[str, str]:
    """Every key that `--set model.KEY` takes -> the field of `ModelSpec` that gives its type."""
    own = {name: name for name in field_names(ModelSpec) if name not in ("name", "model_type")}
    fields = set(own)
    return own | {k: v for k, v in ARCHITECTURES[model_type].keys.items() if v in fields}


def _consistent(m: ModelSpec, source: str) -> None:
    """Raise for the first pair of sizes that cannot belong to one model."""
    rules: list[tuple[bool, str, object, str]] = [
        (
            m.is_mla or m.num_attention_heads % m.num_key_value_heads == 0,
            "num_key_value_heads",
            m.num_key_value_heads,
            f"must divide num_attention_heads {m.num_attention_heads}",
        ),
        (
            m.is_mla or m.head_dim is not None or m.hidden_size % m.num_attention_heads == 0,
            "num_attention_heads",
            m.num_attention_heads,
            f"must divide hidden_size {m.hidden_size}, or give head_dim",
        ),
        (
            not m.is_mla or min(m.qk_nope_head_dim, m.qk_rope_head_dim, m.v_head_dim) > 0,
            "kv_lora_rank",
            m.kv_lora_rank,
            "multi-head latent attention needs qk_nope_head_dim, qk_rope_head_dim and v_head_dim, each at least 1",
        ),
    ]
    rules += _expert_rules(m) if m.n_routed_experts else _no_expert_rules(m)
    for holds, key, value, right in rules:
        if not holds:
            raise problem(source, key, value, right)


def _no_expert_rules(m: ModelSpec) -> list[tuple[bool, str, object, str]]:
    """A config that speaks of experts and has none has lost a key: it would be taken for a dense model."""
    return [
        (
            not stated,
            "n_routed_experts",
            m.n_routed_experts,
            f"no experts, though {key} is {stated}; give their number, or leave out both",
        )
        for key, stated in (
            ("num_experts_per_tok", m.num_experts_per_tok),
            ("moe_intermediate_size", m.moe_intermediate_size),
        )
    ]


def _expert_rules(m: ModelSpec) -> list[tuple[bool, str, object, str]]:
    reachable = m.n_routed_experts // m.n_group * m.topk_group
    return [
        (m.moe_intermediate_size > 0, "moe_intermediate_size", m.moe_intermediate_size, "must be at least 1"),
        (
            1 <= m.num_experts_per_tok <= m.n_routed_experts,
            "num_experts_per_tok",
            m.num_experts_per_tok,
            f"must be from 1 to the {m.n_routed_experts} routed experts",
        ),
        (
            m.n_routed_experts % m.n_group == 0,
            "n_group",
            m.n_group,
            f"must divide the {m.n_routed_experts} routed experts",
        ),
        (m.topk_group <= m.n_group, "topk_group", m.topk_group, f"must be from 1 to n_group {m.n_group}"),
        (
            m.num_experts_per_tok <= reachable,
            "topk_group",
            m.topk_group,
            f"reaches {reachable} experts, fewer than num_experts_per_tok {m.num_experts_per_tok}",
        ),
    ]
