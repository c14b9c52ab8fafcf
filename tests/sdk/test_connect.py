"""Joining a mesh from a machine of one's own: what is refused before anything is changed, and what is left."""

import select
import threading
from ipaddress import IPv4Network
from pathlib import Path

import msgspec
import pytest

from corral.member.firewall import guest_rules, no_rules
from corral.sdk import AsyncClient, Client, connect
from corral.sdk.client import new_id
from corral.sdk.connect import Away, Connection, overlapping_route, require_rights
from corral.sdk.errors import ClusterNotReady, ClusterOver, ConnectUnsupported, MeshFailed, NetworkTaken
from sdk.fake_control_plane import FakeControlPlane, a_member

NETWORK = IPv4Network("10.128.0.0/18")
OWN = ("corral0d", "corral0r")


@pytest.fixture
def mnist(client: Client) -> str:
    """The name of a cluster that is ready."""
    return client.wait_ready(client.book(client.quote(cpu=1, name="mnist").id).id).name


@pytest.fixture
def rights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Root on Linux, with programs that succeed and do nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in connect.PROGRAMS:
        (folder / name).write_text('#!/bin/sh\ncat "$0" | tail -n +3\n')
        (folder / name).chmod(0o755)
    (folder / "ip").write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return folder


def joins(control_plane: FakeControlPlane) -> int:
    """How often a machine was put into the mesh."""
    return sum(method == "PUT" for method, _ in control_plane.requests)


@pytest.mark.parametrize(
    ("routes", "found"),
    [
        ([{"dst": "default", "dev": "eth0"}, {"dst": "192.168.1.0/24", "dev": "eth0"}], None),
        ([{"dst": "10.129.0.0/16", "dev": "tun0"}, {"dst": "10.0.0.0/9", "dev": "tun0"}], None),
        ([{"dst": "10.128.0.0/18", "dev": "corral0d"}], None),
        ([{"type": "local", "dst": "10.128.48.3", "dev": "corral0r"}], None),
        ([{"dst": "10.0.0.0/8", "dev": "tun0"}], "10.0.0.0/8"),
        ([{"dst": "10.128.63.0/24", "dev": "br0"}], "10.128.63.0/24"),
        ([{"type": "local", "dst": "10.128.0.1", "dev": "lo"}], "10.128.0.1"),
        ([{"type": "unreachable", "dst": "10.128.0.0/17"}], "10.128.0.0/17"),
        ([{"dst": "10.128.0.0/18", "dev": "corral1d"}], "10.128.0.0/18"),
        ([{"type": "multicast", "dst": "224.0.0.0/4"}, {"dst": "fe80::/64", "dev": "eth0"}, {}], None),
    ],
)  # fmt: skip
def test_route_into_the_mesh_is_found_whoever_made_it(routes: list[dict[str, str]], found: str | None) -> None:
    """What is inside, around or equal; not the default route, nor what our own interfaces left behind."""
    route = overlapping_route(NETWORK, routes, OWN)
    assert (route["dst"] if route else None) == found


def test_only_root_on_linux_with_the_programs_may_join(monkeypatch: pytest.MonkeyPatch, rights: Path) -> None:
    """Each with what to do about it; a way without rights is named."""
    require_rights()
    (rights / "wg").unlink()
    with pytest.raises(ConnectUnsupported, match="lacks wg") as missing:
        require_rights({"PATH": str(rights)})
    assert "wireguard-tools" in str(missing.value.hint)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ConnectUnsupported, match="root") as no_root:
        require_rights()
    assert "--forward" in str(no_root.value.hint)
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConnectUnsupported, match="Linux"):
        require_rights()


def test_cluster_that_is_not_ready_takes_nobody(
    control_plane: FakeControlPlane, client: Client, rights: Path, mnist: str
) -> None:
    """Nothing is asked of the mesh, and nothing is made here."""
    client.end(mnist)
    with pytest.raises(ClusterNotReady):
        Connection(mnist, lambda _: None).run()
    assert joins(control_plane) == 0


def test_network_that_is_in_use_is_left_alone_and_the_machine_leaves(
    control_plane: FakeControlPlane, rights: Path, mnist: str, tmp_path: Path
) -> None:
    """It learns its address by joining; so it leaves again, and keeps neither id nor token."""
    (rights / "ip").write_text('#!/bin/sh\necho \'[{"dst": "10.0.0.0/8", "dev": "tun0"}]\'\n')
    with pytest.raises(NetworkTaken, match=r"10\.0\.0\.0/8 through tun0"):
        Connection(mnist, lambda _: None).run()
    assert joins(control_plane) == 1
    assert control_plane.guests == {}
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


