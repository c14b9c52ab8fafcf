"""The container engine: its identity, its version, and what it is able to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What the engine says of itself (`GET /info` and `GET /version`)."""

    engine_id: str
    version: str
    api_version: tuple[int, int]
    kernel: str
    os: str
    runtimes: tuple[str, ...]
    has_cpu_limit: bool
    has_memory_limit: bool
    has_pids_limit: bool
    is_rootless: bool

    @property
    def has_nvidia_runtime(self) -> bool:
        """Whether the NVIDIA container runtime is registered, so that GPUs can be handed to containers."""
        return "nvidia" in self.runtimes


def engine_facts(info: Mapping[str, Any], version: Mapping[str, Any]) -> EngineFacts:
    """
    The facts in the engine's two answers.

    Args:
        info: the body of `GET /info`.
        version: the body of `GET /version`.
    """
    runtimes = info.get("Runtimes") or {}
    security = [str(option) for option in info.get("SecurityOptions") or []]
    return EngineFacts(
        engine_id=str(info.get("ID") or ""),
        version=str(info.get("ServerVersion") or version.get("Version") or ""),
        api_version=_version_pair(str(version.get("ApiVersion") or "")),
        kernel=str(info.get("KernelVersion") or ""),
        os=str(info.get("OperatingSystem") or ""),
        runtimes=tuple(sorted(str(name) for name in runtimes)),
        # The engine reports what its cgroup drivers can enforce; where a field is missing, it cannot.
        has_cpu_limit=bool(info.get("CpuCfsQuota")),
        has_memory_limit=bool(info.get("MemoryLimit")),
        has_pids_limit=bool(info.get("PidsLimit")),
        is_rootless=any("rootless" in option for option in security),
    )


def _version_pair(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
