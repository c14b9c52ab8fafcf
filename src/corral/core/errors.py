"""The root of every error that a user or a network can cause, and the guard against what only a bug can cause."""

from typing import Any, ClassVar


class CorralError(Exception):
    """
    Something that a caller can cause and should handle.

    The message says what happened, to which object, and what did *not* happen. `code` is stable and part of the API;
    `hint` is a command or an act that helps; `facts` are the plain values behind the message.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts: dict[str, Any] = facts


class InvariantBroken(AssertionError):
    """A fact that the program relies on does not hold: only a bug can cause it."""


def invariant(condition: object, message: str) -> None:
    """
    Guards a fact that only a bug can break; on in production too.

    Raises:
        InvariantBroken: `condition` is false.
    """
    if not condition:
        raise InvariantBroken(message)
