"""What can go wrong when a relay is told what to do."""

from corral.core.errors import CorralError


class RelayError(CorralError):
    """Base of the relay's errors."""

    code = "relay_error"


class MailboxesRefused(RelayError):
    """A list of mailboxes contradicts itself, or one of them cannot exist; the list in force stays."""

    code = "mailboxes_refused"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}; no mailbox was changed",
            hint="give every member of the list its own node id, port (1 to 65535) and WireGuard key of 32 bytes",
        )


class RelayClosed(RelayError):
    """The relay no longer runs."""

    code = "relay_closed"

    def __init__(self) -> None:
        super().__init__("the relay was closed; no mailbox was changed", hint="make a new Relay")


class RelayStopped(RelayError):
    """The relay's thread ended by itself: a bug, and nothing is forwarded any more."""

    code = "relay_stopped"

    def __init__(self, cause: BaseException) -> None:
        super().__init__(
            f"the relay's thread ended ({type(cause).__name__}: {cause}); nothing is forwarded any more",
            hint="restart the process; members call again by themselves",
        )


class RelayMisconfigured(RelayError):
    """How the relay was asked to run cannot be."""

    code = "relay_misconfigured"


class RelayNotEnrolled(RelayError):
    """This folder holds no relay that a control plane knows."""

    code = "relay_not_enrolled"
