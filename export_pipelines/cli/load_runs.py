"""Run the jobs of tables to load, and of transforms, and tell what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output

if TYPE_CHECKING:
    from export_pipelines.cli.launch import Event, Launcher
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.load_assets import LoadAssets
    from export_pipelines.components.transforms import TransformAssets


def run_loads(
    project: Opened, found: Sequence[LoadAssets | TransformAssets], config: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run the jobs of some tables, one after the other; a failed one does not keep the others from being tried."""
    import dagster as dg

    from export_pipelines.cli.launch import Launcher, terminal

    with dg.DagsterInstance.get() as instance, terminal() as stream:
        launcher = Launcher(instance, project.project.definitions(), project.settings.root)
        launcher.end_orphans()
        bar = output.bar(stream)
        try:
            results = [_run(project, launcher, each, config, bar) for each in found]
        except BaseException:
            bar.fail()
            raise
        bar.close()
    return results


def _unset(project: Opened, assets: LoadAssets | TransformAssets) -> str:
    """Why a resource of the job cannot be made, a variable that is not set as a rule; empty if all can."""
    from export_pipelines.errors import ExportPipelinesError

    try:
        for key in assets.job.resource_defs:
            if key in project.project.resources:
                project.resource(key)
    except ExportPipelinesError as error:
        return str(error)
    return ""


def _run(
    project: Opened,
    launcher: Launcher,
    assets: LoadAssets | TransformAssets,
    config: dict[str, Any],
    bar: output.Bar,
) -> dict[str, Any]:
    import dagster as dg

    from export_pipelines.components.load_assets import LoadAssets, load_op_name

    table = assets.definition.id
    counts = dict.fromkeys(("landed", "loaded", "rows", "quarantined"), 0)
    told: dict[str, Any] = {"table": table, **counts, "files": [], "warnings": []}
    bar.start(f"{'loading' if isinstance(assets, LoadAssets) else 'making'} {table}", 1)
    begun = time.monotonic()

    def heard(event: Event) -> None:
        if event.kind == "warning":
            told["warnings"].append(event.text)
        if event.kind != "materialization":
            return
        if event.step == "land":
            told["landed"] += 1 if event.metadata.get("file") else 0
        elif event.step == "transform":
            told["rows"] += int(event.metadata.get("rows", 0))
        elif event.step == "load":
            told["loaded"] += event.metadata["action"] not in ("already", "superseded")
            told["rows"] += int(event.metadata["rows"])
            told["quarantined"] += int(event.metadata["quarantined"])
            names = ("file", "action", "rows", "quarantined", "table_version", "seconds")
            told["files"].append({name: event.metadata[name] for name in names})
        bar.update(0, _progress(told, isinstance(assets, LoadAssets)))

    if unset := _unset(project, assets):
        return {**told, "seconds": 0.0, "run": None, "errors": [unset]}
    run = {"ops": {load_op_name(table): {"config": config}}} if isinstance(assets, LoadAssets) else {}
    result = launcher.run(dg.RunRequest(job_name=assets.job.name, run_config=run), heard)
    bar.update(1, _progress(told, isinstance(assets, LoadAssets)))
    if result.status == "CANCELED":
        raise click.Abort
    failed = [] if result.succeeded else [result.failure or "; ".join(result.errors) or f"the run is {result.status}"]
    return {**told, "seconds": round(time.monotonic() - begun, 3), "run": result.run_id, "errors": failed}


def _progress(told: dict[str, Any], loads: bool) -> str:
    rows = output.count(told["rows"], "row")
    return f"{told['landed']} landed, {told['loaded']} loaded, {rows}" if loads else rows


def tell(results: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print the results, and every failure with its hint."""
    if as_json:
        output.as_json(list(results))
        return
    heads = ("table", "landed", "loaded", "rows", "quarantined", "seconds")
    output.table(
        output.columns(*(f"#{each}" if each != "table" else each for each in heads)),
        [[each[name] for name in heads] for each in results],
    )
    for each in results:
        for warning in each["warnings"]:
            output.warn(f"{each['table']}: {warning}")
        for error in each["errors"]:
            click.secho(f"error: {each['table']}: {error}", err=True, fg="red")
