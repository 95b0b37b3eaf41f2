"""The health service's data and definitions: whole, deterministic, loaded once, and cut as the definitions say."""

from __future__ import annotations

import ipaddress
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.demo import health
from export_pipelines.errors import SourceError, TargetError
from export_pipelines.local.mariadb import Address
from export_pipelines.specs.documents import load_documents
from export_pipelines.specs.loader import load_tables
from export_pipelines.specs.table import CleanupMode, TableSpec
from export_pipelines.windows import closed_windows
from tests.support.mariadb import mysql_connection, new_mysql_database, run_mysql

pytestmark = pytest.mark.debian

ROOT = Path(__file__).resolve().parents[2]
SMALL = 0.01
TODAY = date(2026, 3, 1)
"""When the data are loaded."""
COUNTS = {"vaccine_batch": 20, "vaccination": 2_000, "certificate": 500, "audit_trail": 1_000}


@pytest.fixture(scope="module")
def loaded(mariadb: Address) -> Iterator[str]:
    """URL of a database with a hundredth of the data; tests leave it as it is."""
    with new_mysql_database(mariadb) as url:
        assert health.load(url, scale=SMALL, today=TODAY) == COUNTS
        yield url


def spec(name: str) -> TableSpec:
    return load_tables(ROOT, None).tables[f"health/{name}"].spec


def one(url: str, sql: str) -> Any:
    return run_mysql(url, sql)[0][0]


def checksums(url: str) -> dict[str, object]:
    return dict(run_mysql(url, f"CHECKSUM TABLE {', '.join(health.ROWS)}"))


# What is loaded


def test_the_whole_has_as_many_rows_as_it_says(mysql_database: str) -> None:
    told: dict[str, tuple[int, int]] = {}

    def progress(table: str, rows: int, total: int) -> None:
        told[table] = (rows, total)

    assert health.load(mysql_database, progress) == health.ROWS
    assert {table: one(mysql_database, f"SELECT count(*) FROM {table}") for table in health.ROWS} == health.ROWS
    assert told == {table: (rows, rows) for table, rows in health.ROWS.items()}


def test_the_same_scale_on_the_same_day_gives_the_same_rows(loaded: str, mysql_database: str) -> None:
    health.load(mysql_database, scale=SMALL, today=TODAY)
    there, here = checksums(loaded), checksums(mysql_database)
    assert list(there.values()) == list(here.values())
    assert 0 not in there.values()


def test_rows_are_stored_as_they_were_generated(loaded: str) -> None:
    stored = run_mysql(loaded, "SELECT code, issued, holder, payload, signature FROM certificate ORDER BY issued")
    made = [(row[0], row[1], row[5], row[6], row[7]) for row in health.rows("certificate", SMALL)]
    assert stored == made
    stored = run_mysql(loaded, "SELECT id, at, flags, ip, details FROM audit_trail ORDER BY id")
    assert stored == [(row[0], row[1], row[4], row[6], row[8]) for row in health.rows("audit_trail", SMALL, TODAY)]


def test_everything_happens_in_the_year(loaded: str) -> None:
    for table, column in (("vaccination", "created"), ("certificate", "issued")):
        first, last = run_mysql(loaded, f"SELECT min({column}), max({column}) FROM {table}")[0]
        assert health.START <= first < datetime(2024, 1, 3)
        assert datetime(2024, 12, 29) < last < health.END


def test_the_audit_trail_is_of_the_year_before_it_is_loaded_so_that_a_cleanup_leaves_some_of_it(loaded: str) -> None:
    first, last = run_mysql(loaded, "SELECT min(at), max(at) FROM audit_trail")[0]
    midnight = datetime.combine(TODAY, time())
    assert timedelta(days=364) < midnight - first < timedelta(days=367)
    assert timedelta() < midnight - last < timedelta(days=2)
    young = f"SELECT count(*) FROM audit_trail WHERE at >= '{TODAY}' - INTERVAL 90 DAY"
    assert 200 < one(loaded, young) < 300


def test_the_data_hold_what_careless_dumps_lose(loaded: str) -> None:
    assert one(loaded, "SELECT count(*) FROM audit_trail WHERE id >= 9223372036854775808") == 500
    assert one(loaded, "SELECT count(*) FROM audit_trail WHERE MICROSECOND(at) <> 0") > 900
    assert one(loaded, "SELECT count(*) FROM audit_trail WHERE details = ''") > 0
    assert one(loaded, "SELECT count(*) FROM audit_trail WHERE details IS NULL") > 0
    assert one(loaded, "SELECT count(*) FROM certificate WHERE MICROSECOND(issued) % 1000 <> 0") > 400
    assert one(loaded, "SELECT count(*) FROM certificate WHERE CHAR_LENGTH(holder) < LENGTH(holder)") > 100
    assert one(loaded, "SELECT count(*) FROM certificate WHERE (status = 'revoked') <> (revoked IS NOT NULL)") == 0
    assert any("🌻" in name for (name,) in run_mysql(loaded, "SELECT holder FROM certificate"))


