"""The command `tidy`: old logs and runs of Dagster go."""

from __future__ import annotations

from dataclasses import asdict

import click

from export_pipelines.cli import output
from export_pipelines.components.tidying import HISTORY_DAYS, LOG_DAYS


@click.command("tidy")
@click.option("--log-days", default=LOG_DAYS, show_default=True, type=click.IntRange(min=1), metavar="DAYS")
@click.option("--history-days", default=HISTORY_DAYS, show_default=True, type=click.IntRange(min=1), metavar="DAYS")
@click.option("--dry-run", is_flag=True, help="Only say how much would go.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where nobody can answer.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def tidy_command(log_days: int, history_days: int, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove the logs of Dagster's runs that ended more than --log-days ago, and runs of more than --history-days ago.

    A run stays as long as anything that it made, observed or checked is the latest of its kind, so that no partition
    looks missing. Exit code 1 when the answer was no.
    """
    import dagster as dg

    from export_pipelines.cli.project import opened
    from export_pipelines.components.tidying import tidy

    with opened(), dg.DagsterInstance.get() as instance:
        found = tidy(instance, log_days=log_days, history_days=history_days, dry_run=True)
        if not dry_run and (found.log_events or found.runs):
            if not yes:
                _ask(f"{found.log_events:,} log entries and {output.count(found.runs, 'run')}")
            found = tidy(instance, log_days=log_days, history_days=history_days)
    if as_json:
        output.as_json({"dry_run": dry_run, **asdict(found)})
        return 0
    would = "would go" if dry_run else "are removed"
    click.echo(f"{found.log_events:,} of {found.events:,} log entries and events {would}")
    click.echo(f"{found.runs:,} of {found.all_runs:,} runs {would}")
    return 0


def _ask(what: str) -> None:
    output.agree(
        f"{what} would be removed",
        f"Remove {what} for good?",
        hint="look at `tidy --dry-run`, then run it with --yes",
        declined="nothing was removed",
    )
