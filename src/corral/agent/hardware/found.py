"""All of a host's hardware in one message."""

import asyncio

from corral.agent.hardware.amd import read_amd
from corral.agent.hardware.cpu import read_cpu, with_present_cores
from corral.agent.hardware.engine import EngineFacts
from corral.agent.hardware.memory import disk_free_bytes, memory_bytes
from corral.agent.hardware.nvidia import read_nvidia
from corral.wire.agent import Cpu, Gpu, Hardware

_NOTE_MAX = 512


async def find_hardware(engine: EngineFacts, *, known_cpu: Cpu | None = None) -> Hardware:
    """
    The machine, as found now.

    Args:
        engine: what the container engine says of itself.
        known_cpu: the processor found earlier: it does not change, and asking for it again is slow.
    """
    cpu, notes = (with_present_cores(known_cpu), ()) if known_cpu is not None else await read_cpu()
    (nvidia, nvidia_notes), (amd, amd_notes) = await asyncio.gather(
        asyncio.to_thread(read_nvidia), asyncio.to_thread(read_amd)
    )
    disk_free, disk_notes = disk_free_bytes()
    return Hardware(
        cpu=cpu,
        memory_bytes=memory_bytes(),
        disk_free_bytes=disk_free,
        gpus=nvidia + amd,
        engine_version=engine.version,
        runtimes=engine.runtimes,
        kernel=engine.kernel,
        os=engine.os,
        notes=tuple(
            note[:_NOTE_MAX]
            for note in (*notes, *nvidia_notes, *amd_notes, *disk_notes, *_runtime_notes(engine, nvidia))
        ),
    )


def _runtime_notes(engine: EngineFacts, nvidia: tuple[Gpu, ...]) -> tuple[str, ...]:
    if nvidia and not engine.has_nvidia_runtime:
        return ("the engine has no NVIDIA runtime: install nvidia-container-toolkit, or its GPUs cannot be lent",)
    return ()
