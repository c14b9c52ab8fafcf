"""Clusters: what runs on a booking, from its first container to its final bill."""

from corral.clusters.agent_routes import agent_routes
from corral.clusters.book import book
from corral.clusters.errors import ClustersError
from corral.clusters.loop import Reconciler, run
from corral.clusters.routes import router
from corral.clusters.source import ClusterSource

__all__ = ["ClusterSource", "ClustersError", "Reconciler", "agent_routes", "book", "router", "run"]
