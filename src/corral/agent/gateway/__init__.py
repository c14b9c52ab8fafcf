"""
The gateway role: a leaf in each cluster's mesh with a web server in front of its head, and one front for all of them.

A request goes front (nginx, asks `authorise` who may) → leaf (nginx in the leaf's network namespace, knows the
cluster's Ray token) → mesh → Ray's dashboard on the head. `probe` reads through the leaf what is called ready.
"""

from corral.agent.gateway.authorise import AuthoriseService, LeafTarget
from corral.agent.gateway.configurer import GatewayConfigurer, GatewaySite
from corral.agent.gateway.probe import LeafProbe, Readiness

__all__ = ["AuthoriseService", "GatewayConfigurer", "GatewaySite", "LeafProbe", "LeafTarget", "Readiness"]
