"""The demo's data and definitions: whole, deterministic, loaded once, and cut as the definitions say."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extras import execute_values

from export_pipelines.demo import flights, ingest, knowledge_base
from export_pipelines.errors import RequestError, SourceError, TargetError
from export_pipelines.local.postgres import Address
from export_pipelines.specs.loader import load_tables
from export_pipelines.specs.table import PartitionsSpec, TableDefinition
from export_pipelines.sql import parameters, parse_delete, parse_select, render
from export_pipelines.windows import Window, closed_windows, window_of
from tests.support.servers import new_database, run_sql

# Dagster calls the backfill policy, which the upstream location sets, a beta feature.
pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

ROOT = Path(__file__).resolve().parents[2]
LOADED = load_tables(ROOT, None)
TODAY = date(2025, 1, 15)
MIDNIGHT = datetime(2025, 1, 15, tzinfo=UTC)
TASKS = ["agency", "source", "source_file", "source_run_page", "source_run_report"]
SPRING, AUTUMN = "2013-03-10", "2013-11-03"


@pytest.fixture(scope="module")
def demo(postgres: Address) -> Iterator[str]:
    """URL of a database with both data sets; tests leave it as it is."""
    with new_database(postgres) as url:
        flights.load(url)
        knowledge_base.load(url, today=TODAY)
        yield url


def definition(table_id: str) -> TableDefinition:
    return LOADED.tables[table_id]


def one(url: str, statement: str, values: Any = None) -> Any:
    return run_sql(url, statement, values)[0][0]


def rows_by_window(url: str, table_id: str, column: str) -> dict[str, int]:
    """Rows in each of a table's windows, counted by the server from the windows' bounds."""
    spec = definition(table_id).spec.partitions
    windows = closed_windows(spec, datetime.now(UTC))
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE windows (key text, starts timestamptz, ends timestamptz)")
        execute_values(cursor, "INSERT INTO windows VALUES %s", [(w.partition, w.start, w.end) for w in windows])
        cursor.execute(
            sql.SQL(
                "SELECT key, count({column}) FROM windows "
                "LEFT JOIN {table} ON {column} >= starts AND {column} < ends GROUP BY key"
            ).format(table=sql.Identifier(*table_id.split("/")), column=sql.Identifier(column))
        )
        return dict(cursor.fetchall())


def partitions(table_id: str) -> PartitionsSpec:
    spec = definition(table_id).spec.partitions
    assert spec is not None
    return spec


# Flights and weather


def test_flights_of_the_package_are_in_the_table_line_by_line(demo: str) -> None:
    with flights.open_table("flights") as file:
        columns = flights.header_columns(file.readline())
        expected = sorted(b"%d,%b" % (number, line.rstrip()) for number, line in enumerate(file, start=1))
    shown = ", ".join(columns[:-1])
    out = io.BytesIO()
    with closing(psycopg2.connect(demo)) as connection, connection.cursor() as cursor:
        cursor.copy_expert(
            f"""COPY (SELECT id, {shown}, to_char(time_hour AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
                FROM nycflights13.flights) TO STDOUT WITH (FORMAT csv, NULL 'NA')""",
            out,
        )
    assert len(expected) == 336_776
    assert sorted(out.getvalue().splitlines()) == expected


def test_every_flight_falls_in_exactly_one_daily_window(demo: str) -> None:
    counts = rows_by_window(demo, "nycflights13/flights", "scheduled_departure")
    assert len(counts) == 365
    assert sum(counts.values()) == one(demo, "SELECT count(*) FROM nycflights13.flights") == 336_776
    assert min(counts.values()) > 0
    by_column = run_sql(demo, "SELECT make_date(year, month, day)::text, count(*) FROM nycflights13.flights GROUP BY 1")
    assert counts == dict(by_column)


def test_days_when_the_clocks_change_are_23_and_25_hours_long_and_have_all_their_flights(demo: str) -> None:
    spec = partitions("nycflights13/flights")
    counts = rows_by_window(demo, "nycflights13/flights", "scheduled_departure")
    assert window_of(spec, SPRING).duration == timedelta(hours=23)
    assert window_of(spec, AUTUMN).duration == timedelta(hours=25)
    assert (counts[SPRING], counts[AUTUMN]) == (908, 902)


def test_scheduled_departure_is_the_minute_within_the_packages_own_hour(demo: str) -> None:
    wrong = "scheduled_departure <> time_hour + make_interval(mins => minute)"
    assert one(demo, f"SELECT count(*) FROM nycflights13.flights WHERE {wrong}") == 0


def test_every_reading_of_the_weather_falls_in_exactly_one_month(demo: str) -> None:
    counts = rows_by_window(demo, "nycflights13/weather", "time_hour")
    assert len(counts) == 12
    assert sum(counts.values()) == one(demo, "SELECT count(*) FROM nycflights13.weather") == 26_115
    assert (counts["2013-03-01"], counts["2013-11-01"]) == (2_227, 2_141)


def test_two_readings_of_one_local_hour_in_autumn_are_two_rows(demo: str) -> None:
    readings = run_sql(
        demo,
        "SELECT (time_hour AT TIME ZONE 'UTC')::text FROM nycflights13.weather "
        "WHERE origin = 'JFK' AND month = 11 AND day = 3 AND hour = 1 ORDER BY 1",
    )
    assert readings == [("2013-11-03 05:00:00",), ("2013-11-03 06:00:00",)]


def test_flights_has_an_index_on_its_time_column(demo: str) -> None:
    window = window_of(partitions("nycflights13/flights"), AUTUMN)
    plan = run_sql(
        demo,
        "EXPLAIN SELECT * FROM nycflights13.flights WHERE scheduled_departure >= %s AND scheduled_departure < %s",
        [window.start, window.end],
    )
    assert "flights_scheduled_departure" in str(plan)


# The knowledge base


def test_knowledge_base_has_one_newest_row_and_up_to_eight_versions_of_each_thing(demo: str) -> None:
    total = 0
    for table in TASKS:
        rows, versions, newest, stamps = run_sql(
            demo,
            f"SELECT sum(n)::int, max(n), count(*), bool_and(n = stamps) FROM (SELECT count(*) AS n, "
            f"count(DISTINCT updated_at) AS stamps FROM knowledge_base.{table} GROUP BY base_id) AS thing",
        )[0]
        assert versions == knowledge_base.MOST_VERSIONS
        assert stamps, f"two versions of one thing in {table} have the same updated_at"
        assert newest < rows / 3
        total += rows
    assert 90_000 < total < 110_000


def test_knowledge_base_lies_in_the_ten_days_before_today_and_the_hour_after(demo: str) -> None:
    for table in TASKS:
        first, last, after, rows = run_sql(
            demo,
            f"SELECT min(updated_at), max(updated_at), count(*) FILTER (WHERE updated_at >= %s), count(*) "
            f"FROM knowledge_base.{table}",
            [MIDNIGHT],
        )[0]
        assert MIDNIGHT - timedelta(days=10) <= first < MIDNIGHT - timedelta(days=9)
        assert MIDNIGHT <= last < MIDNIGHT + timedelta(hours=1)
        assert 0 < after < rows / 20


def test_texts_arrive_byte_for_byte(demo: str) -> None:
    wrong = (
        "SELECT count(*) FROM knowledge_base.source_file "
        "WHERE sha256 <> sha256(convert_to(coalesce(extracted_text, ''), 'UTF8'))"
    )
    assert one(demo, wrong) == 0


@pytest.mark.parametrize(
    "part", ["\n\\.\n", "\t", "\r\n", '"', ",", "C:\\shared", "õ", "электронном", "الطلب", "申", "🎉", "e\u0301"]
)
def test_texts_hold_what_breaks_careless_files(demo: str, part: str) -> None:
    found = "SELECT count(*) FROM knowledge_base.source_file WHERE position(%s IN extracted_text) > 0"
    assert one(demo, found, [part]) > 10


def test_texts_are_null_in_some_rows_and_empty_in_others(demo: str) -> None:
    counts = "SELECT count(*) FILTER (WHERE extracted_text IS NULL), count(*) FILTER (WHERE extracted_text = '') "
    nulls, empty = run_sql(demo, counts + "FROM knowledge_base.source_file")[0]
    assert nulls > 10
    assert empty > 10


def test_same_options_generate_the_same_rows(database: str, second_database: str) -> None:
    digests = []
    for url in (database, second_database):
        knowledge_base.load(url, 0.02, today=TODAY)
        digests.append(
            [one(url, f"SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM knowledge_base.{t} AS t") for t in TASKS]
        )
    assert digests[0] == digests[1]


# The definitions


def test_every_demo_folder_is_a_table() -> None:
    expected = {f"knowledge_base/{task}" for task in TASKS}
    expected |= {f"nycflights13/{table}" for table in [*flights.ROWS, "flights_inbox"]}
    assert expected <= set(LOADED.tables)
    assert not [broken.id for broken in LOADED.broken if broken.group in ("knowledge_base", "nycflights13")]


def test_derived_tables_name_relations_and_columns_that_exist(demo: str) -> None:
    derived = [table for table in LOADED.tables.values() if table.group == "nycflights13" and table.spec.table]
    assert len(derived) == 5
    for table in derived:
        column = table.spec.time_column or "*"
        run_sql(demo, f"SELECT {column} FROM {table.spec.table} LIMIT 1")


def rendered(table: TableDefinition, window: Window) -> tuple[str, str]:
    """A query of the rows' keys by select.sql, and by delete.sql."""
    assert table.select_sql is not None
    assert table.delete_sql is not None
    values = parameters(window)
    select = parse_select(render(table.select_sql, values, file=table.folder / "select.sql"), table.folder)
    delete = parse_delete(render(table.delete_sql, values, file=table.folder / "delete.sql"), table.folder)
    return select.query, delete.selection("*")


def keys(url: str, query: str, key: str) -> set[tuple[Any, ...]]:
    return set(run_sql(url, f"SELECT {key} FROM ({query}\n) AS matched"))


@pytest.mark.parametrize("month", ["2013-01-01", "2013-03-01", "2013-11-01"])
def test_weather_selects_and_deletes_the_same_rows(demo: str, month: str) -> None:
    table = definition("nycflights13/weather")
    select, delete = rendered(table, window_of(partitions("nycflights13/weather"), month))
    selected = keys(demo, select, "origin, time_hour")
    assert len(selected) > 2_000
    assert selected == keys(demo, delete, "origin, time_hour")


@pytest.mark.parametrize("task", TASKS)
def test_task_selects_and_deletes_all_older_rows_but_the_newest(demo: str, task: str) -> None:
    select, delete = rendered(definition(f"knowledge_base/{task}"), Window("2025-01-14", end=MIDNIGHT))
    expected = (
        "SELECT id, updated_at < %s AND updated_at < max(updated_at) OVER (PARTITION BY base_id) "
        f"FROM knowledge_base.{task}"
    )
    leaving = {(key,) for key, leaves in run_sql(demo, expected, [MIDNIGHT]) if leaves}
    assert keys(demo, select, "id") == keys(demo, delete, "id") == leaving
    assert len(leaving) > one(demo, f"SELECT count(*) / 2 FROM knowledge_base.{task}")


@pytest.mark.parametrize("task", TASKS)
def test_task_runs_as_an_older_service_would_run_it(demo: str, task: str) -> None:
    """By psycopg's own parameters, in a transaction that is given up; and newest rows stay."""
    folder = ROOT / "assets" / "knowledge_base" / task
    values = {"export_boundary": MIDNIGHT}
    with closing(psycopg2.connect(demo)) as connection, connection.cursor() as cursor:
        out = io.StringIO()
        cursor.copy_expert(cursor.mogrify((folder / "select.sql").read_text(), values).decode(), out)
        exported = cursor.rowcount
        cursor.execute(f"SELECT count(DISTINCT base_id) FROM knowledge_base.{task}")
        things = cursor.fetchone()[0]
        cursor.execute((folder / "delete.sql").read_text(), values)
        assert cursor.rowcount == exported > 0
        cursor.execute(f"SELECT count(DISTINCT base_id) FROM knowledge_base.{task}")
        assert cursor.fetchone()[0] == things
        connection.rollback()
    assert out.getvalue().startswith("id,base_id,")


def test_pattern_in_a_task_means_the_same_with_one_or_two_percent_signs(demo: str) -> None:
    table = definition("knowledge_base/source_run_page")
    query, _ = rendered(table, Window("2025-01-14", end=MIDNIGHT))
    documents = one(demo, f"SELECT count(*) FROM ({query}\n) AS page WHERE is_document")
    assert documents == one(demo, f"SELECT count(*) FROM ({query}\n) AS page WHERE right(url, 4) = '.pdf'")
    assert documents > 0


# Loading


def test_second_load_does_nothing_also_after_rows_were_deleted(database: str) -> None:
    assert sum(knowledge_base.load(database, 0.01, today=TODAY).values()) > 0
    assert flights.load(database) == flights.ROWS
    run_sql(database, "DELETE FROM knowledge_base.agency")
    run_sql(database, "DELETE FROM nycflights13.flights WHERE month = 1")
    assert knowledge_base.load(database, today=TODAY) == {}
    assert flights.load(database) == {}
    assert one(database, "SELECT count(*) FROM knowledge_base.agency") == 0
    assert one(database, "SELECT count(*) FROM nycflights13.flights WHERE month = 1") == 0


def test_load_tells_of_its_progress_up_to_the_last_row(database: str) -> None:
    told: dict[str, tuple[int, int]] = {}

    def progress(table: str, rows: int, total: int) -> None:
        assert rows >= told.get(table, (0, 0))[0]
        told[table] = (rows, total)

    loaded = knowledge_base.load(database, 0.02, progress, today=TODAY)
    assert told == {table: (rows, rows) for table, rows in loaded.items()}
    told.clear()
    flights.load(database, progress)
    assert told == {table: (rows, rows) for table, rows in flights.ROWS.items()}


def test_load_that_ends_in_the_middle_leaves_nothing(database: str) -> None:
    def stop(table: str, rows: int, total: int) -> None:
        if table == "weather":
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SourceError)):
        flights.load(database, stop)
    assert one(database, "SELECT to_regnamespace('nycflights13') IS NULL")
    assert flights.load(database) == flights.ROWS