def test_failure_of_wireguard_leaves_nothing(control_plane: FakeControlPlane, rights: Path, mnist: str) -> None:
    """The place in the mesh is given back whatever fails."""
    (rights / "wg").write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    (rights / "nft").write_text("#!/bin/sh\necho nope >&2; exit 1\n")
    with pytest.raises(MeshFailed, match="nft"):
        Connection(mnist, lambda _: None).run()
    assert control_plane.guests == {}


def test_two_connections_to_one_network_do_not_share_a_machine(rights: Path, mnist: str) -> None:
    """The second would take the interfaces of the first away."""
    with connect._alone(0, mnist), pytest.raises(NetworkTaken, match="another"):  # pyright: ignore[reportPrivateUsage]
        Connection(mnist, lambda _: None).run()


def test_rules_touch_only_the_interfaces_of_the_mesh() -> None:
    """The rest of the machine keeps its own; what a crash left behind is replaced."""
    text = guest_rules(OWN, table="corral_guest_0")
    lines = [line.strip() for line in text.splitlines()]
    rules = [line for line in lines if line.endswith(("accept", "drop"))]
    assert len(rules) == 4
    assert all(rule.startswith(('iifname { "corral0d", "corral0r" }', 'oifname { "corral0d"')) for rule in rules)
    assert "policy drop" not in text
    assert text.startswith(no_rules("corral_guest_0"))


async def test_both_clients_put_and_remove_guests(control_plane: FakeControlPlane, client: Client, mnist: str) -> None:
    """The same calls in both."""
    keys = {"direct_key": f"{'A' * 43}=", "relayed_key": f"B{'A' * 42}="}
    one, other = f"gu_{'0' * 25}1", f"gu_{'0' * 25}2"
    made = client.put_guest(mnist, one, **keys)
    assert made.id == one
    access = client.ray_access(mnist)
    assert access.token not in repr(access)
    async with AsyncClient() as asynchronous:
        await asynchronous.put_guest(mnist, other, **keys)
        assert await asynchronous.ray_access(mnist) == access
        assert [guest.id for guest in await asynchronous.guests(mnist)] == [one, other]
        await asynchronous.remove_guest(mnist, other)
    assert [guest.id for guest in client.guests(mnist)] == [one]
    client.remove_guest(mnist, one)
    assert control_plane.guests == {}


def test_newest_roster_is_the_verified_one(control_plane: FakeControlPlane, client: Client, mnist: str) -> None:
    """None before the first; then the last of the chain, also when nothing is new."""
    cluster_id = client.cluster(mnist).id
    assert client.roster(mnist) is None
    control_plane.publish(cluster_id, a_member(1))
    control_plane.publish(cluster_id, a_member(1), a_member(2))
    for _ in range(2):
        found = client.roster(mnist)
        assert found is not None
        assert (found.serial, len(found.members)) == (2, 2)


def test_rosters_are_followed_to_the_end_of_the_cluster(
    control_plane: FakeControlPlane, client: Client, mnist: str
) -> None:
    """Only those that name this machine are handed on; a control plane that is away is told and waited for."""
    told: list[object] = []
    connection = Connection(mnist, told.append, make_client=lambda: Client(sleep=lambda _: None))
    cluster = client.cluster(mnist)
    keys = connection._public  # pyright: ignore[reportPrivateUsage]
    guest = client.put_guest(mnist, new_id("gu"), direct_key=keys["direct"], relayed_key=keys["relayed"])
    own = msgspec.structs.replace(
        a_member(9, leaf=True), address=guest.address, direct_key=keys["direct"], relayed_key=keys["relayed"]
    )
    control_plane.publish(cluster.id, a_member(1))
    control_plane.publish(cluster.id, a_member(1), own)
    control_plane.answers_lost = 4
    inbox = connection._inbox  # pyright: ignore[reportPrivateUsage]
    threading.Thread(target=connection._follow, args=(cluster, guest), daemon=True).start()  # pyright: ignore[reportPrivateUsage]
    poll = select.poll()
    poll.register(inbox, select.POLLIN)
    assert poll.poll(30_000)
    (message,) = inbox.read()
    assert (message["type"], message["serial"]) == ("roster", 2)
    client.end(mnist)
    assert poll.poll(30_000)
    with pytest.raises(ClusterOver):
        inbox.read()
    assert told == [Away(True), Away(False)]
