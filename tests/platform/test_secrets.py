"""Keys, certificates, settings and logs: made once, closed to others, and never told."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from corral.core.randomness import SeededRandomness
from corral.platform.errors import CertificateUnusable, MasterKeyMalformed, SettingInvalid
from corral.platform.logs import remove_secrets, without_secrets
from corral.platform.master_key import MasterKey, load_master_key
from corral.platform.settings import read_settings
from corral.platform.tls import given_certificate, own_certificate
from corral.testing.clock import START


def test_the_master_key_is_made_once_and_closed_to_others(tmp_path: Path):
    """Another key would orphan every living cluster."""
    first = load_master_key(tmp_path, SeededRandomness(1))
    again = load_master_key(tmp_path, SeededRandomness(2))
    assert first.derive("ray token", "cl_1") == again.derive("ray token", "cl_1")
    file = tmp_path / "master.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    with pytest.raises(MasterKeyMalformed):
        load_master_key(tmp_path, SeededRandomness(1))
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(MasterKeyMalformed):
        load_master_key(tmp_path, SeededRandomness(1))


def test_derived_secrets_differ_by_purpose_and_by_every_part():
    """Moving a letter from one part to the next gives another secret, too."""
    key = MasterKey(bytes(32))
    derived = {
        key.derive(*words) for words in (("a",), ("b",), ("a", "b"), ("a", "b", "c"), ("a", "bc"), ("a", "", "bc"))
    }
    assert len(derived) == 6
    assert repr(key) == "MasterKey(…)"


def test_the_server_certificate_is_renewed_in_time_and_for_other_names_by_the_same_ca(tmp_path: Path):
    """Hosts pin the CA, so that is never made again."""
    first = own_certificate(tmp_path, ["example.org"], START)
    before = first.certificate.read_bytes()
    assert own_certificate(tmp_path, ["example.org"], START + timedelta(days=300)).certificate.read_bytes() == before
    late = own_certificate(tmp_path, ["example.org"], START + timedelta(days=380))
    renewed = late.certificate.read_bytes()
    assert renewed != before
    other = own_certificate(tmp_path, ["example.org", "10.0.0.1"], START + timedelta(days=380))
    assert other.certificate.read_bytes() != renewed
    assert first.ca_sha256 == late.ca_sha256 == other.ca_sha256
    names = x509.load_pem_x509_certificate(other.certificate.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert {str(name.value) for name in names.value} >= {
        "localhost",
        "127.0.0.1",
        "::1",
        "host.docker.internal",
        "10.0.0.1",
    }
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in (tmp_path / "tls").glob("*.key"))


def test_a_given_certificate_must_belong_to_its_key(tmp_path: Path):
    """Found at start, not at the first request."""
    own = own_certificate(tmp_path, [], START)
    assert given_certificate(own.certificate, own.key).ca_sha256 == ""
    with pytest.raises(CertificateUnusable):
        given_certificate(own.certificate, tmp_path / "tls" / "ca.key")
    with pytest.raises(CertificateUnusable):
        given_certificate(tmp_path / "nowhere.pem", own.key)


def test_settings_come_from_the_environment_and_options_win():
    """A wrong value is named, and never quoted: it may be a password."""
    read = read_settings({"CORRAL_QUOTE_EXPIRY_S": "60", "CORRAL_POLL_S": "9", "CORRAL_API_KEY": "x"}, poll_s=2)
    assert (read.quote_expiry_s, read.poll_s) == (60, 2)
    with pytest.raises(SettingInvalid) as refused:
        read_settings({"CORRAL_POLL_S": "hunter2"})
    assert "poll_s" in refused.value.message
    assert "hunter2" not in refused.value.message
    assert "hunter2" not in repr(read_settings({"CORRAL_DATABASE_URL": "postgresql://u:hunter2@h/d"}))


def test_logs_hold_no_secret():
    """A net below the rule: by a field's name, and by a value's form."""
    key = f"key_{1:026d}.{'A' * 43}"
    event = remove_secrets(None, "info", {"event": f"got {key}", "password": "hunter2", "host_id": "ho_1"})
    assert "A" * 43 not in str(event)
    assert "hunter2" not in str(event)
    assert event["host_id"] == "ho_1"
    assert "hunter2" not in without_secrets("postgresql+asyncpg://corral:hunter2@/corral")
