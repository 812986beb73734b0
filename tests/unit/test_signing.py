"""Signed statements: made and opened with keys as openssl and cosign write them, refused for every change."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from llama_images.adapters.signing import (
    KEY_VARIABLE,
    PASSWORD_VARIABLE,
    KeySigner,
    load_signer,
    load_verifier,
    pre_authentication,
)
from llama_images.attestation import BUNDLE, PAYLOAD
from llama_images.errors import CheckFailed, UsageError

STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'
KEYS: dict[str, Any] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "p256": ec.generate_private_key(ec.SECP256R1()),
}


def private(key: Any, protection: KeySerializationEncryption | None = None) -> bytes:
    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection or NoEncryption())
    return data


def public(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data


@pytest.fixture(params=KEYS)
def key(request: pytest.FixtureRequest) -> Any:
    return KEYS[request.param]


def test_what_is_signed_is_opened_with_the_public_key(key: Any, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(private(key))
    (tmp_path / "key.pub").write_bytes(public(key))
    signer = load_signer(tmp_path / "key.pem", {})
    bundle = signer.sign(STATEMENT)
    for file in ("key.pub", "key.pem"):
        verifier = load_verifier(tmp_path / file, {})
        assert verifier.open(bundle) == STATEMENT
        assert verifier.name == signer.name


def test_the_bundle_has_sigstores_form(key: Any) -> None:
    value = json.loads(KeySigner(key).sign(STATEMENT))
    assert value["mediaType"] == BUNDLE
    assert value["verificationMaterial"]["tlogEntries"] == []
    assert len(base64.b64decode(value["verificationMaterial"]["publicKey"]["hint"])) == 32
    envelope = value["dsseEnvelope"]
    assert envelope["payloadType"] == PAYLOAD
    assert base64.b64decode(envelope["payload"]) == STATEMENT
    assert len(envelope["signatures"]) == 1


def test_what_is_signed_is_dsse_s_encoding() -> None:
    """The example of the DSSE specification."""
    assert (
        pre_authentication(b"hello world", "http://example.com/HelloWorld")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def changed(bundle: bytes, **envelope: Any) -> bytes:
    value = json.loads(bundle)
    value["dsseEnvelope"] |= envelope
    return json.dumps(value).encode()


def test_a_change_of_any_part_is_found(key: Any) -> None:
    signer = KeySigner(key)
    bundle = signer.sign(STATEMENT)
    signature = json.loads(bundle)["dsseEnvelope"]["signatures"][0]["sig"]
    other = base64.b64encode(STATEMENT + b" ").decode()
    flipped = bytearray(base64.b64decode(signature))
    flipped[-1] ^= 1
    for altered in (
        changed(bundle, payload=other),
        changed(bundle, signatures=[]),
        changed(bundle, signatures=[{"sig": base64.b64encode(bytes(flipped)).decode()}]),
        changed(bundle, signatures=[{"sig": ""}]),
    ):
        with pytest.raises(CheckFailed, match="did not sign it"):
            signer.verifier.open(altered)
    with pytest.raises(CheckFailed, match="no in-toto statement"):
        signer.verifier.open(changed(bundle, payloadType="text/plain"))


def test_another_key_is_refused(key: Any) -> None:
    bundle = KeySigner(key).sign(STATEMENT)
    for other in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())):
        with pytest.raises(CheckFailed, match="did not sign it"):
            KeySigner(other).verifier.open(bundle)


def test_one_good_signature_of_several_is_enough(key: Any) -> None:
    signer = KeySigner(key)
    bundle = signer.sign(STATEMENT)
    good = json.loads(bundle)["dsseEnvelope"]["signatures"][0]
    assert signer.verifier.open(changed(bundle, signatures=[{"sig": "AAAA"}, good])) == STATEMENT


@pytest.mark.parametrize(
    "bundle", [b"", b"[]", b"{}", b'{"dsseEnvelope": {}}', b'{"dsseEnvelope": "x"}', b"\xff", b"null"]
)
def test_what_is_no_bundle(bundle: bytes) -> None:
    with pytest.raises(CheckFailed, match="it is no signed statement"):
        KeySigner(KEYS["ed25519"]).verifier.open(bundle)


def test_a_payload_that_is_no_base64(key: Any) -> None:
    bundle = changed(KeySigner(key).sign(STATEMENT), payload="!!!")
    with pytest.raises(CheckFailed, match="it is no signed statement"):
        KeySigner(key).verifier.open(bundle)


def test_a_keyless_signature_is_named(key: Any) -> None:
    value = json.loads(KeySigner(key).sign(STATEMENT))
    value["verificationMaterial"] = {"certificate": {"rawBytes": "AAAA"}}
    other = KeySigner(ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(CheckFailed, match="signed without a key") as caught:
        other.verifier.open(json.dumps(value).encode())
    assert "cosign verify-attestation" in str(caught.value.hint)


def test_a_key_with_a_password(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private(KEYS["p256"], BestAvailableEncryption(b"secret-of-the-key")))
    assert load_signer(path, {PASSWORD_VARIABLE: "secret-of-the-key"}).name == KeySigner(KEYS["p256"]).name
    with pytest.raises(UsageError, match="it needs its password"):
        load_signer(path, {})
    with pytest.raises(UsageError, match="or its password is wrong") as caught:
        load_signer(path, {PASSWORD_VARIABLE: "another-secret"})
    assert "another-secret" not in f"{caught.value.message} {caught.value.hint}"
    path.write_bytes(private(KEYS["p256"]))
    with pytest.raises(UsageError, match="and the key has none"):
        load_signer(path, {PASSWORD_VARIABLE: "x"})


def test_a_key_in_a_variable(tmp_path: Path) -> None:
    """As CI keeps secrets: the key itself, or the file that it lies in."""
    wanted = KeySigner(KEYS["ed25519"]).name
    assert load_signer(None, {KEY_VARIABLE: private(KEYS["ed25519"]).decode()}).name == wanted
    (tmp_path / "key.pem").write_bytes(private(KEYS["ed25519"]))
    assert load_signer(None, {KEY_VARIABLE: str(tmp_path / "key.pem")}).name == wanted


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no private key in PEM form"),
        (
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "holds no private key in PEM form",
        ),
        (public(KEYS["ed25519"]), "holds no private key in PEM form"),
        (private(RSA), "a key of another kind"),
        (private(ec.generate_private_key(ec.SECP384R1())), "a key of another kind"),
    ],
)
def test_what_can_not_sign(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=words) as caught:
        load_signer(path, {})
    assert str(path) in caught.value.message
    assert "openssl genpkey" in str(caught.value.hint)


def test_what_can_not_verify(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(b"ssh-ed25519 AAAA")
    with pytest.raises(UsageError, match="holds no public key in PEM form"):
        load_verifier(path, {})
    path.write_bytes(public(RSA))
    with pytest.raises(UsageError, match="a key of another kind"):
        load_verifier(path, {})


def test_no_key_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no key was given"):
        load_signer(None, {})
    with pytest.raises(UsageError, match="can't be read: No such file"):
        load_signer(tmp_path / "none", {})
