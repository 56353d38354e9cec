"""What `fit_fabric` fits: which parameters of a fabric file to which rows of which table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One least-squares problem over the rows of `table` of `hardware` (and `kernels`): `free` names sets of TOML keys
    that share a value. None free: another GPU's parameters are only compared. `robust`: single bad rows count less."""

    name: str
    hardware: str
    table: str
    kernels: tuple[str, ...] = ()
    free: tuple[tuple[str, ...], ...] = ()
    robust: bool = False


def each(prefix: str, *names: str) -> tuple[tuple[str, ...], ...]:
    """Keys of one table, each with a value of its own; `a=b` names two that share one."""
    return tuple(tuple(f"{prefix}.{one}" for one in name.split("=")) for name in names)


def collectives(gpus: str, hardware: str, *names: str) -> Fit:
    """NCCL within a node."""
    return Fit(
        name=f"NVLink collectives, {gpus}", hardware=hardware, table="fabric_collective", free=each("nvlink", *names)
    )


def dispatch(label: str, hardware: str, kernels: str, *names: str) -> Fit:
    """Throughput kernels of one name for the experts."""
    free = each(f"ep.{kernels}", *names)
    return Fit(name=label, hardware=hardware, table="fabric_ep", kernels=(kernels,), free=free)


def low_latency(label: str, hardware: str, kernels: str, *names: str) -> Fit:
    """Kernels of one name for decoding."""
    free = each(f"low_latency.{kernels}", *names)
    return Fit(name=label, hardware=hardware, table="fabric_low_latency", kernels=(kernels,), free=free)


def all_reduces(hardware: str, *, fitted: bool) -> tuple[Fit, ...]:
    """All-reduces of serving engines."""
    names = ("one_alpha", "one_peer", "one_rate", "two_alpha", "two_peer", "two_rate")
    return tuple(
        Fit(
            name=f"all-reduce of {kernels}, {hardware.upper()}",
            hardware=hardware,
            table="fabric_all_reduce",
            kernels=(kernels,),
            free=each(f"all_reduce.{kernels}", *(n for n in names if fitted and (kernels, n) != ("vllm", "two_peer"))),
        )
        for kernels in ("vllm", "sglang", "trtllm")
    )


LARGE = "protocols.ll128.alpha=protocols.simple.alpha"
OLDER = ("protocols.ll.alpha", "protocols.ll.step", "protocols.ll.payload", LARGE)
"""What is free where few rows were measured: LL, and one fixed time of the two protocols of larger messages."""
SHARED = ("alpha_dispatch=alpha_combine", "staging_dispatch=staging_combine")
MESSAGE = ("rate", "overlap", "both_overlap", "fill", "both_fill", "ll_alpha", "ll_payload", "both_alpha")

FITS = (
    collectives(
        "8 H100", "h100", "protocols.ll.step", "protocols.ll128.step",
        "protocols.sharp.alpha", "protocols.sharp.payload", "protocols.sharp.drift",
    ),
    *all_reduces("h200", fitted=True),
    *all_reduces("h100", fitted=False),
    Fit(
        name="NCCL, 2 and 4 H200",
        hardware="h200",
        table="nccl",
        free=(
            *each("nvlink.protocols.ll", "alpha", "step", "payload"),
            *each("nvlink.protocols.ll128", "alpha"),
            *each("nvlink.protocols.simple", "alpha", "step", "drift"),
            *each("nvlink", "local_copy", "all_to_all_alpha"),
            *each("p2p_nvlink", "alpha"),
            *each("p2p_nvlink.channels", *MESSAGE),
        ),
        robust=True,
    ),
    Fit(
        name="expert kernels, H800",
        hardware="h800",
        table="fabric_ep",
        kernels=("deepep", "deepep_tuned"),
        free=(
            ("ep.deepep.send_rate",),
            ("ep.deepep_tuned.send_rate",),
            *(
                (f"ep.deepep.{name}", f"ep.deepep_tuned.{name}")
                for name in (
                    "forward_rate", "concurrent_dispatch_factor", "concurrent_combine_factor", "first_dispatch_factor",
                    "weighted",
                )
            ),
        ),
    ),
    dispatch(
        "expert kernels by SMs and nodes, H100", "h100", "deepep",
        "send_rate", "forward_rate", "reduce", "overlap", "startup", "startup_combine",
    ),
    Fit(
        name="NVLink collectives, B200",
        hardware="b200",
        table="fabric_collective",
        free=(
            *each("nvlink", *OLDER, "protocols.sharp.alpha", "protocols.sharp.payload"),
            *each("nvlink", "local_copy", "all_to_all_alpha"),
            *each("p2p_nvlink", "alpha"),
            *each("p2p_nvlink.channels", "rate", "both_overlap", "both_fill", "ll_alpha", "ll_payload"),
        ),
    ),
    Fit(
        name="NCCL on 2 to 32 nodes of 8 H100, EFA",
        hardware="h100-efa",
        table="fabric_collective",
        free=(
            ("nic.protocols.ll.alpha", "nic.protocols.ll128.alpha", "nic.protocols.simple.alpha"),
            ("nic.protocols.ll.step", "nic.protocols.ll128.step", "nic.protocols.simple.step"),
            ("nic.all_to_all_alpha",),
        ),
        robust=True,
    ),
    collectives("A100", "a100", *OLDER, "local_copy", "all_to_all_alpha"),
    dispatch("expert kernels in one node, B200", "b200", "deepep", "forward_rate"),
    low_latency("low latency in one node, B200", "b200", "deepep", *SHARED),
    collectives("GB200", "gb200"),
    dispatch("expert kernels in one tray, GB200", "gb200", "deepep", "forward_rate"),
    dispatch("Hybrid-EP in one rack, GB200", "gb200", "hybrid_ep", "forward_rate", "startup"),
    low_latency("low latency in one tray, GB200", "gb200", "deepep", *SHARED),
    dispatch("DeepEP's second version, H100", "h100", "deepep_v2", "send_rate", "overlap"),
    *(
        low_latency(
            f"NVLink {kind}-sided, GB200", "gb200", f"nvlink_{kind}_sided",
            "alpha_dispatch", "alpha_combine", "hop", "staging_dispatch", "staging_combine",
        )
        for kind in ("one", "two")
    ),
    dispatch("Hybrid-EP, H100", "h100", "hybrid_ep", "send_rate", "startup"),
    low_latency(
        "low latency over InfiniBand, H800", "h800", "deepep_ibrc", "staging_dispatch=staging_combine", "hop"
    ),
    low_latency("low latency with NVLink, H800", "h800", "deepep", "alpha_dispatch=alpha_combine"),
    low_latency(
        "low latency by ranks and tokens, H100", "h100", "deepep",
        "alpha_dispatch", "alpha_combine", "hop", "staging_dispatch", "staging_combine",
    ),
    low_latency(
        "low latency of pplx, H100", "h100", "pplx",
        "alpha_dispatch", "alpha_combine", "hop", "staging_dispatch", "staging_combine",
    ),
)  # fmt: skip
