"""
The control plane's own certificate authority, and its server certificate.

    DATA_DIR/tls/ca.key      0600; signs server certificates, at start only
    DATA_DIR/tls/ca.pem      what people and agents pin
    DATA_DIR/tls/server.key  0600
    DATA_DIR/tls/server.pem

Hosts pin the CA by the hash in their join line, so the server certificate can be renewed without telling them.
"""

import hashlib
import ipaddress
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from corral.platform.errors import CertificateUnusable
from corral.platform.files import write_secret

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=397)
"""What browsers accept at most of a public CA, kept for ours."""

RENEW_BEFORE = timedelta(days=30)
CLOCK_TOLERANCE = timedelta(days=1)
"""Certificates begin in the past: hosts with a wrong wall clock must be able to join, and are told then."""

ALWAYS_NAMES = ("localhost", "127.0.0.1", "::1", "host.docker.internal")

_log = structlog.get_logger("corral.tls")


@dataclass(frozen=True)
class ServerCertificate:
    """What the server presents, and what its clients pin."""

    certificate: Path
    key: Path
    ca_pem: str
    """Empty for a given certificate: clients then trust who signed it, not us."""
    ca_sha256: str


def own_certificate(data_dir: Path, names: Iterable[str], now: datetime) -> ServerCertificate:
    """
    A certificate of the own CA for `names` (DNS names and addresses) besides those of this machine.

    Both are made if missing; the server's is renewed when its end is near, the names or the CA changed.

    Raises:
        CertificateUnusable: a file of the CA is damaged, or a name is none.
    """
    folder = data_dir / "tls"
    folder.mkdir(mode=0o700, exist_ok=True)
    ca_key, ca = _load_or_make_ca(folder, now)
    wanted = _general_names([*ALWAYS_NAMES, *names])
    if not _is_current(folder, ca, wanted, now):
        _make_server_certificate(folder, ca_key, ca, wanted, now)
    return ServerCertificate(
        certificate=folder / "server.pem",
        key=folder / "server.key",
        ca_pem=ca.public_bytes(serialization.Encoding.PEM).decode(),
        ca_sha256=hashlib.sha256(ca.public_bytes(serialization.Encoding.DER)).hexdigest(),
    )


def given_certificate(certificate: Path, key: Path) -> ServerCertificate:
    """
    A certificate that the operator has from elsewhere.

    Raises:
        CertificateUnusable: a file cannot be read, or the two do not belong together.
    """
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise CertificateUnusable(f"the certificate {certificate} with key {key} cannot be used: {error}") from None
    return ServerCertificate(certificate, key, ca_pem="", ca_sha256="")


def _load_or_make_ca(folder: Path, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key_path, certificate_path = folder / "ca.key", folder / "ca.pem"
    if certificate_path.exists():
        try:
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            ca = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        except (OSError, ValueError) as error:
            raise CertificateUnusable(f"the own certificate authority in {folder} is damaged: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
            raise CertificateUnusable(f"in {folder}, ca.key does not belong to ca.pem")
        return key, ca
    key = ec.generate_private_key(ec.SECP256R1())
    # The serial in the name keeps two Corrals apart for a client that trusts both.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Corral CA {os.urandom(4).hex()}")])
    ca = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_path.unlink(missing_ok=True)  # Of a run that was interrupted between the two files.
    write_secret(key_path, _pem_of(key))
    write_secret(certificate_path, ca.public_bytes(serialization.Encoding.PEM))
    _log.info("tls.ca_made", file=str(certificate_path))
    return key, ca


def _is_current(folder: Path, ca: x509.Certificate, wanted: list[x509.GeneralName], now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
        certificate.verify_directly_issued_by(ca)
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except Exception as error:
        # Whatever is wrong with it, a new one is right; its loss costs nothing.
        if not isinstance(error, FileNotFoundError):
            _log.warning("tls.certificate_replaced", reason=f"{type(error).__name__}: {error}")
        return False
    return (
        names == wanted
        and key.public_key() == certificate.public_key()
        and certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - RENEW_BEFORE
    )


def _make_server_certificate(
    folder: Path,
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    names: list[x509.GeneralName],
    now: datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Corral control plane")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(min(now + SERVER_LIFETIME, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    for path, content in (
        (folder / "server.key", _pem_of(key)),
        (folder / "server.pem", certificate.public_bytes(serialization.Encoding.PEM)),
    ):
        path.unlink(missing_ok=True)
        write_secret(path, content)
    _log.info("tls.certificate_made", names=[str(name.value) for name in names])


def _general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    """The distinct names as a certificate writes them, in a fixed order."""
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            try:
                found.append(x509.DNSName(name.encode("idna").decode().lower()))
            except (UnicodeError, ValueError):
                raise CertificateUnusable(f"{name!r} is neither a DNS name nor an address") from None
    return found


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
