"""The command line of an older dumping system: `--dump TYPE [START END]`, whose days are both included."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from datetime import date, timedelta

import click

_DAY = re.compile(r"\d{4}-\d\d-\d\d")


def understood(arguments: Sequence[str]) -> list[str]:
    """Arguments of the old form as those of `dump`, and a word on what became of the last day; others as they are.

    Raises:
        click.UsageError: one day only, or the wrong way round.
    """
    found = translated(arguments)
    if "--end" in found and "--end" not in arguments:
        words = shlex.join(["export-pipelines", *found])
        click.echo(f"note: both days are included; the same without the old form, its end excluded: {words}", err=True)
    return found


def translated(arguments: Sequence[str]) -> list[str]:
    """Arguments of the old form as those of `dump`; others as they are. Options before and after it stay there."""
    place = list(arguments).index("--dump")
    if not _options_only(arguments[:place]):
        return list(arguments)
    rest = list(arguments[place + 1 :])
    words = rest[: next((n for n, word in enumerate(rest) if word.startswith("-")), len(rest))]
    after = rest[len(words) :]
    bounds = _bounds(words[0], words[1:]) if words else []
    return [*arguments[:place], "dump", *words[:1], *bounds, *after]


def _bounds(name: str, words: list[str]) -> list[str]:
    """What stands behind the type: its two days as a range, else more types."""
    if words and _DAY.fullmatch(words[0]) and len(words) == 1:
        raise click.UsageError(
            f"--dump {name} has a first day and no last one; both are included, so one day is: "
            f"--dump {name} {words[0]} {words[0]}"
        )
    if len(words) != 2 or not words[0][:1].isdigit():
        return words
    if all(map(_DAY.fullmatch, words)) and words[0] > words[1]:
        raise click.UsageError(f"the first day, {words[0]}, is later than the last, {words[1]}")
    return ["--start", words[0], "--end", day_after(words[1])]


def day_after(text: str) -> str:
    """The midnight that ends a day; what is no date stays as it is."""
    try:
        return (date.fromisoformat(text) + timedelta(days=1)).isoformat() if _DAY.fullmatch(text) else text
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
