"""The small network of the clusters' tests, for longer stories."""

from clusters.conftest import bare_network

__all__ = ["bare_network"]
