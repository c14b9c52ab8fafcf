"""The blind relay: forwards WireGuard's packets between members of one cluster, and cannot read them."""

from corral.relay.errors import MailboxesRefused, RelayClosed, RelayError, RelayStopped
from corral.relay.forwarding import Address, Mailbox, Reason
from corral.relay.limits import Limits
from corral.relay.sockets import Counters, PortFailure, Relay, RelayState

__all__ = [
    "Address",
    "Counters",
    "Limits",
    "Mailbox",
    "MailboxesRefused",
    "PortFailure",
    "Reason",
    "Relay",
    "RelayClosed",
    "RelayError",
    "RelayState",
    "RelayStopped",
]
