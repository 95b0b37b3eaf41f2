"""A request to a data set in MariaDB: the same as in PostgreSQL, whatever collations and the driver do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.catalog.audit import Actor
from export_pipelines.errors import RequestError, SourceError, SpecError
from export_pipelines.local.mariadb import Address
from export_pipelines.specs.query import RawFilter
from export_pipelines.steps.request import RequestCancelled, columns_of
from tests.support.asking import RequestKit, request_kit
from tests.support.mariadb import mysql_connection, new_mysql_database

pytestmark = pytest.mark.debian

TABLE = """
CREATE TABLE t (id bigint PRIMARY KEY, name varchar(40), latin varchar(40) CHARACTER SET latin1, price decimal(12,2),
  big decimal(38,10), weight double, ok tinyint(1), day date, at datetime(6), seen timestamp NULL, uid uuid,
  mood enum('glad','so so'), data json, INDEX (name))
"""
ROWS = """
INSERT INTO t SELECT seq, CASE seq % 3 WHEN 0 THEN NULL WHEN 1 THEN CONCAT('O''Hara, "', seq)
    ELSE CONCAT('100%_\\\\', seq) END, 'Zürich', seq * 1.5, 12345678901234567890.0000000001, seq / 3, seq % 2 = 0,
  DATE '2025-01-01' + INTERVAL seq DAY, TIMESTAMP '2025-01-01 12:00:00' + INTERVAL seq DAY,
  TIMESTAMP '2025-01-01 12:00:00' + INTERVAL seq DAY, CONCAT('00000000-0000-0000-0000-', LPAD(seq, 12, '0')),
  IF(seq > 5, 'glad', 'so so'), JSON_OBJECT('n', seq) FROM seq_1_to_10
