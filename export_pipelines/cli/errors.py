"""How an error is told: one sentence and a hint on stderr, without secrets."""

from __future__ import annotations

import traceback

import click

from export_pipelines.errors import BadRange, ExportPipelinesError, SpecErrors
from export_pipelines.sources.postgres import redact


def tell(error: Exception, *, verbose: bool) -> int:
    """Say on stderr what went wrong; returns the exit code: 2 for wrong usage, else 1."""
    if verbose:
        click.echo(redact("".join(traceback.format_exception(error))), err=True)
    for line in lines_of(error):
        click.secho(line, err=True, fg=None if line.startswith("hint:") else "red")
    return 2 if isinstance(error, BadRange) else 1


def lines_of(error: Exception) -> list[str]:
    """What to say of an error."""
    if isinstance(error, SpecErrors):
        return [redact(str(each)) for each in error.errors]
    if isinstance(error, ExportPipelinesError):
        return redact(f"error: {error}").splitlines()
    first = (str(error).strip().splitlines() or [""])[0]
    return [
        redact(f"error: {type(error).__name__}: {first}"),
        "hint: this was not foreseen; --verbose shows where it happened",
    ]
