"""Enrolment: a host shows its token and its key, and is known from then on."""

import base64
from typing import Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.wire.agent import EnrolRequest, Identity


def enrol_request(
    token: str,
    key: Ed25519PrivateKey,
    identity: Identity,
    *,
    name: str,
    role: Literal["host", "gateway", "relay"],
    development: bool,
    agent_version: str,
) -> EnrolRequest:
    """
    The message with which a host asks to be let in.

    The signature over token and public key proves that the host holds the private key, and binds it to this token.
    """
    public_key = public_key_text(key)
    signature = base64.b64encode(key.sign(f"{token}\n{public_key}".encode())).decode()
    return EnrolRequest(
        token=token,
        public_key=public_key,
        signature=signature,
        identity=identity,
        name=name,
        role=role,
        development=development,
        agent_version=agent_version,
    )


def public_key_text(key: Ed25519PrivateKey) -> str:
    """The public key as messages carry it: 32 bytes in base 64."""
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.b64encode(raw).decode()
