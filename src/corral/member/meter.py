"""What the packet filter of this namespace has counted."""

import json

from corral.member import firewall
from corral.member.commands import run

PERIOD_S = 10.0
"""Between two looks at the counters: each is a process of `nft`."""
SLOWED_S = 60.0
"""For so long after a packet was dropped for the cap the workload counts as slowed."""


class Meter:
    """Bytes since the namespace exists: the counters outlive a restart of this container."""

    def __init__(self) -> None:
        self._bytes = dict.fromkeys((*firewall.COUNTERS, firewall.OVER_CAP), 0)
        self._slowed_until = 0.0
        self.is_slowed = False
        """Whether the workload has used up what it may have with the internet."""
        self._read_at = -PERIOD_S

    def look(self, now: float, *, is_asked: bool = False) -> None:
        """Read the counters if it is time, or if somebody asks; `now` is monotonic, in seconds."""
        if now < self._read_at + PERIOD_S and not is_asked:
            return
        self._read_at = now
        done = run("nft", "-j", "list", "counters", "table", "inet", firewall.TABLE)
        # Without the table nothing is counted; what was, was.
        if done.returncode == 0:
            dropped = self._bytes[firewall.OVER_CAP]
            self._bytes |= read_counters(done.stdout)
            if self._bytes[firewall.OVER_CAP] > dropped:
                self._slowed_until = now + SLOWED_S
        self.is_slowed = now < self._slowed_until

    def told(self) -> "dict[str, int]":
        """The counts as the agent is told of them."""
        counted = self._bytes
        return {
            "rx": counted["mesh_received"],
            "tx": counted["mesh_sent"],
            "internet_rx": counted["internet_received"],
            "internet_tx": counted["internet_sent"],
        }


def read_counters(text: str) -> "dict[str, int]":
    """Bytes by counter in the output of `nft -j list counters`."""
    found = (entry["counter"] for entry in json.loads(text)["nftables"] if "counter" in entry)
    return {counter["name"]: counter["bytes"] for counter in found}
