"""The command `request`: ask a service for an export, follow it, download it. Needs no project."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from export_pipelines.cli import output
from export_pipelines.cli.fetching import Fetched, fetch
from export_pipelines.cli.service_client import LIVE, ServiceClient, Status, WrongQuestion, is_local
from export_pipelines.errors import ExportPipelinesError, RequestError

LOCAL_URL = "http://127.0.0.1:8080"
_INTERRUPTED = 130


@click.command("request")
@click.argument("dataset", required=False)
@click.option("--list", "listing", is_flag=True, help="List the data sets that may be asked for.")
@click.option("--describe", is_flag=True, help="Say which columns, filters and formats DATASET has.")
@click.option("--filter", "-F", "filters", metavar="EXPRESSION", multiple=True, help="As above; may be repeated.")
@click.option("--columns", metavar="A,B", multiple=True, help="Columns in this order; all when absent.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N rows.")
@click.option("--format", metavar="NAME", help="csv, json, jsonl, parquet or excel; the data set's first when absent.")
@click.option("--compression", metavar="NAME", help="none, gzip or zstd; the data set's first when absent.")
@click.option("--delimiter", metavar="SIGN", default=",", help="CSV: what is between fields; `tab` for a tab.")
@click.option("--bom", is_flag=True, help="CSV: begin with a byte order mark, as Excel wants for UTF-8.")
@click.option(
    "--keep-formulas/--neutralise-formulas",
    default=None,
    help="CSV: whether cells stay as they are that a spreadsheet takes for formulas; as the data set says when absent.",
)
@click.option("--environment", metavar="NAME", help="Environment of the service; its first when absent.")
@click.option(
    "--output",
    "-o",
    "target",
    type=click.Path(path_type=Path),
    help="File or folder; named by the service when absent.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--email", metavar="ADDRESS", help="Also be told by mail when it has ended.")
@click.option("--webhook", metavar="URL", help="Also call this URL when it has ended.")
@click.option("--no-wait", is_flag=True, help="Only ask; print the id, to go on later with --id.")
@click.option("--id", "request", metavar="ID", help="Follow and download a request that was asked before.")
@click.option(
    "--url", envvar="EXPORT_PIPELINES_URL", default=LOCAL_URL, show_default=True, help="Where the service is."
)
@click.option(
    "--token", envvar="EXPORT_PIPELINES_TOKEN", help="API token. Better in the variable: others see your command line."
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the request (or the list) as JSON.")
def request_command(
    dataset: str | None,
    listing: bool,
    describe: bool,
    target: Path | None,
    force: bool,
    no_wait: bool,
    request: str | None,
    url: str,
    token: str | None,
    quiet: bool,
    as_json: bool,
    **question: Any,
) -> int:
    """Ask a service for an export, follow it, and download it.

    \b
      export-pipelines request --list
      export-pipelines request flights --describe
      export-pipelines request flights -F carrier=UA -F 'dep_delay>=60' -o late.csv
      export-pipelines request flights -F carrier:in=UA,AA --columns flight,dest --format parquet

    A filter is NAME=VALUE, with != < <= > >= in place of =, or NAME:OPERATOR=VALUE (in, contains, starts_with,
    is_null); quote it, since < and > mean something to a shell. Several must all hold.

    A download that breaks off goes on where it was, also when the command is given again; the file has its name only
    when it is whole and its SHA-256 is right. Ctrl-C while it waits cancels the request.

    The service is the one at --url or EXPORT_PIPELINES_URL, the token that of --token or EXPORT_PIPELINES_TOKEN; within
    a project, the service on this machine takes the token that it made at its start. Exit codes: 0 done, 1 failed or
    cancelled, 2 the question is wrong, 130 after Ctrl-C.
    """
    _one_meaning(dataset, listing, describe, request)
    if target is not None and target.is_file() and not force:
        raise RequestError(f"{target} exists", hint="give another name by -o, or --force to replace it")
    client = ServiceClient(url, token or _local_token(url), tell=lambda text: None if quiet else output.note(text))
    if client.token and url.startswith("http:") and not is_local(url):
        output.warn(f"the token goes to {url} unencrypted; use https")
    try:
        if listing:
            return _list(client, as_json)
        if describe and dataset:
            return _describe(client, dataset, as_json)
        asked = _question(dataset or "", **question)
        status = client.get(f"requests/{request}") if request else _recorded(client, asked)
        if no_wait:
            return _told(status, as_json)
        status = _ended(client, status, quiet)
        return _finish(client, status, target, force=force, quiet=quiet, as_json=as_json)
    finally:
        client.close()


def _one_meaning(dataset: str | None, listing: bool, describe: bool, request: str | None) -> None:
    if listing + (request is not None) + (dataset is not None) != 1 or (describe and not dataset):
        raise click.UsageError("give a DATASET, --list, or --id ID")


def _local_token(url: str) -> str | None:
    """The token that the service of this machine made for its project, and no other service gets to see."""
    from export_pipelines.settings import find_root

    if not is_local(url):
        return None
    try:
        return (find_root() / ".local" / "keys" / "local.token").read_text(encoding="utf-8").strip() or None
    except (ExportPipelinesError, OSError):
        return None


def _question(dataset: str, **given: Any) -> dict[str, Any]:
    from export_pipelines.specs.query import filter_from_text

    filters = []
    for text in given["filters"]:
        try:
            found = filter_from_text(text)
        except RequestError as error:
            raise WrongQuestion(error.message, hint=error.hint) from None
        filters.append({"name": found.name, "operator": found.operator, "value": found.value})
    asked = {
        "dataset": dataset,
        "filters": filters,
        "columns": [name.strip() for text in given["columns"] for name in text.split(",") if name.strip()],
        "delimiter": "\t" if given["delimiter"] == "tab" else given["delimiter"],
        "neutralise_formulas": None if given["keep_formulas"] is None else not given["keep_formulas"],
        **{name: given[name] for name in ("limit", "format", "compression", "environment", "bom", "email", "webhook")},
    }
    return {name: value for name, value in asked.items() if value is not None}


def _recorded(client: ServiceClient, asked: dict[str, Any]) -> Status:
    """Ask. Ctrl-C counts when the answer is there, since only then we know what to cancel; at once if given again."""
    seen = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    before = signal.signal(signal.SIGINT, note)
    try:
        status = client.ask(asked)
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        _cancel(client, status["id"])
        raise click.exceptions.Exit(_INTERRUPTED)
    return status


def _told(status: Status, as_json: bool) -> int:
    if as_json:
        output.as_json(status)
    else:
        click.echo(status["id"])
        output.note(f"go on with: export-pipelines request --id {status['id']}")
    return 0


def _ended(client: ServiceClient, status: Status, quiet: bool) -> Status:
    """Follow a request to its end. Ctrl-C cancels it."""
    if status["status"] not in LIVE:
        return status
    with _bar(quiet) as bar:
        try:
            last, state = status, ""
            for last in client.follow(status["id"]):
                if last["status"] != state:
                    state = str(last["status"])
                    bar.start(_NAMES.get(state, state.lower()), 100 if state == "Processing" else None)
                bar.update(float(last.get("percent") or 0), _detail(last))
        except KeyboardInterrupt:
            bar.fail()
            _cancel(client, status["id"])
            raise click.exceptions.Exit(_INTERRUPTED) from None
    return last


_NAMES = {"Pending": "waiting", "Processing": "exporting", "Succeeded": "exported"}


def _detail(status: Status) -> str:
    if status["status"] == "Pending":
        before = status.get("place")
        return "" if before is None else f"{before} before it" if before else "it is next"
    of = f" of about {status['estimated_rows']:,}" if status.get("estimated_rows") and status["status"] in LIVE else ""
    left = f", about {status['eta_seconds']} s left" if status.get("eta_seconds") else ""
    return f"{status['rows']:,}{of} rows{left}"


def _cancel(client: ServiceClient, request: str) -> None:
    try:
        status = client.cancel(request)
    except ExportPipelinesError as error:
        output.note(f"interrupted; the request could not be cancelled: {error.message}")
        return
    going_on = status["status"] in LIVE and not status.get("cancelling")
    output.note("interrupted; others want it, too, and it goes on for them" if going_on else "interrupted; cancelled")


def _finish(
    client: ServiceClient, status: Status, target: Path | None, *, force: bool, quiet: bool, as_json: bool
) -> int:
    if status["status"] == "Failed":
        error = status.get("error") or {}
        raise RequestError(f"the export failed: {error.get('message')}", hint=str(error.get("hint") or ""))
    if status["status"] == "Cancelled":
        raise RequestError("the export was cancelled", hint="ask again")
    if status.get("expired") or not status.get("file"):
        raise RequestError("the file has expired", hint="ask again")
    fetched = _download(client, status, _path(target, status["file"]["name"]), force=force, quiet=quiet)
    if as_json:
        output.as_json({**status, "path": str(fetched.path)})
    elif not quiet:
        rows, size = output.count(status["rows"], "row"), output.size(fetched.bytes)
        click.echo(f"{fetched.path}: {rows}, {size}, SHA-256 {fetched.sha256}")
    return 0


def _path(target: Path | None, name: str) -> Path:
    """Where the file goes. The service's name for it never leads into another folder."""
    plain = Path(name).name or "export"
    if target is None:
        return Path(plain)
    return target / plain if target.is_dir() else target


