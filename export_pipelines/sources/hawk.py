"""HAWK: what is signed of a call and of its answer, and the side of a client."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

_ANSWERED = re.compile(r'(mac|hash)="([^"]*)"')


@dataclass(frozen=True)
class Call:
    """What is signed of a call, as the client sees it. `resource` is path and query as they were sent."""

    method: str
    resource: str
    host: str
    port: str
    content_type: str = ""
    payload: bytes = b""


@dataclass(frozen=True)
class Artifacts:
    """What a header or a bewit says."""

    id: str
    ts: str
    nonce: str
    mac: str
    hash: str = ""
    ext: str = ""
    app: str = ""
    dlg: str = ""


def mac(key: bytes, kind: str, call: Call, artifacts: Artifacts) -> str:
    """The signature of a call, of an answer, or of a bewit."""
    ext = artifacts.ext.replace("\\", "\\\\").replace("\n", "\\n")
    lines = [
        f"hawk.1.{kind}", artifacts.ts, artifacts.nonce, call.method.upper(), call.resource, call.host.lower(),
        call.port, artifacts.hash, ext,
    ]  # fmt: skip
    if artifacts.app:
        lines += [artifacts.app, artifacts.dlg]
    text = "".join(f"{line}\n" for line in lines)
    return base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()


def payload_hash(payload: bytes, content_type: str) -> str:
    """The hash of a payload as it is before any Content-Encoding."""
    kind = content_type.partition(";")[0].strip().lower()
    digest = hashlib.sha256(f"hawk.1.payload\n{kind}\n".encode())
    digest.update(payload)
    digest.update(b"\n")
    return base64.b64encode(digest.digest()).decode()


@dataclass(frozen=True)
class Signed:
    """A call that a client has signed."""

    header: str
    """Authorization."""
    call: Call
    artifacts: Artifacts
    key: bytes

    def is_answered_by(self, header: str, payload: bytes, content_type: str) -> bool:
        """Whether an answer, whose Server-Authorization is given, comes from who has the key, as it was sent."""
        said = dict(_ANSWERED.findall(header))
        artifacts = replace(self.artifacts, hash=said.get("hash", ""), ext="")
        right = hmac.compare_digest(
            mac(self.key, "response", self.call, artifacts).encode(), said.get("mac", "").encode()
        )
        return right and hmac.compare_digest(
            payload_hash(payload, content_type).encode(), said.get("hash", "").encode()
        )


def signed(client: str, key: bytes, method: str, url: str) -> Signed:
    """A call without a body, with a nonce and the time of now: for one attempt."""
    parts = urlsplit(url)
    resource = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    port = str(parts.port or (443 if parts.scheme == "https" else 80))
    call = Call(method, resource, parts.hostname or "", port)
    artifacts = Artifacts(client, str(int(time.time())), secrets.token_urlsafe(12), "", payload_hash(b"", ""))
    artifacts = replace(artifacts, mac=mac(key, "header", call, artifacts))
    header = f'Hawk id="{client}", ts="{artifacts.ts}", nonce="{artifacts.nonce}", hash="{artifacts.hash}", '
    return Signed(header + f'mac="{artifacts.mac}"', call, artifacts, key)
