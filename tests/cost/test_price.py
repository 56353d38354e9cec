"""`price` as the engine asks it: any kind of op, monotone in what it moves and in what it is given."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cost.cost import Share
from simulator.cost.price import price
from simulator.inputs import load_hardware
from simulator.ops import (
    AllToAll,
    Attention,
    Collective,
    CollectiveKind,
    Gate,
    Gemm,
    Notify,
    Op,
    PointToPoint,
    Streaming,
    Work,
)
from simulator.spec.hardware import Cluster

SLACK = 1 + 1e-12
HARDWARE = st.sampled_from(["a100", "h100", "h200", "h800", "b200", "h20", "gb200"])
SIZE = st.integers(1, 20_000)
GROWTH = st.integers(0, 5_000)


@cache
def cluster_of(name: str) -> Cluster:
    return load_hardware(name)


def seconds(
    cls: str, work: Work, cluster: Cluster, *, sms: int = 112, traffic: float = 0.0, comm_sms: int = 20,
    concurrent: bool = False,
) -> float:  # fmt: skip
    op = Op(name="x", cls=cls, part="F", segment="x.F", work=work)
    share = Share(sms=min(sms, cluster.gpu.sms), partner_traffic=traffic)
    return price(op, cluster, share, comm_sms=comm_sms, concurrent=concurrent, dispatcher="deepep").duration


def attention(seq: int, heads: int, backward: bool) -> Attention:
    return Attention(batch=1, seq_q=seq, seq_kv=seq, heads=heads, kv_heads=heads, d_qk=192, d_v=128, backward=backward)


def an_all_to_all(direction: str, tokens: int, wide: bool) -> AllToAll:
    return AllToAll(
        direction="dispatch" if direction == "dispatch" else "combine", tokens=tokens, hidden=7168,
        bytes_per_token=14336.0 if wide else 7392.0, ranks=64,
        gate=Gate(experts=256, top_k=8, groups=8, node_limit=4),
    )  # fmt: skip


GEMMS = st.sampled_from(["gemm.fp8", "gemm.fp8.wgrad", "gemm.bf16", "gemm.bf16.wgrad"])
STREAMS = st.sampled_from(["norm.fwd", "norm.bwd", "quant.token", "rope", "swiglu", "elem", "permute.reduce"])

COMPUTE = st.one_of(
    st.builds(
        lambda cls, m, n, k: (
            cls,
            Gemm(
                m=m, n=n, k=k, precision="fp8_block" if "fp8" in cls else "bf16",
                form="wgrad" if cls.endswith("wgrad") else "dense", out_bytes=4.0 if cls.endswith("wgrad") else 2.0,
            ),
        ),
        GEMMS, SIZE, SIZE, SIZE,
    ),
    st.builds(
        lambda seq, heads, backward: ("attn.bwd" if backward else "attn.fwd", attention(seq, heads, backward)),
        SIZE, st.integers(1, 128), st.booleans(),
    ),
    st.builds(
        lambda cls, size, blocks: (cls, Streaming(read=size / 2, written=size / 2, blocks=blocks)),
        STREAMS, st.floats(0, 1e9), st.sampled_from([0, 132, 396, 924, 4096]),
    ),
)  # fmt: skip
COMMUNICATION = st.one_of(
    st.builds(
        lambda direction, tokens, wide: (f"comm.{direction}", an_all_to_all(direction, tokens, wide)),
        st.sampled_from(["dispatch", "combine"]), SIZE, st.booleans(),
    ),
    st.builds(
        lambda kind, size, nodes: (f"comm.{kind}", Collective(kind=kind, bytes=size, ranks=8 * nodes, per_node=8)),
        st.sampled_from(get_args(CollectiveKind)), st.floats(0, 1e10), st.integers(1, 16),
    ),
    st.builds(
        lambda size, tier: ("comm.p2p", PointToPoint(bytes=size, tier=tier)),
        st.floats(0, 1e10), st.sampled_from(["nvlink", "nic"]),
    ),
    st.builds(lambda ranks: ("comm.notify", Notify(ranks=ranks, tokens=4096)), st.integers(1, 256)),
)  # fmt: skip


@settings(max_examples=300)
@given(one=COMPUTE, name=HARDWARE, sms=st.integers(2, 132), fewer=st.integers(1, 131), traffic=st.floats(0, 1e12))
def test_fewer_sms_never_speed_a_kernel_up(
    one: tuple[str, Work], name: str, sms: int, fewer: int, traffic: float
) -> None:
    less, cluster = max(1, sms - fewer), cluster_of(name)
    more = seconds(*one, cluster, sms=sms, traffic=traffic)
    assert more <= seconds(*one, cluster, sms=less, traffic=traffic) * SLACK


@settings(max_examples=200)
@given(one=COMPUTE, name=HARDWARE, sms=st.integers(2, 132), traffic=st.floats(0, 1e12), more=st.floats(0, 1e12))
def test_a_busier_neighbour_never_speeds_a_kernel_up(
    one: tuple[str, Work], name: str, sms: int, traffic: float, more: float
) -> None:
    cluster = cluster_of(name)
    calm = seconds(*one, cluster, sms=sms, traffic=traffic)
    assert calm <= seconds(*one, cluster, sms=sms, traffic=traffic + more) * SLACK


@settings(max_examples=200)
@given(one=COMPUTE, name=HARDWARE, sms=st.integers(2, 132), traffic=st.floats(0, 1e12), factor=st.floats(0.05, 1.0))
def test_less_memory_bandwidth_never_speeds_a_kernel_up(
    one: tuple[str, Work], name: str, sms: int, traffic: float, factor: float
) -> None:
    cluster = cluster_of(name)
    slow = replace(cluster, gpu=replace(cluster.gpu, hbm_bandwidth=cluster.gpu.hbm_bandwidth * factor))
    times = [seconds(*one, c, sms=sms, traffic=traffic) for c in (cluster, slow)]
    assert times[0] <= times[1] * SLACK


@settings(max_examples=200)
@given(one=COMPUTE, name=HARDWARE, sms=st.integers(2, 132), factor=st.floats(0.05, 1.0))
def test_a_lower_tensor_peak_never_speeds_a_kernel_up(
    one: tuple[str, Work], name: str, sms: int, factor: float
) -> None:
    cluster = cluster_of(name)
    peak = cluster.gpu.peak
    slow = replace(
        cluster, gpu=replace(cluster.gpu, peak=replace(peak, bf16=peak.bf16 * factor, fp8=peak.fp8 * factor))
    )
    assert seconds(*one, cluster, sms=sms) <= seconds(*one, slow, sms=sms) * SLACK


@settings(max_examples=200)
@given(
    one=COMMUNICATION, name=HARDWARE, nvlink=st.floats(0.05, 1.0), nic=st.floats(0.05, 1.0), concurrent=st.booleans()
)
def test_slower_links_never_speed_a_message_up(
    one: tuple[str, Work], name: str, nvlink: float, nic: float, concurrent: bool
) -> None:
    cluster = cluster_of(name)
    node = cluster.node
    slow = replace(
        cluster,
        node=replace(
            node,
            nvlink=replace(node.nvlink, bandwidth=node.nvlink.bandwidth * nvlink),
            nic=replace(node.nic, bandwidth=node.nic.bandwidth * nic),
        ),
    )
    assert seconds(*one, cluster, concurrent=concurrent) <= seconds(*one, slow, concurrent=concurrent) * SLACK


@settings(max_examples=100)
@given(one=COMMUNICATION, name=HARDWARE, sms=st.integers(2, 64), fewer=st.integers(1, 63))
def test_fewer_sms_never_speed_an_all_to_all_up(one: tuple[str, Work], name: str, sms: int, fewer: int) -> None:
    cluster = cluster_of(name)
    alone = seconds(*one, cluster, comm_sms=sms)
    assert alone <= seconds(*one, cluster, comm_sms=max(1, sms - fewer)) * SLACK
    assert alone <= seconds(*one, cluster, comm_sms=sms, concurrent=True) * SLACK


@settings(max_examples=200)
@given(
    cls=GEMMS, m=SIZE, n=SIZE, k=SIZE, more=GROWTH, axis=st.sampled_from("mnk"), name=HARDWARE, sms=st.integers(2, 132)
)
def test_more_flop_never_take_less_time(
    cls: str, m: int, n: int, k: int, more: int, axis: str, name: str, sms: int
) -> None:
    small = Gemm(m=m, n=n, k=k, precision="fp8_block" if "fp8" in cls else "bf16")
    large = replace(small, **{axis: getattr(small, axis) + more})
    cluster = cluster_of(name)
    assert seconds(cls, small, cluster, sms=sms) <= seconds(cls, large, cluster, sms=sms) * SLACK


@settings(max_examples=200)
@given(cls=STREAMS, size=st.floats(0, 1e9), more=st.floats(0, 1e9), name=HARDWARE, sms=st.integers(1, 132))
def test_more_bytes_never_take_less_time(cls: str, size: float, more: float, name: str, sms: int) -> None:
    cluster = cluster_of(name)
    small, large = (Streaming(read=b, written=b) for b in (size, size + more))
    assert seconds(cls, small, cluster, sms=sms) <= seconds(cls, large, cluster, sms=sms) * SLACK


# Bandwidths mean what their labels say ------------------------------------------------------------------------------

DISPLAYED = {  # [GB/s] per GPU and direction: NVLink and NIC of the datasheets
    "a100": (300, 25),
    "h100": (450, 50),
    "h200": (450, 50),
    "h800": (200, 50),
    "b200": (900, 50),
    "h20": (450, 50),
    "gb200": (900, 50),
    "gb300": (900, 100),
}


@pytest.mark.parametrize("name", DISPLAYED)
def test_links_are_bytes_per_direction_and_attained_below_displayed(name: str) -> None:
    node = cluster_of(name).node
    assert (node.nvlink.peak / 1e9, node.nic.peak / 1e9) == DISPLAYED[name]
    for link in (node.nvlink, node.nic):
        assert 0.7 * link.peak <= link.bandwidth <= link.peak


@pytest.mark.parametrize("name", DISPLAYED)
def test_no_kernel_moves_its_bytes_faster_than_the_displayed_memory_bandwidth(name: str) -> None:
    """The share of a class is of the displayed bandwidth; only what stays in L2 may go faster."""
    cluster = cluster_of(name)
    for cls, params in cluster.kernels.stream.items():
        assert 0 < params.bandwidth <= 1
        size = 1e12
        taken = seconds(cls, Streaming(read=size / 2, written=size / 2), cluster, sms=cluster.gpu.sms)
        assert size / taken <= cluster.gpu.hbm_bandwidth
        if not params.sm_rate:
            assert size / taken == pytest.approx(params.bandwidth * cluster.gpu.hbm_bandwidth, rel=1e-3)


@pytest.mark.parametrize("name", DISPLAYED)
def test_no_gemm_beats_the_displayed_tensor_peak(name: str) -> None:
    cluster = cluster_of(name)
    for cls in cluster.kernels.gemm:
        precision = "fp8_block" if "fp8" in cls and cluster.gpu.peak.fp8 else "bf16"
        work = Gemm(m=65536, n=65536, k=65536, precision=precision)  # type: ignore[arg-type]
        peak = cluster.gpu.peak.fp8 if precision == "fp8_block" else cluster.gpu.peak.bf16
        assert work.flops / seconds(cls, work, cluster, sms=cluster.gpu.sms) < peak
