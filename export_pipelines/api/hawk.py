"""HAWK as its authors' server has it: a call is signed by a shared key, and so is its answer. Nothing here knows HTTP.

Of the schemes' parts there are: the header, bewits for GET and HEAD, hashes of payloads, skew of clocks with a signed
time, and nonces. The one algorithm is SHA-256. Nothing that is told to a caller depends on the key, unless the call was
signed by it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from export_pipelines.sources.hawk import Artifacts as Artifacts  # noqa: PLC0414  # part of what this offers
from export_pipelines.sources.hawk import Call as Call  # noqa: PLC0414
from export_pipelines.sources.hawk import mac as mac  # noqa: PLC0414
from export_pipelines.sources.hawk import payload_hash as payload_hash  # noqa: PLC0414

SKEW_SECONDS = 60
MAX_HEADER = 4096
MAX_NONCE = 128

_ATTRIBUTES = frozenset({"id", "ts", "nonce", "hash", "ext", "mac", "app", "dlg"})
_NEEDED = ("id", "ts", "nonce", "mac")
_ATTRIBUTE = re.compile(r'(\w+)="([ -!#-\[\]-~]*)"\s*(?:,\s*|$)', re.ASCII)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::(\d{1,5}))?", re.ASCII)
_BEWIT = re.compile(r"([?&])bewit=([^&]*)(&?)")
_TIME = re.compile(r"\d{1,12}", re.ASCII)
_NOBODYS_KEY = b"0" * 64


class Malformed(ValueError):
    """What was sent is no HAWK: 400."""


class NotAuthentic(ValueError):
    """The call is not the client's: 401. `challenge` is that of the header WWW-Authenticate."""

    def __init__(self, challenge: str = 'Hawk error="Unauthorized"') -> None:
        super().__init__("not authentic")
        self.challenge = challenge


@dataclass(frozen=True)
class Proof:
    """A call that is authentic: what signs its answer."""

    call: Call
    artifacts: Artifacts
    key: bytes

    def server_authorization(self, payload: bytes | None, content_type: str) -> str:
        """The header Server-Authorization of an answer; without a payload, its hash is left out."""
        hashed = "" if payload is None else payload_hash(payload, content_type)
        artifacts = replace(self.artifacts, hash=hashed, ext="")
        header = f'Hawk mac="{mac(self.key, "response", self.call, artifacts)}"'
        return header + (f', hash="{hashed}"' if hashed else "")


def place(host: str, scheme: str) -> tuple[str, str]:
    """Host and port of a header Host. Raises Malformed."""
    found = _HOST.fullmatch(host)
    if not found:
        raise Malformed("the header Host is not valid")
    return found[1], found[2] or ("443" if scheme == "https" else "80")


def parse_header(text: str) -> Artifacts:
    """What a header Authorization of the scheme Hawk says. Raises Malformed."""
    if len(text) > MAX_HEADER:
        raise Malformed("the header is too long")
    rest = text.partition(" ")[2].strip()
    found: dict[str, str] = {}
    at = 0
    while at < len(rest):
        match = _ATTRIBUTE.match(rest, at)
        if match is None or match[1] not in _ATTRIBUTES or match[1] in found:
            raise Malformed("the header is not valid")
        found[match[1]] = match[2]
        at = match.end()
    if any(not found.get(name) for name in _NEEDED):
        raise Malformed("the header lacks an attribute")
    if not _TIME.fullmatch(found["ts"]) or len(found["nonce"]) > MAX_NONCE or len(found["id"]) > MAX_NONCE:
        raise Malformed("an attribute of the header is not valid")
    return Artifacts(**found)


def split_bewit(resource: str) -> tuple[str, str] | None:
    """The bewit of a resource, and the resource without it; None if it has none."""
    path, mark, query = resource.partition("?")
    if not mark:
        return None
    found = _BEWIT.search(mark + query)
    if found is None:
        return None
    whole = mark + query
    rest = whole[: found.start()] + (found[1] if found[3] else "") + whole[found.end() :]
    return found[2], path + rest


def parse_bewit(text: str) -> Artifacts:
    """What a bewit says. Raises Malformed."""
    if not text or len(text) > MAX_HEADER or not re.fullmatch(r"[A-Za-z0-9_-]+={0,2}", text, re.ASCII):
        raise Malformed("the bewit is not valid")
    try:
        plain = base64.urlsafe_b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise Malformed("the bewit is not valid") from None
    parts = plain.split("\\")
    if len(parts) != 4 or not all(parts[:3]) or not _TIME.fullmatch(parts[1]) or not plain.isprintable():
        raise Malformed("the bewit is not valid")
    client, until, signature, ext = parts
    return Artifacts(client, until, "", signature, ext=ext)


def check_header(
    call: Call, artifacts: Artifacts, keys: Sequence[bytes], now: int, first_time: Callable[[int, str], bool]
) -> Proof:
    """The proof of a signed call. `keys` are those of the client, none if nobody knows it; `first_time` notes a nonce,
    and is asked last, so that nobody but the client uses any up.

    Raises:
        NotAuthentic: another key, call, payload or time, or the same call once more.
    """
    key = _matching(call, artifacts, keys, "header")
    if artifacts.hash:
        own = payload_hash(call.payload, call.content_type)
        if not hmac.compare_digest(own.encode(), artifacts.hash.encode()):
            raise NotAuthentic
    elif call.payload:
        raise NotAuthentic
    if abs(int(artifacts.ts) - now) > SKEW_SECONDS:
        raise NotAuthentic(_time_message(key, now))
    if not first_time(int(artifacts.ts), artifacts.nonce):
        raise NotAuthentic
    return Proof(call, artifacts, key)


def check_bewit(call: Call, artifacts: Artifacts, keys: Sequence[bytes], now: int) -> None:
    """Check a call whose resource had a bewit, which `call.resource` has not any more.

    Raises:
        NotAuthentic: another key or resource, or its time is over.
    """
    _matching(replace(call, method="GET"), artifacts, keys, "bewit")
    if int(artifacts.ts) <= now:
        raise NotAuthentic


def _matching(call: Call, artifacts: Artifacts, keys: Sequence[bytes], kind: Literal["header", "bewit"]) -> bytes:
    """The key that made the signature. Takes as long for a client whom nobody knows."""
    found = None
    for key in keys or (_NOBODYS_KEY,):
        own = mac(key, kind, call, artifacts)
        if hmac.compare_digest(own.encode(), artifacts.mac.encode()) and keys:
            found = key
    if found is None:
        raise NotAuthentic
    return found


def _time_message(key: bytes, now: int) -> str:
    """Our time, signed: the client sets its clock by it."""
    text = f"hawk.1.ts\n{now}\n"
    tsm = base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()
    return f'Hawk ts="{now}", tsm="{tsm}", error="Stale timestamp"'
