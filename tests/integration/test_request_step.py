"""A request to a data set in PostgreSQL: what is asked for is what one gets, or nothing."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.catalog.audit import Actor
from export_pipelines.errors import IntegrityError, RequestError, SourceError, SpecError
from export_pipelines.local.postgres import Address
from export_pipelines.specs.query import QueryError, RawFilter
from export_pipelines.steps.request import RequestCancelled, columns_of, run_request
from tests.support.asking import RequestKit, request_kit
from tests.support.servers import new_database, run_sql
from tests.support.tables import run_each

TABLE = """
CREATE TABLE t (id bigint PRIMARY KEY, name varchar(40), code char(4), price numeric(12,2), weight float8, ok boolean,
  day date, at timestamp, seen timestamptz, uid uuid, mood mood, data jsonb, "odd % ""name" text)
"""
ROWS = """
INSERT INTO t SELECT n, CASE n % 3 WHEN 0 THEN NULL WHEN 1 THEN 'O''Hara, "' || n ELSE '100%_\\' || n END, 'UA',
  n * 1.5, n / 3.0, n % 2 = 0, date '2025-01-01' + n, timestamp '2025-01-01 12:00' + n * interval '1 day',
  timestamptz '2025-01-01 12:00+00' + n * interval '1 day',
  ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid,
  (CASE WHEN n > 5 THEN 'glad' ELSE 'so so' END)::mood, jsonb_build_object('n', n), 'x' || n
FROM generate_series(1, 10) n
"""
FILTERS: dict[str, Any] = {
    "id": {"type": "integer"},
    "name": {"type": "text"},
    "code": {"type": "text"},
    "price": {"type": "decimal"},
    "weight": {"type": "decimal"},
    "ok": {"type": "boolean"},
    "day": {"type": "date"},
    "at": {"type": "timestamp"},
    "seen": {"type": "timestamp"},
    "uid": {"type": "uuid"},
    "mood": {"type": "text"},
    "odd": {"type": "text", "column": 'odd % "name'},
}


ATTACKS = ["'; DROP TABLE t; --", "' OR 'a'='a", "\\' OR 1=1 --", "%(f0)s", "%s", "$1", "x') UNION SELECT 1 --", "’"]


@pytest.fixture(scope="module")
def rows(postgres: Address) -> Iterator[str]:
    """A database with rows 1 to 10 of a table with columns of many types."""
    with new_database(postgres) as url:
        run_each(url, "CREATE TYPE mood AS ENUM ('glad', 'so so')", TABLE, ROWS)
        run_each(url, "CREATE TABLE attacks (id int, name text)")
        for number, value in enumerate(ATTACKS):
            run_sql(url, "INSERT INTO attacks VALUES (%s, %s)", (number, value))
        yield url


@pytest.fixture
def kit(rows: str, one_catalog: str, tmp_path: Path) -> Iterator[RequestKit]:
    """A data set of these rows, which no test changes."""
    with request_kit(rows, one_catalog, tmp_path) as made:
        made.spec = {"table": "public.t", "filters": FILTERS, "order_by": ["id"], "columns": ["id"]}
        yield made


@pytest.fixture
def own(database: str, kit: RequestKit) -> RequestKit:
    """The same in a database of the test's own."""
    kit.url = database
    kit.sql("CREATE TYPE mood AS ENUM ('glad', 'so so')", TABLE, ROWS)
    return kit


# What one gets


def test_an_answer_is_a_file_that_was_read_back_and_is_known_to_the_catalog(kit: RequestKit) -> None:
    kit.spec["columns"] = ["id", "name"]
    row = kit.answer("id<=2", compression="gzip")
    assert (row.state, row.rows) == ("succeeded", 2)
    assert kit.text(row) == 'id,name\n1,"O\'Hara, ""1"\n2,100%_\\2\n'
    assert row.file is not None
    assert hashlib.sha256(kit.stored(row)).hexdigest() == row.file.proof.raw_sha256
    assert row.file.proof.raw_size == len(kit.stored(row))
    assert row.file.columns == ("id", "name")
    assert row.file.name.endswith(".csv.gz")
    assert row.file.media_type == "application/gzip"
    assert row.bytes == len(gzip.decompress(kit.stored(row)))


