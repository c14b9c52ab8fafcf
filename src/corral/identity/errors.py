"""Errors of identity."""

from datetime import datetime

from corral.core.errors import CorralError


class IdentityError(CorralError):
    """Base of the errors about persons and keys."""

    code = "identity_error"


class KeyMissing(IdentityError):
    """A request came without a key where one is needed."""

    code = "key_missing"

    def __init__(self) -> None:
        super().__init__(
            "this needs an API key; nothing was done",
            hint="send `Authorization: Bearer ID.SECRET`, or run `corral login`",
        )


class KeyUnknown(IdentityError):
    """No key has this id and secret. Which of the two is wrong is not said."""

    code = "key_unknown"

    def __init__(self) -> None:
        super().__init__("no such API key; nothing was done", hint="check the key, or sign up with `corral signup`")


class KeyIdUnknown(IdentityError):
    """The caller has no key of this id; somebody else's is not told from a missing one."""

    code = "key_id_unknown"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"you have no API key {key_id}; nothing was revoked", hint="`corral keys list`", key_id=key_id)


class KeyExpired(IdentityError):
    """The key was right, but its time is over."""

    code = "key_expired"

    def __init__(self, key_id: str, expired_at: datetime) -> None:
        super().__init__(
            f"API key {key_id} expired at {expired_at.isoformat()}; nothing was done",
            hint="create a new one with another key: `corral keys create`",
            key_id=key_id,
            expired_at=expired_at.isoformat(),
        )


class KeyRevoked(IdentityError):
    """The key was right, but was revoked."""

    code = "key_revoked"

    def __init__(self, key_id: str, revoked_at: datetime) -> None:
        super().__init__(
            f"API key {key_id} was revoked at {revoked_at.isoformat()}; nothing was done",
            key_id=key_id,
            revoked_at=revoked_at.isoformat(),
        )


class NotOperator(IdentityError):
    """Only an operator may do this."""

    code = "not_operator"

    def __init__(self, name: str) -> None:
        super().__init__(f"only an operator may do this, and {name} is none; nothing was done", person=name)


class PersonNameTaken(IdentityError):
    """Somebody has this name."""

    code = "person_name_taken"

    def __init__(self, name: str) -> None:
        super().__init__(f"the name {name} is taken; nobody was signed up", hint="choose another name", name=name)


class PersonUnknown(IdentityError):
    """Nobody has this name."""

    code = "person_unknown"

    def __init__(self, name: str) -> None:
        super().__init__(f"nobody is named {name}", person=name)


class SignupTooOften(IdentityError):
    """Too many have signed up lately, from this address or at all."""

    code = "signup_too_often"

    def __init__(self, retry_after_s: int, *, scope: str) -> None:
        super().__init__(
            f"too many have signed up {scope} within the last hour; nobody was signed up",
            hint=f"try again in {retry_after_s} s",
            retry_after_s=retry_after_s,
        )
        self.retry_after_s = retry_after_s


class TooManyKeys(IdentityError):
    """A person has as many living keys as one may have."""

    code = "too_many_keys"

    def __init__(self, keys_max: int) -> None:
        super().__init__(
            f"you have {keys_max} living API keys, which is the most; none was made",
            hint="revoke one: `corral keys revoke ID`",
            keys_max=keys_max,
        )


class OperatorExists(IdentityError):
    """The first operator was made before."""

    code = "operator_exists"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"this control plane has an operator already ({name}), whose first key was printed then; nothing was made",
            hint="if that key is lost, start with a new database",
            person=name,
        )
