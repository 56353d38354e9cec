"""How many blocks of the KV cache an engine has below HBM: the parts of host memory and disk that a stack gives it."""

from __future__ import annotations

from simulator.errors import InputError
from simulator.serving.engine.kv_tiers import TierRoom
from simulator.serving.kv_room import KvRoom
from simulator.spec.scenario import Scenario
from simulator.spec.scheduler import Scheduler
from simulator.units import si


def tier_room(scenario: Scenario, scheduler: Scheduler, room: KvRoom, ranks: int) -> TierRoom | None:
    """The tiers of an engine of `ranks` data-parallel ranks; None without any.

    Every GPU keeps its own part of a cache, and moves it over its own link.

    Raises
    ------
    InputError : the hardware has no such tier, or a smaller one; or a disk is asked for without a host.
    """
    asked, host = {"host": scheduler.host_cache, "disk": scheduler.disk_cache}, scenario.cluster.node.host
    if not any(asked.values()):
        return None
    where = f"{scenario.name}: stack.scheduler"
    if not asked["host"] or not scheduler.prefix_cache:
        why = (
            "with prefix_cache=false nothing is kept" if asked["host"] else "set host_cache, through which it is filled"
        )
        raise InputError(f"{where}.{'host' if asked['host'] else 'disk'}_cache: changes nothing: {why}")
    if host is None or (asked["disk"] and not host.disk_bandwidth):
        missing = "host" if host is None else "host.disk_bandwidth and disk_bytes"
        raise InputError(f"{where}: {scenario.cluster.name} does not describe it; set hardware.node.{missing}")
    for name, most in (("host", host.memory_bytes), ("disk", host.disk_bytes)):
        if asked[name] > most:
            raise InputError(f"{where}.{name}_cache: {si(asked[name], 'B')}: a GPU has {si(most, 'B')} of it")
    block = room.per_token * scheduler.block
    return TierRoom(
        host=int(asked["host"] / block) * ranks,
        disk=int(asked["disk"] / block) * ranks,
        host_seconds=room.per_token / host.bandwidth,
        disk_seconds=room.per_token / host.disk_bandwidth if host.disk_bandwidth else 0.0,
        write_back=scheduler.cache_writes == "back",
        by_layer=scheduler.cache_loads == "layers",
        layers=scenario.model.num_hidden_layers,
        links=ranks,
    )
