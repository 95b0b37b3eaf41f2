"""A small code location of its own, plain Dagster: an ingest which our sensors react to.

It reads DATABASE_URL from the environment when it runs, so the location also loads with no database.
"""

import os
from datetime import date

import dagster as dg

from export_pipelines.demo.flights import TIMEZONE
from export_pipelines.demo.ingest import END, FIRST_DAY, TABLE, land_days
from export_pipelines.errors import RequestError

PARTITIONS = dg.DailyPartitionsDefinition(start_date=FIRST_DAY.isoformat(), end_date=END.isoformat(), timezone=TIMEZONE)


@dg.asset(
    key=["upstream", "flights_ingest"],
    partitions_def=PARTITIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="upstream",
    kinds={"python", "postgres"},
    metadata={"dagster/table_name": TABLE},
)
def flights_ingest(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """Lands the flights of a day in `nycflights13.flights_inbox`. A day that is there already is left as it is."""
    for landed in land_days(_database_url(), map(date.fromisoformat, context.partition_keys)):
        context.log.info("%s: %d flights, %d written", landed.day, landed.rows, landed.written)
        context.add_asset_metadata(
            {"dagster/partition_row_count": landed.rows, "written": landed.written, "deleted": landed.deleted},
            partition_key=landed.day.isoformat(),
        )
    return dg.MaterializeResult()


def _database_url() -> str:
    url = os.environ.get("DATABASE_URL", "")
    if not url:
        raise RequestError(
            "DATABASE_URL is not set, so there is no database to land flights in",
            hint="start with `export-pipelines up`, which sets it, or put it into .env",
        )
    return url


flights_ingest_job = dg.define_asset_job(
    "flights_ingest_job", selection=[flights_ingest], executor_def=dg.in_process_executor
)

defs = dg.Definitions(assets=[flights_ingest], jobs=[flights_ingest_job], executor=dg.in_process_executor)