def test_a_stored_file_is_encrypted_to_the_service(kit: RequestKit) -> None:
    row = kit.answer()
    key = kit.files()[0]
    assert key.startswith(f"requests/default/{row.id}/1-") and key.endswith(".csv.age")
    assert kit.store.get(key).startswith(b"age-encryption.org/v1\n")


def test_without_encryption_the_file_lies_as_it_is(kit: RequestKit) -> None:
    kit.service = {"encryption": "off"}
    kit.answer("id=3")
    assert kit.store.get(kit.files()[0]) == b"id\n3\n"


@pytest.mark.parametrize("format", ["csv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_each_format_in_each_compression_is_verified(kit: RequestKit, format: str, compression: str) -> None:
    kit.spec["columns"] = ["id", "name", "price", "ok", "day", "seen", "data"]
    row = kit.answer(format=format, compression=compression)
    assert (row.state, row.rows) == ("succeeded", 10)


def test_json_has_values_of_their_types(kit: RequestKit) -> None:
    kit.spec["columns"] = ["id", "name", "price", "ok", "data"]
    rows = json.loads(kit.text(kit.answer("id<=3", format="json")))
    assert rows[2] == {"id": 3, "name": None, "price": 4.5, "ok": False, "data": {"n": 3}}


def test_excel_is_a_workbook(kit: RequestKit) -> None:
    import openpyxl

    kit.spec.update(columns=["id", "price"], formats=["excel"])
    book = openpyxl.load_workbook(io.BytesIO(kit.stored(kit.answer("id<=2"))))
    assert list(book.active.values) == [("id", "price"), (1, 1.5), (2, 3)]


def test_columns_come_in_the_order_that_was_asked_for(kit: RequestKit) -> None:
    kit.spec["columns"] = ["id", "code", "mood"]
    assert kit.lines("id=7", columns=["mood", "id"]) == ["glad,7"]


def test_a_limit_gives_the_first_rows(kit: RequestKit) -> None:
    assert kit.lines(limit=3) == ["1", "2", "3"]


def test_an_empty_answer_is_a_file_of_no_rows(kit: RequestKit) -> None:
    row = kit.answer("id=99")
    assert (row.rows, kit.text(row)) == (0, "id\n")


def test_formulas_are_made_harmless_unless_somebody_says_otherwise(own: RequestKit) -> None:
    own.spec["columns"] = ["name"]
    own.sql("UPDATE t SET name = '=1+1' WHERE id = 1")
    assert own.lines("id=1") == ["'=1+1"]
    assert own.lines("id=1", neutralise_formulas=False) == ["=1+1"]


def test_delimiter_and_mark_are_as_asked_for(kit: RequestKit) -> None:
    kit.spec["columns"] = ["id", "code"]
    assert kit.text(kit.answer("id=1", delimiter=";", bom=True)) == "\ufeffid;code\n1;UA  \n"


def test_a_select_sql_may_have_anything_that_reads(kit: RequestKit) -> None:
    kit.spec = {"filters": {"n": {"type": "integer"}, "share": {"type": "text"}}}
    kit.select = "WITH x AS (SELECT 1 AS n, '5%' AS share)\nSELECT * FROM x WHERE share LIKE '%%' -- the end"
    assert kit.lines("n=1", "share=5%") == ["1,5%"]


# Filters


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["id=3"], [3]),
        (["id!=3", "id<=4"], [1, 2, 4]),
        (["id>8"], [9, 10]),
        (["id:in=2,4,99"], [2, 4]),
        (["id=123456789012345678901234567890"], []),
        (["id<123456789012345678901234567890", "id>9"], [10]),
        (["name:is_null=true"], [3, 6, 9]),
        (["name:is_null=false", "id<4"], [1, 2]),
        (["name:contains=%_\\"], [2, 5, 8]),
        (['name:contains=, "'], [1, 4, 7, 10]),
        (["name:contains=o'hara"], []),
        (["name:starts_with=O'H"], [1, 4, 7, 10]),
        (["name=100%_\\2"], [2]),
        (["name!=100%_\\2", "id<5"], [1, 4]),
        (["code=UA", "id=1"], [1]),
        (["code:in=UA,AA", "id=1"], [1]),
        (["price=4.50"], [3]),
        (["price>=13.5", "price<15"], [9]),
        (["weight=1"], [3]),
        (["ok=true"], [2, 4, 6, 8, 10]),
        (["day=2025-01-03"], [2]),
        (["day:in=2025-01-03,2025-01-05"], [2, 4]),
        (["at=2025-01-03T12:00:00"], [2]),
        (["at>=2025-01-10T12:00:00Z"], [9, 10]),
        (["at:in=2025-01-03T12:00:00,2025-01-04T13:00:00+01:00"], [2, 3]),
        (["seen=2025-01-03T14:00:00+02:00"], [2]),
        (["uid=00000000-0000-0000-0000-00000000000A"], []),
        (["uid=00000000-0000-0000-0000-000000000007"], [7]),
        (["mood=so so", "id>4"], [5]),
        (["mood=sad"], []),
        (["odd=x4"], [4]),
        (["odd:contains=x1"], [1, 10]),
    ],
)
def test_a_filter_finds_what_it_says(kit: RequestKit, filters: list[str], ids: list[int]) -> None:
    assert [int(line) for line in kit.lines(*filters)] == ids


