"""The gauge of a relay: hosts measure bandwidth and round trips against it, in a process of its own that gives way."""

from corral.relay.gauge.process import GaugeProcess

__all__ = ["GaugeProcess"]
