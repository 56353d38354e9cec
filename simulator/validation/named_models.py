"""Figures that follow from shapes alone: models, networks, hardware. Each function answers in the figure's unit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from simulator.cost.topology import build
from simulator.inputs import list_names, load_hardware, load_job, load_model
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.validation.cannot import CannotCompute
from simulator.validation.figures import Figure

V3_JOB, V3, SEQUENCE = "deepseek-v3-pretrain", "deepseek-v3", 4096

model = cache(load_model)


@cache
def cluster(name: str) -> Cluster:
    """A shipped profile, or a clear no."""
    if name not in list_names("hardware"):
        raise CannotCompute(f"no profile of this hardware ({name})")
    return load_hardware(name)


def _last(figure: Figure) -> str:
    return figure.id.rpartition(".")[2]


def parameters(figure: Figure) -> float:
    """Total or activated parameters [1e9]."""
    spec = model(V3)
    total = "total" in figure.id
    return (spec.parameters() if total else spec.activated_parameters()) / 1e9


_FIELDS: dict[str, Callable[[ModelSpec], float]] = {
    "layers": lambda m: m.num_hidden_layers,
    "hidden": lambda m: m.hidden_size,
    "attn_heads": lambda m: m.num_attention_heads,
    "head_dim": lambda m: m.qk_nope_head_dim,
    "v_head_dim": lambda m: m.v_head_dim,
    "kv_lora_rank": lambda m: m.kv_lora_rank or 0,
    "q_lora_rank": lambda m: m.q_lora_rank or 0,
    "rope_head_dim": lambda m: m.qk_rope_head_dim,
    "dense_layers_first": lambda m: m.first_k_dense_replace,
    "dense_ffn_inter": lambda m: m.intermediate_size,
    "routed_experts": lambda m: m.n_routed_experts,
    "shared_experts": lambda m: m.n_shared_experts,
    "expert_inter": lambda m: m.moe_intermediate_size,
    "topk": lambda m: m.num_experts_per_tok,
    "max_nodes_per_token": lambda m: m.topk_group,
    "expert_groups": lambda m: m.n_group,
    "vocab": lambda m: m.vocab_size,
    "mtp_depth": lambda m: m.num_nextn_predict_layers,
}


def model_field(figure: Figure) -> float:
    """A size in DeepSeek-V3's config."""
    read = _FIELDS.get(_last(figure))
    if read is None:
        raise CannotCompute("no such size of the model")
    return float(read(model(V3)))


def v3_layout(figure: Figure) -> float:
    """A number of the shipped pre-training job."""
    job = load_job(V3_JOB)
    values = {
        "tokens": job.run.tokens,
        "pp": float(job.layout.pp),
        "ep": float(job.layout.ep),
        "gbs_final": float(job.batch.global_batch_size),
    }
    if _last(figure) not in values:
        raise CannotCompute("a hyper-parameter that no time depends on")
    return values[_last(figure)]


def v3_comm_sms(figure: Figure) -> float:
    """SMs of the all-to-alls in the shipped job."""
    return float(load_job(V3_JOB).overlap.comm_sms)


def v3_network(figure: Figure) -> float:
    """Link bandwidths of the H800 profile [GB/s] and their ratio."""
    node = cluster("h800").node
    values = {
        "nvlink_eff": node.nvlink.bandwidth / 1e9,
        "h800_nvlink_eff": node.nvlink.bandwidth / 1e9,
        "h800_nvlink_bidir": 2 * node.nvlink.peak / 1e9,
        "ib": node.nic.bandwidth / 1e9,
        "ib_nic": node.nic.bandwidth / 1e9,
        "nvlink_ib_ratio": node.nvlink.bandwidth / node.nic.bandwidth,
    }
    if _last(figure) not in values:
        raise CannotCompute("no such number of the network")
    return values[_last(figure)]


def experts_per_node(figure: Figure) -> float:
    """Experts per node that NVLink serves in the time the NIC needs for one copy: the ratio of the links."""
    node = cluster("h800").node
    return node.nvlink.bandwidth / node.nic.bandwidth


def mtp_speedup(figure: Figure) -> float:
    """Tokens per decoding step with one drafted token, over the time the extra layer takes.

    Acceptance is the middle of the published range (report: 0.85 to 0.90; ISCA paper: 0.80 to 0.90).
    """
    accepted = 0.875 if figure.section == "A" else 0.85
    return (1.0 + accepted) / (1.0 + 1.0 / model(V3).num_hidden_layers)


_NAMED = {
    "deepseek_v3": V3,
    "deepseek_v3_671b": V3,
    "flops_per_token_crosscheck": "deepseek-v2",
    "deepseek_v2_236b": "deepseek-v2",
    "qwen2_5_72b": "qwen2.5-72b",
    "qwen_72b": "qwen2.5-72b",
    "llama3_1_405b": "llama-3.1-405b",
    "llama_405b": "llama-3.1-405b",
}


