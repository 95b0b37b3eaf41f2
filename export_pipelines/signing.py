"""Ed25519 signatures (RFC 8032): a key pair, what signs, and what checks with the public key alone.

Keys are files in PEM as `openssl genpkey -algorithm ed25519` writes them, signatures 64 raw bytes, so that
`openssl pkeyutl -verify -pubin -inkey FILE -rawin -in ENTRY -sigfile SIGNATURE` says the same as we do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export_pipelines.errors import RequestError

_HINT = "`export-pipelines keygen FILE` makes a pair of keys"


@dataclass(frozen=True)
class PublicKey:
    """What checks signatures: the 32 bytes of the key."""

    raw: bytes

    def fits(self, signature: bytes, data: bytes) -> bool:
        """Whether the signature is of these bytes, by this key."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def __str__(self) -> str:
        """A fingerprint for people: the first 16 hex digits of the SHA-256 of the key."""
        return hashlib.sha256(self.raw).hexdigest()[:16]


@dataclass(frozen=True)
class Signer:
    """What signs. The private key is in no repr and cannot be pickled, so that it leaves no process by accident."""

    public: PublicKey
    _key: Any = field(repr=False, compare=False)
    others: tuple[PublicKey, ...] = ()
    """Public keys of earlier key pairs: what they signed stays valid."""

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """All keys whose signatures are valid, its own first."""
        return (self.public, *self.others)

    def sign(self, data: bytes) -> bytes:
        """64 bytes. The same bytes always have the same signature."""
        signature: bytes = self._key.sign(data)
        return signature

    def __reduce__(self) -> Any:
        raise TypeError("a private key is not handed on")


@dataclass(frozen=True)
class SigningKeys:
    """What a project has of keys: one to sign with, if it signs, and those whose signatures are valid."""

    signer: Signer | None = None
    public: tuple[PublicKey, ...] = ()


NO_SIGNING = SigningKeys()


def fits_any(keys: Sequence[PublicKey], signature: bytes, data: bytes) -> bool:
    """Whether one of the keys says that the signature is of these bytes."""
    return any(key.fits(signature, data) for key in keys)


def read_signer(pem: bytes, name: str, others: Sequence[PublicKey] = ()) -> Signer:
    """The signer of a private key in PEM, not encrypted; `name` says in errors where it came from.

    Raises:
        RequestError: it is no such key. What it is instead is not said.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key: Any = None
    # UnsupportedAlgorithm is an Exception of its own, and every one may quote what it was given.
    with suppress(Exception):
        key = load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise RequestError(f"{name} has no Ed25519 private key in PEM without a passphrase", hint=_HINT)
    return Signer(PublicKey(key.public_key().public_bytes_raw()), key, tuple(others))


def read_public_key(file: Path) -> PublicKey:
    """The public key of a file in PEM.

    Raises:
        RequestError: it cannot be read, or is no public key; a private one is refused, since it does not belong there.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read_key_file(file)
    key: Any = None
    with suppress(Exception):
        key = load_pem_public_key(data)
    if not isinstance(key, Ed25519PublicKey):
        raise RequestError(
            f"{file} has no Ed25519 public key in PEM", hint="`openssl pkey -in PRIVATE -pubout` gives that of a pair"
        )
    return PublicKey(key.public_bytes_raw())


def read_key_file(file: Path) -> bytes:
    """Bytes of a file with a key. Raises RequestError if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}", hint=_HINT) from error


def make_keys(file: Path) -> Path:
    """Make a key pair: the private key in `file`, mode 0600, the public one beside it; return that one's path.

    Crash: there may be a private key without its public one; `openssl pkey -pubout` gives it.

    Raises:
        RequestError: one of the files exists, or cannot be written. No key is ever overwritten.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = file.with_name(f"{file.name}.pub")
    if public.exists():
        raise RequestError(f"{public} exists", hint="give another name; no key is overwritten")
    _write(file, key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()), 0o600)
    _write(public, key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo), 0o644)
    return public


def _write(file: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise RequestError(f"{file} exists", hint="give another name; no key is overwritten") from None
    except OSError as error:
        raise RequestError(f"{file} cannot be written: {error.strerror}", hint="does its folder exist?") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
