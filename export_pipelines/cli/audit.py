"""The command `audit`: the log of who did what, when and from where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.cli.times import time_of
from export_pipelines.errors import BadRange

if TYPE_CHECKING:
    from export_pipelines.catalog.audit import AuditLog, AuditRow
    from export_pipelines.cli.project import Opened


@click.group("audit")
def audit_command() -> None:
    """Who did what, when, and from where: requests, downloads, logins, tokens, refusals.

    The database itself keeps the log: entries cannot be changed, only the oldest can be deleted and only when they are
    older than `audit_keep_days` of resources/service, and each has the SHA-256 of the one before. `audit head` prints
    the newest: kept elsewhere, it proves later (`audit verify --expect`) that nothing up to it was exchanged.
    """


@audit_command.command("list")
@click.option("--since", metavar="TIME", help="Not before: 2025-01-31, 2025-01-31T08:00, or 30m, 12h, 7d, 2w ago.")
@click.option("--until", metavar="TIME", help="Before that time.")
@click.option("--who", metavar="USER", help="By that user.")
@click.option("--action", metavar="NAME", help="That action, or those that begin with it: 'request.*'.")
@click.option("--subject", metavar="ID", help="Done to that request, data set, token or user.")
@click.option("--outcome", type=click.Choice(("ok", "refused", "failed")), help="How it ended.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The last so many of them.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_command(
    since: str | None,
    until: str | None,
    who: str | None,
    action: str | None,
    subject: str | None,
    outcome: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List entries, the newest last."""
    begin, end = time_of(since), time_of(until)
    with _log() as (log, _):
        found = log.newest(limit, since=begin, until=end, who=who, action=action, subject=subject, outcome=outcome)[
            ::-1
        ]
    if as_json:
        output.as_json([asdict(each) for each in found])
        return
    if not found:
        output.note("no entry")
        return
    heads = output.columns("#id", "at (UTC)", "who", "action", "subject", "outcome", "from", "detail")
    output.table(heads, [_cells(each) for each in found])


@audit_command.command("verify")
@click.option("--expect", metavar="HEAD", help="A head that `audit head` printed earlier.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def verify_command(expect: str | None, as_json: bool) -> None:
    """Recompute the chain of all entries. Exit code 1 names the first that was changed, put in, or is missing.

    Whoever may write to the database as its owner could write the whole log anew: against that, keep a head elsewhere
    and give it as --expect.
    """
    from export_pipelines.catalog.audit import Head

    expected = Head.parse(expect) if expect else None
    with _log() as (log, _):
        found = log.verify(expected)
    if as_json:
        output.as_json(
            {"entries": found.entries, "first": found.first, "head": str(found.head) if found.head else None}
        )
        return
    if found.head is None:
        click.echo("the audit log is empty")
        return
    as_expected = f", and entry {expected.id} is the one that was expected" if expected else ""
    click.echo(f"{output.count(found.entries, 'entry', 'entries')} from {found.first} are whole{as_expected}")
    click.echo(f"head: {found.head}")


@audit_command.command("head")
def head_command() -> None:
    """Print the newest entry's number and digest, to be kept elsewhere."""
    with _log() as (log, _):
        head = log.head()
    if head is None:
        output.note("the audit log is empty")
    else:
        click.echo(str(head))


@audit_command.command("export")
@click.option("--since", metavar="TIME", help="Not before that time.")
@click.option("--until", metavar="TIME", help="Before that time.")
@click.option("--to-file", "file", type=click.Path(path_type=Path), help="File to write; stdout when absent.")
def export_command(since: str | None, until: str | None, file: Path | None) -> None:
    """Write entries as JSON Lines. `sha256` of each line is the SHA-256 of its `text`, whose last item is the `sha256`
    of the line before: whoever has the lines can check them without this program."""
    begin, end = time_of(since), time_of(until)
    if file is not None and file.exists():
        raise BadRange(f"{file} exists", hint="choose another name")
    with _log() as (log, _):
        entries = log.entries(since=begin, until=end)
        if file is None:
            for each in entries:
                click.echo(_line(each))
            return
        part = file.with_name(f"{file.name}.part")
        with part.open("w", encoding="utf-8") as stream:
            number = sum(bool(stream.write(_line(each) + "\n")) for each in entries)
        part.rename(file)
    click.echo(f"{output.count(number, 'entry', 'entries')} in {file}")


@audit_command.command("prune")
def prune_command() -> None:
    """Delete what is older than `audit_keep_days` of resources/service; the service does so every day. That it went is
    an entry of its own. To keep less than before, this has to be run by the role that owns the catalog."""
    with _log() as (log, project):
        days = project.project.service.audit_keep_days
        changed, gone = log.keep(days), log.prune()
    click.echo(f"{output.count(gone, 'entry', 'entries')} deleted; {'now ' if changed else ''}kept for {days} days")


@contextmanager
def _log() -> Iterator[tuple[AuditLog, Opened]]:
    from export_pipelines.catalog.audit import AuditLog
    from export_pipelines.catalog.pool import CatalogPool
    from export_pipelines.cli.project import opened
    from export_pipelines.components.opening import initialized

    with opened() as project:
        catalog = initialized("catalog", project.project.resources.get("catalog"))
        with CatalogPool(catalog.url, catalog.schema_name, size=1) as pool:
            yield AuditLog(pool), project


def _cells(row: AuditRow) -> list[output.Cell]:
    detail = ", ".join(f"{name}: {value}" for name, value in row.detail.items())
    at = row.at.astimezone(UTC).replace(tzinfo=None)
    return [row.id, at, row.who, row.action, row.subject, row.outcome, row.address, detail[:100]]


def _line(row: AuditRow) -> str:
    values: dict[str, Any] = {**asdict(row), "at": row.at.astimezone(UTC).isoformat()}
    return json.dumps(values, ensure_ascii=False)