def flop_per_token(figure: Figure) -> float:
    """Training FLOP per token with causal attention, without MTP [GFLOP]."""
    return model(_NAMED[_last(figure)]).flops_per_token(SEQUENCE, causal=True) / 1e9


def cache_per_token(figure: Figure) -> float:
    """Keys and values, or latents, of one token in BF16 [1000 B]."""
    return model(_NAMED[_last(figure)]).kv_cache_bytes_per_token() / 1e3


_KINDS = {
    "ft2": "fat_tree_2",
    "mpft": "multi_plane_fat_tree",
    "ft3": "fat_tree_3",
    "sf": "slim_fly",
    "df": "dragonfly",
}


def topology(figure: Figure) -> float:
    """Size or price of a network of 64-port switches."""
    if figure.id == "B.hw.mpft_max_gpus":
        return float(build("multi_plane_fat_tree", ports=64, planes=8).endpoints)
    kind, what = figure.id.split(".")[2:4]
    net = build(_KINDS[kind], ports=64, planes=8)  # type: ignore[arg-type]
    values = {
        "endpoints": float(net.endpoints),
        "switches": float(net.switches),
        "links": float(net.links),
        "cost_musd": net.cost / 1e6,
        "cost_per_endpoint_kusd": net.cost_per_endpoint / 1e3,
    }
    return values[what]


def decode_bound(figure: Figure) -> float:
    """DeepSeek's bound of decoding by its all-to-alls alone (arXiv 2505.09343, section 2.3.2), from its own formula:
    tokens x experts x hidden x (1 B out + 2 B back) over the bandwidth; two of them per layer."""
    c = figure.config
    comm = c["tokens_per_device"] * c["experts"] * c["hidden"] * c["bytes_dispatch_plus_combine"]
    comm /= c["bandwidth_GBps"] * 1e9
    token = 2 * comm * c["layers"]
    values = {"comm": comm * 1e6, "per": 2 * comm * 1e6, "tpot": token * 1e3, "tps": 1.0 / token}
    return float(values[_last(figure).split("_")[0]])


_PROFILES = {
    "a100_sxm_80g": "a100",
    "h100_sxm": "h100",
    "h100_96g_hbm2e": "h100-hbm2e",
    "h800_sxm": "h800",
    "h20": "h20",
    "h200_sxm": "h200",
    "b200_sxm": "b200",
    "gb200_nvl72": "gb200",
    "gb300": "gb300",
}
_READ: dict[str, Callable[[Cluster], float]] = {
    "bf16": lambda c: c.gpu.peak.bf16 / 1e12,
    "fp8": lambda c: c.gpu.peak.fp8 / 1e12,
    "fp4": lambda c: c.gpu.peak.fp4 / 1e12,
    "bw": lambda c: c.gpu.hbm_bandwidth / 1e9,
    "torchtitan": lambda c: c.gpu.hbm_bandwidth / 1e9,
    "nvl": lambda c: c.node.nvlink.peak / 1e9,
    "nvlink_achieved": lambda c: c.node.nvlink.bandwidth / 1e9,
    "nic": lambda c: c.node.nic.peak / 1e9,
    "tdp": lambda c: c.gpu.tdp,
    "sms": lambda c: float(c.gpu.sms),
    "tensor_clock": lambda c: c.gpu.sms * c.gpu.boost_clock * 4096 / 1e12,
}


_PRICES = {
    "h800.deepseek": "h800",
    "h100.lambda": "h100",
    "h200.lambda": "h200",
    "a100.lambda": "a100",
    "b200.blended_2026": "b200",
}
"""Offers that a profile takes its price from."""


def price(figure: Figure) -> float:
    """Rental price of a profile [USD/GPU-h]."""
    offer = figure.id.removeprefix("F.price.")
    if offer not in _PRICES:
        raise CannotCompute("an offer that no profile takes its price from")
    return cluster(_PRICES[offer]).price_per_gpu_hour


_UNREAD = {
    "hbm": "the size in the product's name: profiles hold what CUDA reports",
    "throttled_peak": "the clock under one kernel; the H800's kernels were measured in training, at its own",
}


def hardware(figure: Figure) -> float:
    """A number of a hardware profile."""
    name, what = figure.id.split(".")[1:3]
    if name not in _PROFILES:
        raise CannotCompute(f"no profile of this hardware ({name})")
    if what.endswith("_alt"):
        raise CannotCompute("contradicts the source that the profile takes this number from")
    if what not in _READ:
        raise CannotCompute(_UNREAD.get(what, "a number that profiles do not hold"))
    return _READ[what](cluster(_PROFILES[name]))