def test_times_without_an_offset_are_local_to_the_zone_of_the_data_set(kit: RequestKit) -> None:
    kit.spec["timezone"] = "Europe/Tallinn"
    assert kit.lines("at=2025-01-03T12:00:00") == ["2"]
    assert kit.lines("seen=2025-01-03T14:00:00") == ["2"]
    assert kit.lines("seen=2025-01-03T12:00:00Z") == ["2"]


@pytest.mark.parametrize("number", range(len(ATTACKS)))
@pytest.mark.parametrize("operator", ["eq", "contains", "starts_with", "in"])
def test_sql_in_a_value_stays_a_value(kit: RequestKit, number: int, operator: str) -> None:
    kit.spec["table"] = "public.attacks"
    value = ATTACKS[number]
    assert kit.lines(RawFilter("name", operator, [value] if operator == "in" else value)) == [str(number)]


def test_a_filter_may_use_an_index(own: RequestKit) -> None:
    own.sql("INSERT INTO t (id, name) SELECT n, 'n' || n FROM generate_series(100, 20000) n", "ANALYZE t")
    assert own.estimate("id=3") <= 2


# Refusals


def test_more_rows_than_the_limit_are_refused_while_they_come(kit: RequestKit) -> None:
    kit.spec["row_limit"] = 9
    row = kit.ask()
    with pytest.raises(RequestError, match="more rows for this question than the 9") as told:
        kit.run(row)
    assert "filters" in told.value.hint
    assert kit.files() == []


def test_exactly_the_limit_is_allowed(kit: RequestKit) -> None:
    kit.spec["row_limit"] = 10
    assert len(kit.lines()) == 10


def test_an_estimate_that_is_far_off_refuses_nothing(kit: RequestKit) -> None:
    kit.spec = {"row_limit": 10, "order_by": ["id"]}
    kit.select = "SELECT id FROM t, generate_series(1, 1000000) n WHERE id = n"
    assert kit.estimate() > 100
    assert len(kit.lines()) == 10


def test_far_more_rows_than_the_limit_are_refused_before_the_work(own: RequestKit) -> None:
    own.sql("CREATE TABLE big AS SELECT n AS id FROM generate_series(1, 5000) n", "ANALYZE big")
    own.spec = {"table": "big", "row_limit": 10}
    row = own.ask()
    with pytest.raises(RequestError, match="than the 10 that are allowed"):
        own.run(row)
    assert own.got(row).rows == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["nothing"]}, "column 'nothing' of `columns` is not there"),
        ({"order_by": ["nothing"]}, "column 'nothing' of `order_by` is not there"),
        ({"filters": {"id": {"type": "text"}}}, "filter 'id' of type text does not fit column 'id' of type bigint"),
        ({"filters": {"id": {"column": "no"}}}, "compares column 'no', which is not there"),
        ({"table": "public.none"}, "does not exist"),
    ],
)
def test_a_definition_that_does_not_fit_the_source_says_so(kit: RequestKit, change: Any, message: str) -> None:
    kit.spec.update(change)
    with pytest.raises((SpecError, SourceError), match=message):
        kit.run(kit.ask("id=1"))
    assert kit.files() == []


