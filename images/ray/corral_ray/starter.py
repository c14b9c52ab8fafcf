"""Imports Ray, waits for the word, waits on a worker for what `ray start` needs, and becomes `ray start`.

Stock `ray start --address` asks the head for its node record and sleeps two seconds between tries. Asking every 50 ms
beforehand lets its first try succeed. The one thing read besides public commands is Ray's own list of nodes, through
the client that `ray start` itself uses; where that changes, the fallbacks here only cost time or detail.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable

from corral_ray.command import DASHBOARD_PORT, GCS_PORT, Settings, read_settings, start_arguments

POLL_HEAD_S = 0.05
POLL_NODES_S = 0.2
POLL_NODES_STEADY_S = 1.0
STEADY_AFTER_S = 180.0
POLL_JOINED_S = 5.0
MISSED_MAX = 2
"""Looks at which a node that had joined is not among the living ones, until it is taken for lost."""
REQUEST_S = 2.0


def main() -> None:
    go, reports = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(go, False)
    os.set_inheritable(reports, False)
    sys.argv[:] = ["ray"]
    # Seconds of work, done while the mesh comes up; `ray start` then finds the modules loaded.
    from ray.scripts import scripts

    settings = read_settings(dict(os.environ))
    if not os.read(go, 16):
        return
    os.close(go)
    report = Reporter(reports)
    if settings.role == "worker":
        wait_for_head(settings)
        report(type="phase", phase="starting")
    threading.Thread(target=watch_nodes, args=(settings, report), daemon=True).start()
    sys.argv[1:] = start_arguments(settings)
    scripts.main()


class Reporter:
    """Lines on the pipe to the launcher."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, **fields: object) -> None:
        os.write(self._descriptor, json.dumps(fields).encode() + b"\n")


def wait_for_head(settings: Settings) -> None:
    """Return once `ray start --address` will succeed at its first try, as far as can be known."""
    while not _accepts(settings.head_address, GCS_PORT):
        time.sleep(POLL_HEAD_S)
    try:
        has_head = _alive_reader(settings, is_head_node=True)
    except Exception as error:
        print(f"corral: Ray's node list cannot be read ({error!r}); leaving the wait to ray start", file=sys.stderr)
        return
    while True:
        with contextlib.suppress(Exception):
            if has_head():
                return
        time.sleep(POLL_HEAD_S)


def watch_nodes(settings: Settings, report: Reporter) -> None:
    """
    Report the addresses of Ray's living nodes whenever they change: all of them on the head, itself on a worker.

    A worker that had joined ends once the head answers and does not name it: Ray holds it for dead, or the head was
    started anew. Neither takes it back, and its raylet may go on for ever.
    """
    if settings.role == "worker":
        _watch_own_node(settings, report)
        return
    read_alive = _node_reader(settings)
    last: list[str] = []
    began_at = time.monotonic()
    while True:
        try:
            alive = read_alive()
        except Exception:
            alive = None  # not up yet, or busy; the list in force stays
        if alive is not None and alive != last:
            last = alive
            report(type="alive", nodes=alive)
        time.sleep(POLL_NODES_S if time.monotonic() - began_at < STEADY_AFTER_S else POLL_NODES_STEADY_S)


def _watch_own_node(settings: Settings, report: Reporter) -> None:
    is_alive = _own_node_reader(settings)
    has_joined, missed = False, 0
    while missed < MISSED_MAX:
        try:
            is_there = is_alive()
        except Exception:  # the head does not answer, which says nothing of this node
            is_there = None
            is_alive = _own_node_reader(settings)  # a client never gets along with a head that was started anew
        if is_there and not has_joined:
            has_joined = True
            report(type="phase", phase="running")
        if has_joined and is_there is not None:
            missed = 0 if is_there else missed + 1
        time.sleep(POLL_JOINED_S if has_joined else POLL_NODES_S)
    report(type="phase", phase="failed", detail="the head no longer holds this node for alive")
    os._exit(1)


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=REQUEST_S).close()
    except OSError:
        return False
    return True


def _alive_reader(settings: Settings, **selected: object) -> Callable[[], bool]:
    """A function that tells whether a node with these properties is alive; it raises while Ray cannot tell."""
    from ray._raylet import GcsClient
    from ray.core.generated.gcs_pb2 import GcsNodeInfo
    from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest

    selector = GetAllNodeInfoRequest.NodeSelector(**selected)
    client: list[GcsClient] = []

    def is_alive() -> bool:
        if not client:
            client.append(GcsClient(address=f"{settings.head_address}:{GCS_PORT}"))
        found = client[0].get_all_node_info(timeout=REQUEST_S, node_selectors=[selector])
        return any(node.state == GcsNodeInfo.GcsNodeState.ALIVE for node in found.values())

    return is_alive


def _own_node_reader(settings: Settings) -> Callable[[], bool]:
    try:
        return _alive_reader(settings, node_ip_address=settings.node_address)
    except (ImportError, ValueError):  # not a public interface: another Ray may have changed it
        return lambda: settings.node_address in _alive_by_dashboard(settings)


def _node_reader(settings: Settings) -> Callable[[], list[str]]:
    """A function that lists the mesh addresses of living nodes, sorted; it raises while Ray cannot tell."""
    gcs_address = f"{settings.head_address}:{GCS_PORT}"
    try:
        from ray._raylet import GcsClient
        from ray.core.generated.gcs_pb2 import GcsNodeInfo
    except ImportError:
        return lambda: _alive_by_dashboard(settings)
    client: list[GcsClient] = []

    def alive_by_gcs() -> list[str]:
        if not client:
            client.append(GcsClient(address=gcs_address))
        nodes = client[0].get_all_node_info(timeout=REQUEST_S).values()
        return sorted(node.node_manager_address for node in nodes if node.state == GcsNodeInfo.GcsNodeState.ALIVE)

    def alive() -> list[str]:
        try:
            return alive_by_gcs()
        except (AttributeError, TypeError):  # the interface is not public: another Ray may have changed it
            return _alive_by_dashboard(settings)

    return alive


def _alive_by_dashboard(settings: Settings) -> list[str]:
    """The same from the dashboard's documented state API, which comes up a few seconds later."""
    with open(os.environ["RAY_AUTH_TOKEN_PATH"]) as file:
        token = file.read()
    request = urllib.request.Request(
        f"http://{settings.head_address}:{DASHBOARD_PORT}/api/v0/nodes?limit=5000",
        headers={"Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
        rows = json.load(answer)["data"]["result"]["result"]
    return sorted(row["node_ip"] for row in rows if row["state"] == "ALIVE")
