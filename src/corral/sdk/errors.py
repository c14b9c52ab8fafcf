"""What can go wrong between a program and the control plane: one class per situation that callers tell apart."""

from typing import Any

from corral.core.errors import CorralError
from corral.wire.problem import Problem

UNAVAILABLE_STATUSES = frozenset({502, 503, 504})
"""Answers of something in front of the service, or of a service that is just starting: it may work in a moment."""


class SdkError(CorralError):
    """Base of every error that the SDK raises."""

    code = "sdk_error"


class NotConfigured(SdkError):
    """A setting is missing without which nothing can be sent."""

    code = "not_configured"


class ConfigMalformed(SdkError):
    """The settings file cannot be read."""

    code = "config_malformed"


class ApiKeyMalformed(SdkError):
    """What should be an API key cannot be sent as one. It is not quoted: it may be a part of a key."""

    code = "api_key_malformed"


class RequestInvalid(SdkError):
    """A request that the control plane could not accept, found before anything was sent."""

    code = "request_invalid"


class AddressRefused(SdkError):
    """An address to which no key may be sent: not HTTPS, and not this machine."""

    code = "address_refused"


class Unreachable(SdkError):
    """Nobody answered, or only somebody who cannot reach the service. Whether the request was acted on is unknown."""

    code = "unreachable"


class CertificateUntrusted(SdkError):
    """The server showed a certificate that this client has no reason to believe. Nothing was sent."""

    code = "certificate_untrusted"


class CertificateMismatch(SdkError):
    """The control plane's CA certificate is not the one whose fingerprint was given. Nothing was sent."""

    code = "certificate_mismatch"


class AnswerMalformed(SdkError):
    """The server answered with something that this version does not understand."""

    code = "answer_malformed"


class ApiError(SdkError):
    """
    The server refused a request.

    `code`, `hint` and `facts` are those of the problem document; programs compare `code` and nothing else. `status` is
    the HTTP status.
    """

    code = "api_error"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title, hint=problem.hint)
        self.facts: dict[str, Any] = dict(problem.facts)
        self.problem = problem
        self.status = problem.status
        # The code is part of the answer here, not of the class.
        self.code = problem.code  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def is_unavailable(self) -> bool:
        """Whether the service could not be reached, as opposed to having refused."""
        return self.status in UNAVAILABLE_STATUSES


class StartFailed(SdkError):
    """A cluster did not become ready; its start was refunded in full."""

    code = "start_failed"


class ClusterNotReady(SdkError):
    """A cluster takes no jobs at this moment: it is starting, or it has ended."""

    code = "cluster_not_ready"


class ClusterOver(SdkError):
    """A cluster ends or has ended, and cannot be changed any more."""

    code = "cluster_over"


class RosterChainBroken(SdkError):
    """What the control plane serves as a cluster's rosters is no chain, or not the one that was seen before."""

    code = "roster_chain_broken"


class KeptRostersUnusable(SdkError):
    """What is kept of a cluster's rosters on this machine can be neither trusted nor replaced."""

    code = "kept_rosters_unusable"


class ConnectUnsupported(SdkError):
    """This machine cannot be a member of a mesh as it is."""

    code = "connect_unsupported"


class NetworkTaken(SdkError):
    """This machine has a route, or another connection, to the addresses of the cluster's mesh."""

    code = "network_taken"


class MeshFailed(SdkError):
    """The mesh of a cluster cannot be entered, or not any more, for a reason on this machine."""

    code = "mesh_failed"


class PortTaken(SdkError):
    """Another program of this machine listens where a forwarded port should."""

    code = "port_taken"


class RosterKeyMissing(SdkError):
    """The key that signs a cluster's rosters is not on this machine."""

    code = "roster_key_missing"


class ProposalRefused(SdkError):
    """A proposed roster is not what this client signs."""

    code = "proposal_refused"


class JobInvalid(SdkError):
    """Base of what is wrong with a job before anything of it was sent."""

    code = "job_invalid"


class JobIdMalformed(JobInvalid):
    """A job's id holds something that cannot be part of one."""

    code = "job_id_malformed"


class WorkingDirMissing(JobInvalid):
    """The working directory does not exist or is none."""

    code = "working_dir_missing"


class EntrypointMissing(JobInvalid):
    """The file that the entrypoint names is not among those that would be sent."""

    code = "entrypoint_missing"


class PackageTooLarge(JobInvalid):
    """The packed working directory is larger than Ray accepts."""

    code = "package_too_large"


class RuntimeEnvRefused(JobInvalid):
    """The runtime environment names something that only exists on this machine."""

    code = "runtime_env_refused"
