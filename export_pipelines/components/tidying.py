"""What Dagster's storage in PostgreSQL need not keep: logs of the steps of old runs, and then old runs.

Dagster's own way to forget a run forgets what it materialized, too, and partitions look missing. Here a run stays as
long as it has the latest event of any kind of any asset, partition or check; so does the newest run of each job, and
one that another was retried from. Logs are told apart by their kind: events of assets, checks and of the run itself
stay with the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    import dagster as dg

LOG_DAYS = 61
"""Days that the logs of a run are kept after its end."""
HISTORY_DAYS = 426
"""Days that a run is kept after its end: fourteen months."""

_BATCH = 10_000
_LOGS = (
    *("STEP_OUTPUT", "STEP_INPUT", "STEP_FAILURE", "STEP_START", "STEP_SUCCESS", "STEP_SKIPPED"),
    *("STEP_WORKER_STARTING", "STEP_WORKER_STARTED", "STEP_UP_FOR_RETRY", "STEP_RESTARTED", "STEP_EXPECTATION_RESULT"),
    *("RESOURCE_INIT_STARTED", "RESOURCE_INIT_SUCCESS", "RESOURCE_INIT_FAILURE", "OBJECT_STORE_OPERATION"),
    *("LOADED_INPUT", "HANDLED_OUTPUT", "ENGINE_EVENT", "HOOK_COMPLETED", "HOOK_ERRORED", "HOOK_SKIPPED"),
    "LOGS_CAPTURED",
)
"""Kinds of events that tell of the work of a run, and of nothing that it made. Any other kind stays."""

_ENDED = """
r.status IN ('SUCCESS', 'FAILURE', 'CANCELED')
AND coalesce(r.end_time, extract(epoch FROM r.update_timestamp AT TIME ZONE 'UTC')) < %(before)s
"""
_OLD_LOGS = f"""
SELECT e.id FROM event_logs e JOIN runs r ON r.run_id = e.run_id
WHERE {_ENDED} AND e.asset_key IS NULL AND (e.dagster_event_type IS NULL OR e.dagster_event_type = ANY(%(kinds)s))
"""
_OLD_RUNS = f"""
WITH latest AS (
  SELECT DISTINCT ON (asset_key, partition, dagster_event_type) run_id FROM event_logs
  WHERE asset_key IS NOT NULL ORDER BY asset_key, partition, dagster_event_type, id DESC
), latest_check AS (
  SELECT DISTINCT ON (asset_key, check_name, partition, execution_status) run_id FROM asset_check_executions
  ORDER BY asset_key, check_name, partition, execution_status, id DESC
)
SELECT r.run_id FROM runs r WHERE {_ENDED}
AND r.id <> (SELECT max(n.id) FROM runs n WHERE n.pipeline_name = r.pipeline_name)
AND NOT EXISTS (SELECT 1 FROM latest l WHERE l.run_id = r.run_id)
AND NOT EXISTS (SELECT 1 FROM latest_check l WHERE l.run_id = r.run_id)
AND NOT EXISTS (SELECT 1 FROM asset_keys k WHERE k.last_run_id = r.run_id)
AND NOT EXISTS (SELECT 1 FROM run_tags t
  WHERE t.key IN ('dagster/root_run_id', 'dagster/parent_run_id') AND t.value = r.run_id)
-- Which partitions a run over a range has failed is said by that run alone.
AND NOT (r.status = 'FAILURE' AND EXISTS (SELECT 1 FROM run_tags t
  WHERE t.run_id = r.run_id AND t.key = 'dagster/asset_partition_range_start'))
ORDER BY r.id
"""


@dataclass(frozen=True)
class Tidied:
    """What goes, or has gone."""

    log_events: int
    """Log entries of runs."""
    runs: int
    """Runs, with all their events."""
    events: int
    """Events and log entries there were before."""
    all_runs: int
    """Runs there were before."""


def tidy(
    instance: dg.DagsterInstance,
    *,
    log_days: float = LOG_DAYS,
    history_days: float = HISTORY_DAYS,
    dry_run: bool = False,
    now: datetime | None = None,
) -> Tidied:
    """Remove logs of runs that ended more than `log_days` ago, and runs that ended more than `history_days` ago.

    Broken off, it has removed a part; the next time does the rest. Logs go in batches of a transaction each.

    Raises:
        RequestError: Dagster's storage is not in PostgreSQL, or runs would go before their logs.
        SourceError: the database is away.
    """
    if history_days < log_days:
        raise RequestError("runs would go before their logs", hint="history_days is at least log_days")
    moment = now or datetime.now(UTC)
    logs = {"before": (moment - timedelta(days=log_days)).timestamp(), "kinds": list(_LOGS)}
    history = {"before": (moment - timedelta(days=history_days)).timestamp()}
    with _connection(instance) as connection:
        events = _number(connection, "SELECT count(*) FROM event_logs")
        all_runs = _number(connection, "SELECT count(*) FROM runs")
        old = [str(run_id) for (run_id,) in _rows(connection, _OLD_RUNS, history)]
        if dry_run:
            gone = _number(connection, f"SELECT count(*) FROM ({_OLD_LOGS}) AS old", logs)
        else:
            gone = _remove_logs(connection, instance, logs)
            for run_id in old:
                _remove_run(connection, instance, run_id)
    return Tidied(gone, len(old), events, all_runs)


@contextmanager
def _connection(instance: dg.DagsterInstance) -> Iterator[Any]:
    """A connection in autocommit to where Dagster keeps runs and events."""
    from export_pipelines.sources.postgres import PostgresSource

    url = getattr(instance.event_log_storage, "postgres_url", None)
    if not isinstance(url, str):
        raise RequestError("Dagster's storage is not in PostgreSQL", hint="set DAGSTER_PG_URL, and see dagster.yaml")
    connection = PostgresSource(url, {"application_name": "export_pipelines_tidy"}).connect()
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()


def _rows(connection: Any, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall())


def _number(connection: Any, sql: str, values: Mapping[str, Any] | None = None) -> int:
    return int(_rows(connection, sql, values)[0][0])


def _remove_logs(connection: Any, instance: dg.DagsterInstance, values: Mapping[str, Any]) -> int:
    """Number of entries. The files that steps' output was captured in go with them."""
    delete = f"DELETE FROM event_logs WHERE id IN ({_OLD_LOGS} LIMIT {_BATCH}) RETURNING run_id"
    gone = 0
    while found := _rows(connection, delete, values):
        gone += len(found)
        for (run_id,) in set(found):
            _remove_output(instance, run_id)
    return gone


def _remove_output(instance: dg.DagsterInstance, run_id: str) -> None:
    # Some managers of logs cannot remove any: what they write to has a retention of its own.
    with suppress(NotImplementedError, OSError):
        instance.compute_log_manager.delete_logs(prefix=[run_id])


def _remove_run(connection: Any, instance: dg.DagsterInstance, run_id: str) -> None:
    _remove_output(instance, run_id)
    instance.delete_run(run_id)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM asset_check_executions WHERE run_id = %s", (run_id,))
