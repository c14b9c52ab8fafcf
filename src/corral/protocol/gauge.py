"""
How a host measures its connection against a relay's gauge: permits, messages, and what the gauge states.

The gauge serves nobody but hosts with a *permit*, which the control plane makes and both sides can check: its key
follows from the permit's text and the gauge's own key. What was measured is said by the gauge, not by the host: it
counts the bytes itself, times round trips by numbers that the host cannot guess, and signs a *statement*, which the
host passes on. So a host can make its connection look worse than it is, and not better.

One measurement is a *session*: a number that the host draws. All of it is the same for IPv4 and IPv6.
"""

import base64
import hashlib
import hmac
import struct
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from corral.core.errors import CorralError

KEY_BYTES = 32
NONCE_BYTES = 8
TAG_BYTES = 16
"""128 bits of an HMAC-SHA256."""

_PERMIT = struct.Struct("!B32sQ")
PERMIT_BYTES = _PERMIT.size
_PERMIT_VERSION = 1
_PERMIT_DOMAIN = b"corral gauge permit v1\n"
_STATEMENT_DOMAIN = b"corral gauge statement v1\n"

_ASK_MAGIC, _ANSWER_MAGIC, _STREAM_MAGIC = b"CGq1", b"CGa1", b"CGs1"
_ASK = struct.Struct(f"!4s{PERMIT_BYTES}sQI{NONCE_BYTES}s")
_ANSWER = struct.Struct(f"!4sQI{NONCE_BYTES}s")
_STREAM = struct.Struct(f"!4sB{PERMIT_BYTES}sQIQ")
ASK_BYTES = _ASK.size + TAG_BYTES
ANSWER_BYTES = _ANSWER.size + TAG_BYTES
"""Less than what asks for it, so that the gauge amplifies nothing."""
STREAM_BYTES = _STREAM.size + TAG_BYTES
CHALLENGE_BYTES = 16

DOWNLOAD, UPLOAD, STATEMENT = 1, 2, 3
"""What a connection is for."""
GRANTED, REFUSED, BUSY = 0, 1, 2
"""The first byte that the gauge answers; after BUSY comes one with the seconds to wait."""
STATEMENT_BYTES_MAX = 4096

NO_NONCE = bytes(NONCE_BYTES)


class PermitRefused(CorralError):
    """A permit is none, or has expired; nothing was measured."""

    code = "permit_refused"


class StatementRefused(CorralError):
    """A statement is not what the named relay has signed; nothing of it was believed."""

    code = "statement_refused"


class Permit(NamedTuple):
    """What a permit says."""

    host_id: str
    expires_at: int
    """Unix seconds."""


class Ask(NamedTuple):
    """A host asks for a round trip (UDP)."""

    permit: bytes
    session: int
    sequence: int
    nonce: bytes
    """That of the answer just received, which shows the gauge how long the round trip took; else NO_NONCE."""


class Answer(NamedTuple):
    """The gauge's answer (UDP)."""

    session: int
    sequence: int
    nonce: bytes


class StreamRequest(NamedTuple):
    """The first message of a connection (TCP), after the gauge's challenge."""

    purpose: int
    permit: bytes
    session: int
    duration_ms: int
    """For downloads: how long the gauge should send at most."""
    bytes_max: int
    """For downloads: how much."""


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a gauge has measured of one host in one session. Zero where it was not measured."""

    relay_id: str
    host_id: str
    session: int
    at: int
    """Unix seconds."""
    download_bit_s: int = 0
    upload_bit_s: int = 0
    """Bits per second of TCP payload, all streams together, from or to the host's side."""
    download_bytes: int = 0
    upload_bytes: int = 0
    round_trips: int = 0
    rtt_us: int = 0
    """Median of the round trips."""
    rtt_us_min: int = 0
    jitter_us: int = 0
    """Mean difference between one round trip and the next."""
    loss_ppm: int = 0
    """Round trips of a million that did not come back."""


def new_permit(gauge_key: bytes, *, host_id: str, expires_at: int) -> tuple[bytes, bytes]:
    """
    A permit and its key.

    Args:
        gauge_key: the gauge's own key, which the control plane and the relay know.
        host_id: who may measure with it.
        expires_at: Unix seconds.
    """
    permit = _PERMIT.pack(_PERMIT_VERSION, host_id.encode(), expires_at)
    return permit, permit_key(gauge_key, permit)


def permit_key(gauge_key: bytes, permit: bytes) -> bytes:
    """The key of a permit: whoever has it was given it by the control plane."""
    return hmac.digest(gauge_key, _PERMIT_DOMAIN + permit, hashlib.sha256)