def _download(client: ServiceClient, status: Status, path: Path, *, force: bool, quiet: bool) -> Fetched:
    if path.exists() and not force:
        raise RequestError(f"{path} exists", hint="give another name by -o, or --force to replace it")
    file = status["file"]
    with _bar(quiet) as bar:
        bar.start("downloading", file["bytes"])
        try:
            return fetch(
                client,
                status["id"],
                path,
                size=file["bytes"],
                sha256=file["sha256"],
                force=force,
                progress=lambda there: bar.update(there, output.size(there)),
            )
        except KeyboardInterrupt:
            bar.fail()
            output.note(f"interrupted; `export-pipelines request --id {status['id']}` goes on where it is")
            raise click.exceptions.Exit(_INTERRUPTED) from None


@contextmanager
def _bar(quiet: bool) -> Iterator[output.Bar]:
    if quiet:
        with Path(os.devnull).open("w") as nowhere:
            yield output.PlainBar(nowhere.write)
        return
    bar = output.bar()
    try:
        yield bar
    except BaseException:
        bar.fail()
        raise
    bar.close()


def _list(client: ServiceClient, as_json: bool) -> int:
    found = client.get("datasets")
    if as_json:
        output.as_json(found)
        return 0
    rows = [
        [
            each["id"],
            each["title"],
            each["row_limit"],
            ", ".join(each["formats"]),
            ", ".join(f["name"] for f in each["filters"]),
        ]
        for each in found["datasets"]
    ]
    output.table(output.columns("data set", "title", "#rows at most", "formats", "filters"), rows)
    return 0


def _describe(client: ServiceClient, dataset: str, as_json: bool) -> int:
    found = client.get(f"datasets/{dataset}")
    if as_json:
        output.as_json(found)
        return 0
    click.echo(f"{found['id']}: {found['title']}")
    if found["description"]:
        click.echo(found["description"])
    click.echo(
        f"formats: {', '.join(found['formats'])}; compressions: {', '.join(found['compressions'])}; "
        f"at most {found['row_limit']:,} rows\n"
    )
    columns = [[each["name"], each["type"], each["description"]] for each in found["described_columns"]]
    output.table(output.columns("column", "type", "description"), columns)
    filters = [
        [
            each["name"],
            each["type"],
            " ".join(each["operators"]),
            each["required"],
            " ".join(each["values"]),
            each["description"],
        ]
        for each in found["filters"]
    ]
    click.echo()
    output.table(output.columns("filter", "type", "operators", "required", "values", "description"), filters)
    return 0
