"""`demo --load`: a small project that loads from a local HTTP server, in .local/demo-load."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from export_pipelines.cli import output
from export_pipelines.cli.load_runs import run_loads
from export_pipelines.cli.load_selection import chosen_any, in_order
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.load_assets import LoadAssets
    from export_pipelines.components.transforms import TransformAssets

_DATABASES = ("warehouse", "datasets")


def demo_load(*, as_json: bool) -> int:
    """Make the project, serve its sources, load what is new, and show the tables. A second call finds nothing new."""
    from export_pipelines.cli.project import opened
    from export_pipelines.demo.drops import serving
    from export_pipelines.local.postgres import embedded
    from export_pipelines.settings import load_settings

    begun = time.monotonic()
    root = load_settings().state / "demo-load"
    _write(root, "loading_project.yaml")
    state = root / ".local"
    with serving() as feed, embedded(state, databases=_DATABASES) as address, _mariadb(root, as_json) as airports:
        places = {
            "WAREHOUSE_URL": address.url("warehouse"),
            "DATASETS_URL": address.url("datasets"),
            "LANDING_PATH": str(state / "landing"),
            "FEED_FLIGHTS_URL": f"{feed}/flights",
            "FEED_AIRLINES_URL": f"{feed}/airlines.xlsx",
            "FEED_PLANES_URL": f"{feed}/api/planes",
        }
        # For whoever opens the project afterwards: the server is started again at the same port, if that is free.
        dotenv = root / ".env"
        dotenv.touch(mode=0o600)
        dotenv.write_text("".join(f"{name}='{value}'\n" for name, value in places.items()), encoding="utf-8")
        os.environ |= {**airports, **places, "EXPORT_PIPELINES_PROJECT": str(root)}
        # Always this server: what these name may be somebody's production.
        for name in ("DATABASE_URL", "DAGSTER_PG_URL", "DAGSTER_HOME"):
            os.environ.pop(name, None)
        with opened(migrate=True) as project:
            if project.project.broken:
                raise RequestError(f"the demo's project is broken: {project.project.broken[0].errors[0]}")
            config = {"force": False, "names": [], "land": True, "load": True}
            results = run_loads(project, in_order(chosen_any(project, ())), config)
            sound = [each for each in chosen_any(project, ()) if not _failed(results, each.definition.id)]
            counts = {each.definition.id: _rows(project, each) for each in sound}
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
        click.echo(f"See them, and what was loaded, in Dagster's UI:  export-pipelines --project {root} up")
    errors = [error for each in results for error in each["errors"]]
    for error in errors:
        click.secho(f"error: {error}", err=True, fg="red")
    return 1 if errors else 0


@contextmanager
def _mariadb(root: Path, as_json: bool) -> Iterator[dict[str, str]]:
    """A MariaDB to pull from, where one is installed, and the variable that names it. The table is in the project only
    then."""
    from export_pipelines.demo.airports import DATABASE, fill_airports
    from export_pipelines.errors import SourceError
    from export_pipelines.local.mariadb import local_mariadb, programs

    try:
        programs()
    except SourceError as error:
        if not as_json:
            output.note(f"no table is pulled from MariaDB: {error.message}; {error.hint}")
        for name in _files("loading_mariadb.yaml"):
            (root / name).unlink(missing_ok=True)
        yield {}
        return
    _write(root, "loading_mariadb.yaml")
    with local_mariadb(root / ".local", databases=[DATABASE]) as address:
        fill_airports(address.url(DATABASE))
        yield {"AIRPORTS_DATABASE_URL": address.url(DATABASE)}


def _files(name: str) -> dict[str, str]:
    found: dict[str, str] = yaml.safe_load(files("export_pipelines.demo").joinpath(name).read_text(encoding="utf-8"))
    return found


def _write(root: Path, project: str) -> None:
    """The project's files, as this version of the library has them."""
    for name, text in _files(project).items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def _failed(results: list[dict[str, object]], table: str) -> bool:
    return any(each["table"] == table and each["errors"] for each in results)


def _rows(project: Opened, assets: LoadAssets | TransformAssets) -> int:
    """Rows that readers of a table see."""
    from export_pipelines.targets.names import TableNames

    target = assets.definition.spec.target
    with project.resource(target.connection).session() as session:
        session.begin()
        return int(session.one(f"SELECT count(*) FROM {TableNames.of(target).view}")[0])
