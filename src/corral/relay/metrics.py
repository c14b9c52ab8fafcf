"""A relay's counters for Prometheus. Labels are reasons, never members."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from corral.relay.errors import RelayMisconfigured
from corral.relay.sockets import Relay


class RelayCollector(Collector):
    """Reads a relay whenever it is asked, so that counting costs the packets nothing."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def collect(self) -> Iterable[Metric]:
        """The present values."""
        counters, state = self._relay.counters, self._relay.state
        yield CounterMetricFamily(
            "corral_relay_forwarded_packets", "Packets forwarded.", value=counters.forwarded_packets
        )
        yield CounterMetricFamily(
            "corral_relay_forwarded_bytes", "UDP payload bytes forwarded.", value=counters.forwarded_bytes
        )
        dropped = CounterMetricFamily("corral_relay_dropped_packets", "Packets not forwarded.", labels=["reason"])
        for reason, count in counters.dropped_packets.items():
            dropped.add_metric([reason.value], count)
        yield dropped
        for name, text, value in (
            ("mailboxes", "Mailboxes in force.", state.mailboxes),
            ("proved_members", "Members with an address that a handshake has proved.", state.proved_members),
            ("unbound_ports", "Mailboxes whose port could not be bound.", state.unbound_ports),
            ("gro_in_use", "1 if the kernel hands over packets in batches.", int(state.has_gro)),
            ("gso_in_use", "1 if the kernel takes packets in batches.", int(state.has_gso)),
            ("receive_buffer_bytes", "Smallest receive buffer of a mailbox.", state.receive_buffer_bytes),
            ("is_running", "1 while packets are forwarded.", int(self._relay.is_running)),
        ):
            yield GaugeMetricFamily(f"corral_relay_{name}", text, value=value)


@contextmanager
def serving_metrics(relay: Relay, bind: str) -> Generator[None]:
    """
    Serves a relay's counters over HTTP at `bind` (address and port) while the block runs.

    Raises:
        RelayMisconfigured: that is no address and port, or it is in use.
    """
    registry = CollectorRegistry()
    registry.register(RelayCollector(relay))
    host, _, port = bind.rpartition(":")
    try:
        server, thread = start_http_server(int(port), addr=host, registry=registry)
    except (OSError, ValueError) as error:
        raise RelayMisconfigured(
            f"metrics cannot be served at {bind!r}: {error}", hint="--metrics 127.0.0.1:9100"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