def test_contents_are_what_they_claim_to_be(loaded: str) -> None:
    for payload, holder in run_mysql(loaded, "SELECT payload, holder FROM certificate"):
        assert json.loads(payload)["nam"] == holder
    found = {
        ipaddress.ip_address(ip).version for (ip,) in run_mysql(loaded, "SELECT ip FROM audit_trail WHERE ip <> ''")
    }
    assert found == {4, 6}


def test_each_vaccination_comes_from_a_batch_received_before(loaded: str) -> None:
    early = "SELECT count(*) FROM vaccination v JOIN vaccine_batch b ON b.id = v.batch_id WHERE "
    assert one(loaded, early + "b.received > DATE(v.created)") == 0
    assert one(loaded, early + "b.vaccine = v.vaccine") == COUNTS["vaccination"]


# Loading twice, at once, where there is something else


def test_a_second_load_does_nothing_even_after_a_cleanup(mysql_database: str) -> None:
    health.load(mysql_database, scale=SMALL)
    run_mysql(mysql_database, "DELETE FROM audit_trail WHERE at < UTC_TIMESTAMP() - INTERVAL 90 DAY")
    left = checksums(mysql_database)
    assert health.load(mysql_database, scale=SMALL) == {}
    assert checksums(mysql_database) == left


def test_a_load_that_broke_off_is_done_anew(mysql_database: str) -> None:
    def broken(table: str, rows: int, total: int) -> None:
        if table == "certificate":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        health.load(mysql_database, broken, scale=SMALL)
    assert one(mysql_database, "SELECT count(*) FROM vaccination") == 0
    assert health.load(mysql_database, scale=SMALL) == COUNTS


def test_a_load_that_was_killed_between_two_tables_is_done_anew(mysql_database: str) -> None:
    health.load(mysql_database, scale=SMALL)
    run_mysql(mysql_database, "DROP TABLE audit_trail")
    run_mysql(mysql_database, "DROP TABLE certificate")
    for table in ("demo_state", "vaccination", "vaccine_batch"):
        run_mysql(mysql_database, f"DELETE FROM {table}")
    assert health.load(mysql_database, scale=SMALL) == COUNTS


def test_two_loads_at_once_load_once(mysql_database: str) -> None:
    loads: list[dict[str, int]] = []
    both = [threading.Thread(target=lambda: loads.append(health.load(mysql_database, scale=SMALL))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(loads, key=len) == [{}, COUNTS]


def test_tables_of_others_are_refused_and_left_alone(mysql_database: str) -> None:
    run_mysql(mysql_database, "CREATE TABLE certificate (precious int)")
    with pytest.raises(TargetError, match="did not make: certificate"):
        health.load(mysql_database, scale=SMALL)
    assert run_mysql(mysql_database, "SHOW TABLES") == [("certificate",)]


def test_an_error_does_not_tell_the_password(mariadb: Address) -> None:
    with pytest.raises(SourceError) as caught:
        health.load(mariadb.url("no_such_database"))
    assert mariadb.password not in str(caught.value)


# The definitions


@pytest.mark.parametrize(
    ("name", "table", "column"), [("zm", "vaccination", "created"), ("mcct", "certificate", "issued")]
)
def test_every_row_lies_in_one_week(loaded: str, name: str, table: str, column: str) -> None:
    windows = closed_windows(spec(name).partitions, datetime.now(UTC))
    query = f"SELECT count(*) FROM {table} WHERE {column} >= %s AND {column} < %s"
    with closing(mysql_connection(loaded)) as connection, connection.cursor() as cursor:
        cursor.execute("SET time_zone = '+00:00'")
        counts = []
        for window in windows:
            assert window.start
            assert window.end
            cursor.execute(query, [window.start.replace(tzinfo=None), window.end.replace(tzinfo=None)])
            counts.append(cursor.fetchone()[0])
    assert len(windows) == 53
    assert sum(counts) == COUNTS[table]
    assert min(counts) > 0


def test_dumps_with_a_date_range_have_weeks_and_the_others_are_snapshots() -> None:
    assert [spec(name).partitions is not None for name in ("zm", "mcct", "bcu", "vaud")] == [True, True, False, False]
    assert {spec(name).connection for name in ("zm", "mcct", "bcu", "vaud")} == {"health"}


def test_only_the_audit_trail_is_cleaned_up() -> None:
    modes = {name: spec(name).cleanup.mode for name in ("zm", "mcct", "bcu", "vaud")}
    off = dict.fromkeys(("zm", "mcct", "bcu"), CleanupMode.OFF)
    assert modes == {**off, "vaud": CleanupMode.AFTER_ARCHIVE}


def test_the_dumps_have_the_schedules_of_the_system_that_they_replace() -> None:
    found = load_documents(ROOT / "schedules" / "health_dumps" / "defs.yaml")
    times = {(*each.attributes["tables"], each.attributes["cron"], each.attributes["timezone"]) for each in found}
    assert times == {
        ("health/bcu", "1 17 * * *", "Europe/Tallinn"),
        ("health/vaud", "30 10,13 * * *", "Europe/Tallinn"),
        ("health/vaud", "0 17 * * *", "Europe/Tallinn"),
    }
