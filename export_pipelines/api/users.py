"""Who asks, and what they may do. Nothing here knows HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from export_pipelines.errors import RequestError
from export_pipelines.specs.dataset import DataSetDefinition

READ, REQUEST, EXPORTS, TABLES, UPLOAD, OPERATOR = "read", "request", "exports", "tables", "upload", "operator"
SCOPES = (READ, REQUEST, EXPORTS, TABLES, UPLOAD, OPERATOR)
"""read: see data sets. request: ask, and cancel and download one's own. exports: start runs of tables. tables: read
published tables. upload: send and load files where one may. operator: all, of everybody."""


@dataclass(frozen=True)
class User:
    """Somebody who has proved who they are."""

    name: str
    scopes: frozenset[str]
    groups: frozenset[str] = frozenset()
    environment: str | None = None
    """The only environment that they may ask in; any when None."""
    kind: Literal["token", "session", "link", "open", "hawk"] = "token"

    @property
    def operator(self) -> bool:
        """Whether they see and may do everything."""
        return OPERATOR in self.scopes

    def may(self, scope: str) -> bool:
        """Whether they have a scope."""
        return self.operator or scope in self.scopes


class Refused(RequestError):
    """Somebody may not do what they ask for. `status` is that of HTTP; `retry_after` in seconds."""

    def __init__(self, message: str, *, hint: str = "", status: int = 403, retry_after: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after = retry_after


class Unknown(RequestError):
    """There is no such thing, or none that the user may know of."""


def may_ask(user: User, dataset: DataSetDefinition) -> bool:
    """Whether a user is among those who may ask of a data set."""
    if user.operator or "*" in dataset.spec.who:
        return True
    return not {user.name, *(f"group:{each}" for each in user.groups)}.isdisjoint(dataset.spec.who)
