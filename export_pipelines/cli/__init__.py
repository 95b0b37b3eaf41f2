"""The command line `export-pipelines`.

Every command lives in a module of its family, imported when it is called: `--help` stays quick. Errors of ours are told
in one place (`Cli.main`): one sentence and a hint on stderr, exit code 1; wrong usage is exit code 2.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from export_pipelines import __version__

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@dataclass(frozen=True)
class _Entry:
    """Where a command is defined, and what `--help` says of it."""

    module: str
    summary: str


_COMMANDS = {
    "init": _Entry("init", "Make a new project in an empty folder."),
    "demo": _Entry("demo", "Export, archive and clean up real tables in the project's database."),
    "up": _Entry("service", "Run database, web UI, daemon, code server, API and worker until Ctrl-C."),
    "api": _Entry("api", "Serve exports on demand by HTTP, until Ctrl-C (part of `up`)."),
    "worker": _Entry("worker", "Answer requests for exports on demand, until Ctrl-C (part of `up`)."),
    "check": _Entry("check", "Check all definitions, and whether databases and stores are fit for them."),
    "roles": _Entry("roles", "Print the SQL of database roles that have just the rights that are needed."),
    "doctor": _Entry("doctor", "Say what is installed, reachable and misconfigured, and the remedy."),
    "list": _Entry("tables", "List the tables, and what is broken."),
    "status": _Entry("tables", "Say of each table what is exported, archived and cleaned up."),
    "run": _Entry("run", "Export, archive and clean up partitions, as Dagster runs."),
    "load": _Entry("load", "Load files, databases and APIs into tables of PostgreSQL."),
    "scaffold": _Entry("scaffold", "Write the definition of a table to load, with inferred types."),
    "import-dapu": _Entry("import_dapu", "Make definitions of a project of dapu, and say what is not carried over."),
    "pause": _Entry("pause", "Keep tables from being loaded by themselves, or list which are."),
    "resume": _Entry("pause", "End a pause."),
    "grants": _Entry("grants", "Compare who may read loaded tables with what is declared, or make it so."),
    "dump": _Entry("dump", "Dump any range of tables into files, cut into batches."),
    "token": _Entry("token", "Make, list and revoke API tokens of the service."),
    "client": _Entry("client", "Make, list, rotate and revoke clients that read tables by signed calls (HAWK)."),
    "request": _Entry("request", "Ask a service for an export, follow it and download it."),
    "plan": _Entry("plan", "Show what a cleanup would delete; deletes nothing."),
    "verify": _Entry("verify", "Read the archive again and compare it with its manifests."),
    "heads": _Entry("verify", "Print where each chain of manifests ends, to be kept elsewhere."),
    "keygen": _Entry("signing", "Make a key pair to sign manifests with."),
    "sign": _Entry("signing", "Sign manifests that have no signature."),
    "restore": _Entry("restore", "Bring archived partitions back into a table or a file."),
    "adopt": _Entry("archive", "Take the files of an older export service into the archive."),
    "sweep": _Entry("archive", "Remove what broken-off attempts left behind."),
    "expire": _Entry("expire", "Give up the archived files that retention does not want."),
    "hold": _Entry("holds", "Exempt a table, a partition or a range of time from cleanup and expire."),
    "unhold": _Entry("holds", "End a hold."),
    "holds": _Entry("holds", "List the holds in force, and those of the past."),
    "notices": _Entry("notices", "List mails and webhooks about requests that wait or were given up."),
    "audit": _Entry("audit", "List, verify and export the log of who did what."),
    "tidy": _Entry("tidy", "Remove old logs and runs of Dagster, and old entries of our own."),
    "migrate": _Entry("service", "Bring the catalog to the newest version."),
    "version": _Entry("service", "Print the version."),
}
"""All commands in the order of `--help`."""


class Cli(click.Group):
    """A group whose commands are imported when they are needed, and whose errors are told in one way."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        entry = _COMMANDS.get(name)
        if entry is None:
            return None
        module = importlib.import_module(f"{__name__}.{entry.module}")
        command: click.Command = getattr(module, f"{name.replace('-', '_')}_command")
        if not any("--verbose" in each.opts for each in command.params):
            command.params.append(_verbose_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command and exit: 0 done, 1 failed, 2 wrong usage, 130 after Ctrl-C."""
        given = list(sys.argv[1:] if args is None else args)
        try:
            if "--dump" in given:
                from export_pipelines.cli.dump_alias import understood

                given = understood(given)
            code = super().main(given, *rest, **{**extra, "standalone_mode": False})
        except click.exceptions.Exit as end:
            sys.exit(end.exit_code)
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except BrokenPipeError:
            # Whoever read our output has gone, as `head` does.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            from export_pipelines.cli.errors import tell

            sys.exit(tell(error, verbose=bool(os.environ.get("EXPORT_PIPELINES_VERBOSE"))))
        sys.exit(code if isinstance(code, int) else 0)


def _verbose_option() -> click.Option:
    return click.Option(
        ["--verbose", "-v"],
        is_flag=True,
        expose_value=False,
        callback=_set_verbose,
        help="Show Dagster's log, and the traceback of an error.",
    )


def _set_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        os.environ["EXPORT_PIPELINES_VERBOSE"] = "1"


def _set_project(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value and not Path(value).expanduser().is_dir():
        raise click.BadParameter(f"{value!r} is no folder")
    if value:
        os.environ["EXPORT_PIPELINES_PROJECT"] = value


@click.group(
    cls=Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit codes: 0 done, 1 something failed or was refused, 2 wrong usage, 130 after Ctrl-C. "
    "The old `--dump TYPE [START END]` (days, both included) is still understood, as `dump`. "
    "Settings come from the environment and the project's .env; see docs/reference/settings.md.",
)
@click.option(
    "--project",
    metavar="DIR",
    expose_value=False,
    callback=_set_project,
    help="The project's folder; the current one, or one above it, when absent.",
)
@click.option(
    "--verbose",
    "-v",
    is_flag=True,
    expose_value=False,
    callback=_set_verbose,
    help="Show Dagster's log, and the traceback of an error.",
)
@click.version_option(__version__, prog_name="export-pipelines")
def main() -> None:
    """Tables leave a database safely: export, archive, clean up, verify, restore."""
