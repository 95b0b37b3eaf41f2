"""`demo --load`: a small project that loads from a local HTTP server, in .local/demo-load."""

from __future__ import annotations

import os
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from export_pipelines.cli import output
from export_pipelines.cli.load import chosen, in_order, run_loads
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.load_assets import LoadAssets

_DATABASES = ("warehouse", "datasets")


def demo_load(*, as_json: bool) -> int:
    """Make the project, serve its sources, load what is new, and show the tables. A second call finds nothing new."""
    from export_pipelines.cli.project import opened
    from export_pipelines.demo.drops import serving
    from export_pipelines.local.postgres import embedded
    from export_pipelines.settings import load_settings

    begun = time.monotonic()
    root = load_settings().state / "demo-load"
    _write(root)
    state = root / ".local"
    with serving() as feed, embedded(state, databases=_DATABASES) as address:
        os.environ |= {
            "EXPORT_PIPELINES_PROJECT": str(root),
            "WAREHOUSE_URL": address.url("warehouse"),
            "DATASETS_URL": address.url("datasets"),
            "LANDING_PATH": str(state / "landing"),
            "FEED_FLIGHTS_URL": f"{feed}/flights",
            "FEED_AIRLINES_URL": f"{feed}/airlines.xlsx",
            "FEED_PLANES_URL": f"{feed}/api/planes",
        }
        # Always this server: what these name may be somebody's production.
        for name in ("DATABASE_URL", "DAGSTER_PG_URL", "DAGSTER_HOME"):
            os.environ.pop(name, None)
        with opened(migrate=True) as project:
            if project.project.broken:
                raise RequestError(f"the demo's project is broken: {project.project.broken[0].errors[0]}")
            config = {"force": False, "names": [], "land": True, "load": True}
            results = run_loads(project, in_order(chosen(project, ())), config)
            sound = [each for each in project.project.loads.values() if not _failed(results, each.load.id)]
            counts = {each.load.id: _rows(project, each) for each in sound}
    told = [{**each, "rows_in_table": counts.get(each["table"])} for each in results]
    if as_json:
        output.as_json({"tables": told, "seconds": round(time.monotonic() - begun, 1)})
    else:
        heads = ("table", "landed", "loaded", "rows_in_table", "seconds")
        output.table(
            output.columns("table", "#landed", "#loaded", "#rows in table", "#seconds"),
            [[each[name] for name in heads] for each in told],
        )
        click.echo(f"\nDone in {time.monotonic() - begun:.0f} s. The definitions are in {root / 'assets'}")
    errors = [error for each in results for error in each["errors"]]
    for error in errors:
        click.secho(f"error: {error}", err=True, fg="red")
    return 1 if errors else 0


def _write(root: Path) -> None:
    """The project's files, as this version of the library has them."""
    found = yaml.safe_load(files("export_pipelines.demo").joinpath("loading_project.yaml").read_text(encoding="utf-8"))
    for name, text in found.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def _failed(results: list[dict[str, object]], table: str) -> bool:
    return any(each["table"] == table and each["errors"] for each in results)


def _rows(project: Opened, assets: LoadAssets) -> int:
    """Rows that readers of a table see."""
    from export_pipelines.targets.names import TableNames

    target = assets.load.spec.target
    with project.resource(target.connection).session() as session:
        session.begin()
        return int(session.one(f"SELECT count(*) FROM {TableNames.of(target).view}")[0])
