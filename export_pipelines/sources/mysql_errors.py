"""What MySQL and MariaDB say, as errors of ours: one sentence, a hint, and whether it may go away by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from export_pipelines.errors import SourceError
from export_pipelines.sources.postgres import redact

DEADLOCK, CHANGED_SINCE = "1213", "1020"
CONFLICTS = (DEADLOCK, CHANGED_SINCE)
"""Codes of conflicts with other sessions: the transaction is tried again at once."""

DENIED = ("1044", "1142", "1143")
"""Codes of rights that the account has not got."""

NO_SUCH_TABLE, UNKNOWN_COLUMN = "1146", "1054"
READ_ONLY = "1792"
"""Code of a statement that would write in a transaction that only reads."""

# Lost connections, shutdowns, limits of the server, conflicts, time-outs.
_TRANSIENT = {
    *(1020, 1040, 1053, 1077, 1129, 1158, 1159, 1160, 1161, 1184, 1203, 1205, 1213, 1226, 1317, 1412, 1927, 1969),
    *(2002, 2003, 2006, 2013, 2055, 3024, 4031),
}
_GONE = "is the server running and reachable? `export-pipelines check` tries every connection"
_HINTS = {
    1044: "grant the user what it lacks on the database",
    1045: "check the user and password of the connection",
    1698: "check the user and password of the connection",
    1049: "check the database name of the connection",
    1142: "grant the user what it lacks: SELECT to export, DELETE and SELECT to clean up",
    1143: "grant the user what it lacks: SELECT to export, DELETE and SELECT to clean up",
    1146: "check the name of the table and its database",
    1054: "check the column names against the table",
    1060: "give each column of the query a name of its own, by AS",
    1064: "check the statement against the server's version",
    1792: "the statement writes; select.sql only reads",
    1412: "the table was altered or truncated meanwhile; run the step again",
    1451: "rows of another table refer to rows of this one, so they cannot be deleted before those",
    1205: "another session holds a lock; see `lock_timeout` in defs.yaml",
    1969: "the statement ran into max_statement_time; see `statement_timeout` in defs.yaml",
    3024: "the statement ran into max_execution_time; see `statement_timeout` in defs.yaml",
    1159: "the connection was too slow or idle for the server; see its net_read_timeout",
    1021: "the disk of the database server is full",
    1114: "the table, or the disk of the database server, is full",
    2002: _GONE,
    2003: _GONE,
    2006: "the server closed the connection: restarted, or idle for longer than its wait_timeout",
    2013: "the connection was lost in the middle: server restarted, network, or a proxy's limit",
    1927: "somebody ended the connection (KILL)",
    1317: "somebody ended the query (KILL QUERY)",
}

_PACKET = "raise max_allowed_packet on the server; it bounds each text that a function makes"
_CHARSET = "mend it; or ALTER TABLE … MODIFY column VARBINARY(…), which keeps all bytes, then to the charset of these"
_ALTERED = {
    1260: ("the server cut off what an aggregate such as GROUP_CONCAT made", _PACKET),
    1301: ("the server gave NULL for a text that is larger than max_allowed_packet", _PACKET),
    1931: ("the server ended a recursion before its end", "see its max_recursive_iterations"),
    **dict.fromkeys((1300, 1977, 3854), ("a text has a character that its charset does not define", _CHARSET)),
}


def no_text() -> SourceError:
    """The error for text that is not UTF-8, although the server said that it is."""
    return SourceError("a text has what is no character, such as half a surrogate pair", hint=_CHARSET)


def refuse_altered(warnings: Iterable[tuple[Any, ...]]) -> None:
    """Raise SourceError if the rows of SHOW WARNINGS say that values of a result are not what they should be."""
    for _, code, _ in warnings:
        if int(code) in _ALTERED:
            message, hint = _ALTERED[int(code)]
            raise SourceError(f"{message} ({code})", hint=hint, code=str(code))


def source_error(error: Any, doing: str) -> SourceError:
    """Our error for the driver's."""
    number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    text = str(error.args[1]) if len(error.args) > 1 else str(error) or type(error).__name__
    # What comes after the first line quotes the statement, with all values in it.
    message = redact(text.splitlines()[0] if text else type(error).__name__)
    lost = number == 0 and type(error).__name__ in ("InterfaceError", "OperationalError")
    return SourceError(
        f"{doing}: {message}" + (f" ({number})" if number else ""),
        hint=_HINTS.get(number, _GONE if lost else ""),
        transient=number in _TRANSIENT or lost,
        code=str(number) if number else "",
    )
