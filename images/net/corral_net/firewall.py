"""The packet filter of a node's network namespace: deny by default, loaded before the mesh address exists."""

import socket

TABLE = "corral"
INTERFACES = {"direct": "wgd", "relayed": "wgr"}
"""The planes of the mesh."""
HOST_INTERFACE = "eth0"
FIREWALL_MARK = 0x4352
"""Carried by WireGuard's own packets. The workload cannot set it: that takes NET_ADMIN."""
LEAF_WEB_PORT = 8080

# Where a workload has no business on the provider's side: its LAN, other containers, the host, metadata services.
CLOSED_NETWORKS = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
)


def rules(role: str, *, port: int, relayed_port: int, closed: "tuple[str, ...]" = (), has_internet: bool = True) -> str:
    """Text for `nft -f`: replaces our table as a whole, in one transaction.

    Args:
        role: "node", which trusts the mesh and may reach the internet, or "leaf", which accepts nothing from the mesh
            that it did not ask for and reaches nothing else.
        port: UDP port of the direct plane's WireGuard inside the namespace.
        relayed_port: of the relayed plane's; only what answers to it comes in.
        closed: further addresses that a workload must not reach: those of the machine that it runs on.
        has_internet: whether the workload of a node may reach the internet; without it, WireGuard's own packets alone
            leave and enter.

    Raises:
        ValueError: `role` is neither.
    """
    mesh = "{ " + ", ".join(f'"{interface}"' for interface in INTERFACES.values()) + " }"
    answered_relays = f'iifname "{HOST_INTERFACE}" udp dport {relayed_port} ct state established accept'
    if role == "node" and not has_internet:
        accepted = [f"iifname {mesh} accept", answered_relays]
        sent = []
    elif role == "node":
        accepted = [
            f"iifname {mesh} accept",
            f'iifname "{HOST_INTERFACE}" ct state established,related accept',
        ]
        # No rule for established connections: nothing but WireGuard is accepted from outside, so there is nothing to
        # answer, and such a rule would let whoever gets hold of the UDP port talk to the peers' private addresses.
        sent = [
            f"ip daddr {{ {', '.join((*CLOSED_NETWORKS, *(one for one in closed if not _is_closed(one))))} }} drop",
            f'oifname "{HOST_INTERFACE}" meta nfproto ipv4 accept',
        ]
    elif role == "leaf":
        accepted = [
            f"iifname {mesh} ct state established accept",
            answered_relays,
            f'iifname "{HOST_INTERFACE}" tcp dport {LEAF_WEB_PORT} accept',
        ]
        sent = [f'oifname "{HOST_INTERFACE}" tcp sport {LEAF_WEB_PORT} ct state established accept']
    else:
        raise ValueError(f"the role is node or leaf, not {role!r}")
    accepted_lines = "\n    ".join(accepted)
    sent_lines = "\n    ".join(sent)
    return f"""\
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    iifname "{HOST_INTERFACE}" udp dport {port} accept
    {accepted_lines}
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
  }}
  chain output {{
    type filter hook output priority 0; policy drop;
    oifname "lo" accept
    oifname {mesh} accept
    oifname "{HOST_INTERFACE}" meta l4proto udp meta mark {FIREWALL_MARK:#x} accept
    {sent_lines}
  }}
}}
"""


def _is_closed(address: str) -> bool:
    """Whether a closed network holds this address already: nft takes no overlapping elements."""
    number = int.from_bytes(socket.inet_aton(address), "big")
    for network in CLOSED_NETWORKS:
        base, _, length = network.partition("/")
        if number >> (32 - int(length)) == int.from_bytes(socket.inet_aton(base), "big") >> (32 - int(length)):
            return True
    return False
