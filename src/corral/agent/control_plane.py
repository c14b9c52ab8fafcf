"""
The agent's connection to the control plane: certificate pinned, tokens made with the server's time.

The certificate's dates are not compared with this machine's clock, because that clock may be wrong and the host must
work all the same; what is trusted is the pinned certificate authority and nothing else.
"""

import hashlib
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import jwt
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.agent.documents import is_plausible
from corral.core.clock import Clock
from corral.core.errors import CorralError
from corral.wire.agent import AuthoriseReply, AuthoriseRequest, Desired, EnrolReply, EnrolRequest, Report, encode

TOKEN_LIFE_S = 900
TOKEN_RENEWAL_S = 120
"""A token is replaced when it would live for less than this."""
ANSWER_S = 20.0
"""Beyond the time for which a reply may be held."""
REPLY_BYTES_MAX = 32 * 2**20
CERTIFICATE_BYTES_MAX = 65536
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which Python's ssl does not name

M = TypeVar("M", bound=msgspec.Struct)


class ControlPlaneError(CorralError):
    """Base: an exchange with the control plane did not come about."""

    code = "control_plane_error"


class ControlPlaneUnreachable(ControlPlaneError):
    """It does not answer, or answers that it cannot at present."""

    code = "control_plane_unreachable"


class ControlPlaneRefused(ControlPlaneError):
    """It refuses this host, or what it said. Repeating it unchanged does not help."""

    code = "control_plane_refused"

    def __init__(self, message: str, *, status: int, reason: str, hint: str | None = None) -> None:
        self.status, self.reason = status, reason
        super().__init__(message, hint=hint, status=status, reason=reason)


class ReplyUnreadable(ControlPlaneError):
    """A reply is not of the agreed form. Nothing of it was acted on."""

    code = "reply_unreadable"


class UrlRefused(ControlPlaneError):
    """The control plane's address is none, or would carry tokens in the clear."""

    code = "url_refused"


class CertificateRefused(ControlPlaneError):
    """The control plane's certificate is not the one that the join line names."""

    code = "certificate_refused"


class ServerTime:
    """The control plane's time, kept by this machine's monotonic clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: tuple[datetime, float] | None = None

    def heard(self, server_time: datetime) -> None:
        """Takes the time from a reply that has just arrived; an impossible one is not taken."""
        if not is_plausible(server_time):
            return
        self._known = (server_time, self._clock.monotonic())

    def now(self) -> datetime:
        """The server's time as far as it is known, else this machine's."""
        if self._known is None:
            return self._clock.now()
        at, monotonic = self._known
        return at + timedelta(seconds=self._clock.monotonic() - monotonic)

    def skew_s(self) -> float | None:
        """This machine's wall clock less the server's, seconds; None before the first reply."""
        return None if self._known is None else (self._clock.now() - self.now()).total_seconds()


class HostTokens:
    """Tokens with which a host proves who it is: signed by itself, valid for a quarter of an hour."""

    def __init__(self, *, host_id: str, audience: str, key: Ed25519PrivateKey, time: ServerTime) -> None:
        self._host_id, self._audience, self._key, self._time = host_id, audience, key, time
        self._token: str | None = None
        self._issued_at = self._expires_at = datetime.fromtimestamp(0, UTC)

    def token(self) -> str:
        """A token that is valid now by the server's time."""
        now = self._time.now()
        if self._token is None or not self._issued_at <= now < self._expires_at - timedelta(seconds=TOKEN_RENEWAL_S):
            self._issued_at, self._expires_at = now, now + timedelta(seconds=TOKEN_LIFE_S)
            claims = {
                "sub": self._host_id,
                "aud": self._audience,
                "iat": int(now.timestamp()),
                "exp": int(now.timestamp()) + TOKEN_LIFE_S,
            }
            self._token = jwt.encode(claims, self._key, algorithm="EdDSA")
        return self._token

    def forget(self) -> None:
        """Makes the next token a new one: the last was refused."""
        self._token = None


