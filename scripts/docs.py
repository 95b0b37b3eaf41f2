"""Write the generated pages of docs/reference, or with --check say which of them are stale.

cli.md        every command and option, from click
table.md      every field of a table's defs.yaml, from the pydantic models
dataset.md    every field of a data set's defs.yaml
load.md       every field of the defs.yaml of a table to load
transform.md  every field of the defs.yaml of a transform
resources.md  every field of the documents in resources/
schedules.md  every field of the documents in schedules/
settings.md   every variable of .env and the environment
api.md        every operation of the service, from its OpenAPI document
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import click
from api_docs import api
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from export_pipelines.cli import main as command_line
from export_pipelines.components.loading_automations import AUTOMATION
from export_pipelines.components.project import RESOURCES
from export_pipelines.specs.dataset import DataSetSpec
from export_pipelines.specs.documents import PREFIX
from export_pipelines.specs.load import LoadSpec
from export_pipelines.specs.service import FromVariable
from export_pipelines.specs.table import TableSpec
from export_pipelines.specs.transform import TransformSpec

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Written by scripts/docs.py from the program itself; changes here would be lost. -->\n"


def main() -> None:
    """Write all pages, or compare them."""
    pages = {
        "cli": cli(),
        "table": table(),
        "dataset": dataset(),
        "load": load(),
        "transform": transform(),
        "resources": resources(),
        "schedules": schedules(),
        "settings": settings(),
        "api": api(NOTE),
    }
    stale = []
    for name, text in pages.items():
        file = FOLDER / f"{name}.md"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(str(file.relative_to(ROOT)))
            if "--check" not in sys.argv:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
    if "--check" not in sys.argv:
        print("written: " + (", ".join(stale) or "nothing, all is up to date"))
    elif stale:
        sys.exit(f"stale: {', '.join(stale)}\nhint: python scripts/docs.py writes them anew")
    else:
        print(f"{len(pages)} generated pages are up to date")


# The command line


def cli() -> str:
    """Every command with its options."""
    context = click.Context(command_line, info_name="export-pipelines")
    parts = [
        f"# Command line\n\n{NOTE}",
        "Exit codes: 0 done, 1 something failed or was refused, 2 wrong usage, 130 after Ctrl-C. Errors go to stderr "
        "as one\nsentence and a `hint:`. With `--json` the result on stdout is JSON.\n",
        "```\nexport-pipelines [--project DIR] [--verbose] COMMAND …\n```\n",
    ]
    for name in command_line.list_commands(context):
        command = command_line.get_command(context, name)
        assert command is not None
        parts.append(_command(name, command))
        if isinstance(command, click.Group):
            parts += [_command(f"{name} {each}", inner) for each, inner in command.commands.items()]
    return "\n".join(parts)


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"export-pipelines {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    text = "\n\n".join(map(_paragraph, (command.help or "").split("\n\n")))
    rows = [option for option in command.params if isinstance(option, click.Option) and "--verbose" not in option.opts]
    lines = [f"## {name}\n", text + "\n", f"```\nexport-pipelines {name} {usage}".rstrip() + "\n```\n"]
    if rows:
        lines.append("| option | meaning |\n|---|---|")
        lines += [f"| `{_spelled(option, context)}` | {_meaning(option, context)} |" for option in rows]
        lines.append("")
    return "\n".join(lines)


def _paragraph(text: str) -> str:
    """One line, but for what click leaves as it is: examples become a block, others keep their lines."""
    if not text.lstrip(" ").startswith("\b"):
        return " ".join(text.split())
    lines = [line.strip() for line in text.replace("\b", "").splitlines() if line.strip()]
    kept = "\n".join(lines)
    return f"```\n{kept}\n```" if all(line.startswith("export-pipelines ") for line in lines) else kept


def _spelled(option: click.Option, context: click.Context) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    kind = option.metavar or ("\\|".join(option.type.choices) if isinstance(option.type, click.Choice) else "")
    return f"{names} {kind or option.type.name.upper().replace(' RANGE', '')}"


def _meaning(option: click.Option, context: click.Context) -> str:
    text = option.help or ""
    if option.required:
        text += " Required."
    if option.show_default and option.default is not None and not callable(option.default):
        text += f" Default: `{option.default}`."
    return text


# Files in YAML

_FROM_VARIABLES = ("FromEnvironment", "FromVariable")


def table() -> str:
    """Fields of ExportTable."""
    intro = (
        "`assets/<group>/<table>/defs.yaml` of `type: export_pipelines.ExportTable`. Its smallest form is "
        "`table` alone.\nSQL parameters in select.sql and delete.sql: `%(window_start)s`, `%(window_end)s`, "
        "`%(export_boundary)s` (the\nend of the window), `%(partition_key)s`.\n"
    )
    return "\n".join([f"# A table: defs.yaml\n\n{NOTE}", intro, *_model(TableSpec, 2)])


def dataset() -> str:
    """Fields of DataSet."""
    intro = (
        "`assets/<group>/<name>/defs.yaml` of `type: export_pipelines.DataSet`. Its smallest form is `table` alone, "
        "or\nnothing but a select.sql beside it. See [how to add one](../how-to/add-a-data-set.md). `on_demand:` of a\n"
        "[table](table.md) has the fields up to `statement_timeout`; the others are those of the table.\n"
    )
    return "\n".join([f"# A data set: defs.yaml\n\n{NOTE}", intro, *_model(DataSetSpec, 2)])


def load() -> str:
    """Fields of LoadTable."""
    intro = (
        "`assets/<group>/<table>/defs.yaml` of `type: export_pipelines.LoadTable`. A `select.sql` beside it is the "
        "query of a\n`database` source; `ver/NNN_*.sql` are statements that change the loaded table, each run once.\n"
    )
    return "\n".join([f"# A table to load: defs.yaml\n\n{NOTE}", intro, *_model(LoadSpec, 2)])


def transform() -> str:
    """Fields of Transform."""
    intro = (
        "`assets/<group>/<name>/defs.yaml` of `type: export_pipelines.Transform`, with its SQL in `transform.sql` "
        "beside. See\n[how to transform tables](../how-to/transform.md).\n"
    )
    return "\n".join([f"# A transform: defs.yaml\n\n{NOTE}", intro, *_model(TransformSpec, 2)])


def resources() -> str:
    """Fields of the documents in resources/."""
    intro = "Documents of `resources/**/defs.yaml`. Values that are secrets are read from variables: `{env: NAME}`.\n"
    return "\n".join([f"# resources/\n\n{NOTE}", intro, *_models(RESOURCES)])


def schedules() -> str:
    """Fields of the documents in schedules/."""
    return "\n".join([f"# schedules/\n\n{NOTE}", "Documents of `schedules/**/defs.yaml`.\n", *_models(AUTOMATION)])


def _models(found: dict[str, Any]) -> Iterator[str]:
    for name, model in found.items():
        yield f"## {PREFIX}{name}\n"
        yield f"{_flat(model.__doc__)}\n"
        yield from _model(model, 3)


def _model(model: type[BaseModel], level: int) -> Iterator[str]:
    """The fields of a model as a table, then the models that they are made of."""
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    for name, info in model.model_fields.items():
        default = "required" if info.is_required() else _default(info)
        yield f"| `{info.alias or name}` | {_type(info.annotation)} | {default} | {_flat(info.description)} |"
    yield ""
    for name, info in model.model_fields.items():
        for inner in _inner_models(info.annotation):
            if inner.__name__ in _FROM_VARIABLES:
                continue
            yield f"{'#' * level} {_heading(name, info, inner)}\n"
            yield f"{_flat(inner.__doc__)}\n"
            yield from _model(inner, level + 1)


def _heading(name: str, info: FieldInfo, inner: type[BaseModel]) -> str:
    """Where a field may be one of several models, each has its `type` beside the field's name."""
    kinds = [each.model_fields.get("type") for each in _inner_models(info.annotation)]
    if len(kinds) < 2 or not all(kinds):
        return name
    return f"{name}: {typing.get_args(inner.model_fields['type'].annotation)[0]}"


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if isinstance(value, FromVariable):
        return f"`{{env: {value.env}, default: {value.default}}}`"
    if isinstance(value, BaseModel):
        return "see below"
    if value in (None, "", (), {}) or value is PydanticUndefined:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{each.value if isinstance(each, Enum) else each}`" for each in value)
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_type(each) for each in arguments if each is not type(None)))
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"{_type(arguments[0])} → {_type(arguments[1])}"
    if origin is typing.Annotated:
        return _type(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{each.value}`" for each in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "`{env: NAME}`" if annotation.__name__ in _FROM_VARIABLES else "mapping"
    names = {"str": "text", "int": "number", "float": "number", "bool": "true or false", "datetime": "date or time"}
    names["object"] = "anything"
    return names.get(getattr(annotation, "__name__", ""), str(annotation))


