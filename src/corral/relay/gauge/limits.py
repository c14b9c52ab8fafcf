"""What a gauge grants: to one host, and to all of them together."""

from dataclasses import dataclass

from corral.core.units import GIB


@dataclass(frozen=True, kw_only=True)
class GaugeLimits:
    """
    Bounds of one gauge.

    Bandwidth is measured of one host at a time, because two at once would each find half of it.
    """

    connections_max: int = 64
    """Of everybody together, also of those who have not yet said who they are."""
    host_streams_max: int = 8
    greeting_s: float = 5.0
    """Within which a connection has to say what it is for."""
    stream_s_max: float = 10.0
    turn_s: float = 30.0
    """How long one host may keep the others waiting."""
    turns_hour: float = 12.0
    """Of one host: whoever takes turns without moving a byte must not keep the others out for ever."""
    turn_idle_s: float = 3.0
    """A turn in which nothing is connected for so long is over."""
    session_bytes_max: int = 2 * GIB
    """Both ways together; at 1600 Mbit/s, the highest tier's, 5 s each way take 2 GB."""
    host_bytes_hour: int = 8 * GIB
    bytes_hour: int = 128 * GIB
    """Of all hosts together: 0.3 Gbit/s on average."""
    host_asks_s: float = 100.0
    host_asks_burst: float = 200.0
    round_trips_max: int = 64
    """Of one session that are remembered."""
    hosts_max: int = 4096
    """Hosts that are remembered; one that was forgotten begins anew."""
