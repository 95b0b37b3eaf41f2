"""How numbers, sizes, times and states are written for people."""

from __future__ import annotations

from datetime import UTC, datetime

STATES = {
    "pending": "Waiting",
    "processing": "At work",
    "succeeded": "Ready",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "cancelling": "Cancelling",
    "expired": "Expired",
}
"""Words for states of a request; `cancelling` and `expired` are those of the page."""


def number(value: float | int | None) -> str:
    """`1234567` as `1,234,567`; a dash for nothing."""
    return "–" if value is None else f"{value:,.0f}"


def about(value: int) -> str:
    """A number that is not known exactly, in two digits: `about 1.2 million`."""
    if value < 1_000:
        return f"about {value}"
    if value < 1_000_000:
        digits = len(str(value)) - 2
        return f"about {round(value, -digits):,}"
    word, unit = ("billion", 1e9) if value >= 999_500_000 else ("million", 1e6)
    text = f"{value / unit:.1f}" if value / unit < 10 else f"{value / unit:,.0f}"
    return f"about {text} {word}"


def size(value: int | None) -> str:
    """Bytes as `12.3 MB`, in powers of 1000."""
    if value is None:
        return "–"
    if value < 1_000:
        return f"{value} B"
    amount = float(value)
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 999.5 or unit == "TB":
            break
    return f"{amount:.0f} {unit}" if amount >= 99.95 else f"{amount:.1f} {unit}"


def seconds(value: float | None) -> str:
    """A time span: `0.4 s`, of whole seconds `4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d`."""
    if value is None:
        return "–"
    if value < 9.95 and isinstance(value, float):
        return f"{max(value, 0):.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    if whole < 48 * 3600:
        return _two(whole // 3600, "h", whole % 3600 // 60, "min")
    return f"{whole // 86400} d"


def _two(first: int, unit: str, second: int, lower: str) -> str:
    return f"{first} {unit} {second} {lower}" if second else f"{first} {unit}"


def minutes(value: float) -> str:
    """Minutes as a time span."""
    return seconds(value * 60)


def moment(value: datetime) -> str:
    """A time in UTC, as the page shows it until its script puts it into the reader's zone."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 row`, `2 rows`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def cut(text: str, most: int) -> str:
    """A text of so many characters at most."""
    return text if len(text) <= most else text[: most - 1] + "…"


def short(value: float | None) -> str:
    """A number in few characters, for an axis: `1.2k`, `35M`."""
    if value is None:
        return "–"
    for least, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= least:
            return f"{value / least:.3g}{unit}"
    return f"{value:.3g}"