def test_two_loads_at_once_load_once(database: str) -> None:
    results: list[dict[str, int]] = []
    threads = [
        threading.Thread(target=lambda: results.append(knowledge_base.load(database, 0.05, today=TODAY)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(bool, results)) == [False, True]
    assert one(database, "SELECT count(*) FROM knowledge_base.agency") == max(results, key=len)["agency"]


def test_load_refuses_tables_that_it_did_not_make(database: str) -> None:
    run_sql(database, "CREATE SCHEMA knowledge_base")
    run_sql(database, "CREATE TABLE knowledge_base.source AS SELECT 1 AS mine")
    with pytest.raises(TargetError, match="objects that the demo did not make"):
        knowledge_base.load(database, 0.01, today=TODAY)
    assert one(database, "SELECT mine FROM knowledge_base.source") == 1


@pytest.mark.parametrize(
    "url", ["postgres//me:s3cret@host/db", "postgresql://me:s3cret@127.0.0.1:1/db", "host=127.0.0.1 pass=s3cret"]
)
def test_load_never_tells_the_password(url: str) -> None:
    with pytest.raises(SourceError) as caught:
        flights.load(url)
    assert "s3cret" not in str(caught.value)


# The upstream location


@pytest.fixture
def inbox(database: str) -> str:
    """URL of a database with an empty table flights_inbox and no flights."""
    run_sql(database, flights_ddl())
    return database


def flights_ddl() -> str:
    return (ROOT / "export_pipelines" / "demo" / "nycflights13.sql").read_text()


def versions(url: str) -> list[tuple[Any, ...]]:
    return run_sql(url, "SELECT id, ctid::text, xmin::text FROM nycflights13.flights_inbox ORDER BY id")


def test_ingest_lands_the_very_rows_of_the_day(demo: str) -> None:
    days = [date.fromisoformat(day) for day in (SPRING, AUTUMN, "2013-12-31")]
    landed = list(ingest.land_days(demo, days))
    assert [(each.rows, each.written, each.deleted) for each in landed] == [(908, 908, 0), (902, 902, 0), (776, 776, 0)]
    difference = "SELECT count(*) FROM (TABLE nycflights13.flights_inbox EXCEPT TABLE nycflights13.flights) AS extra"
    assert one(demo, difference) == 0
    counts = rows_by_window(demo, "nycflights13/flights_inbox", "scheduled_departure")
    assert {day: n for day, n in counts.items() if n} == {SPRING: 908, AUTUMN: 902, "2013-12-31": 776}
    run_sql(demo, "DELETE FROM nycflights13.flights_inbox")


def test_ingest_of_a_day_that_is_there_leaves_its_row_versions_alone(inbox: str) -> None:
    list(ingest.land_days(inbox, [date(2013, 3, 10)]))
    before = versions(inbox)
    assert [each.written for each in ingest.land_days(inbox, [date(2013, 3, 10)])] == [0]
    assert versions(inbox) == before


def test_ingest_mends_one_day_and_touches_no_other(inbox: str) -> None:
    list(ingest.land_days(inbox, [date(2013, 1, 1), date(2013, 1, 2)]))
    run_sql(inbox, "UPDATE nycflights13.flights_inbox SET dep_delay = 9999 WHERE id IN (1, 900)")
    run_sql(inbox, "DELETE FROM nycflights13.flights_inbox WHERE id = 2")
    extra = (
        "INSERT INTO nycflights13.flights_inbox SELECT (jsonb_populate_record(f, '{\"id\": -1}')).* "
        "FROM nycflights13.flights_inbox AS f WHERE id = 1"
    )
    run_sql(inbox, extra)
    landed = list(ingest.land_days(inbox, [date(2013, 1, 1)]))
    assert [(each.rows, each.written, each.deleted) for each in landed] == [(842, 2, 1)]
    assert one(inbox, "SELECT array_agg(id) FROM nycflights13.flights_inbox WHERE dep_delay = 9999") == [900]


def test_ingest_of_one_day_twice_at_once_lands_it_once(inbox: str) -> None:
    results: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: results.extend(each.written for each in ingest.land_days(inbox, [date(2013, 5, 5)]))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, one(inbox, "SELECT count(*) FROM nycflights13.flights_inbox")]


def test_ingest_says_which_days_there_are(inbox: str) -> None:
    with pytest.raises(RequestError, match="no flights of 2014-01-01"):
        list(ingest.land_days(inbox, [date(2014, 1, 1)]))


def test_ingest_without_its_table_says_so(database: str) -> None:
    with pytest.raises(TargetError, match="does not exist"):
        list(ingest.land_days(database, [date(2013, 1, 1)]))


def test_upstream_lands_each_partition_of_a_range_run(inbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from export_pipelines.demo.upstream import flights_ingest

    monkeypatch.setenv("DATABASE_URL", inbox)
    tags = {
        "dagster/asset_partition_range_start": "2013-11-02",
        "dagster/asset_partition_range_end": "2013-11-04",
    }
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize([flights_ingest], instance=instance, tags=tags).success
        records = instance.fetch_materializations(dg.AssetKey(["upstream", "flights_ingest"]), limit=10).records
    materialized = {
        str(record.partition_key): record.asset_materialization.metadata["dagster/partition_row_count"].value
        for record in records
        if record.asset_materialization
    }
    assert materialized == {"2013-11-02": 689, "2013-11-03": 902, "2013-11-04": 978}
    assert one(inbox, "SELECT count(*) FROM nycflights13.flights_inbox") == sum(materialized.values())


def test_upstream_partitions_are_those_of_the_table_that_it_lands_in() -> None:
    from export_pipelines.demo.upstream import PARTITIONS

    windows = closed_windows(partitions("nycflights13/flights_inbox"), datetime.now(UTC))
    assert PARTITIONS.get_partition_keys() == [window.partition for window in windows]
    assert definition("nycflights13/flights_inbox").spec.depends_on == ("upstream/flights_ingest",)


def test_upstream_loads_without_a_database_and_a_run_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from export_pipelines.demo.upstream import defs, flights_ingest

    monkeypatch.delenv("DATABASE_URL", raising=False)
    dg.Definitions.validate_loadable(defs)
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(RequestError, match="DATABASE_URL is not set"):
        dg.materialize([flights_ingest], instance=instance, partition_key=SPRING)
