"""The command line of an older dumping system: `--dump TYPE [START END]`, whose days are both included."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta


def translated(arguments: Sequence[str]) -> list[str]:
    """Arguments of the old form as those of `dump`; others as they are. Options before and after it stay there."""
    place = list(arguments).index("--dump")
    if not _options_only(arguments[:place]):
        return list(arguments)
    rest = list(arguments[place + 1 :])
    words = rest[: next((n for n, word in enumerate(rest) if word.startswith("-")), len(rest))]
    after = rest[len(words) :]
    bounds = ["--start", words[1], "--end", day_after(words[2])] if len(words) == 3 else words[1:]
    return [*arguments[:place], "dump", *words[:1], *bounds, *after]


def day_after(text: str) -> str:
    """The midnight that ends a day; what is no date stays as it is."""
    try:
        return (date.fromisoformat(text) + timedelta(days=1)).isoformat() if len(text) == len("2024-01-01") else text
    except (ValueError, OverflowError):
        return text


def _options_only(arguments: Sequence[str]) -> bool:
    """Whether there is no command among them yet."""
    skip = False
    for word in arguments:
        if not skip and not word.startswith("-"):
            return False
        skip = word == "--project"
    return True
