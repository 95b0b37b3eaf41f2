"""From where a call comes, and where it wanted to go: what proxies say of it counts only if they are trusted."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers = list[tuple[bytes, bytes]]


_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")


def is_host(text: str) -> bool:
    """Whether it is the name or address of a host, with a port or without."""
    return _HOST.fullmatch(text) is not None


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Addresses and networks as they stand in a setting. Raises ValueError: one is none."""
    return tuple(ipaddress.ip_network(each, strict=False) for each in texts)


def plain_address(text: str) -> str:
    """An address in its one way of writing, without a port and without brackets; empty if it is none."""
    candidate = text.strip().strip('"')
    if candidate.startswith("["):
        candidate = candidate[1:].partition("]")[0]
    elif candidate.count(":") == 1:
        candidate = candidate.partition(":")[0]
    try:
        found = ipaddress.ip_address(candidate)
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(found)


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Whether an address is that of a proxy that is believed."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in trusted)


def client_of(peer: str, forwarded_for: str, trusted: Sequence[Network]) -> str:
    """The address of a caller: that of the connection, or, behind trusted proxies, the right-most one of
    X-Forwarded-For that is no trusted proxy. What stands left of it anybody may have written."""
    address = plain_address(peer)
    if not is_trusted(address, trusted):
        return address
    for each in reversed(forwarded_for.split(",") if forwarded_for else []):
        found = plain_address(each)
        if not found:
            break
        address = found
        if not is_trusted(found, trusted):
            break
    return address


def apply_forwarded(scope: Any, trusted: Sequence[Network]) -> None:
    """Put the caller's address, and scheme and host as the caller saw them, into an ASGI scope."""
    peer = (scope.get("client") or ("", 0))[0]
    headers: Headers = scope["headers"]
    address = client_of(peer, _joined(headers, b"x-forwarded-for"), trusted)
    scope["client"] = (address, (scope.get("client") or ("", 0))[1])
    if not is_trusted(plain_address(peer), trusted):
        return
    if (scheme := _last(headers, b"x-forwarded-proto").lower()) in ("http", "https"):
        scope["scheme"] = scheme
    if is_host(host := _last(headers, b"x-forwarded-host")):
        scope["headers"] = [each for each in headers if each[0] != b"host"] + [(b"host", host.encode("latin-1"))]


def _joined(headers: Headers, name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in headers if key == name)


def _last(headers: Headers, name: bytes) -> str:
    return _joined(headers, name).rpartition(",")[2].strip()