class ControlPlane:
    """
    Requests of one host.

    Args:
        session: with the pinned certificate (`pinned_session`); closing it is the caller's.
        url: the control plane's origin.
        time: is told of every reply's time.
        tokens: None before the host is enrolled.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, time: ServerTime, tokens: HostTokens | None = None
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._time = time
        self._tokens = tokens

    async def enrol(self, request: EnrolRequest) -> EnrolReply:
        """
        Asks to be let in.

        Raises:
            ControlPlaneUnreachable, ControlPlaneRefused, ReplyUnreadable: as their texts tell; the host is not in.
        """
        reply = await self._post("/agent/v1/enrol", request, EnrolReply, timeout_s=ANSWER_S)
        if reply is None:
            raise ReplyUnreadable("the control plane answered the enrolment with nothing")
        self._time.heard(reply.server_time)
        return reply

    async def exchange(self, report: Report) -> Desired | None:
        """
        Reports, and waits for the desired state for at most `report.hold_s` seconds and the way.

        Returns:
            The desired state; None where the control plane had nothing to say.

        Raises:
            ControlPlaneUnreachable, ControlPlaneRefused, ReplyUnreadable: as their texts tell.
        """
        desired = await self._post("/agent/v1/exchange", report, Desired, timeout_s=report.hold_s + ANSWER_S)
        if desired is not None:
            self._time.heard(desired.server_time)
        return desired

    async def authorise(self, request: AuthoriseRequest) -> AuthoriseReply:
        """
        Asks whether a visitor may reach a cluster; gateways only.

        Raises:
            ControlPlaneUnreachable, ControlPlaneRefused, ReplyUnreadable: as their texts tell.
        """
        reply = await self._post("/agent/v1/authorise", request, AuthoriseReply, timeout_s=5.0)
        return reply if reply is not None else AuthoriseReply(allowed=False, reason="no answer")

    async def _post(self, path: str, message: msgspec.Struct, kind: type[M], *, timeout_s: float) -> M | None:
        headers = {"Content-Type": "application/json"}
        if self._tokens is not None:
            headers["Authorization"] = f"Bearer {self._tokens.token()}"
        try:
            async with self._session.post(
                self._url + path,
                data=encode(message),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=10),
                allow_redirects=False,
            ) as response:
                body = await _bounded(response)
                status, received = response.status, response.headers.copy()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ControlPlaneUnreachable(
                f"the control plane at {self._url} does not answer: {error or type(error).__name__}"
            ) from error
        if status == 204:
            return None
        if status != 200:
            self._take_refusal(path, status, body, received)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ReplyUnreadable(f"a reply of the control plane cannot be read: {error}; nothing was done") from error

    def _take_refusal(self, path: str, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if status in (429, 502, 503, 504) or status >= 500:
            raise ControlPlaneUnreachable(f"the control plane at {self._url} answers {status}", status=status)
        if status == 401:
            # Perhaps the token was made with a wrong time: the reply tells the right one.
            self._take_date(headers.get("Date", ""))
            if self._tokens is not None:
                self._tokens.forget()
        code, detail, hint = _problem(body)
        raise ControlPlaneRefused(
            f"the control plane refuses {path}: {detail or f'status {status}'}", status=status, reason=code, hint=hint
        )

    def _take_date(self, header: str) -> None:
        try:
            self._time.heard(parsedate_to_datetime(header).astimezone(UTC))
        except (TypeError, ValueError):
            return


async def fetch_ca(url: str, ca_sha256: str) -> str:
    """
    The control plane's CA certificate (PEM), fetched without trust and held against its known hash.

    Args:
        url: the control plane's origin.
        ca_sha256: SHA-256 of the certificate's DER form, hex; empty for plain HTTP, and where the control plane has a
            certificate of a public authority, which is then checked like any other.

    Returns:
        The certificate to pin; empty where there is none.

    Raises:
        UrlRefused: not an origin, or plain HTTP beyond this machine.
        CertificateRefused: another certificate than the join line names.
        ControlPlaneUnreachable: it does not answer.
    """
    if not is_encrypted(url) or not ca_sha256:
        return ""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S)) as session,
            session.get(url.rstrip("/") + "/ca.pem", ssl=False, allow_redirects=False) as response,
        ):
            body = await _bounded(response, bytes_max=CERTIFICATE_BYTES_MAX)
            status = response.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ControlPlaneUnreachable(f"the control plane at {url} does not answer: {error}") from error
    if status != 200:
        raise ControlPlaneUnreachable(f"the control plane at {url} gives no certificate (status {status})")
    try:
        certificate = x509.load_pem_x509_certificate(body)
    except ValueError as error:
        raise CertificateRefused(f"what {url} gives as its certificate is none") from error
    found = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
    if found != ca_sha256.lower():
        raise CertificateRefused(
            f"the certificate at {url} has the hash {found}, the join line names {ca_sha256}; nothing was sent to it",
            hint="take a fresh line from `corral host join`; if it differs again, somebody is in between",
        )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def is_encrypted(url: str) -> bool:
    """
    Whether an origin is reached over TLS; plain HTTP is allowed to this machine alone.

    Raises:
        UrlRefused: neither.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise UrlRefused(f"{url!r} is not the address of a control plane: {error}") from error
    if parts.scheme == "https" and host:
        return True
    if parts.scheme == "http" and _is_this_machine(host):
        return False
    raise UrlRefused(
        f"{url!r} is not an address that a control plane may have; nothing was sent",
        hint="write https://HOST:PORT; plain http is for loopback alone",
    )


def pinned_session(ca_pem: str) -> aiohttp.ClientSession:
    """A client session that trusts this CA and nothing else; without one, plain HTTP and public authorities."""
    context: ssl.SSLContext | bool = True
    if ca_pem:
        context = ssl.create_default_context(cadata=ca_pem)
        context.verify_flags |= _NO_CHECK_TIME  # type: ignore[assignment]
    # A held reply and the report that relieves it; the rest is room for questions of a gateway.
    connector = aiohttp.TCPConnector(ssl=context, limit=64, keepalive_timeout=60)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        # A few compressed bytes could unfold to more than we may hold; without a coding every byte is counted.
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
    )


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def _bounded(response: aiohttp.ClientResponse, *, bytes_max: int = REPLY_BYTES_MAX) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > bytes_max:
            raise aiohttp.ClientPayloadError(f"the reply is longer than {bytes_max} bytes")
    return bytes(body)


def _problem(body: bytes) -> tuple[str, str, str | None]:
    """Code, detail and hint of problem+json; empty where the body is something else."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", "", None
    if not isinstance(found, dict):
        return "", "", None
    hint = found.get("hint")
    return str(found.get("code", ""))[:100], str(found.get("detail", ""))[:1000], str(hint)[:1000] if hint else None
