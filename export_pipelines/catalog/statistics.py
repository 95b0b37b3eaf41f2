"""What the requests of the last weeks were, for operators: read only, days are those of UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

from export_pipelines.catalog.pool import CatalogPool


@dataclass(frozen=True)
class Day:
    """The requests that were made on a day. Times in seconds; None without any."""

    day: date
    requests: int
    users: int
    succeeded: int
    failed: int
    cancelled: int
    live: int
    rows: int
    bytes: int
    """Of the files, as they are downloaded."""
    downloaded: int
    """Bytes that were downloaded on this day."""
    wait_median: float | None
    wait_most: float | None
    """Longer than that waited but 5 % of the requests."""
    run_median: float | None
    run_most: float | None


@dataclass(frozen=True)
class Share:
    """What of all a data set or a user had."""

    name: str
    requests: int
    failed: int
    rows: int
    bytes: int


_BYTES = "coalesce(sum((file->'proof'->>'raw_size')::bigint), 0)::bigint"
_SINCE = "(date_trunc('day', now() AT TIME ZONE 'UTC') - make_interval(days => %(days)s - 1)) AT TIME ZONE 'UTC'"


class Statistics:
    """Questions to the catalog, each one statement."""

    def __init__(self, pool: CatalogPool) -> None:
        self._pool = pool

    def days(self, days: int) -> list[Day]:
        """Each of the last so many days, today included, oldest first."""
        found = self._pool.rows(
            f"""
            WITH asked AS (
              SELECT (created_at AT TIME ZONE 'UTC')::date AS day, count(*) AS requests,
                count(DISTINCT created_by) AS users, count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
                count(*) FILTER (WHERE state = 'failed') AS failed,
                count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
                count(*) FILTER (WHERE state IN ('pending', 'processing')) AS live,
                coalesce(sum(rows) FILTER (WHERE state = 'succeeded'), 0)::bigint AS rows, {_BYTES} AS bytes,
                percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP
                  (ORDER BY extract(epoch FROM started_at - created_at)::float8) AS wait,
                percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP
                  (ORDER BY extract(epoch FROM finished_at - started_at)::float8) AS run
              FROM request WHERE created_at >= {_SINCE} GROUP BY 1),
            sent AS (
              SELECT (started_at AT TIME ZONE 'UTC')::date AS day, sum(bytes)::bigint AS downloaded
              FROM download WHERE started_at >= {_SINCE} GROUP BY 1)
            SELECT d::date AS day, coalesce(requests, 0) AS requests, coalesce(users, 0) AS users,
              coalesce(succeeded, 0) AS succeeded,
              coalesce(failed, 0) AS failed, coalesce(cancelled, 0) AS cancelled, coalesce(live, 0) AS live,
              coalesce(rows, 0) AS rows, coalesce(bytes, 0) AS bytes, coalesce(downloaded, 0) AS downloaded,
              wait[1] AS wait_median, wait[2] AS wait_most, run[1] AS run_median, run[2] AS run_most
            FROM generate_series((now() AT TIME ZONE 'UTC')::date - (%(days)s - 1), (now() AT TIME ZONE 'UTC')::date,
              interval '1 day') d LEFT JOIN asked ON asked.day = d::date LEFT JOIN sent ON sent.day = d::date ORDER BY d
            """,
            {"days": days},
        )
        return [Day(**each) for each in found]

    def top(self, by: Literal["dataset", "created_by"], days: int, limit: int = 8) -> list[Share]:
        """The data sets or the users with the most requests."""
        found = self._pool.rows(
            f"SELECT {by} AS name, count(*) AS requests, count(*) FILTER (WHERE state = 'failed') AS failed, "
            f"coalesce(sum(rows) FILTER (WHERE state = 'succeeded'), 0)::bigint AS rows, {_BYTES} AS bytes "
            f"FROM request WHERE created_at >= {_SINCE} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %(limit)s",
            {"days": days, "limit": limit},
        )
        return [Share(**each) for each in found]