def _inner_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for each in typing.get_args(annotation) for inner in _inner_models(each)]


def _flat(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


# Variables

VARIABLES = [
    ("DATABASE_URL", "Database to export from.", "database `source` of the embedded server"),
    (
        "DAGSTER_PG_URL",
        "Database of Dagster's storage and of our catalog.",
        "database `dagster` of the embedded server",
    ),
    ("EXPORT_PATH", "Folder of exported files.", "`.local/exports`"),
    ("ARCHIVE_URL", "Long-term store: `file:///folder` or `s3://bucket/prefix`.", "`.local/archive`"),
    ("LANDING_PATH", "Folder of landed files.", "`.local/landing`"),
    ("DSL_PATH", "Folder of tasks, each a folder with select.sql and delete.sql; they become tables.", "–"),
    ("DSL_START", "First day of the tasks in folders without defs.yaml.", "`2025-01-01`"),
    ("EXPORT_TIMEZONE", "Zone in which days of such tasks begin.", "`UTC`"),
    (
        "DAGSTER_HOME",
        "Folder of dagster.yaml, which is written there unless there is one of yours.",
        "`.local/dagster`",
    ),
    (
        "PUBLIC_URL",
        "Address of exports on demand: links begin with it. Also `public_url` of the service.",
        "where `up` serves, else `http://127.0.0.1:8080`",
    ),
    (
        "DAGSTER_URL",
        "Address of Dagster's UI: links to runs begin with it. Also `dagster_url` of the service.",
        "where `up` serves, else `http://127.0.0.1:3000`",
    ),
    ("EXPORT_PIPELINES_PROJECT", "The project's folder.", "the current folder, or one above it"),
    ("EXPORT_PIPELINES_VERBOSE", "Any value: as `--verbose`.", "–"),
    ("AWS_…", "The usual variables of AWS, `AWS_ENDPOINT_URL` for other servers.", "–"),
]


def settings() -> str:
    """The variables."""
    intro = (
        "Read from the environment, then from `.env` in the project's folder. Each replaces just its own part: with "
        "both database\nURLs set nothing embedded is started or imported. "
        "Relative paths count from the project's folder.\n"
    )
    rows = [f"| `{name}` | {meaning} | {default} |" for name, meaning, default in VARIABLES]
    example = (ROOT / ".env.example").read_text(encoding="utf-8").strip()
    return "\n".join(
        [
            f"# Settings\n\n{NOTE}",
            intro,
            "| variable | meaning | default |\n|---|---|---|",
            *rows,
            f"\n## .env.example\n\n```\n{example}\n```\n",
        ]
    )


if __name__ == "__main__":
    main()
