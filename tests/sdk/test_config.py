"""The settings file, what overrides it, and whom it makes the client believe."""

import datetime
import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from corral.sdk import config
from corral.sdk.client import Client
from corral.sdk.config import Config
from corral.sdk.enrolment import Trusted, establish_trust
from corral.sdk.errors import (
    AnswerMalformed,
    ApiKeyMalformed,
    CertificateMismatch,
    CertificateUntrusted,
    ConfigMalformed,
)
from corral.sdk.tls import parse_ca
from sdk.fake_control_plane import KEY, FakeControlPlane, Serving


def test_saved_settings_are_read_back_and_private(tmp_path: Path) -> None:
    """Mode 0600 from the first byte; no other file is left behind."""
    path = tmp_path / "corral" / "config.toml"
    saved = Config(url="https://a.example", api_key='k."s\\', ca="/x/ca.pem", ca_sha256="ab")
    old_mask = os.umask(0)
    try:
        config.save(Config(), path)
        config.save(saved, path)
    finally:
        os.umask(old_mask)
    assert config.load(path) == saved
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["config.toml"]


def test_key_of_one_address_is_not_used_with_another(tmp_path: Path) -> None:
    """CORRAL_URL alone must not carry the stored key to somebody else."""
    path = tmp_path / "config.toml"
    config.save(Config(url="https://a.example", api_key="k.s", ca="/x"), path)
    same = config.effective(environ={"CORRAL_URL": "https://a.example/"}, path=path)
    other = config.effective(environ={"CORRAL_URL": "https://b.example"}, path=path)
    assert (same.api_key, same.ca) == ("k.s", "/x")
    assert (other.api_key, other.ca) == (None, None)


def test_environment_comes_before_the_file(tmp_path: Path) -> None:
    """And arguments before both."""
    path = tmp_path / "config.toml"
    config.save(Config(url="https://a.example", api_key="stored", ca="/stored"), path)
    environ = {"CORRAL_API_KEY": "environment", "CORRAL_CA": "/environment"}
    found = config.effective(environ=environ, path=path)
    assert (found.url, found.api_key, found.ca) == ("https://a.example", "environment", "/environment")
    assert config.effective(api_key="argument", environ=environ, path=path).api_key == "argument"


def test_key_of_the_environment_that_cannot_be_one_is_named_and_not_quoted(tmp_path: Path) -> None:
    """The variable is at fault, not the file, which need not be changed."""
    with pytest.raises(ApiKeyMalformed, match="CORRAL_API_KEY") as caught:
        config.effective(environ={"CORRAL_API_KEY": "hidden\n"}, path=tmp_path / "config.toml")
    assert "hidden" not in f"{caught.value} {caught.value.hint}"


def test_kept_key_that_cannot_be_one_does_not_stand_in_the_way_of_another(tmp_path: Path) -> None:
    """Whoever logs in anew must get as far as the file."""
    path = tmp_path / "config.toml"
    config.save(Config(url="https://a.example", api_key="a b"), path)
    kept = config.effective(environ={}, path=path)
    assert config.effective(api_key="k.s", environ={}, path=path).api_key == "k.s"
    with pytest.raises(ApiKeyMalformed, match=r"kept for https://a\.example") as caught:
        config.key_of(kept)
    assert caught.value.hint == "`corral login`"


@pytest.mark.parametrize("text", ["url = ", "api_key = 5", "\x00"])
def test_malformed_settings_are_told_without_their_content(tmp_path: Path, text: str) -> None:
    """A line of the file could be the key."""
    path = tmp_path / "config.toml"
    path.write_text(f'ca = "very-secret"\n{text}')
    with pytest.raises(ConfigMalformed) as caught:
        config.load(path)
    assert "very-secret" not in str(caught.value)


def test_settings_are_never_printed_with_the_key() -> None:
    """Tracebacks and logs show representations."""
    assert "secret" not in repr(Config(api_key="k.secret"))