def read_permit(permit: bytes, *, now: float) -> Permit:
    """
    What a permit says; that it is genuine is shown by a message tagged with its key.

    Args:
        permit: as it came.
        now: Unix seconds.

    Raises:
        PermitRefused: another version, or it has expired.
    """
    if len(permit) != PERMIT_BYTES:
        raise PermitRefused("a permit has another length; nothing was measured")
    version, host_id, expires_at = _PERMIT.unpack(permit)
    if version != _PERMIT_VERSION:
        raise PermitRefused(f"a permit has version {version}, not {_PERMIT_VERSION}; nothing was measured")
    if now >= expires_at:
        raise PermitRefused("a permit has expired; nothing was measured", hint="set this machine's clock right")
    return Permit(host_id.rstrip(b"\0").decode(errors="replace"), expires_at)


def ask_bytes(ask: Ask, key: bytes) -> bytes:
    """The datagram of a request."""
    return _tagged(_ASK.pack(_ASK_MAGIC, ask.permit, ask.session, ask.sequence, ask.nonce), key)


def ask_of(datagram: bytes) -> Ask | None:
    """The request in a datagram, its tag unchecked; None if it is none."""
    if len(datagram) != ASK_BYTES or datagram[:4] != _ASK_MAGIC:
        return None
    _, permit, session, sequence, nonce = _ASK.unpack_from(datagram)
    return Ask(permit, session, sequence, nonce)


def answer_bytes(answer: Answer, key: bytes) -> bytes:
    """The datagram of an answer."""
    return _tagged(_ANSWER.pack(_ANSWER_MAGIC, answer.session, answer.sequence, answer.nonce), key)


def answer_of(datagram: bytes, key: bytes) -> Answer | None:
    """The answer in a datagram; None if it is none, or was made without the permit's key."""
    if len(datagram) != ANSWER_BYTES or datagram[:4] != _ANSWER_MAGIC or not is_tagged(datagram, key):
        return None
    _, session, sequence, nonce = _ANSWER.unpack_from(datagram)
    return Answer(session, sequence, nonce)


def stream_bytes(request: StreamRequest, key: bytes, challenge: bytes) -> bytes:
    """The first message of a connection, good for this challenge only."""
    body = _STREAM.pack(
        _STREAM_MAGIC, request.purpose, request.permit, request.session, request.duration_ms, request.bytes_max
    )
    return body + _tag(challenge + body, key)


def stream_of(message: bytes) -> StreamRequest | None:
    """The request in a connection's first message, its tag unchecked; None if it is none."""
    if len(message) != STREAM_BYTES or message[:4] != _STREAM_MAGIC:
        return None
    _, purpose, permit, session, duration_ms, bytes_max = _STREAM.unpack_from(message)
    return StreamRequest(purpose, permit, session, duration_ms, bytes_max)


def is_tagged(message: bytes, key: bytes, challenge: bytes = b"") -> bool:
    """Whether a message was made by somebody who has the permit's key (and saw the challenge)."""
    return hmac.compare_digest(message[-TAG_BYTES:], _tag(challenge + message[:-TAG_BYTES], key))


def sign_statement(statement: Statement, key: Ed25519PrivateKey) -> tuple[str, str]:
    """What was measured as JSON, and the relay's signature under it, base 64."""
    payload = msgspec.json.encode(statement, order="deterministic").decode()
    return payload, base64.b64encode(key.sign(_STATEMENT_DOMAIN + payload.encode())).decode()


def read_statement(payload: str) -> Statement:
    """
    What a statement says, its signature unchecked: for the host itself, which was there.

    Raises:
        StatementRefused: it cannot be read.
    """
    try:
        return msgspec.json.decode(payload, type=Statement)
    except (msgspec.DecodeError, RecursionError) as error:
        raise StatementRefused(f"a statement cannot be read: {error}; nothing of it was believed") from None


def verify_statement(payload: str, signature: str, *, relay_key: str) -> Statement:
    """
    What a relay has stated.

    Args:
        payload: the statement's JSON, as the host passed it on.
        signature: base 64.
        relay_key: Ed25519 public key of the relay that the statement names, base 64.

    Raises:
        StatementRefused: it cannot be read, or that relay has not signed it.
    """
    statement = read_statement(payload)
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(relay_key, validate=True))
        key.verify(base64.b64decode(signature, validate=True), _STATEMENT_DOMAIN + payload.encode())
    except (InvalidSignature, ValueError):
        raise StatementRefused(
            f"relay {statement.relay_id} has not signed this statement; nothing of it was believed"
        ) from None
    return statement


def _tagged(body: bytes, key: bytes) -> bytes:
    return body + _tag(body, key)


def _tag(message: bytes, key: bytes) -> bytes:
    return hmac.digest(key, message, hashlib.sha256)[:TAG_BYTES]
