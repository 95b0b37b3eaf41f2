"""Names and literals in MySQL's dialect."""

from __future__ import annotations

import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from export_pipelines.errors import RequestError
from export_pipelines.windows import Window

_SPECIAL = re.compile(r"['\\\x00-\x1f\x7f]")
PART = r"(`(?:[^`]|``)+`|[\w$]+)"
_NAME = re.compile(rf"\s*(?:{PART}\s*\.\s*)?{PART}\s*")


def quote_identifier(name: str) -> str:
    """The name as an SQL identifier, always quoted."""
    return "`" + name.replace("`", "``") + "`"


def quote_literal(value: str) -> str:
    """The text as an SQL literal, whatever the sql_mode says of backslashes and quotes."""
    if not _SPECIAL.search(value):
        return f"'{value}'"
    # With an introducer, not CONVERT: it stays a literal, whose collation gives way to a column's.
    return f"_utf8mb4 X'{value.encode().hex()}'"


def split_name(text: str) -> tuple[str | None, str]:
    """Schema (or None) and name of a table as it is written in SQL, quoted or not. Raises RequestError."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise RequestError(
            f"{text!r} is no name of a table", hint="write table or schema.table, with `backticks` where needed"
        )
    return (_unquoted(match[1]) if match[1] else None), _unquoted(match[2])


def _unquoted(part: str) -> str:
    return part[1:-1].replace("``", "`") if part.startswith("`") else part


def parameters(window: Window, zone: str) -> dict[str, str]:
    """SQL literals of a window's parameters; those that it has not got are absent.

    Times are local to `zone`, an IANA name, for MySQL's literals have no zone: the session's time_zone has to be the
    same where they are compared with a TIMESTAMP. In the hour that clocks repeat, two instants are one literal.
    """
    values = {"partition_key": quote_literal(window.partition)}
    for name, moment in (
        ("window_start", window.start),
        ("window_end", window.end),
        ("export_boundary", window.end),
    ):
        if moment is not None:
            local = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
            values[name] = f"TIMESTAMP'{local.isoformat(sep=' ')}'"
    return values


@dataclass(frozen=True)
class MysqlRelation:
    """A table as a statement names it, and how its columns are qualified there. `schema` is its database."""

    schema: str | None
    name: str
    qualifier: str

    @property
    def sql(self) -> str:
        """Quoted, with its schema if it was given."""
        schema = f"{quote_identifier(self.schema)}." if self.schema else ""
        return schema + quote_identifier(self.name)

    def same(self, other: MysqlRelation) -> bool:
        """Whether both may be the same table, whatever lower_case_table_names says (the server decides in the end)."""
        ours, theirs = self.schema or other.schema or "", other.schema or self.schema or ""
        return self.name.lower() == other.name.lower() and ours.lower() == theirs.lower()
