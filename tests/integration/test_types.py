"""Every type of PostgreSQL, and every awkward value, leaves as CSV and comes back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import SourceError
from export_pipelines.specs.table import Compression
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.verify import tables_in, verify_table
from tests.support.servers import TlsPostgres, run_sql
from tests.support.step_tables import new_step_table

TYPES = """
CREATE SCHEMA "Mixed Schema";
CREATE TYPE mood AS ENUM ('sad', 'so so', 'a,b', 'it''s "fine"', '');
CREATE TYPE "Mixed Schema"."Some Pair" AS (x int, "the y" text);
CREATE DOMAIN positive AS numeric(12, 3) CHECK (value > 0);
"""

# Declared type → SQL expressions of its values. A NULL row and a row of one value each are made of them.
VALUES: dict[str, list[str]] = {
    "smallint": ["-32768", "32767"],
    "int": ["-2147483648", "0"],
    "bigint": ["-9223372036854775808", "9223372036854775807"],
    "numeric": ["'NaN'", "'Infinity'", "'-Infinity'", "1e-300::numeric", "repeat('9', 400)::numeric", "0.10", "-0.000"],
    "numeric(20,5)": ["12345.67890", "'NaN'"],
    "real": ["'NaN'", "'-Infinity'", "1.1", "-0.0", "3.4028235e38", "1e-45"],
    "double precision": ["0.1 + 0.2", "'Infinity'", "5e-324", "'-0'", "1.7976931348623157e308"],
    "money": ["'-92233720368547758.08'::money", "'12.34'::money"],
    "boolean": ["true", "false"],
    "text": [
        "''",
        "' '",
        r"E'\\.'",
        r"E'before\n\\.\nafter'",
        r"E'\\N'",
        "'NULL'",
        r"E'a\nb\r\nc\rd'",
        r"E'tab\there'",
        """E'"quoted", ''and'' ;|, more'""",
        "'\"'",
        "'\"\"'",
        "U&'\\+01F600 \\00E4\\0308 \\0001'",
        "'ไม่มี, 漢字, עברית'",
        "repeat('x\"\n', 350000)",
        "chr(65279) || 'bom'",
    ],
    "varchar(20)": ["''", "'  padded  '"],
    "char(8)": ["''", "'ab'", "'  ab'"],
    '"char"': ["'a'", "''"],
    "name": ["'a_name'"],
    "bytea": ["''", r"'\x00ff22275c0a0d'", r"'\x5c2e'"],
    "date": ["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'5874897-12-31'", "'2000-02-29'"],
    "time": ["'00:00'", "'24:00'", "'12:34:56.789012'"],
    "timetz": ["'12:34:56.789012+05:45'", "'24:00:00-15:59'"],
    "timestamp": ["'infinity'", "'0044-03-15 12:00 BC'", "'294276-12-31 23:59:59.999999'"],
    "timestamptz": [
        "'infinity'",
        "'-infinity'",
        "'0001-01-01 00:00:00.000001+00 BC'",
        "'2025-03-30 01:30+00'",
        "'1900-01-01'",
    ],
    "timestamptz(3)": ["'2025-01-01 00:00:00.1234Z'"],
    "interval": [
        "'1 year -2 mons 3 days -04:05:06.000001'",
        "'-178000000 years'",
        "'1 mon'",
        "'30 days'",
        "'720:00:00'",
        "'-00:00:00.000001'",
    ],
    "interval day to second(2)": ["'3 days 04:05:06.78'"],
    "uuid": ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
    "inet": ["'192.168.1.5/24'", "'::ffff:1.2.3.4'", "'10.0.0.1'"],
    "cidr": ["'192.168.0.0/16'", "'2001:db8::/32'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "macaddr8": ["'08:00:2b:01:02:03:04:05'"],
    "bit(3)": ["B'101'"],
    "bit": ["B'1'"],
    "varbit": ["B''", "B'1011'"],
    "varbit(5)": ["B'10'"],
    "json": ["""'{"a":  [1, null, "x\\"y"], "a": 2}'""", "'null'", "'\"\"'"],
    "jsonb": ["""'{"b": {"\\u00e4": 1.50}, "a": [true, "\\n"]}'""", "'null'"],
    "jsonpath": ["'$.a[*] ? (@ > 1)'"],
    "tsvector": ["'fat:1A cat:2,3B ''it''''s'''", "''"],
    "tsquery": ["'fat & (rat | !cat:*)'"],
    "int[]": ["'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'[0:1]={1,2}'"],
    "text[]": [
        """ARRAY[['a,b', NULL], ['"', '']]""",
        r"""ARRAY[E'\\', 'NULL', ' ', E'\n', '{}']""",
    ],
    "timestamptz[]": ["ARRAY['infinity', '2025-01-01Z']::timestamptz[]"],
    "int4range": ["'empty'", "'[1,10)'", "'(,)'"],
    "numrange": ["'[1.10,2.20]'", "'(,5)'"],
    "tstzrange": ["'[2025-01-01Z,infinity)'"],
    "daterange": ["'[2025-01-01,2025-02-01)'"],
    "int4multirange": ["'{}'", "'{[1,3),[5,)}'"],
    "nummultirange": ["'{[1.0,2.0]}'"],
    "point": ["'(1.1,-2e10)'"],
    "line": ["'{1,2,3}'"],
    "lseg": ["'[(1,2),(3,4)]'"],
    "box": ["'(3,4),(1,2)'"],
    "path": ["'[(1,2),(3,4)]'", "'((1,2),(3,4))'"],
    "polygon": ["'((1,2),(3,4),(5,6))'"],
    "circle": ["'<(1,2),3>'"],
    "pg_lsn": ["'16/B374D848'"],
    "xid8": ["'18446744073709551615'"],
    "oid": ["'4294967295'"],
    "regclass": ["'pg_class'::regclass"],
    "mood": ["'sad'", "'a,b'", "'it''s \"fine\"'", "''"],
    "mood[]": ["""ARRAY['a,b', NULL, '']::mood[]"""],
    '"Mixed Schema"."Some Pair"': ["""ROW(1, 'a "b", (c)\\')""", "ROW(NULL, NULL)", "ROW(NULL, '')"],
    '"Mixed Schema"."Some Pair"[]': ["""ARRAY[ROW(1, 'x,y'), NULL]::"Mixed Schema"."Some Pair"[]"""],
    "positive": ["0.001", "999999999.999"],
}

XML = {"xml": ["'<a b=\"c\">d &amp; e</a>'", "'just text'"]}

DIALECTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "semicolon": {"delimiter": ";"},
    "bar without header": {"delimiter": "|", "header": False},
    "tab and backslash-n": {"delimiter": "\t", "null": "\\N"},
    "single quote and a word": {"quote": "'", "null": "NULL"},
}


def make_types(url: str, values: dict[str, list[str]] = VALUES) -> None:
    """Table `types` with a column of each type, one row of NULLs, and a row for each value."""
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(values))
    rows = [f"c{n}) VALUES (%s, {value}" for n, kind in enumerate(values) for value in values[kind]]
    inserts = [f"INSERT INTO types (id, {row.replace('%s', str(n), 1)})" for n, row in enumerate(rows, start=1)]
    run_sql(url, f"{TYPES} CREATE TABLE types (id int PRIMARY KEY, {columns}); INSERT INTO types VALUES (0)")
    run_sql(url, "; ".join(inserts))


def assert_same(url: str, one: str, other: str) -> None:
    """Both tables have the same rows as text, byte for byte, duplicates counted."""
    texts = [f'SELECT row(t.*)::text COLLATE "C" AS r FROM {table} t' for table in (one, other)]
    for first, second in (texts, texts[::-1]):
        assert run_sql(url, f"({first}) EXCEPT ALL ({second})") == []
    counts = [run_sql(url, f"SELECT count(*) FROM {table}")[0][0] for table in (one, other)]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS.keys())
def test_every_type_comes_back_the_same(
    tmp_path: Path, database: str, catalog_url: str, dialect: dict[str, Any]
) -> None:
    make_types(database)
    spec = {"table": "types", "format": {"csv": dialect}}
    table = new_step_table(tmp_path, database, catalog_url, spec)
    record = table.into_archive()
    assert record.rows == 1 + sum(map(len, VALUES.values()))
    assert table.restore("back").rows == record.rows
    assert_same(database, "types", "back")


@pytest.mark.parametrize("compression", Compression)
def test_every_compression_comes_back_the_same(
    tmp_path: Path, database: str, catalog_url: str, compression: Compression
) -> None:
    make_types(database)
    table = new_step_table(tmp_path, database, catalog_url, {"table": "types", "compression": compression})
    table.into_archive()
    table.restore("back")
    assert_same(database, "types", "back")


@pytest.mark.debian
def test_every_type_comes_back_the_same_on_another_server_version(
    tmp_path: Path, database: str, catalog_url: str, tls_postgres: TlsPostgres
) -> None:
    run_sql(tls_postgres.url(), "DROP DATABASE IF EXISTS types")
    run_sql(tls_postgres.url(), "CREATE DATABASE types")
    other = tls_postgres.url("types")
    make_types(other, VALUES | XML)
    old = new_step_table(tmp_path, other, catalog_url, {"table": "types"}, name="old")
    old.into_archive()
    old.restore("back")
    assert_same(other, "types", "back")

    make_types(database)
    new = new_step_table(tmp_path, database, catalog_url, {"table": "types"}, name="new")
    new.into_archive()
    new.restore("moved", url=other)
    texts = 'SELECT row(t.*)::text COLLATE "C" AS r FROM {} t ORDER BY r'
    assert run_sql(other, texts.format("moved")) == run_sql(database, texts.format("types"))


NAMES = [
    'a "b" c',
    "a.b/c",
    "ünïcödé 漢字",
    "UPPER",
    "select",
    "per%cent %(s)s",
    "semi;colon--",
    " lead",
    "new\nline",
    "'",
]


@pytest.mark.parametrize("mode", ["derived", "by key"])
def test_names_may_have_any_sign(tmp_path: Path, database: str, catalog_url: str, mode: str) -> None:
    schema, relation = quote_identifier('s."1"/x'), quote_identifier('t % (é) "q" /.')
    columns = ", ".join(f"{quote_identifier(name)} text" for name in NAMES)
    run_sql(database, f"CREATE SCHEMA {schema}")
    run_sql(database, f"CREATE TABLE {schema}.{relation} ({quote_identifier('k,1')} int PRIMARY KEY, {columns})")
    run_sql(
        database,
        f"INSERT INTO {schema}.{relation} SELECT n, {', '.join(['n || chr(10)'] * len(NAMES))} "
        "FROM generate_series(1, 5) n",
    )
    spec: dict[str, Any] = {"table": f"{schema}.{relation}", "cleanup": "after_archive"}
    select = delete = None
    if mode == "by key":
        name = f"{schema}.{relation}".replace("%", "%%")
        select, delete = f"SELECT DISTINCT * FROM {name}", f"DELETE FROM {name}"
        spec.pop("table")
    table = new_step_table(
        tmp_path, database, catalog_url, spec, name='t "1" é.', group="g/with space/ü", select=select, delete=delete
    )
    record = table.into_archive()
    assert (record.identity.mode, [c.name for c in record.columns]) == (
        "key" if select else "row",
        ["k,1", *NAMES],
    )
    into = f"{schema}.{quote_identifier('back ' + relation)}"
    table.restore(into)
    assert_same(database, f"{schema}.{relation}", into)
    assert table.cleanup().deleted == 5
    assert verify_table(table.ctx.archive, table.id).problems == ()
    assert tables_in(table.ctx.archive) == ['g/with space/ü/t "1" é.']


def test_null_and_empty_string_stay_apart(tmp_path: Path, database: str, catalog_url: str) -> None:
    run_sql(database, "CREATE TABLE one (note text)")
    run_sql(database, "INSERT INTO one VALUES (NULL), (''), ('\"\"'), (NULL), (E'\\n')")
    for number, csv in enumerate(({}, {"null": "NULL"}, {"null": "\\N", "delimiter": "\t"}, {"header": False})):
        folder = tmp_path / str(number)
        table = new_step_table(
            folder, database, catalog_url, {"table": "one", "format": {"csv": csv}}, name=f"t{number}"
        )
        assert table.into_archive().rows == 5
        assert table.restore(f"back{number}").rows == 5
        assert_same(database, "one", f"back{number}")


def test_empty_table_and_empty_partition_come_back_empty(tmp_path: Path, database: str, catalog_url: str) -> None:
    run_sql(database, "CREATE TABLE nothing (at timestamptz, note text)")
    for header in (True, False):
        spec = {"table": "nothing", "format": {"csv": {"header": header}}}
        whole = new_step_table(tmp_path / str(header), database, catalog_url, spec, name=f"whole {header}")
        days = whole.with_definition(
            name=f"days {header}",
            spec={"time_column": "at", "partitions": {"every": "day", "start": "2025-01-01"}},
        )
        for table, partition in ((whole, "snapshot"), (days, "2025-01-01")):
            assert table.into_archive(partition).rows == 0
            into = f"back {table.id}"
            assert table.restore(f'"{into}"', partition).rows == 0
            columns = f"SELECT column_name, data_type FROM information_schema.columns WHERE table_name = '{into}'"
            assert sorted(run_sql(database, columns)) == [("at", "timestamp with time zone"), ("note", "text")]
            assert verify_table(table.ctx.archive, table.id).problems == ()


def test_table_without_columns_is_refused(tmp_path: Path, database: str, catalog_url: str) -> None:
    run_sql(database, "CREATE TABLE bare ()")
    run_sql(database, "INSERT INTO bare DEFAULT VALUES")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "bare"})
    with pytest.raises(SourceError, match="has no columns"):
        table.export()
    assert list(table.ctx.exports.list()) == []


@pytest.mark.parametrize("compression", Compression)
def test_megabyte_values_come_back_when_rows_are_proved_by_key(
    tmp_path: Path, database: str, catalog_url: str, compression: Compression
) -> None:
    run_sql(database, "CREATE TABLE big (id int PRIMARY KEY, note text)")
    run_sql(database, "INSERT INTO big SELECT n, repeat(chr(64 + n) || E'\"\\n', 700000) FROM generate_series(1, 3) n")
    spec = {"compression": compression, "cleanup": "after_archive"}
    select, delete = "SELECT DISTINCT id, note FROM big", "DELETE FROM big WHERE id < 3"
    table = new_step_table(tmp_path, database, catalog_url, spec, select=select, delete=delete)
    assert table.into_archive().identity.mode == "key"
    assert table.cleanup().deleted == 2
    run_sql(database, "INSERT INTO big VALUES (4, 'late')")
    assert table.into_archive().rows == 2
    assert table.restore("back").rows == 4
    assert run_sql(database, "SELECT id, length(note) FROM back ORDER BY id") == [
        (1, 2100000),
        (2, 2100000),
        (3, 2100000),
        (4, 4),
    ]
