"""The command `import-dapu`: definitions made of a project of dapu, and a report of what is not carried over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from export_pipelines.cli import output
from export_pipelines.cli.dapu_sources import MYSQL, connection_key
from export_pipelines.cli.dapu_tables import Converted, Converter, Made
from export_pipelines.cli.dapu_tree import Tree, read_tree, variable
from export_pipelines.errors import RequestError

REPORT = "import-dapu.md"


@click.command("import-dapu")
@click.argument("routes", metavar="ROUTES_FOLDER", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--into", default=Path("assets"), metavar="DIR", type=click.Path(path_type=Path), show_default=True)
@click.option("--connections", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--timezone", default="UTC", show_default=True, help="Zone of the windows of the day.")
@click.option("--write", is_flag=True, help="Write the files. Without, they are only named.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def import_dapu_command(
    routes: Path, into: Path, connections: Path | None, timezone: str, write: bool, as_json: bool
) -> int:
    """Make definitions of the tasks of dapu in ROUTES_FOLDER/<route>/<schema>/<table>/haulwork.yaml.

    Tables go to DIR/<route>/<schema>/<table>/, connections to resources/. What cannot be carried over is listed by
    table, and written to DIR/import-dapu.md. The connections are looked for beside ROUTES_FOLDER (connections.yaml)
    unless given by --connections; no password is taken over.

    Nothing that exists is overwritten: if anything is in the way, nothing is written at all. Exit code 1 when a task
    was left out.

    \b
      export-pipelines import-dapu ../warehouse/routes
      export-pipelines import-dapu ../warehouse/routes --timezone Europe/Tallinn --write
    """
    from export_pipelines.settings import find_root

    root = find_root()
    target = (root / into).resolve()
    if not target.is_relative_to(root.resolve() / "assets"):
        raise RequestError(f"{into} is not below assets/", hint="give --into assets, or a folder below it")
    tree = read_tree(routes.resolve(), connections)
    found = Converter(tree, root.resolve(), target, timezone).all()
    for each in found:
        each.made = [made for made in each.made if _fits(made, each)]
    files = {path: text for each in found for made in each.made for path, text in made.files.items()}
    files |= _resources(root.resolve(), tree, found)
    files[target / REPORT] = _report(tree, routes, found)
    _refuse_existing(files)
    for path, text in files.items() if write else ():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    _tell(root.resolve(), tree, found, list(files), write=write, as_json=as_json)
    return 1 if any(not each.made for each in found) else 0


def _fits(made: Made, converted: Converted) -> bool:
    """Whether it is a valid definition; what is wrong with it is noted."""
    from export_pipelines.specs.documents import Document, validate
    from export_pipelines.specs.load import LoadSpec
    from export_pipelines.specs.transform import TransformSpec

    model = LoadSpec if made.kind == "LoadTable" else TransformSpec
    checked = validate(model, Document(made.kind, made.attributes, 0, made.folder / "defs.yaml"))
    if not isinstance(checked, list):
        return True
    converted.notes += [f"{made.folder.name} is left out: {each.field} {each.message}".strip() for each in checked]
    return False


def _resources(root: Path, tree: Tree, found: list[Converted]) -> dict[Path, str]:
    """Connections and stores that resources/ lacks. They name variables, and hold no secret."""
    from export_pipelines.cli.project import read_project
    from export_pipelines.cli.scaffold import missing_resources
    from export_pipelines.settings import load_settings

    known = read_project(load_settings(root)).resources
    files = missing_resources(root)
    for alias in dict.fromkeys(alias for each in found for alias in each.connections):
        key = connection_key(alias)
        if key in known:
            continue
        driver = str(tree.connections[alias].get("driver") or "").lower()
        document: dict[str, Any] = {
            "type": f"export_pipelines.{'MysqlConnection' if driver in MYSQL else 'PostgresConnection'}",
            "attributes": {"resource_key": key, "url": {"env": variable(alias, "url")}},
        }
        files[root / "resources" / key / "defs.yaml"] = yaml.safe_dump(document, sort_keys=False)
    return files


def _refuse_existing(files: dict[Path, str]) -> None:
    if there := [path for path in files if path.exists()]:
        more = f", and {len(there) - 1} more" if len(there) > 1 else ""
        raise RequestError(f"{there[0]} exists{more}", hint="move it away, or choose another folder with --into")


def _report(tree: Tree, routes: Path, found: list[Converted]) -> str:
    lines = ["# Import of dapu", "", f"From `{routes.name}`. What is listed here is not carried over, or wants a look."]
    for each in found:
        if each.notes or not each.made:
            lines += ["", f"## {_where(each)}", "", *[f"- {note}" for note in each.notes]]
    if tree.unread:
        lines += ["", "## Files that were not read", "", *[f"- `{_short(file)}` {why}" for file, why in tree.unread]]
    if variables := _variables(found):
        lines += ["", "## Variables to set", "", *[f"- `{name}`: {what}" for name, what in variables.items()]]
    return "\n".join(lines) + "\n"


def _where(converted: Converted) -> str:
    task = converted.task
    return f"{task.route.code}/{task.schema}/{task.table}"


def _short(file: Path) -> str:
    return "/".join(file.parts[-4:])


def _variables(found: list[Converted]) -> dict[str, str]:
    return {name: what for each in found for name, what in sorted(each.variables.items())}


def _tell(root: Path, tree: Tree, found: list[Converted], files: list[Path], *, write: bool, as_json: bool) -> None:
    names = [path.relative_to(root).as_posix() for path in files]
    if as_json:
        tasks = [
            {"task": each.task.id, "folders": [made.folder.name for made in each.made], "notes": each.notes}
            for each in found
        ]
        unread = [{"file": str(file), "why": why} for file, why in tree.unread]
        variables = _variables(found)
        output.as_json({"written": write, "files": names, "tasks": tasks, "unread": unread, "variables": variables})
        return
    for name in names:
        click.echo(f"  {name}{'' if write else '  (would be written)'}")
    for each in found:
        for note in each.notes:
            output.warn(f"{_where(each)}: {note}")
    for file, why in tree.unread:
        output.warn(f"{_short(file)} {why}")
    for name, what in _variables(found).items():
        click.echo(f"set {name}: {what}")
    click.echo("\nNext:  " + ("export-pipelines check --offline" if write else "the same with --write"))
