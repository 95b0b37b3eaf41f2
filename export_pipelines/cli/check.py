"""The command `check`: every error of the project at once, each with its file and line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.errors import CatalogError, ExportPipelinesError, RequestError, SpecError

if TYPE_CHECKING:
    from export_pipelines.cli.inspection import TableFindings
    from export_pipelines.cli.inspection_dataset import DataSetFindings
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.load_assets import LoadAssets
    from export_pipelines.components.project import Project
    from export_pipelines.components.transforms import TransformAssets
    from export_pipelines.specs.dataset import DataSetDefinition
    from export_pipelines.specs.table import TableDefinition


@dataclass
class Findings:
    """All that was found."""

    errors: list[SpecError] = field(default_factory=list)
    warnings: list[SpecError] = field(default_factory=list)
    tables: list[TableFindings] = field(default_factory=list)
    datasets: list[DataSetFindings] = field(default_factory=list)
    looked_at: int = 0
    """How many tables were to be checked."""
    asked_of: int = 0
    """How many data sets were."""


@click.command("check")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--offline", is_flag=True, help="Read the files only; connect to nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def check_command(tables: tuple[str, ...], offline: bool, as_json: bool) -> int:
    """Check the definitions; without --offline also against the live databases and stores. A TABLE may be a data set.

    Offline: every file of assets/, resources/ and schedules/, and the SQL. Online: connections, rights, columns, how a
    cleanup would prove its rows, what else a deletion would set off, the stores and the catalog. Nothing is changed,
    but for a small object that is written to each store and removed again. Exit code 1 on any error.
    """
    from export_pipelines.cli.project import Opened, opened, read_project
    from export_pipelines.settings import load_settings

    found = Findings()
    if offline:
        settings = load_settings()
        project = Opened(settings, read_project(settings, automations=True))
        _check_files(project, tables, found)
    else:
        with opened(automations=True) as project:
            sound, datasets = _check_files(project, tables, found)
            others = _transforms(project, tables)
            _check_live(project, sound, datasets, found, everything=not tables, transforms=others)
            _check_loads(project, tables, found)
    _tell(found, project, everything=not tables, offline=offline, as_json=as_json)
    return 1 if found.errors else 0


def _check_files(
    project: Opened, names: Sequence[str], found: Findings
) -> tuple[list[TableDefinition], list[DataSetDefinition]]:
    """Everything that the files alone show; returns the tables and data sets whose SQL is sound."""
    from export_pipelines.cli.inspection import check_sql
    from export_pipelines.cli.inspection_dataset import check_query, mail_errors, named_datasets, service_warnings
    from export_pipelines.cli.inspection_transform import unknown_warnings

    datasets, names_of_tables = named_datasets(project, names)
    found.asked_of = len(datasets)
    tables, broken = project.named(names_of_tables) if names_of_tables or not names else ([], [])
    transforms = _transforms(project, names)
    found.looked_at = len(tables) + len(transforms) + len(_loads(project, names))
    found.warnings += [warning for each in transforms for warning in unknown_warnings(each)]
    found.errors += [error for each in broken for error in each.errors]
    sound = []
    has_identity = _has_identity(project, found)
    for table in tables:
        if table.spec.encryption and not has_identity:
            found.warnings.append(_no_identity(table))
        errors = check_sql(table)
        found.errors += errors
        if not errors:
            sound.append(table)
    # The SQL of a table that is a data set, too, was looked at already.
    wrong = {each.id: check_query(each) for each in datasets if each.id not in project.project.tables}
    found.errors += [error for errors in wrong.values() for error in errors]
    found.errors += mail_errors(datasets, project.project.service)
    if not names:
        found.errors += _dagster_errors(project.project)
        found.warnings += service_warnings(project.settings.root, project.project.service)
    return sound, [each for each in datasets if not wrong.get(each.id)]


def _transforms(project: Opened, names: Sequence[str]) -> list[TransformAssets]:
    """Those of some ids or patterns; all of them without names."""
    found = project.project.transforms.values()
    return [each for each in found if not names or any(map(partial(_fits, each.transform.id), names))]


def _loads(project: Opened, names: Sequence[str]) -> list[LoadAssets]:
    """The same of tables to load."""
    found = project.project.loads.items()
    return [each for key, each in found if not names or any(map(partial(_fits, key), names))]


def _fits(load_id: str, name: str) -> bool:
    from export_pipelines.cli.project import fits

    return fits(name, load_id)


def _has_identity(project: Opened, found: Findings) -> bool:
    """Whether there is anything here that opens an encrypted file; what is wrong with an identity is an error."""
    from export_pipelines.cli.places import resource_error

    there = False
    for key in project.project.identities:
        try:
            keyring = project.resource(key)
            there = bool(keyring.identities()) or there
        except ExportPipelinesError as error:
            found.errors.append(resource_error(project.settings.root, key, error))
            continue
        for name in keyring.open_to_others():
            warning = RequestError(f"identity file {name} can be read by others", hint=f"chmod 600 {name}")
            found.warnings.append(resource_error(project.settings.root, key, warning))
    return there


def _no_identity(table: TableDefinition) -> SpecError:
    from export_pipelines.cli.places import table_error

    return table_error(
        table,
        "the files are encrypted, and no identity is here: verify compares stored bytes and counts no rows, restore "
        "cannot open them, and a cleanup by key or by content is refused",
        ("encryption",),
        "that is as it should be on a machine that only writes; else add export_pipelines.AgeIdentity to resources/",
    )


def _dagster_errors(project: Project) -> list[SpecError]:
    """What only Dagster sees, when everything is put together."""
    import dagster as dg

    try:
        dg.Definitions.validate_loadable(project.definitions())
    except Exception as error:
        return [SpecError(f"Dagster refuses the project: {str(error).splitlines()[0]}", file=project.root)]
    return []


def _check_live(
    project: Opened,
    tables: Sequence[TableDefinition],
    datasets: Sequence[DataSetDefinition],
    found: Findings,
    *,
    everything: bool,
    transforms: Sequence[TransformAssets],
) -> None:
    """Connections, then tables on those that answer, then stores and catalog."""
    from export_pipelines.cli.inspection import check_connection
    from export_pipelines.cli.inspection_report import report_connection
    from export_pipelines.cli.inspection_transform import check_live
    from export_pipelines.cli.rights import connections_of

    if everything:
        tables = _without_demo(project, tables, found)
    connections = {key for table in tables for key in connections_of(table)}
    connections |= {key for table in tables if (key := report_connection(table))}
    # Of a demo that nobody has loaded there is nothing to ask for either.
    absent = set(project.project.tables) - {table.id for table in tables} if everything else set()
    datasets = [each for each in datasets if each.id not in absent]
    connections |= {each.spec.connection for each in datasets}
    connections |= {each.transform.spec.target.connection for each in transforms}
    if everything:
        connections |= _keys_of(
            project.project, "PostgresConnectionResource", "MysqlConnectionResource", "OpenSearchResource"
        )
    dead = {key for key in sorted(connections) if not _passes(project, key, check_connection, found)}
    _check_tables(project, tables, dead, found)
    _check_datasets(project, datasets, dead, found)
    for each in transforms:
        if each.transform.spec.target.connection not in dead:
            errors, warnings = check_live(project, each)
            found.errors += errors
            found.warnings += warnings
    stores = {key for table in tables for key in (table.spec.store, table.spec.archive)}
    if everything:
        stores |= _keys_of(project.project, "StoreResource")
    for key in sorted(stores):
        _passes(project, key, lambda store: store.probe(), found)
    _check_catalog(project, found)


def _check_tables(project: Opened, tables: Sequence[TableDefinition], dead: set[str], found: Findings) -> None:
    """Each table whose connections answer, and its table of reports; what concerns a connection is told once."""
    from export_pipelines.cli.inspection import check_table
    from export_pipelines.cli.inspection_report import inspect_report, report_connection
    from export_pipelines.cli.places import resource_error
    from export_pipelines.cli.rights import connections_of

    accounts: dict[str, RequestError] = {}
    for table in tables:
        report = report_connection(table)
        if report and report not in dead:
            found.errors += inspect_report(table, project.source(report))
        if dead & connections_of(table):
            continue
        other = table.spec.cleanup.connection
        result = check_table(project.source(table.spec.connection), table, project.source(other) if other else None)
        found.tables.append(result)
        found.errors += result.errors
        found.warnings += result.warnings
        accounts = {**result.of_connections, **accounts}
        if _cannot_clean_up(project, table, result):
            found.errors.append(_no_identity(table))
    found.warnings += [resource_error(project.settings.root, key, each) for key, each in sorted(accounts.items())]


def _check_loads(project: Opened, names: Sequence[str], found: Findings) -> None:
    """Variables of the sources; connections and stores, too, of tables that are named: else all were asked already."""
    from export_pipelines.cli.inspection import check_connection
    from export_pipelines.cli.inspection_load import unset_errors

    loads = _loads(project, names)
    found.errors += [error for each in loads for error in unset_errors(each.load)]
    if names:
        for key in sorted({each.load.spec.target.connection for each in loads}):
            _passes(project, key, check_connection, found)
        for key in sorted({each.load.spec.landing for each in loads}):
            _passes(project, key, lambda store: store.probe(), found)


def _check_datasets(project: Opened, datasets: Sequence[DataSetDefinition], dead: set[str], found: Findings) -> None:
    """Each data set whose connection answers."""
    from export_pipelines.cli.inspection_dataset import check_dataset

    for dataset in datasets:
        if dataset.spec.connection not in dead:
            result = check_dataset(project.resource(dataset.spec.connection), dataset)
            found.datasets.append(result)
            found.errors += result.errors


def _without_demo(project: Opened, tables: Sequence[TableDefinition], found: Findings) -> list[TableDefinition]:
    """The tables without those of the demo that nobody has loaded, of which one line is told."""
    from export_pipelines.cli.demo import not_loaded

    absent = not_loaded(project, tables)
    if absent:
        found.looked_at -= len(absent)
        groups = " and ".join(sorted({table.group for table in absent}))
        found.warnings.append(
            SpecError(
                f"the demo's tables of {groups} are not loaded, and were passed over",
                file=project.settings.root / "assets",
                hint="`export-pipelines demo` loads them",
            )
        )
    return [table for table in tables if table not in absent]


def _cannot_clean_up(project: Opened, table: TableDefinition, result: TableFindings) -> bool:
    """Whether the rows are proved by an encrypted sidecar which nothing here opens."""
    from export_pipelines.specs.table import CleanupMode

    by_key = (result.proof or "").startswith("by key") and table.spec.cleanup.mode is not CleanupMode.OFF
    return by_key and table.spec.encryption is not None and not project.keyring.identities()


def _keys_of(project: Project, *kinds: str) -> set[str]:
    return {key for key, resource in project.resources.items() if type(resource).__name__ in kinds}


def _passes(project: Opened, key: str, test: Any, found: Findings) -> bool:
    """Whether a resource passes a test; its error is noted at the document that defines it."""
    from export_pipelines.cli.places import resource_error

    try:
        test(project.resource(key))
    except ExportPipelinesError as error:
        # A connection that this machine need not have is passed over if nothing says where it is.
        absent = isinstance(error, RequestError) and getattr(project.project.resources.get(key), "optional", False)
        told = found.warnings if absent else found.errors
        told.append(resource_error(project.settings.root, key, error))
        return False
    return True


def _check_catalog(project: Opened, found: Findings) -> None:
    from export_pipelines.catalog.migrate import current_version, newest_version
    from export_pipelines.cli.places import resource_error
    from export_pipelines.components.opening import initialized

    try:
        resource = initialized("catalog", project.project.resources.get("catalog"))
        version, newest = current_version(resource.url, resource.schema_name), newest_version()
        if version != newest:
            what = f"is of version {version}, and {newest} is needed" if version else "has not been made"
            raise CatalogError(f"the catalog {what}", hint="run `export-pipelines migrate`")
    except ExportPipelinesError as error:
        found.errors.append(resource_error(project.settings.root, "catalog", error))


def _tell(found: Findings, project: Opened, *, everything: bool, offline: bool, as_json: bool) -> None:
    if as_json:
        output.as_json(
            {
                "errors": [_as_dict(error) for error in found.errors],
                "warnings": [_as_dict(error) for error in found.warnings],
                "tables": [
                    {"table": each.table.id, "columns": each.columns, "proof": each.proof} for each in found.tables
                ],
                "datasets": [
                    {"dataset": each.dataset.id, "columns": each.columns, "rows": each.rows} for each in found.datasets
                ],
            }
        )
        return
    if found.tables and not found.errors:
        output.table(
            output.columns("table", "#columns", "rows are proved"),
            [[each.table.id, each.columns, each.proof] for each in found.tables],
        )
    if found.datasets and not found.errors:
        output.table(
            output.columns("data set", "#columns", "#rows, about", "#filters"),
            [[each.dataset.id, each.columns, each.rows, len(each.dataset.spec.filters)] for each in found.datasets],
        )
    for warning in found.warnings:
        output.warn(_line(warning))
    for error in found.errors:
        click.secho(_line(error), err=True, fg="red")
    if found.errors:
        counts = [output.count(len(found.errors), "error"), output.count(len(found.warnings), "warning")]
        click.echo(", ".join(counts), err=True)
        return
    counts = [output.count(found.looked_at, "table")]
    if found.asked_of:
        counts.append(output.count(found.asked_of, "data set"))
    if everything:
        counts.append(output.count(len(project.project.resources), "resource"))
        counts.append(output.count(len(project.project.automations), "schedule or sensor", "schedules and sensors"))
    text = "ok: " + ", ".join(counts) + (", files only" if offline else "")
    click.echo(text + (f"; {output.count(len(found.warnings), 'warning')}" if found.warnings else ""))


def _line(error: SpecError) -> str:
    from export_pipelines.sources.postgres import redact

    shown = SpecError(error.message, file=_short(error.file), line=error.line, field=error.field, hint=error.hint)
    return redact(str(shown))


def _short(file: Path) -> Path:
    current = Path.cwd()
    return file.relative_to(current) if file.is_relative_to(current) else file


def _as_dict(error: SpecError) -> dict[str, Any]:
    from export_pipelines.sources.postgres import redact

    return {
        "file": str(error.file),
        "line": error.line,
        "field": error.field,
        "message": redact(error.message),
        "hint": redact(error.hint),
    }
