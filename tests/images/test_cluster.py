"""A cluster of three-container nodes: it works, and nothing of it is open."""

import json
import socket
import time

import pytest
from parts import DEADLINE_S, TOKEN, Cluster, Lab, Member, Part, bridge_address

pytestmark = pytest.mark.docker

PINNED_PORTS = [6379, 6380, 6381, 6382, 6383, 6384, 8265, 10001, 52365]
WORKER_PORTS = range(11000, 12000)

# Prints which TCP ports of a host accept a connection, tried all at the same time.
SCAN = """
import json, select, socket, sys, time
host, ports = sys.argv[1], json.loads(sys.argv[2])
waiting = {}
poll = select.poll()
for port in ports:
    s = socket.socket(); s.setblocking(False); s.connect_ex((host, port))
    waiting[s.fileno()] = (s, port); poll.register(s, select.POLLOUT)
found, deadline = [], time.monotonic() + 2
while waiting and time.monotonic() < deadline:
    for fd, _ in poll.poll(100):
        s, port = waiting.pop(fd); poll.unregister(fd)
        if not s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR): found.append(port)
        s.close()
print(json.dumps(found))
"""

# Prints which UDP ports of a host answer anything at all, be it that nobody listens there.
SCAN_UDP = """
import json, select, socket, sys, time
host, ports = sys.argv[1], json.loads(sys.argv[2])
poll, sockets, found = select.poll(), {}, []
for port in ports:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setblocking(False); s.connect((host, port))
    sockets[s.fileno()] = (s, port); poll.register(s, select.POLLIN)
    s.send(bytes([1, 0, 0, 0]) + bytes(144))  # as long as WireGuard's first message, and of its type
deadline = time.monotonic() + 2
while sockets and time.monotonic() < deadline:
    for fd, _ in poll.poll(100):
        s, port = sockets.pop(fd); poll.unregister(fd); found.append(port); s.close()
print(json.dumps(sorted(found)))
"""
UDP_PORTS = [*range(51815, 51825), *range(11000, 11010), 6379]

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
except OSError as error:
    print("closed", error)
else:
    print("open")
"""

LISTEN = (
    "import socket,time; s=socket.create_server(('0.0.0.0', {port})); print('listening', flush=True); time.sleep(3600)"
)

HTTP = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[3].encode() if len(sys.argv) > 3 else None,
                                 {"Authorization": "Bearer " + sys.argv[2], "Content-Type": "application/json"})
try:
    answer = urllib.request.urlopen(request, timeout=10)
    print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""

JOB = """
import ray
ray.init()
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where(n):
    import time; time.sleep(0.5)
    return ray.util.get_node_ip_address()
import time
places, deadline = set(), time.monotonic() + 40
while len(places) < 3 and time.monotonic() < deadline:  # a node's first process may take seconds to start
    places |= set(ray.get([where.remote(n) for n in range(6)]))