def test_an_unknown_column_is_refused_by_name(kit: RequestKit) -> None:
    kit.spec["columns"] = []
    with pytest.raises(QueryError, match="has no column 'nmae'") as told:
        kit.run(kit.ask(columns=["nmae"]))
    assert told.value.hint == "did you mean 'name'?"


def test_nothing_of_a_select_sql_can_write(own: RequestKit) -> None:
    own.sql("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'DELETE FROM t RETURNING 1'")
    own.spec = {}
    own.select = "SELECT f() AS n"
    with pytest.raises(SourceError, match="read-only"):
        own.run(own.ask())
    assert own.sql("SELECT count(*) FROM t") == [(10,)]


def test_excluded_columns_can_neither_be_asked_for_nor_filtered_by(kit: RequestKit) -> None:
    kit.spec.update(columns=[], exclude_columns=["name"], mask_columns={"code": "md5(code)"})
    assert "name" not in [column.name for column in columns_of(kit.dataset, kit.source)]
    assert kit.lines("id=1", columns=["code"]) != ["UA  "]
    with pytest.raises(SpecError, match="which is not there"):
        kit.run(kit.ask("name=x"))


# Cancelling


SLOW = "SELECT n AS id FROM generate_series(1, 100000000) n WHERE n < 0 OR pg_sleep(0) IS NULL"
ENDLESS = "SELECT n AS id FROM generate_series(1, 100000000) n"


@pytest.mark.parametrize("select", [SLOW, ENDLESS])
def test_a_cancelled_request_ends_its_query_within_two_seconds(kit: RequestKit, select: str) -> None:
    kit.spec = {"row_limit": 1_000_000_000}
    kit.select = select
    row = kit.ask()
    timer = threading.Timer(1, lambda: kit.requests.leave(row.id, Actor("ann")))
    timer.start()
    with pytest.raises(RequestCancelled):
        kit.run(row)
    took = time.monotonic()
    assert kit.files() == []
    while running(kit):
        time.sleep(0.05)
        assert time.monotonic() - took < 10  # other tests run besides: alone it takes a second at most
    timer.join()
    assert kit.got(row).state == "processing"  # the run ends, and says so


def running(kit: RequestKit) -> list[Any]:
    """Queries at work for requests."""
    return run_each(
        kit.url,
        "SELECT query FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%generate_series%' "
        "AND pid <> pg_backend_pid() AND datname = current_database()",
    )


def test_progress_is_told_while_rows_come(kit: RequestKit) -> None:
    kit.spec = {}
    kit.select = "SELECT repeat('x', 20000) || pg_sleep(0.02)::text AS text FROM generate_series(1, 100)"
    row = kit.ask()
    told: list[int] = []
    begun = kit.requests.begin(row.id, "run")
    assert begun is not None
    run_request(kit.context(progress=lambda progress: told.append(progress.rows)), begun)
    assert len(told) > 2
    assert told == sorted(told)
    assert told[-1] == 100


def test_a_request_that_another_run_has_begun_is_given_up(kit: RequestKit) -> None:
    row = kit.ask()
    begun = kit.requests.begin(row.id, "run")
    assert begun is not None
    kit.requests.again(row.id, "run")
    kit.requests.begin(row.id, "other")
    with pytest.raises(RequestCancelled):
        run_request(kit.context(), begun)
    assert kit.files() == []


def test_a_request_that_was_cancelled_at_the_last_moment_leaves_no_file(kit: RequestKit) -> None:
    row = kit.ask()
    begun = kit.requests.begin(row.id, "run")
    assert begun is not None
    kit.requests.cancelled(row.id)
    with pytest.raises(RequestCancelled):
        run_request(kit.context(), begun)
    assert kit.files() == []


