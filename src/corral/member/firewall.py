"""The packet filter of a node's network namespace: deny by default, loaded before the mesh address exists.

It counts, too, at the one place that everything passes: what goes over the host's network, as it is on the wire.
"""

import socket

TABLE = "corral"
INTERFACES = {"direct": "wgd", "relayed": "wgr"}
"""The planes of the mesh."""
HOST_INTERFACE = "eth0"
FIREWALL_MARK = 0x4352
"""Carried by WireGuard's own packets. The workload cannot set it: that takes NET_ADMIN."""
LEAF_WEB_PORT = 8080
COUNTERS = ("mesh_received", "mesh_sent", "internet_received", "internet_sent")
"""Of bytes on the host's interface: WireGuard's own packets, and what the workload has with the internet."""
OVER_CAP = "over_cap"
"""Counts what was dropped because the workload had used its allowance."""
BURST_BYTES_MAX = 2**32 - 1
"""nftables counts a burst in 32 bits."""
RATE_MAX = 10**10
"""Bytes a second; above this nftables' arithmetic of 64 bits overflows."""

# Where a workload has no business on the provider's side: its LAN, other containers, the host, metadata services.
CLOSED_NETWORKS = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",  # Azure's host agent: a public address that only the machine itself reaches, with its secrets
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
)


def rules(
    role: str,
    *,
    port: int,
    relayed_port: int,
    closed: "tuple[str, ...]" = (),
    has_internet: bool = True,
    cap_bytes: int = 0,
) -> str:
    """Text for `nft -f`: replaces all our rules in one transaction. What was counted before goes on being counted.

    Args:
        role: "node", which trusts the mesh and may reach the internet, or "leaf", which accepts nothing from the mesh
            that it did not ask for and reaches nothing else.
        port: UDP port of the direct plane's WireGuard inside the namespace.
        relayed_port: of the relayed plane's; only what answers to it comes in.
        closed: further addresses that a workload must not reach: those of the machine that it runs on.
        has_internet: whether the workload of a node may reach the internet; without it, WireGuard's own packets alone
            leave and enter.
        cap_bytes: what the workload of a node may have with the internet in an hour, both ways together; 0 is no cap.

    Raises:
        ValueError: `role` is neither.
    """
    mesh = "{ " + ", ".join(f'"{interface}"' for interface in INTERFACES.values()) + " }"
    slow = f"limit name internet counter name {OVER_CAP} drop"
    # The relayed plane: its port is not published, and only what answers to it comes in.
    relayed = f'iifname "{HOST_INTERFACE}" udp dport {relayed_port} ct state established {_counted("mesh_received")}'
    if role == "node" and not has_internet:
        accepted = [f"iifname {mesh} accept", relayed]
        sent = []
    elif role == "node":
        accepted = [
            f"iifname {mesh} accept",
            relayed,
            *([f'iifname "{HOST_INTERFACE}" ct state established,related {slow}'] if cap_bytes else []),
            f'iifname "{HOST_INTERFACE}" ct state established,related {_counted("internet_received")}',
        ]
        # No rule for established connections: nothing but WireGuard is accepted from outside, so there is nothing to
        # answer, and such a rule would let whoever gets hold of the UDP port talk to the peers' private addresses.
        sent = [
            f"ip daddr {{ {', '.join((*CLOSED_NETWORKS, *(one for one in closed if not _is_closed(one))))} }} drop",
            *([f'oifname "{HOST_INTERFACE}" meta nfproto ipv4 {slow}'] if cap_bytes else []),
            f'oifname "{HOST_INTERFACE}" meta nfproto ipv4 {_counted("internet_sent")}',
        ]
    elif role == "leaf":
        accepted = [
            f"iifname {mesh} ct state established accept",
            relayed,
            f'iifname "{HOST_INTERFACE}" tcp dport {LEAF_WEB_PORT} accept',
        ]
        sent = [f'oifname "{HOST_INTERFACE}" tcp sport {LEAF_WEB_PORT} ct state established accept']
    else:
        raise ValueError(f"the role is node or leaf, not {role!r}")
    accepted_lines = "\n    ".join(accepted)
    sent_lines = "\n    ".join(sent)
    counters = "\n  ".join(f"counter {name} {{}}" for name in (*COUNTERS, OVER_CAP))
    if cap_bytes:
        rate, burst = allowance(cap_bytes)
        counters += f"\n  limit internet {{ rate over {rate} bytes/second burst {burst} bytes }}"
    return f"""\
table inet {TABLE}
flush table inet {TABLE}
table inet {TABLE} {{
  {counters}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    iifname "{HOST_INTERFACE}" udp dport {port} {_counted("mesh_received")}
    {accepted_lines}
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
  }}
  chain output {{
    type filter hook output priority 0; policy drop;
    oifname "lo" accept
    oifname {mesh} accept
    oifname "{HOST_INTERFACE}" meta l4proto udp meta mark {FIREWALL_MARK:#x} {_counted("mesh_sent")}
    {sent_lines}
  }}
}}
"""


def allowance(cap_bytes: int) -> "tuple[int, int]":
    """Bytes a second, and bytes at once: half of the cap is there at once, the other half flows in over the hour.

    So no hour has more than `cap_bytes`, however the workload divides it, and who has used all goes on slowly.
    """
    burst = min(cap_bytes // 2, BURST_BYTES_MAX)
    # The bucket holds a second's flow beside the burst.
    return max(1, min((cap_bytes - burst) // 3601, RATE_MAX)), burst


def _counted(counter: str) -> str:
    return f"counter name {counter} accept"


def guest_rules(interfaces: "tuple[str, ...]", *, table: str) -> str:
    """Text for `nft -f` on a machine of the renter's own: of all that it has, only these interfaces are filtered.

    From the mesh only answers come in, and nothing is forwarded between it and any other network.

    Args:
        interfaces: of the planes.
        table: its name; replaced as a whole.
    """
    mesh = "{ " + ", ".join(f'"{interface}"' for interface in interfaces) + " }"
    return f"""\
table inet {table}
delete table inet {table}
table inet {table} {{
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname {mesh} ct state established accept
    iifname {mesh} drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname {mesh} drop
    oifname {mesh} drop
  }}
}}
"""


def no_rules(table: str) -> str:
    """Text for `nft -f` after which a table is gone, whether or not it was there."""
    return f"table inet {table}\ndelete table inet {table}\n"


def _is_closed(address: str) -> bool:
    """Whether a closed network holds this address already: nft takes no overlapping elements."""
    number = int.from_bytes(socket.inet_aton(address), "big")
    for network in CLOSED_NETWORKS:
        base, _, length = network.partition("/")
        if number >> (32 - int(length)) == int.from_bytes(socket.inet_aton(base), "big") >> (32 - int(length)):
            return True
    return False
