"""Times as people write them on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from export_pipelines.errors import BadRange

_PERIODS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def time_of(text: str | None) -> datetime | None:
    """A time, in UTC unless it says otherwise, or so long ago: `2025-01-31`, `2025-01-31T08:00+02:00`, `12h`, `7d`.

    Raises:
        BadRange: it is neither.
    """
    if text is None:
        return None
    if text[-1:] in _PERIODS and text[:-1].isdecimal() and len(text) < 8:
        return datetime.now(UTC) - timedelta(**{_PERIODS[text[-1]]: int(text[:-1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise BadRange(f"{text!r} is no time", hint="write 2025-01-31, 2025-01-31T08:00, 30m, 12h, 7d or 2w") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