print("places", sorted(places))
"""


@pytest.fixture(scope="module")
def neighbour(lab: Lab) -> Part:
    """Another container of the provider, on the same bridge, that listens on 8000."""
    part = lab.neighbour("neighbour", "python3", "-c", LISTEN.format(port=8000))
    wait_until_listening(part, "127.0.0.1", 8000)
    return part


def wait_until_listening(part: Part, host: str, port: int) -> None:
    """Return once a connection from inside `part` succeeds."""
    deadline = time.monotonic() + DEADLINE_S
    while part.run("python3", "-c", CONNECT, host, str(port))[1] != "open":
        assert time.monotonic() < deadline, f"nothing listens on {host}:{port}"


def scan(part: Part, host: str) -> list[int]:
    """Open ports of `host` among those that Ray uses, seen from `part`."""
    status, text = part.run("python3", "-c", SCAN, host, json.dumps([*PINNED_PORTS, *WORKER_PORTS]))
    assert status == 0, text
    return json.loads(text)


def scan_udp(part: Part, host: str) -> list[int]:
    """UDP ports of `host` that answer, seen from `part`."""
    status, text = part.run("python3", "-c", SCAN_UDP, host, json.dumps(UDP_PORTS))
    assert status == 0, text
    return json.loads(text)


def ask(member: Member, url: str, *body: str, token: str = TOKEN) -> tuple[int, str]:
    """Status and body of one request from a member of the mesh."""
    status, text = member.mesh.run("python3", "-c", HTTP, url, token, *body)
    assert status == 0, text
    code, _, content = text.partition(" ")
    return int(code), content


class OpenedFirewall:
    """While it lasts, the member's packet filter is gone: the control of every test that finds something closed."""

    def __init__(self, member: Member, role: str) -> None:
        self._mesh, self._role = member.mesh, role

    def __enter__(self) -> None:
        status, text = self._mesh.run("nft", "flush", "ruleset")
        assert status == 0, text

    def __exit__(self, *_: object) -> None:
        load = f"from corral.member.firewall import rules; print(rules('{self._role}', port=51820, relayed_port=51821))"
        command = f'cd /corral && python3 -c "{load}" | nft -f -'
        status, text = self._mesh.run("sh", "-c", command)
        assert status == 0, text


def test_node_reports_its_phases_in_order(cluster: Cluster) -> None:
    """Waiting for the mesh, on workers for the head, starting, running."""
    for node in cluster.nodes:
        assert node.work is not None
        running = node.work.wait_type("phase", phase="running")
        phases = [message["phase"] for message in node.work.messages() if message["type"] == "phase"]
        waits = ["waiting_mesh"] if node is cluster.nodes[0] else ["waiting_mesh", "waiting_head"]
        assert phases == [*waits, "starting", "running"]
        assert running["seconds"] > 0


def test_job_submitted_by_the_leaf_runs_on_every_node(cluster: Cluster) -> None:
    """The gateway reaches the head over the mesh, and Ray's tasks reach all nodes."""
    head = cluster.nodes[0].address
    base = f"http://{head}:8265/api/jobs/"
    entrypoint = f"python -c '{JOB.replace(chr(39), chr(34))}'"
    code, text = ask(cluster.leaf, base, json.dumps({"entrypoint": entrypoint, "submission_id": "spread"}))
    assert code == 200, text
    deadline = time.monotonic() + DEADLINE_S
    while (state := json.loads(ask(cluster.leaf, f"{base}spread")[1])["status"]) in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline
    log = json.loads(ask(cluster.leaf, f"{base}spread/logs")[1])["logs"]
    assert state == "SUCCEEDED", log
    assert f"places {[node.address for node in cluster.nodes]}" in log


def test_request_without_the_token_is_refused_by_ray(cluster: Cluster) -> None:
    """Being a member of the mesh is not enough to use a cluster."""
    code, _ = ask(cluster.leaf, f"http://{cluster.nodes[0].address}:8265/api/jobs/", token="0" * 64)
    assert code in (401, 403)


def test_neighbour_on_the_bridge_finds_every_port_closed(cluster: Cluster, neighbour: Part) -> None:
    """Ray listens on all interfaces; the firewall alone keeps it from the provider's network."""
    for node in cluster.nodes:
        assert scan(neighbour, bridge_address(node.pause)) == []
    head = cluster.nodes[0]
    with OpenedFirewall(head, "node"):
        found = scan(neighbour, bridge_address(head.pause))
    assert {6379, 6380, 6381} <= set(found)
    assert scan(neighbour, bridge_address(head.pause)) == []


def test_wireguard_is_all_that_hears_the_bridge_and_it_is_silent(cluster: Cluster, neighbour: Part) -> None:
    """Nobody outside can tell a node's ports apart, or that there is a node at all."""
    for member in (cluster.nodes[0], cluster.leaf):
        assert scan_udp(neighbour, bridge_address(member.pause)) == []
    head = cluster.nodes[0]
    with OpenedFirewall(head, "node"):
        found = scan_udp(neighbour, bridge_address(head.pause))
    assert found, "without the rules, ports at which nobody listens say so"
    assert not {51820, 51821} & set(found), "WireGuard answers no stranger, with or without rules"


