"""Whom to believe: the control plane's own CA, pinned by file or by fingerprint, or the machine's list of CAs."""

import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx

from corral.sdk.addresses import is_plain
from corral.sdk.config import Config
from corral.sdk.errors import (
    AnswerMalformed,
    CertificateMismatch,
    CertificateUntrusted,
    ConfigMalformed,
    SdkError,
    Unreachable,
)

CA_BYTES_MAX = 64 * 1024
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class CaCertificate:
    """A control plane's CA: the certificate as PEM text, and the SHA-256 of its DER form, lower-case hex."""

    pem: str
    sha256: str


def parse_ca(pem: str) -> CaCertificate:
    """
    Reads one PEM certificate.

    Raises:
        AnswerMalformed: there is none in `pem`.
    """
    start, end = pem.find(ssl.PEM_HEADER), pem.find(ssl.PEM_FOOTER)
    if start < 0 or end < start:
        raise AnswerMalformed("what should be a CA certificate is none")
    first = pem[start : end + len(ssl.PEM_FOOTER)] + "\n"
    try:
        der = ssl.PEM_cert_to_DER_cert(first)
        if not der:
            raise ValueError("empty")
        ssl.create_default_context(cadata=der)
    except (ValueError, ssl.SSLError) as error:
        raise AnswerMalformed("what should be a CA certificate is none") from error
    return CaCertificate(first, hashlib.sha256(der).hexdigest())


def fetch_ca(url: str) -> CaCertificate:
    """
    The CA certificate that `url` offers, unverified: compare its fingerprint before you believe it. No key is sent.

    Raises:
        Unreachable: nobody answers.
        AnswerMalformed: the answer is not a certificate.
    """
    try:
        # Unverified on purpose: what is fetched is public, and worth nothing until its fingerprint has been compared.
        with httpx.Client(verify=False, timeout=CONNECT_TIMEOUT_S, trust_env=False) as http:
            answer = http.get(f"{url}/ca.pem")
    except httpx.TransportError as error:
        raise unreachable(url, error) from error
    if answer.status_code != 200 or len(answer.content) > CA_BYTES_MAX:
        raise AnswerMalformed(f"{url} offers no CA certificate (HTTP {answer.status_code})", url=url)
    return parse_ca(answer.text)


def compare(found: CaCertificate, expected_sha256: str, *, url: str) -> None:
    """
    Accepts the certificate if its fingerprint is the expected one (hex; case, colons and spaces do not matter).

    Raises:
        CertificateMismatch: it is another one.
    """
    if found.sha256 != normalised_fingerprint(expected_sha256):
        raise CertificateMismatch(
            f"{url} shows a CA with the fingerprint {found.sha256}, not {expected_sha256}; nothing was sent",
            hint="ask the operator for the fingerprint; if it is right, somebody is between you and the control plane",
            url=url,
            found=found.sha256,
            expected=expected_sha256,
        )


def normalised_fingerprint(text: str) -> str:
    """A fingerprint as 64 lower-case hex digits, without the separators that people copy along."""
    return text.replace(":", "").replace(" ", "").lower()


def control_plane_context(config: Config) -> ssl.SSLContext | None:
    """
    How to verify the control plane: with the pinned CA alone if there is one, else with the machine's; None for HTTP.

    Raises:
        ConfigMalformed: the CA file is missing or no certificate.
        CertificateMismatch: only a fingerprint is known, and the control plane offers another certificate.
        Unreachable: only a fingerprint is known, and nobody answers.
    """
    url = config.url or ""
    if is_plain(url):
        return None
    if config.ca is not None:
        return ssl.create_default_context(cadata=_read_ca(config.ca).pem)
    if config.ca_sha256 is not None:
        found = fetch_ca(url)
        compare(found, config.ca_sha256, url=url)
        return ssl.create_default_context(cadata=found.pem)
    return ssl.create_default_context()


def gateway_context(config: Config) -> ssl.SSLContext:
    """
    How to verify a gateway, whose address came from the verified control plane: the machine's CAs or the pinned one.

    A gateway may carry a public certificate for its domain while the control plane has its own CA.
    """
    context = ssl.create_default_context()
    if config.ca is not None:
        context.load_verify_locations(cadata=_read_ca(config.ca).pem)
    elif config.ca_sha256 is not None:
        found = fetch_ca(config.url or "")
        compare(found, config.ca_sha256, url=config.url or "")
        context.load_verify_locations(cadata=found.pem)
    return context


def unreachable(url: str, error: Exception) -> SdkError:
    """The typed error for a failed connection to `url`."""
    if (reason := certificate_reason(error)) is not None:
        return CertificateUntrusted(
            f"the certificate of {url} is not to be trusted: {reason}; nothing was sent",
            hint=f"`corral login --url {url} --ca-sha256 FINGERPRINT` with the fingerprint that the operator tells you",
            url=url,
        )
    kind = "did not answer in time" if isinstance(error, httpx.TimeoutException | TimeoutError) else "cannot be reached"
    reason = "" if isinstance(error, httpx.TimeoutException) or not str(error) else f": {_plain_reason(error)}"
    return Unreachable(
        f"{url} {kind}{reason}",
        hint="check the address (`CORRAL_URL`, `corral login --url …`) and that the control plane runs",
        url=url,
    )


def certificate_reason(error: BaseException | None) -> str | None:
    """Why a certificate was refused; None if that is not what happened."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        if isinstance(error, ssl.SSLError) and error.reason is not None and "CERTIFICATE" in error.reason:
            return error.reason.replace("_", " ").lower()
        error = error.__cause__ or error.__context__
    return None


def _plain_reason(error: Exception) -> str:
    text = str(error)
    return text.partition("] ")[2].lower() if text.startswith("[Errno") else text.lower()


def _read_ca(path: str) -> CaCertificate:
    try:
        return parse_ca(Path(path).expanduser().read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError, AnswerMalformed) as error:
        raise ConfigMalformed(
            f"the CA certificate {path} cannot be read; nothing was sent",
            hint="`corral login` fetches it again; or set CORRAL_CA to a PEM file",
            path=path,
        ) from error
