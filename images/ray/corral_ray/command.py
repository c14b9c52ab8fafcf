"""How Ray is started on a node of the mesh: its public `ray start`, with every port and address pinned.

Ray listens on all interfaces whatever it is told; the firewall of the mesh container closes them. The ports are pinned
because jobs, dashboards and tests must find them, and because they must not fall into the workers' range.
"""

from typing import NamedTuple

GCS_PORT = 6379
DASHBOARD_PORT = 8265
WORKER_PORTS = (11000, 11999)

# Without these a vanished node is noticed after a minute, and a driver that waits for it hangs for seven.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}


class BadSettings(Exception):
    """The environment does not describe a node."""


class Settings(NamedTuple):
    role: str
    node_address: str
    head_address: str
    node_name: str
    num_cpus: int
    num_gpus: int
    memory_bytes: int
    object_store_bytes: int


def read_settings(environment: dict[str, str]) -> Settings:
    """Settings of this node from its CORRAL_ variables.

    Raises:
        BadSettings: one is missing, or not of its kind.
    """

    def text(name: str) -> str:
        if not (value := environment.get(name, "")):
            raise BadSettings(f"{name} is not set")
        return value

    def count(name: str) -> int:
        value = text(name)
        if not (value.isascii() and value.isdigit()):
            raise BadSettings(f"{name} is not a whole number: {value!r}")
        return int(value)

    role = text("CORRAL_RAY_ROLE")
    if role not in ("head", "worker"):
        raise BadSettings(f"CORRAL_RAY_ROLE is neither head nor worker: {role!r}")
    return Settings(
        role=role,
        node_address=text("CORRAL_NODE_ADDRESS"),
        head_address=text("CORRAL_HEAD_ADDRESS"),
        node_name=text("CORRAL_NODE_NAME"),
        num_cpus=count("CORRAL_NUM_CPUS"),
        num_gpus=count("CORRAL_NUM_GPUS"),
        memory_bytes=count("CORRAL_MEMORY_BYTES"),
        object_store_bytes=count("CORRAL_OBJECT_STORE_BYTES"),
    )


def ray_environment(token_path: str) -> dict[str, str]:
    """What Ray reads from its environment on every node; none of it is secret."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token_path,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray would drain for 30 s when told to end. Whoever ends a node has drained it before, or wants it gone.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        **HEALTH,
    }


def start_arguments(settings: Settings) -> list[str]:
    """Arguments after `ray` that start this node."""
    common = [
        "start",
        "--block",
        "--disable-usage-stats",
        f"--node-ip-address={settings.node_address}",
        f"--node-name={settings.node_name}",
        "--node-manager-port=6380",
        "--object-manager-port=6381",
        "--runtime-env-agent-port=6382",
        "--dashboard-agent-grpc-port=6383",
        "--dashboard-agent-listen-port=52365",
        "--metrics-export-port=6384",
        f"--min-worker-port={WORKER_PORTS[0]}",
        f"--max-worker-port={WORKER_PORTS[1]}",
        f"--num-cpus={settings.num_cpus}",
        f"--num-gpus={settings.num_gpus}",
        f"--memory={settings.memory_bytes}",
        f"--object-store-memory={settings.object_store_bytes}",
    ]
    if settings.role == "worker":
        return [*common, f"--address={settings.head_address}:{GCS_PORT}"]
    return [
        *common,
        "--head",
        f"--port={GCS_PORT}",
        "--ray-client-server-port=10001",
        "--include-dashboard=true",
        f"--dashboard-host={settings.node_address}",
        f"--dashboard-port={DASHBOARD_PORT}",
    ]