def test_node_of_another_cluster_with_the_same_network_finds_nothing(lab: Lab, cluster: Cluster) -> None:
    """Two clusters on one engine may share addresses. What keeps them apart are the rules at both ends, each alone."""
    head, worker = cluster.nodes[0], cluster.nodes[1].work
    assert worker is not None
    pause = lab.pause("stranger-pause")
    mesh = lab.mesh("stranger-mesh", pause, cluster.nodes[1].address)
    stranger = Member(cluster.nodes[1].address, pause, mesh, None, mesh.keys())
    mesh.send({"type": "roster", "serial": 1, "peers": []})
    mesh.wait_type("configured")
    ray = {6379, 6380, 6381}
    assert ray <= set(scan(worker, head.address)), "a member reaches it"
    assert scan(mesh, head.address) == [], "in another mesh nobody has that address"
    target = bridge_address(head.pause)
    assert scan(mesh, target) == []
    with OpenedFirewall(stranger, "node"):
        assert scan(mesh, target) == []
        assert scan(mesh, head.address) == []
        with OpenedFirewall(head, "node"):
            assert ray <= set(scan(mesh, target))
    with OpenedFirewall(head, "node"):
        assert scan(mesh, target) == []


def test_workload_reaches_no_private_address_outside_the_mesh(cluster: Cluster, neighbour: Part) -> None:
    """A renter's code sees neither the provider's containers nor its host, while the mesh goes on working."""
    worker = cluster.nodes[1].work
    assert worker is not None
    gateway = neighbour.inspect()["NetworkSettings"]["Gateway"]
    with socket.create_server((gateway, 0)) as listener:
        host_port = str(listener.getsockname()[1])
        targets = [(bridge_address(neighbour), "8000"), (gateway, host_port)]
        for address, port in targets:
            assert worker.run("python3", "-c", CONNECT, address, port)[1].startswith("closed")
        with OpenedFirewall(cluster.nodes[1], "node"):
            for address, port in targets:
                assert worker.run("python3", "-c", CONNECT, address, port)[1] == "open"
    assert worker.run("python3", "-c", CONNECT, cluster.nodes[0].address, "6379")[1] == "open"


def test_leaf_accepts_nothing_from_the_mesh(cluster: Cluster) -> None:
    """A head that a renter controls cannot reach what listens beside the gateway's web server."""
    leaf, worker = cluster.leaf, cluster.nodes[1].work
    assert worker is not None
    for port in (8080, 9999):
        leaf.mesh.spawn("python3", "-c", LISTEN.format(port=port))
        wait_until_listening(leaf.mesh, "127.0.0.1", port)
        assert worker.run("python3", "-c", CONNECT, leaf.address, str(port))[1].startswith("closed")
    with OpenedFirewall(leaf, "leaf"):
        assert worker.run("python3", "-c", CONNECT, leaf.address, "9999")[1] == "open"


def test_front_reaches_the_leaf_on_its_one_port_only(cluster: Cluster, neighbour: Part) -> None:
    """From the bridge the leaf accepts its web port, and answers nothing else."""
    cluster.leaf.mesh.spawn("python3", "-c", LISTEN.format(port=8080))
    address = bridge_address(cluster.leaf.pause)
    wait_until_listening(neighbour, address, 8080)
    cluster.leaf.mesh.spawn("python3", "-c", LISTEN.format(port=9998))
    wait_until_listening(cluster.leaf.mesh, "127.0.0.1", 9998)
    assert neighbour.run("python3", "-c", CONNECT, address, "9998")[1].startswith("closed")
    assert cluster.leaf.mesh.run("python3", "-c", CONNECT, bridge_address(neighbour), "8000")[1].startswith("closed")


