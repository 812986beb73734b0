"""Signs statements with a key file, and checks what a key has signed.

The envelope is DSSE's, the wrapping a Sigstore bundle with a public key: what cosign writes for a key pair.
Keys are those that cosign uses: Ed25519, or ECDSA on P-256 with SHA-256, in files of PEM form.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from llama_images import oci
from llama_images.attestation import BUNDLE, PAYLOAD
from llama_images.errors import CheckFailed, UsageError

KEY_VARIABLE: Final = "LLAMA_IMAGES_KEY"
"""Names the key's file where no argument does, or holds the key: secrets of a CI come as variables."""
PASSWORD_VARIABLE: Final = "LLAMA_IMAGES_KEY_PASSWORD"  # noqa: S105 - the variable's name

_HINT: Final = "openssl genpkey -algorithm ed25519 -out key.pem makes a key"

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


def pre_authentication(payload: bytes, payload_type: str = PAYLOAD) -> bytes:
    """What DSSE signs in place of the payload, so that no signature is valid for another kind of payload."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


class KeySigner:
    """Implements ``ports.Signer`` with a private key."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key
        self._verifier = KeyVerifier(key.public_key())

    @property
    def verifier(self) -> KeyVerifier:
        """Checks what this has signed."""
        return self._verifier

    @property
    def name(self) -> str:
        return self._verifier.name

    def sign(self, payload: bytes) -> bytes:
        """The signed payload, an in-toto statement, as a bundle."""
        data = pre_authentication(payload)
        if isinstance(self._key, Ed25519PrivateKey):
            signature = self._key.sign(data)
        else:
            signature = self._key.sign(data, ECDSA(SHA256()))
        return oci.encode(
            {
                "mediaType": BUNDLE,
                "verificationMaterial": {
                    "publicKey": {"hint": self._verifier.hint},
                    "tlogEntries": [],
                },
                "dsseEnvelope": {
                    "payload": base64.b64encode(payload).decode(),
                    "payloadType": PAYLOAD,
                    # The key is the reader's to know: a name in the envelope would prove nothing.
                    "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
                },
            }
        )


class KeyVerifier:
    """Implements ``ports.Verifier`` with a public key."""

    def __init__(self, key: PublicKey) -> None:
        self._key = key
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self._digest = hashlib.sha256(der)

    @property
    def name(self) -> str:
        """The key's fingerprint, SHA-256 over its DER form."""
        return f"sha256:{self._digest.hexdigest()}"

    @property
    def hint(self) -> str:
        """What a bundle calls the key, as cosign does."""
        return base64.b64encode(self._digest.digest()).decode()

    def open(self, bundle: bytes) -> bytes:
        """The payload of a bundle that this key has signed.

        Raises CheckFailed where it was signed by another key, altered afterwards, or is no bundle.
        """
        try:
            value = json.loads(bundle)
            envelope, material = value["dsseEnvelope"], value.get("verificationMaterial") or {}
            if envelope["payloadType"] != PAYLOAD:
                raise CheckFailed("what is signed is no in-toto statement")
            payload = base64.b64decode(envelope["payload"], validate=True)
            signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
            raise CheckFailed("it is no signed statement") from None
        signed = pre_authentication(payload)
        for signature in signatures:
            if self._accepts(signature, signed):
                return payload
        keyless = isinstance(material, dict) and {"certificate", "x509CertificateChain"} & material.keys()
        raise CheckFailed(
            "it is signed without a key (keyless)"
            if keyless
            else f"the key {self.name[:19]}… did not sign it",
            hint="cosign verify-attestation checks a keyless signature"
            if keyless
            else "is it the publisher's key?",
        )

    def _accepts(self, signature: bytes, data: bytes) -> bool:
        try:
            if isinstance(self._key, Ed25519PublicKey):
                self._key.verify(signature, data)
            else:
                self._key.verify(signature, data, ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True


def load_signer(path: Path | None, environment: Mapping[str, str]) -> KeySigner:
    """The private key in a file, or in the variable. Raises UsageError."""
    data, where = _key_bytes(path, environment)
    password = environment.get(PASSWORD_VARIABLE)
    try:
        key = load_pem_private_key(data, password.encode() if password else None)
    except TypeError:
        given = "a password was given, and the key has none" if password else "it needs its password"
        raise UsageError(f"{where}: {given}", hint=f"{PASSWORD_VARIABLE} holds it") from None
    except (ValueError, UnsupportedAlgorithm):
        wrong = "or its password is wrong" if password else "in PEM form"
        raise UsageError(f"{where} holds no private key {wrong}", hint=_HINT) from None
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    ):
        return KeySigner(key)
    raise UsageError(f"{where} holds a key of another kind", hint=f"Ed25519 or ECDSA on P-256; {_HINT}")


def load_verifier(path: Path | None, environment: Mapping[str, str]) -> KeyVerifier:
    """The public key in a file, or that of the private key in it. Raises UsageError."""
    data, where = _key_bytes(path, environment, "the publisher's public key is meant")
    if b"PRIVATE KEY" in data:
        return load_signer(path, environment).verifier
    try:
        key: Any = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(
            f"{where} holds no public key in PEM form",
            hint="openssl pkey -in key.pem -pubout makes it of a private one",
        ) from None
    if isinstance(key, Ed25519PublicKey) or (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    ):
        return KeyVerifier(key)
    raise UsageError(f"{where} holds a key of another kind", hint="Ed25519 or ECDSA on P-256")


def _key_bytes(path: Path | None, environment: Mapping[str, str], hint: str = _HINT) -> tuple[bytes, str]:
    """The key's text, and where it was; ``hint`` is for who gave none."""
    value = environment.get(KEY_VARIABLE, "")
    if path is None and value.lstrip().startswith("-----BEGIN"):
        return value.encode(), KEY_VARIABLE
    if path is None and not value:
        raise UsageError("no key was given", hint=f"--key FILE or {KEY_VARIABLE}; {hint}")
    file = path or Path(value)
    try:
        return file.read_bytes(), str(file)
    except OSError as error:
        raise UsageError(f"the key {file} can't be read: {error.strerror or error}") from None