"""
FILTERS: dict[str, Any] = {
    "id": {"type": "integer"},
    "name": {"type": "text"},
    "latin": {"type": "text"},
    "price": {"type": "decimal"},
    "big": {"type": "decimal"},
    "weight": {"type": "decimal"},
    "ok": {"type": "boolean"},
    "day": {"type": "date"},
    "at": {"type": "timestamp"},
    "seen": {"type": "timestamp"},
    "uid": {"type": "uuid"},
    "mood": {"type": "text"},
}
ATTACKS = [
    "'; DROP TABLE t; --",
    "' OR 'a'='a",
    "\\' OR 1=1 -- ",
    "%(f0)s",
    "%s",
    "x') UNION SELECT 1 -- ",
    '" OR ""="',
]
WHERE = "WHERE info LIKE '%seq_1_to%' AND info NOT LIKE '%processlist%'"


@pytest.fixture(scope="module")
def rows(mariadb: Address) -> Iterator[str]:
    """A database with rows 1 to 10 of a table with columns of many types."""
    with new_mysql_database(mariadb) as url:
        with closing(mysql_connection(url)) as connection, connection.cursor() as cursor:
            cursor.execute("SET time_zone = '+00:00'")
            cursor.execute(TABLE)
            cursor.execute(ROWS)
            cursor.execute("CREATE TABLE attacks (id int, name varchar(100))")
            for number, value in enumerate(ATTACKS):
                cursor.execute("INSERT INTO attacks VALUES (%s, %s)", (number, value))
        yield url


@pytest.fixture
def kit(rows: str, one_catalog: str, tmp_path: Path) -> Iterator[RequestKit]:
    """A data set of these rows, which no test changes."""
    with request_kit(rows, one_catalog, tmp_path, "mysql") as made:
        made.spec = {"table": "t", "filters": FILTERS, "order_by": ["id"], "columns": ["id"]}
        yield made


def test_an_answer_is_a_file_that_was_read_back(kit: RequestKit) -> None:
    kit.spec["columns"] = ["id", "name", "latin", "big"]
    row = kit.answer("id<=2", compression="gzip")
    assert (row.state, row.rows) == ("succeeded", 2)
    assert kit.text(row).splitlines() == [
        "id,name,latin,big",
        '1,"O\'Hara, ""1","Zürich",12345678901234567890.0000000001',
        '2,"100%_\\2","Zürich",12345678901234567890.0000000001',
    ]


@pytest.mark.parametrize("format", ["csv", "json", "jsonl", "parquet"])
def test_each_format_is_verified(kit: RequestKit, format: str) -> None:
    kit.spec["columns"] = []
    assert kit.answer(format=format).rows == 10


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["id=3"], [3]),
        (["id:in=2,4,99"], [2, 4]),
        (["id=123456789012345678901234567890"], []),
        (["name:is_null=true"], [3, 6, 9]),
        (["name:is_null=false", "id<4"], [1, 2]),
        (["name:contains=%_\\"], [2, 5, 8]),
        (['name:contains=, "'], [1, 4, 7, 10]),
        (["name:contains=o'hara"], []),
        (["name:starts_with=O'H"], [1, 4, 7, 10]),
        (["name=100%_\\2"], [2]),
        (["name=o'hara, \"1"], []),
        (["name:in=100%_\\2,100%_\\5"], [2, 5]),
        (["name!=100%_\\2", "id<5"], [1, 4]),
        (["latin=Zürich", "id=1"], [1]),
        (["latin:contains=ür", "id=1"], [1]),
        (["latin=zurich"], []),
        (["price=4.50"], [3]),
        (["price>=13.5", "price<15"], [9]),
        (["big=12345678901234567890.0000000001", "id=1"], [1]),
        (["big>12345678901234567890.0000000001"], []),
        (["weight=1"], [3]),
        (["ok=true"], [2, 4, 6, 8, 10]),
        (["day=2025-01-03"], [2]),
        (["day:in=2025-01-03,2025-01-05"], [2, 4]),
        (["at=2025-01-03T12:00:00"], [2]),
        (["at:in=2025-01-03T12:00:00,2025-01-04T13:00:00+01:00"], [2, 3]),
        (["seen=2025-01-03T14:00:00+02:00"], [2]),
        (["uid=00000000-0000-0000-0000-000000000007"], [7]),
        (["mood=so so", "id>4"], [5]),
        (["mood=GLAD"], []),
    ],
)
def test_a_filter_finds_what_it_says(kit: RequestKit, filters: list[str], ids: list[int]) -> None:
    assert [int(line) for line in kit.lines(*filters)] == ids


@pytest.mark.parametrize("number", range(len(ATTACKS)))
@pytest.mark.parametrize("operator", ["eq", "contains", "starts_with", "in"])
def test_sql_in_a_value_stays_a_value(kit: RequestKit, number: int, operator: str) -> None:
    kit.spec["table"] = "attacks"
    value = ATTACKS[number]
    assert kit.lines(RawFilter("name", operator, [value] if operator == "in" else value)) == [str(number)]


def test_times_are_those_of_the_zone_of_the_data_set(kit: RequestKit) -> None:
    kit.spec["columns"] = ["seen"]
    assert kit.lines("id=1") == ["2025-01-02 12:00:00"]


def test_a_select_sql_keeps_its_own_order(kit: RequestKit) -> None:
    kit.spec = {}
    kit.select = "SELECT id FROM t WHERE name LIKE '100%%' ORDER BY id DESC -- the end"
    assert kit.lines() == ["8", "5", "2"]


def test_excluded_and_masked_columns_are_not_shown(kit: RequestKit) -> None:
    kit.spec.update(columns=[], exclude_columns=["name"], mask_columns={"latin": "MD5(latin)"})
    assert "name" not in [column.name for column in columns_of(kit.dataset, kit.source)]
    with pytest.raises(SpecError, match="which is not there"):
        kit.lines("name=x")


def test_more_rows_than_the_limit_are_refused(kit: RequestKit) -> None:
    kit.spec["row_limit"] = 9
    with pytest.raises(RequestError, match="than the 9 that are allowed"):
        kit.answer()
    assert kit.files() == []
    assert kit.count(100) == 10
    assert kit.count(5) == 6
    assert 1 <= kit.estimate("id=3") <= 10


def test_nothing_of_a_select_sql_can_write(kit: RequestKit) -> None:
    kit.spec = {}
    kit.select = "SELECT id FROM t FOR UPDATE"
    with pytest.raises(SpecError):
        kit.answer()


@pytest.mark.parametrize(
    "select",
    [
        "SELECT seq AS id FROM seq_1_to_1000000000 WHERE MD5(seq) = 'x'",
        "SELECT seq AS id FROM seq_1_to_100000000",
    ],
)
def test_a_cancelled_request_ends_its_query_within_two_seconds(kit: RequestKit, select: str) -> None:
    kit.spec = {"row_limit": 1_000_000_000}
    kit.select = select
    row = kit.ask()
    timer = threading.Timer(1, lambda: kit.requests.leave(row.id, Actor("ann")))
    timer.start()
    with pytest.raises(RequestCancelled):
        kit.run(row)
    ended = time.monotonic()
    while kit.sql(f"SELECT info FROM information_schema.processlist {WHERE}"):
        time.sleep(0.05)
        assert time.monotonic() - ended < 10  # other tests run besides: alone it takes a second at most
    timer.join()
    assert kit.files() == []


def test_a_count_that_takes_long_is_given_up(kit: RequestKit) -> None:
    kit.spec = {}
    kit.select = "SELECT seq AS id FROM seq_1_to_1000000000 WHERE MD5(seq) = 'x'"
    begun = time.monotonic()
    with pytest.raises(SourceError):
        kit.count(1000)
    assert time.monotonic() - begun < 30


def test_a_json_column_becomes_columns_of_the_keys_that_occur(kit: RequestKit) -> None:
    kit.spec = {"widen": {"column": "data", "keys": "discover"}}
    kit.select = """SELECT 1 AS id, '{"a": 1.10, "b": "x"}' AS data UNION ALL SELECT 2, '{"c": [1, 2]}'"""
    assert kit.text(kit.answer()).splitlines() == ["id,a,b,c", "1,1.10,x,", '2,,,"[1, 2]"']


def test_a_preview_has_null_and_empty_apart(kit: RequestKit) -> None:
    kit.spec["columns"] = ["id", "name"]
    assert kit.preview("id=3").rows == [["3", None]]