class Authority:
    """A CA of our own, and a certificate for 127.0.0.1 by it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test CA {folder.name}")])
        certificate = self._certificate(self.name, self.key.public_key(), is_ca=True)
        self.pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.file = folder / "ca.pem"
        self.file.write_text(self.pem)
        server_key = ec.generate_private_key(ec.SECP256R1())
        server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        server = self._certificate(server_name, server_key.public_key(), is_ca=False)
        self.server_file, self.server_key_file = folder / "server.pem", folder / "server.key"
        self.server_file.write_bytes(server.public_bytes(serialization.Encoding.PEM))
        self.server_key_file.write_bytes(
            server_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def _certificate(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, is_ca: bool) -> x509.Certificate:
        import ipaddress

        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if is_ca:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        else:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The control plane's CA."""
    return Authority(tmp_path_factory.mktemp("authorities") / "ours")


@pytest.fixture
def secure(authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The address of a fake control plane behind TLS of its own CA."""
    fake = FakeControlPlane()
    routes = [Route("/ca.pem", lambda _: PlainTextResponse(authority.pem)), Mount("/", app=fake.app())]
    serving = Serving(
        Starlette(routes=routes), ssl_certfile=str(authority.server_file), ssl_keyfile=str(authority.server_key_file)
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("CORRAL_URL", "CORRAL_API_KEY", "CORRAL_CA"):
        monkeypatch.delenv(name, raising=False)
    yield f"https://127.0.0.1:{serving.port}"
    serving.close()


def test_own_ca_is_believed_by_file_and_by_fingerprint(secure: str, authority: Authority) -> None:
    """Both pins lead to the same trust."""
    with Client(secure, KEY, ca=authority.file) as client:
        assert client.whoami().person.name == "ada"
    with Client(secure, KEY, ca_sha256=parse_ca(authority.pem).sha256) as client:
        assert client.whoami().person.name == "ada"


def test_unknown_ca_gets_no_key(secure: str, tmp_path: Path) -> None:
    """Neither without a pin, nor with another CA, nor with another fingerprint."""
    with Client(secure, KEY) as client, pytest.raises(CertificateUntrusted):
        client.whoami()
    with Client(secure, KEY, ca=Authority(tmp_path / "other").file) as client, pytest.raises(CertificateUntrusted):
        client.whoami()
    with Client(secure, KEY, ca_sha256="00" * 32) as client, pytest.raises(CertificateMismatch):
        client.whoami()


def test_trust_is_established_by_fingerprint_and_kept(secure: str, authority: Authority) -> None:
    """The CA's file lies next to the settings, and serves from then on."""
    fingerprint = parse_ca(authority.pem).sha256
    trusted = establish_trust(secure, ca_sha256=fingerprint.upper(), accept=_nobody)
    assert trusted == Trusted(secure, str(config.config_dir() / "ca.pem"), fingerprint)
    assert stat.S_IMODE(Path(trusted.ca or "").stat().st_mode) == 0o600
    with Client(secure, KEY, ca=trusted.ca) as client:
        assert client.whoami().person.name == "ada"


def test_wrong_fingerprint_establishes_nothing(secure: str) -> None:
    """Nothing is kept."""
    with pytest.raises(CertificateMismatch):
        establish_trust(secure, ca_sha256="00" * 32, accept=_nobody)
    assert not (config.config_dir() / "ca.pem").exists()


def test_unknown_ca_is_shown_before_it_is_believed(secure: str, authority: Authority) -> None:
    """Who asks gets address, fingerprint, and whether it is this machine."""
    asked: list[tuple[str, str, bool]] = []
    establish_trust(secure, ca_sha256=None, accept=lambda *question: asked.append(question))
    assert asked == [(secure, parse_ca(authority.pem).sha256, True)]


@pytest.mark.parametrize("text", ["", "no certificate", f"{ssl.PEM_HEADER}\n!!\n{ssl.PEM_FOOTER}"])
def test_what_is_no_certificate_is_refused(text: str) -> None:
    """A proxy's login page is no CA."""
    with pytest.raises(AnswerMalformed):
        parse_ca(text)


def _nobody(url: str, sha256: str, is_local: bool) -> None:
    raise AssertionError("nobody should be asked")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_writes_belongs_to_whom_the_folder_belongs_to(tmp_path: Path) -> None:
    """`sudo corral connect` leaves nothing in a person's folders that she cannot read."""
    os.chown(tmp_path, 12_345, 12_346)
    path = tmp_path / "corral" / "connect" / "token"
    config.write_private(path, "secret")
    for one in (path, path.parent, path.parent.parent):
        assert (one.stat().st_uid, one.stat().st_gid) == (12_345, 12_346)
    assert path.stat().st_mode & 0o777 == 0o600
