"""Figures of single kernels and links. Each function answers in the figure's unit."""

from __future__ import annotations

from simulator.cost.topology import latency as network_latency
from simulator.ops import Gate
from simulator.routing.traffic import traffic
from simulator.studies.kernel import Question, answer
from simulator.validation.cannot import CannotCompute
from simulator.validation.figures import Figure, Row, row_of
from simulator.validation.named_models import cluster
from simulator.validation.rows import all_to_all_time, collective_time

TOLERANCE = 0.02
"""How much longer an all-to-all may take and still count as costing the same."""


def _seconds(question: Question) -> float:
    return answer(question, cluster(question.hardware)).cost.duration


def _rate(flops: float, seconds: float) -> float:
    """TFLOP/s."""
    return flops / seconds / 1e12


def deepgemm(figure: Figure) -> float:
    """Rate of a DeepGEMM kernel on H800 [TFLOP/s]."""
    c = figure.config
    if not {"N", "K"} & c.keys():
        raise CannotCompute("the shape is not published")
    groups = int(c.get("groups", 1))
    hardware = "h200" if ".h200." in figure.id else "h800"
    m, k = int(c.get("M", 0)) or int(c["M_per_group"]) * groups, int(c.get("K", 0))
    op, form = "gemm", "dense"
    if figure.quantity == "grouped_gemm_tflops":
        op, form = "grouped_gemm", "grouped"
        if str(c.get("layout", "")).startswith("masked"):
            m, form = int(c["M_per_group"]), "masked"
    elif figure.quantity == "wgrad_gemm_tflops":
        form = "wgrad"
    elif figure.quantity == "kgrouped_wgrad_gemm_tflops":
        op, form, k = "grouped_gemm", "grouped_wgrad", groups * int(c["K_per_group"])
    question = Question(
        op=op, hardware=hardware, precision="fp8_block", m=m, n=int(c["N"]), k=k, groups=groups, form=form,
        impl="deepgemm",
    )  # fmt: skip
    flops = 2.0 * m * int(c["N"]) * k * (groups if form == "masked" else 1)
    return _rate(flops, _seconds(question))


def gemm_time(figure: Figure) -> float:
    """Time of a GEMM of the aiconfigurator database [µs]; SGLang, which it measured, runs DeepGEMM on FP8 in blocks."""
    c = figure.config
    question = Question(
        op="gemm",
        hardware=figure.id.split(".")[2],
        precision=str(c["dtype"]),
        m=int(c["M"]),
        n=int(c["N"]),
        k=int(c["K"]),
        impl="deepgemm" if c["dtype"] == "fp8_block" else None,
    )
    return _seconds(question) * 1e6


def attention_rate(figure: Figure) -> float:
    """Rate of a FlashAttention kernel, a causal mask counted as half [TFLOP/s]."""
    c = figure.config
    if "seq" not in c:
        raise CannotCompute("the shape is not published")
    version = figure.id.split(".")[1]
    hardware = "a100" if ".a100." in figure.id else "h100"
    passes = {"attention_fwd_tflops": (False,), "attention_bwd_tflops": (True,)}.get(figure.quantity, (False, True))
    flops = seconds = 0.0
    for backward in passes:
        one = answer(
            Question(
                op="attention",
                hardware=hardware,
                precision="fp8_block" if c["dtype"] == "FP8" else None,
                seq=int(c["seq"]),
                batch=int(c["tokens_total"]) // int(c["seq"]),
                heads=int(c["hidden"]) // int(c["head_dim"]),
                d_qk=int(c["head_dim"]),
                causal=bool(c["causal"]),
                backward=backward,
                impl=version if hardware == "h100" else None,
            ),
            cluster(hardware),
        )
        flops, seconds = flops + one.flops, seconds + one.cost.duration
    return _rate(flops, seconds)


def latent_decode(figure: Figure) -> float:
    """Time of latent attention of one decoded token a sequence [ms]."""
    c = figure.config
    if c["kv_dtype"] != "bf16":
        raise CannotCompute("the kernel that widens an FP8 cache is in no table")
    question = Question(
        op="decode_attention", hardware="h100", batch=int(c["batch"]), heads=int(c["heads"]), kv_heads=1, d_qk=576,
        d_v=512, kv_len=int(c["kv_len"]), impl="fa3",
    )  # fmt: skip
    return _seconds(question) * 1e3


def attention_ablation(figure: Figure) -> float:
    """FlashAttention-3's ablation: batch 4, 8448 tokens, 16 heads of 128, no mask [TFLOP/s]."""
    question = Question(op="attention", hardware="h100", seq=8448, batch=4, heads=16, d_qk=128, causal=False)
    one = answer(question, cluster("h100"))
    return _rate(one.flops, one.cost.duration)


def _scaled(figure: Figure, row: Row, seconds: float) -> float:
    """The figure's own quantity, time or bandwidth, for another time than the row's."""
    value, measured = figure.number, float(row["time_us"]) * 1e-6
    if value is None:
        raise CannotCompute("the figure is text")
    return value * measured / seconds if "bandwidth" in figure.quantity else value * seconds / measured


def _described(figure: Figure) -> Row:
    row = row_of(figure)
    if row is None:
        raise CannotCompute("the kernels are not modelled, or their configuration is not complete")
    return row


def collective(figure: Figure) -> float:
    """Time of an NCCL collective."""
    row = _described(figure)
    return _scaled(figure, row, collective_time(row, cluster(row["hardware"])))


def all_to_all(figure: Figure) -> float:
    """Time or bandwidth of an expert dispatch or combine."""
    row = _described(figure)
    if row["table"] not in ("fabric_ep", "fabric_low_latency"):
        raise CannotCompute("no computation for this quantity")
    throughput = row["table"] == "fabric_ep"
    hardware = cluster(row["hardware"])
    known = hardware.fabric.ep if throughput else hardware.fabric.low_latency
    if row["kernels"] not in known:
        raise CannotCompute(f"no parameters of these kernels ({row['kernels']}) on {row['hardware']}")
    return _scaled(figure, row, all_to_all_time(row, hardware, low_latency=not throughput))


def latency(figure: Figure) -> float:
    """Time of a 64-byte message [µs]."""
    name = figure.id.rpartition(".")[2]
    if name == "nvlink":
        return cluster("h800").node.nvlink.latency * 1e6
    network = cluster("h800-roce" if name.startswith("roce") else "h800").fabric.network
    return network_latency(network, same_leaf=name.endswith("same_leaf")) * 1e6


def experts_at_same_cost(figure: Figure) -> float:
    """Experts per token whose all-to-all over both links takes no longer than that of 8, at most 4 of 8 nodes."""
    node = cluster("h800").node

    def link_time(top_k: int) -> float:
        gate = Gate(experts=256, top_k=top_k, groups=8, node_limit=int(figure.config["nodes_limit"]))
        moved = traffic(gate, tokens=4096, bytes_per_token=14336, ranks=64, ranks_per_node=8)
        return max(moved.nic / node.nic.bandwidth, moved.nvlink / node.nvlink.bandwidth)

    base = link_time(8)
    return float(max(k for k in range(8, 33) if link_time(k) <= (1 + TOLERANCE) * base))
