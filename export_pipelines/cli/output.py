"""Tables, JSON and progress for people and scripts: rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

import click

from export_pipelines.errors import RequestError

Cell = str | int | float | bool | datetime | None


class Column:
    """A column of a table: its heading, and whether it holds numbers."""

    def __init__(self, name: str, *, number: bool = False) -> None:
        self.name = name
        self.number = number


def columns(*names: str) -> list[Column]:
    """Columns of these headings; a leading `#` marks numbers."""
    return [Column(name.removeprefix("#"), number=name.startswith("#")) for name in names]


def cell(value: Cell) -> str:
    """A value for people: thousands are grouped, times end at seconds, nothing is `-`."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.1f}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
    return str(value)


def size(value: int | None) -> str:
    """Bytes for people, in powers of ten."""
    if value is None:
        return "-"
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(amount) < 1000 or unit == "TB":
            return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun: `1 table`, `1,200 tables`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def table(heads: Sequence[Column], rows: Sequence[Sequence[Cell]], *, title: str = "") -> None:
    """Print a table to stdout."""
    texts = [[cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(heads, texts, title)
        return
    if title:
        click.echo(title)
    widths = [max([len(head.name), *(len(row[n]) for row in texts)]) for n, head in enumerate(heads)]
    for row in [[head.name for head in heads], *texts]:
        parts = [
            text.rjust(width) if head.number else text.ljust(width)
            for text, width, head in zip(row, widths, heads, strict=True)
        ]
        click.echo("  ".join(parts).rstrip())


def _rich_table(heads: Sequence[Column], texts: Sequence[Sequence[str]], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for head in heads:
        made.add_column(head.name, justify="right" if head.number else "left", overflow="fold")
    for row in texts:
        made.add_row(*map(escape, row))
    Console().print(made)


def as_json(value: Any) -> None:
    """Print a value as JSON to stdout; times in ISO 8601."""
    click.echo(json.dumps(value, indent=2, default=_jsonable, ensure_ascii=False))


def _jsonable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def note(text: str) -> None:
    """A line beside the result: to stderr, so that it never mixes with what a script reads."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """A warning: the command goes on."""
    click.secho(f"warning: {text}", err=True, fg="yellow")


class Bar(Protocol):
    """A progress bar."""

    def start(self, name: str, total: float | None) -> None:
        """Begin something of so many units (unknown if None); what was begun before is done."""

    def update(self, done: float, detail: str = "") -> None:
        """Say how far it is, in units, and more about it."""

    def close(self) -> None:
        """What was begun is done: take it off the screen."""

    def fail(self) -> None:
        """What was begun has failed: take it off the screen without calling it done."""


class PlainBar:
    """For logs and pipes: a line when something is over, with what was last said of it."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._name = ""
        self._detail = ""

    def start(self, name: str, total: float | None) -> None:
        self.close()
        self._name, self._detail = name, ""

    def update(self, done: float, detail: str = "") -> None:
        self._detail = detail

    def close(self) -> None:
        if self._name and self._detail:
            self._write(f"{self._name}: {self._detail}")
        self._name = ""

    def fail(self) -> None:
        self._name = ""


class RichBar:
    """For terminals."""

    def __init__(self, stream: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=Console(file=stream, force_terminal=True),
        )
        self._progress.start()
        self._task: Any = None
        self._total: float | None = None

    def start(self, name: str, total: float | None) -> None:
        self._finish()
        self._total = total
        self._task = self._progress.add_task(name, total=total, detail="")

    def update(self, done: float, detail: str = "") -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, detail=detail)

    def _finish(self) -> None:
        if self._task is not None and self._total is None:
            self._progress.update(self._task, total=1, completed=1)
        self._task = None

    def close(self) -> None:
        self._finish()
        self._progress.stop()

    def fail(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._progress.stop()


def bar(stream: Any = None) -> Bar:
    """The bar that fits where stderr, or `stream`, goes to."""
    stream = stream or sys.stderr
    if stream.isatty():
        return RichBar(stream)

    def write(line: str) -> None:
        stream.write(line + "\n")
        stream.flush()

    return PlainBar(write)


def agree(would: str, question: str, *, hint: str, declined: str) -> None:
    """Ask whether to go on with what cannot be taken back, or what readers see. Exits with 1 when the answer is no,
    which `declined` says.

    Raises:
        RequestError: nobody is there to answer; `would` says what would be done.
    """
    if not sys.stdin.isatty():
        raise RequestError(f"{would}, and nobody is there to agree", hint=hint)
    if not click.confirm(question, err=True):
        click.echo(declined, err=True)
        raise click.exceptions.Exit(1)
