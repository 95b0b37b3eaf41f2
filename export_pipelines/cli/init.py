"""The command `init`: a new project in an empty folder."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import click
import yaml

from export_pipelines.errors import RequestError

_IGNORED = ".DS_Store", ".git"
"""What an empty folder may hold."""
_MYSQL_URL = "SHOP_DATABASE_URL"
"""Variable that the example's connection to MySQL reads."""


@click.command("init")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--mysql", is_flag=True, help="Its tables come from MySQL or MariaDB.")
def init_command(folder: Path, mysql: bool) -> None:
    """Make a new project in DIR: the three folders with an example, workspace.yaml, .env.example and a README.

    DIR is made if it is missing, and must be empty.
    """
    made = make_project(folder, mysql=mysql)
    for name in made:
        click.echo(f"  {folder / name}")
    first = f"cp .env.example .env  &&  $EDITOR .env  (set {_MYSQL_URL})  &&  " if mysql else ""
    click.echo(f"\nNext:  cd {folder}  &&  {first}export-pipelines check  &&  export-pipelines run --all")


def make_project(folder: Path, *, mysql: bool = False) -> list[str]:
    """Write the files of a new project, with a source of PostgreSQL or of MySQL; their names.

    Raises:
        RequestError: the folder is not empty, is a file, or cannot be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise RequestError(f"{folder} is a file", hint="give a folder that is empty or does not exist")
        if folder.is_dir() and (there := sorted(e.name for e in folder.iterdir() if e.name not in _IGNORED)):
            raise RequestError(
                f"{folder} is not empty: it has {', '.join(there[:3])}{' …' if len(there) > 3 else ''}",
                hint="give a folder that is empty or does not exist",
            )
        texts = _texts(folder.resolve().name, mysql=mysql)
        for name, text in texts.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{folder} cannot be written: {error.strerror}", hint="choose another folder") from error
    return list(texts)


def _texts(name: str, *, mysql: bool) -> dict[str, str]:
    """Path and text of each file. An empty text of the variant takes a file away."""
    found: dict[str, str] = {}
    for source in ("new_project.yaml", *(["new_project_mysql.yaml"] if mysql else [])):
        text = files("export_pipelines.cli").joinpath(source).read_text(encoding="utf-8")
        found |= yaml.safe_load(text)
    return {path: body.replace("{{project}}", _location(name)) for path, body in found.items() if body}


def _location(name: str) -> str:
    """The folder's name as that of a code location: letters, digits, `_`, `-` and `.`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name) or "project"
