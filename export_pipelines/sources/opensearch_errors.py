"""Errors of OpenSearch and its client as ours."""

from __future__ import annotations

from typing import Any

from export_pipelines.errors import SourceError

_TRANSIENT = (429, 502, 503, 504)


def source_error(error: Exception, doing: str, name: str) -> SourceError | None:
    """Our error for the client's; None for what is none of its own."""
    from opensearchpy.exceptions import ConnectionError as Lost
    from opensearchpy.exceptions import ConnectionTimeout, OpenSearchException, SSLError, TransportError

    if isinstance(error, SSLError):
        return SourceError(f"{doing}: the certificate of {name} is not accepted", hint="see `ca_file`, `verify_certs`")
    if isinstance(error, ConnectionTimeout):
        return SourceError(f"{doing}: no answer from {name} in time", hint="see `timeout_seconds`", transient=True)
    if isinstance(error, Lost):
        return SourceError(f"{doing}: {name} is not reachable", hint="is it running?", transient=True)
    if isinstance(error, TransportError):
        return _refusal(error, doing)
    if isinstance(error, OpenSearchException):
        # An answer that was cut in the middle is no JSON.
        return SourceError(f"{doing}: an answer that cannot be read", hint="ask again", transient=True)
    return None


def _refusal(error: Any, doing: str) -> SourceError:
    status = error.status_code if isinstance(error.status_code, int) else 0
    kind, reason = str(error.error), _reason(error.info)
    message = f"{doing}: {reason or kind}"
    if status in (401, 403):
        return SourceError(message, hint="check user, password and rights of the connection", code=str(status))
    if "index_not_found" in kind or "index_closed" in kind:
        return SourceError(message, hint="the index is gone or closed", code=str(status))
    if "search_context_missing" in str(error.info):
        return SourceError(f"{doing}: the view of the index is gone", hint="ask again", transient=True, code="404")
    hint = "ask again" if status in _TRANSIENT else ""
    code = f"{status} {kind}" if status == 404 else str(status)
    return SourceError(message, hint=hint, transient=status in _TRANSIENT, code=code)


def _reason(info: Any) -> str:
    told = info.get("error") if isinstance(info, dict) else None
    if not isinstance(told, dict):
        return str(told or "")
    causes = told.get("root_cause") or [told]
    return str(causes[0].get("reason") or told.get("reason") or "")
