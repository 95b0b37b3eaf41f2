"""The command `worker`: the process that answers requests for exports on demand."""

from __future__ import annotations

from datetime import datetime

import click


@click.command("worker")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def worker_command(quiet: bool) -> None:
    """Answer requests for exports on demand, until Ctrl-C.

    \b
    `export-pipelines up` has one already. Start one by itself
      - in production, beside Dagster's daemon and `export-pipelines api`,
      - on more machines, which then share the queue.

    It takes what the API, the page or `export-pipelines request` have asked for, first in, first out, `concurrency`
    at a time (resources/service/defs.yaml). Each request is a run in Dagster, which begins within a fraction of a
    second: the worker keeps a process that has everything imported. It cancels, retries, finds what is stuck, sends
    the notices, and removes the files that have expired.

    A restart loses nothing: what is at work goes back into the queue. One worker a project and machine; it reads
    changed definitions by itself.

    Exit codes: 0 stopped by a signal, 1 it could not start (the reason is told), 2 wrong usage.
    """
    from export_pipelines.cli.project import quiet as quieten
    from export_pipelines.local.project import running
    from export_pipelines.settings import load_settings

    quieten()

    def say(line: str) -> None:
        if not quiet or line.startswith("warning:"):
            click.echo(f"{datetime.now():%H:%M:%S} {line}", err=line.startswith("warning:"))

    found = load_settings()
    with running(found, migrate_catalog=found.embedded_dagster) as settings:
        from export_pipelines.worker.main import work

        say("starting, which takes some seconds")
        work(settings, say=say)
        say("stopped")
