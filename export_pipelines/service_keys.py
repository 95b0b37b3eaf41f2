"""The secrets of the service: one key for ids, links, cookies and webhooks, and one identity that opens stored files.

They are files of mode 0600 in `.local/keys/`, made when they are first needed, or come from the environment:
EXPORT_PIPELINES_SECRET (32 bytes or more, as base64 or any text) and EXPORT_PIPELINES_IDENTITY (`AGE-SECRET-KEY-1…`).
All processes of a service, on all its machines, need the same ones.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from export_pipelines.errors import RequestError

SECRET = "EXPORT_PIPELINES_SECRET"
IDENTITY = "EXPORT_PIPELINES_IDENTITY"
_SHORTEST = 32


@dataclass(frozen=True)
class ServiceKeys:
    """The secrets. `recipient` is public: files are encrypted to it."""

    secret: bytes = field(repr=False)
    identity: str = field(repr=False)

    def key(self, purpose: str) -> bytes:
        """A key of its own for a purpose: `ids`, `links`, `cookies`, `webhooks`, `hawk` or `pages`."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(SHA256(), 32, None, f"export_pipelines {purpose}".encode()).derive(self.secret)

    @property
    def recipient(self) -> str:
        """The public key of the identity."""
        from pyrage import x25519

        return str(x25519.Identity.from_str(self.identity).to_public())


def load_service_keys(state: Path) -> ServiceKeys:
    """The secrets of the project whose state (`.local`) this is.

    Crash, or two at once: a file is there whole, or not at all, and all get the same one.

    Raises:
        RequestError: a file cannot be read or made, or a variable is unfit. Its value is not repeated.
    """
    folder = state / "keys"
    secret = os.environ.get(SECRET) or _file(folder / "service.secret", lambda: secrets.token_hex(32))
    if len(secret) < _SHORTEST:
        raise RequestError(
            f"{SECRET} is shorter than {_SHORTEST} characters", hint="take some from: openssl rand -hex 32"
        )
    identity = os.environ.get(IDENTITY) or _file(folder / "service.age", _new_identity)
    keys = ServiceKeys(secret.encode(), identity)
    try:
        _ = keys.recipient
    except Exception:
        raise RequestError(
            f"{IDENTITY} or {folder / 'service.age'} is no age identity", hint="see `age-keygen`"
        ) from None
    return keys


def _new_identity() -> str:
    from pyrage import x25519

    return str(x25519.Identity.generate())


def _file(path: Path, make: Callable[[], str]) -> str:
    """The text of a file, which is made if it is not there."""
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(make() + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            try:
                os.link(new, path)
            except FileExistsError:
                pass  # another process was first: its key counts
            finally:
                new.unlink()
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RequestError(f"{path} cannot be read or made: {error.strerror}", hint="see the owner of .local") from None
