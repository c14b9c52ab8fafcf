"""Identity: persons, their API keys, and who makes a request."""

from corral.identity.dependencies import CallerDep, OperatorDep
from corral.identity.errors import (
    IdentityError,
    KeyExpired,
    KeyIdUnknown,
    KeyMissing,
    KeyRevoked,
    KeyUnknown,
    NotOperator,
    OperatorExists,
    PersonNameTaken,
    PersonUnknown,
    SignupTooOften,
    TooManyKeys,
)
from corral.identity.key import ApiKey, Caller
from corral.identity.person import Person
from corral.identity.routes import router
from corral.identity.schemas import shown_person
from corral.identity.service import (
    authenticate,
    key_is_valid,
    make_first_operator,
    names_of,
    person_named,
    require_operator,
    sign_up,
)
from corral.identity.signup_limit import SignupLimit

__all__ = [
    "ApiKey",
    "Caller",
    "CallerDep",
    "IdentityError",
    "KeyExpired",
    "KeyIdUnknown",
    "KeyMissing",
    "KeyRevoked",
    "KeyUnknown",
    "NotOperator",
    "OperatorDep",
    "OperatorExists",
    "Person",
    "PersonNameTaken",
    "PersonUnknown",
    "SignupLimit",
    "SignupTooOften",
    "TooManyKeys",
    "authenticate",
    "key_is_valid",
    "make_first_operator",
    "names_of",
    "person_named",
    "require_operator",
    "router",
    "shown_person",
    "sign_up",
]
