"""Hosts with devices, written straight into the tables: for tests of what stands above the exchange with agents."""

from datetime import datetime

import sqlalchemy as sa

from corral.core.ids import DeviceId, HostId, PersonId
from corral.core.units import GIB
from corral.devices import tables
from corral.platform.database import Tx
from corral.testing.ids import numbered_id


async def add_host(
    tx: Tx,
    number: int,
    provider_id: PersonId,
    now: datetime,
    *,
    cpus: int = 0,
    gpus: int = 0,
    gpu_model: str = "NVIDIA H100 80GB HBM3",
    cores: float = 2.0,
) -> HostId:
    """Adds an active, healthy host that was heard of at `now`, with slices of `cores` cores and with GPUs."""
    host_id = HostId(numbered_id("ho", number))
    values = {
        "id": host_id,
        "provider_id": provider_id,
        "name": f"host-{number}",
        "role": "host",
        "machine_id": f"machine-{number}",
        "engine_id": f"engine-{number}",
        "slice": "",
        "public_key": "A" * 43 + "=",
        "join_token_id": numbered_id("jt", number),
        "development": False,
        "intent": "active",
        "health": "ok",
        "created_at": now,
    }
    await tx.execute(sa.insert(tables.host).values(values))
    await tx.execute(sa.insert(tables.host_presence).values(host_id=host_id, last_seen_at=now))
    await tx.execute(sa.insert(tables.host_revision).values(host_id=host_id, number=1))
    kinds = [("cpu", f"cpu-{index}") for index in range(cpus)] + [("gpu", f"GPU-{index}") for index in range(gpus)]
    for index, (kind, key) in enumerate(kinds):
        device = {
            "id": DeviceId(numbered_id("de", number * 1000 + index)),
            "host_id": host_id,
            "key": key,
            "kind": kind,
            "model": gpu_model if kind == "gpu" else "AMD EPYC 9654",
            "cores": cores,
            "memory_bytes": 8 * GIB,
            "disk_bytes": 100 * GIB,
            "gpu_memory_bytes": 80 * GIB if kind == "gpu" else 0,
            "present": True,
        }
        await tx.execute(sa.insert(tables.device).values(device))
    return host_id


async def keep_alive(tx: Tx, now: datetime) -> None:
    """Lets every host have been heard of at `now`."""
    await tx.execute(sa.update(tables.host_presence).values(last_seen_at=now))