def test_a_file_that_reads_back_otherwise_is_no_answer(kit: RequestKit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.service = {"encryption": "off"}
    row = kit.ask()
    store = kit.store
    original = type(store).open

    def damaged(self: Any, key: str) -> Any:
        with original(self, key) as stream:
            return io.BytesIO(stream.read().replace(b"3", b"4"))

    monkeypatch.setattr(type(store), "open", damaged)
    with pytest.raises(IntegrityError, match="reads back"):
        kit.run(row)
    assert kit.files() == []
    assert kit.got(row).state == "processing"


# Beforehand


def test_a_preview_has_the_first_rows_with_null_and_empty_apart(own: RequestKit) -> None:
    own.spec["columns"] = ["id", "name", "code"]
    own.sql("UPDATE t SET name = '' WHERE id = 2")
    found = own.preview("id<=3", rows=3)
    assert [column.type for column in found.columns] == ["bigint", "character varying(40)", "character(4)"]
    assert found.rows == [["1", "O'Hara, \"1", "UA  "], ["2", "", "UA  "], ["3", None, "UA  "]]


def test_a_count_is_exact_up_to_a_bound(kit: RequestKit) -> None:
    assert kit.count(100) == 10
    assert kit.count(9) == 10
    assert kit.count(5) == 6
    assert kit.count(5, "id<=2") == 2


def test_a_count_that_takes_long_is_given_up(kit: RequestKit) -> None:
    kit.spec = {}
    kit.select = "SELECT n AS id FROM generate_series(1, 100) n WHERE pg_sleep(1) IS NOT NULL"
    begun = time.monotonic()
    with pytest.raises(SourceError):
        kit.count(1000)
    assert time.monotonic() - begun < 30


# Widening


def wide(own: RequestKit, keys: Any, **options: Any) -> None:
    own.sql(
        "CREATE TABLE w (id int, data jsonb)",
        """INSERT INTO w VALUES (1, '{"a": 1.10, "b": "x, y"}'), (2, '{"c": {"d": 12345678901234567890}}')""",
        "INSERT INTO w VALUES (3)",
    )
    own.spec = {"table": "w", "order_by": ["id"], "widen": {"column": "data", "keys": keys, **options}}


def test_a_json_column_becomes_columns_of_the_keys_that_occur(own: RequestKit) -> None:
    wide(own, "discover", prefix="k_")
    text = own.text(own.answer())
    assert list(csv.reader(io.StringIO(text))) == [
        ["id", "k_a", "k_b", "k_c"],
        ["1", "1.10", "x, y", ""],
        ["2", "", "", '{"d": 12345678901234567890}'],
        ["3", "", "", ""],
    ]


def test_keys_that_are_not_listed_fail_the_request_or_are_left_out(own: RequestKit) -> None:
    from export_pipelines.errors import FormatError

    wide(own, ["a", "b"])
    with pytest.raises(FormatError, match="'c'"):
        own.answer()
    own.spec["widen"]["others"] = "drop"
    assert own.lines()[1] == "2,,"


def test_too_many_keys_are_refused(own: RequestKit) -> None:
    wide(own, "discover", max_columns=2)
    with pytest.raises(RequestError, match="more than 2 keys"):
        own.answer()


def test_without_the_column_nothing_is_widened(own: RequestKit) -> None:
    wide(own, "discover")
    assert own.lines(columns=["id"]) == ["1", "2", "3"]


def test_a_column_that_is_no_json_cannot_be_widened(own: RequestKit) -> None:
    wide(own, "discover")
    own.spec["widen"]["column"] = "id"
    with pytest.raises(SpecError, match="no JSON"):
        own.answer()


# Memory

PEAKS = """
import json, sys
from pathlib import Path
from tests.support.asking import request_kit
url, catalog, folder, format = sys.argv[1:]
peaks = []
for rows in (200_000, 2_000_000):
    with request_kit(url, catalog, Path(folder)) as kit:
        kit.spec = {"row_limit": rows}
        kit.select = f"SELECT n, md5(n::text) AS text, n / 3.0 AS part FROM generate_series(1, {rows}) n"
        assert kit.answer(format=format, compression="gzip" if format == "csv" else "none").rows == rows
    peaks.append(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)
print(json.dumps(peaks))
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_memory_stays_bounded_however_many_rows_there_are(
    database: str, catalog_url: str, tmp_path: Path, format: str
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, database, catalog_url, str(tmp_path), format],
        env=environment, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout)
    assert many - few < 60, (few, many)
