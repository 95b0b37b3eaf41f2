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


@click.command("init")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def init_command(folder: Path) -> None:
    """Make a new project in DIR: the three folders with an example, workspace.yaml, .env.example and a README.

    DIR is made if it is missing, and must be empty.
    """
    made = make_project(folder)
    for name in made:
        click.echo(f"  {folder / name}")
    click.echo(f"\nNext:  cd {folder}  &&  export-pipelines check  &&  export-pipelines run --all")


def make_project(folder: Path) -> list[str]:
    """Write the files of a new project; their names.

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
        texts = _texts(folder.resolve().name)
        for name, text in texts.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{folder} cannot be written: {error.strerror}", hint="choose another folder") from error
    return list(texts)


def _texts(name: str) -> dict[str, str]:
    """Path and text of each file."""
    text = files("export_pipelines.cli").joinpath("new_project.yaml").read_text(encoding="utf-8")
    found: dict[str, str] = yaml.safe_load(text)
    return {path: body.replace("{{project}}", _location(name)) for path, body in found.items()}


def _location(name: str) -> str:
    """The folder's name as that of a code location: letters, digits, `_`, `-` and `.`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name) or "project"
