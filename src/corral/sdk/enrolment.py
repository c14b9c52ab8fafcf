"""The first contact with a control plane: whom to believe from then on."""

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from corral.sdk import config
from corral.sdk.addresses import checked_url, host_of, is_loopback, is_plain
from corral.sdk.tls import CONNECT_TIMEOUT_S, certificate_reason, compare, fetch_ca, unreachable


@dataclass(frozen=True)
class Trusted:
    """A control plane, and the CA that its certificate must come from; None: the machine's list, or plain HTTP."""

    url: str
    ca: str | None
    sha256: str | None


def establish_trust(url: str, *, ca_sha256: str | None, accept: Callable[[str, str, bool], None]) -> Trusted:
    """
    Finds out how to verify a control plane, and keeps its CA's certificate next to the settings file.

    A CA named by CORRAL_CA is believed; a given fingerprint is compared; a certificate that the machine believes needs
    nothing more; otherwise `accept(url, fingerprint, is_this_machine)` decides, by raising if it does not.

    Raises:
        CertificateMismatch: the CA is not the one with the given fingerprint.
        Unreachable: nobody answers.
        AnswerMalformed: the control plane offers no CA certificate.
    """
    url = checked_url(url)
    if is_plain(url):
        return Trusted(url, None, None)
    known = config.effective(url=url)
    if ca_sha256 is None and known.ca is not None:
        return Trusted(url, known.ca, known.ca_sha256)
    if ca_sha256 is None and _is_publicly_trusted(url):
        return Trusted(url, None, None)
    found = fetch_ca(url)
    if ca_sha256 is not None:
        compare(found, ca_sha256, url=url)
    else:
        accept(url, found.sha256, is_loopback(host_of(url)))
    path = config.config_dir() / config.CA_NAME
    config.save_ca(found.pem, path)
    return Trusted(url, str(path), found.sha256)


def _is_publicly_trusted(url: str) -> bool:
    try:
        with httpx.Client(timeout=CONNECT_TIMEOUT_S, trust_env=not is_loopback(host_of(url))) as http:
            http.get(f"{url}/healthz")
    except httpx.TransportError as error:
        if certificate_reason(error) is None:
            raise unreachable(url, error) from error
        return False
    return True