def test_containers_have_no_power_that_they_do_not_need(cluster: Cluster) -> None:
    """No capability but NET_ADMIN in the mesh container, no new privileges, a root that cannot be written."""
    node = cluster.nodes[0]
    assert node.work is not None
    for part, capabilities, uid in ((node.pause, 0, 65534), (node.mesh, 1 << 12, 0), (node.work, 0, 1000)):
        status, text = part.run("cat", "/proc/1/status")
        assert status == 0
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == capabilities
        assert fields["Uid"].split()[0] == str(uid)
        assert fields["NoNewPrivs"].strip() == "1"
        for folder in ("/", "/corral", "/etc", "/usr"):
            assert part.run("touch", f"{folder}/written")[0] != 0


def test_secrets_are_nowhere_but_in_tmpfs_and_memory(cluster: Cluster) -> None:
    """Neither the Engine's description and logs nor any argument list or environment holds the token or a key."""
    for member in cluster.members:
        private_keys = [member.mesh.run("wg", "show", plane, "private-key")[1].strip() for plane in ("wgd", "wgr")]
        assert {len(key) for key in private_keys} == {44}
        for part in (member.pause, member.mesh, member.work):
            if part is None:
                continue
            public = json.dumps(part.inspect()) + part.said()
            _, processes = part.run(
                "sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '"
            )
            assert "PATH=" in processes
            for secret in (*private_keys, TOKEN):
                assert secret not in public
                assert secret not in processes
    assert cluster.head.run("stat", "-c", "%a %u", "/run/corral/token")[1] == "400 1000"


def test_hello_makes_every_program_say_its_state_again(lab: Lab, cluster: Cluster) -> None:
    """An agent that was restarted attaches anew and learns where things are."""
    mesh = lab.reattach(cluster.nodes[1].mesh)
    mesh.send({"type": "hello"})
    assert mesh.keys() == cluster.nodes[1].keys
    assert mesh.wait_type("configured")["serial"] == 3
    mesh.wait(lambda message: message.get("type") == "peers" and len(message["handshaken"]) == 3)
    head = lab.reattach(cluster.head)
    head.send({"type": "hello"})
    assert head.wait_type("phase")["phase"] == "running"
    assert head.wait_type("alive")["nodes"] == [node.address for node in cluster.nodes]


def test_older_or_malformed_roster_changes_nothing(cluster: Cluster) -> None:
    """The serial only goes up, and what is not exactly a roster is refused in words."""
    mesh = cluster.nodes[2].mesh
    since = mesh.mark()
    mesh.send({"type": "roster", "serial": 2, "peers": []})
    assert mesh.wait_type("refused", since=since)["serial"] == 2
    keys = cluster.nodes[0].keys
    injected = {"direct_key": keys.direct, "relayed_key": keys.relayed, "address": "10.128.0.9\n[Interface]"}
    for wrong in (
        {"type": "roster", "serial": 4, "peers": [injected]},
        {"type": "roster", "serial": "5", "peers": []},
        {"type": "roster", "serial": 6, "peers": [7]},
        {"type": "other"},
        "not json",
    ):
        since = mesh.mark()
        mesh.send(wrong)
        assert mesh.wait_type("refused", since=since)["reason"]
    since = mesh.mark()
    mesh.send({"type": "hello"})
    assert mesh.wait_type("configured", since=since)["serial"] == 3
    mesh.wait(lambda message: message.get("type") == "peers" and len(message["handshaken"]) == 3, since=since)


def test_stopped_worker_ends_within_seconds_and_the_head_says_so(cluster: Cluster) -> None:
    """SIGTERM ends Ray on the node; the head's list of living nodes shrinks. Last here: the cluster is smaller then."""
    worker = cluster.nodes[2].work
    assert worker is not None
    since = cluster.head.mark()
    assert worker.stop(within_s=30) < 25, "it was killed"
    assert worker.inspect()["State"]["ExitCode"] == 0
    cluster.head.wait_type("alive", since=since, nodes=[node.address for node in cluster.nodes[:2]])
