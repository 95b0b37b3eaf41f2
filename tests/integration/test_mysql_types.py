"""Every type of MariaDB: its text in the file, and what comes back from it, in MariaDB and in PostgreSQL."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.mysql_types import field
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.table import CsvSpec
from export_pipelines.steps.merge import OnConflict
from export_pipelines.steps.pieces import Archived, Choice
from export_pipelines.steps.restore import RestoreResult, restore_table
from export_pipelines.stores import open_store
from tests.support.mysql_tables import MysqlKit, kit, one_catalog
from tests.support.servers import run_sql

__all__ = ["kit", "one_catalog"]
pytestmark = pytest.mark.debian

WIDEST = f"-{'9' * 35}.{'9' * 30}"
# Type, a value in SQL, its field, the type and text of PostgreSQL; of the last None where PostgreSQL has no such value.
TYPES: list[tuple[str, str, str, str, str | None]] = [
    ("tinyint(4)", "-128", "-128", "smallint", "-128"),
    ("tinyint(3) unsigned", "255", "255", "smallint", "255"),
    ("smallint(6)", "-32768", "-32768", "smallint", "-32768"),
    ("mediumint(8) unsigned", "16777215", "16777215", "integer", "16777215"),
    ("int(11)", "-2147483648", "-2147483648", "integer", "-2147483648"),
    ("int(8) unsigned zerofill", "42", "42", "bigint", "42"),
    ("bigint(20)", "-9223372036854775808", "-9223372036854775808", "bigint", "-9223372036854775808"),
    ("bigint(20) unsigned", "18446744073709551615", "18446744073709551615", "numeric(20,0)", "18446744073709551615"),
    ("decimal(65,30)", WIDEST, WIDEST, "numeric(65,30)", WIDEST),
    ("decimal(10,2) unsigned zerofill", "1.5", "1.50", "numeric(10,2)", "1.50"),
    ("float", "0.1", "0.10000000149011612", "real", "0.1"),
    ("float", "-3.4028234663852886e38", "-3.4028234663852886e38", "real", "-3.4028235e+38"),
    ("float(10,2)", "1234567.89", "1234567.875", "real", "1.2345679e+06"),
    ("double", "1.7976931348623157e308", "1.7976931348623157e308", "double precision", "1.7976931348623157e+308"),
    ("double", "5e-324", "5e-324", "double precision", "5e-324"),
    ("double", "123456789012345680000", "1.2345678901234568e20", "double precision", "1.2345678901234568e+20"),
    ("double(12,3)", "0.1", "0.1", "double precision", "0.1"),
    ("bit(1)", "b'1'", "1", "bit(1)", "1"),
    ("bit(10)", "b'101'", "0000000101", "bit(10)", "0000000101"),
    ("bit(64)", "b'1' << 63 | 1", f"1{'0' * 62}1", "bit(64)", f"1{'0' * 62}1"),
    ("year(4)", "0", "0000", "smallint", "0"),
    ("year(4)", "2155", "2155", "smallint", "2155"),
    ("date", "'1000-01-01'", "1000-01-01", "date", "1000-01-01"),
    ("date", "'0000-00-00'", "0000-00-00", "date", None),
    ("date", "'2024-02-00'", "2024-02-00", "date", None),
    ("datetime", "'9999-12-31 23:59:59'", "9999-12-31 23:59:59", "timestamp(0) without time zone",
     "9999-12-31 23:59:59"),
    ("datetime(6)", "'2024-03-31 03:30:00.000001'", "2024-03-31 03:30:00.000001", "timestamp(6) without time zone",
     "2024-03-31 03:30:00.000001"),
    ("datetime(3)", "'0000-00-00'", "0000-00-00 00:00:00.000", "timestamp(3) without time zone", None),
    ("timestamp(3)", "'2024-10-27 00:30:00.123'", "2024-10-27 00:30:00.123", "timestamp(3) with time zone",
     "2024-10-27 00:30:00.123+00"),
    ("timestamp", "'1970-01-01 00:00:01'", "1970-01-01 00:00:01", "timestamp(0) with time zone",
     "1970-01-01 00:00:01+00"),
    ("timestamp", "'0000-00-00'", "0000-00-00 00:00:00", "timestamp(0) with time zone", None),
    ("time(2)", "'-838:59:59.99'", "-838:59:59.99", "interval", "-838:59:59.99"),
    ("time", "'838:59:59'", "838:59:59", "interval", "838:59:59"),
    ("char(5)", "'ab '", '"ab"', "character varying(5)", "ab"),
    ("varchar(20)", "'a,\"b\"''\\\\\\n ü€😀 '", '"a,""b""\'\\\n ü€😀 "', "character varying(20)", "a,\"b\"'\\\n ü€😀 "),
    ("varchar(20)", "''", '""', "character varying(20)", ""),
    ("varchar(20)", "CHAR(0 USING utf8mb4)", '"\0"', "character varying(20)", None),
    ("text", "'NULL'", '"NULL"', "text", "NULL"),
    ("longtext", "REPEAT('x', 300000)", f'"{"x" * 300000}"', "text", "x" * 300000),
    ("enum('a','b''c','d\\\\e')", "'d\\\\e'", '"d\\e"', "text", "d\\e"),
    ("set('x','y','z')", "'x,z'", '"x,z"', "text", "x,z"),
    ("uuid", "'123e4567-e89b-12d3-a456-426614174000'", '"123e4567-e89b-12d3-a456-426614174000"', "uuid",
     "123e4567-e89b-12d3-a456-426614174000"),
    ("inet4", "'10.0.0.255'", '"10.0.0.255"', "inet", "10.0.0.255/32"),
    ("inet6", "'2001:db8::ff00:42:8329'", '"2001:db8::ff00:42:8329"', "inet", "2001:db8::ff00:42:8329/128"),
    ("binary(4)", "'ab'", "\\x61620000", "bytea", "\\x61620000"),
    ("varbinary(9)", "X'00FF0A225C'", "\\x00ff0a225c", "bytea", "\\x00ff0a225c"),
    ("blob", "''", "\\x", "bytea", "\\x"),
    ("longblob", "REPEAT(X'FF00', 100000)", "\\x" + "ff00" * 100000, "bytea", "\\x" + "ff00" * 100000),
    ("point", "POINT(1, 2)", "\\x000000000101000000000000000000f03f0000000000000040", "bytea",
     "\\x000000000101000000000000000000f03f0000000000000040"),
    ("geometry", "ST_GeomFromText('LINESTRING(24.7 59.4,25 60)', 4326)", "", "bytea", ""),
]  # fmt: skip
STRICT = "STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO"


def fill(kit: MysqlKit, types: list[tuple[str, str, str, str, str | None]]) -> None:
    """Table t: a column for each type, one row of values and one of NULLs."""
    columns = ", ".join(f"c{n} {each[0]} NULL" for n, each in enumerate(types))
    values = ", ".join(each[1] for each in types)
    nulls = ", ".join(["NULL"] * len(types))
    kit.spec = {"table": "t"}
    kit.sql(
        f"SET sql_mode = '{STRICT}', time_zone = '+00:00'",
        f"CREATE TABLE t (id BIGINT UNSIGNED NOT NULL PRIMARY KEY AUTO_INCREMENT, {columns}) DEFAULT CHARSET utf8mb4",
        f"INSERT INTO t VALUES (0, {values}), (1, {nulls})",
    )


def archived(kit: MysqlKit) -> Archived:
    return Archived(open_store((kit.folder / "archive").as_uri()), kit.table.id)


def restore(kit: MysqlKit, into: str, target: Any = None, policy: str = "fail") -> RestoreResult:
    return restore_table(
        archived(kit), Choice(), target or MysqlSource(kit.database), into, on_conflict=OnConflict(policy)
    )


def raw(kit: MysqlKit) -> str:
    """The text of the one file."""
    [entry] = kit.entries()
    return b"".join(archived(kit).raw(entry, lambda size: None)).decode()


def hexed(kit: MysqlKit, table: str, types: list[Any]) -> list[tuple[Any, ...]]:
    """All bytes of all values, which HEX of a number would round."""
    names = [
        f"HEX(CAST(c{n} AS DOUBLE)), c{n} * 1e0"
        if each[0].startswith(("float", "double"))
        else f"HEX(c{n}), c{n} IS NULL"
        for n, each in enumerate(types)
    ]
    return kit.sql("SET time_zone = '+00:00'", f"SELECT id, {', '.join(names)} FROM {table} ORDER BY id")


def test_the_field_of_each_type_is_as_documented(kit: MysqlKit) -> None:
    fill(kit, TYPES)
    record = kit.exported()
    assert [column.type for column in record.columns] == ["bigint(20) unsigned", *(each[0] for each in TYPES)]
    header, rest = raw(kit).split("\n", 1)
    assert header == ",".join(["id", *(f"c{n}" for n in range(len(TYPES)))])
    fields = re.findall(r'("(?:[^"]|"")*"|[^,"\n]*)[,\n]', rest)
    assert fields[1 : len(TYPES)] == [each[2] for each in TYPES[:-1]]
    assert fields[len(TYPES)].startswith("\\xe610000001020000000200")
    assert rest.endswith(f"\n1{',' * len(TYPES)}\n")


def test_each_type_comes_back_byte_for_byte(kit: MysqlKit) -> None:
    fill(kit, TYPES)
    kit.exported()
    assert restore(kit, "back").created
    assert hexed(kit, "back", TYPES) == hexed(kit, "t", TYPES)
    declared = (
        "SELECT column_type FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = '{}'"
    )
    assert kit.sql(declared.format("back")) == kit.sql(declared.format("t"))


def test_what_was_restored_is_exported_as_the_same_bytes(kit: MysqlKit) -> None:
    fill(kit, TYPES)
    kit.exported()
    restore(kit, "back")
    first = raw(kit)
    again = MysqlKit(kit.database, kit.catalog_url, kit.folder / "again", name=f"{kit.name}_2", spec={"table": "back"})
    again.exported()
    assert raw(again) == first


def test_each_type_comes_back_in_postgresql(kit: MysqlKit, database: str) -> None:
    types = [each for each in TYPES if each[4] is not None]
    fill(kit, types)
    kit.exported()
    assert restore(kit, "back", PostgresSource(database)).rows == 2
    kinds = run_sql(
        database,
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'back'::regclass AND attnum > 1 "
        "ORDER BY attnum",
    )
    assert [kind for (kind,) in kinds] == [each[3] for each in types]
    run_sql(database, f"ALTER DATABASE {database.rpartition('/')[2]} SET timezone TO 'UTC'")
    texts = ", ".join(f"c{n}::text" for n in range(len(types) - 1))
    [values, nulls] = run_sql(database, f"SELECT {texts} FROM back ORDER BY id")
    assert list(values) == [each[4] for each in types[:-1]]
    assert set(nulls) == {None}


@pytest.mark.parametrize("kind", ["date", "datetime(3)"])
def test_a_zero_date_that_postgresql_has_not_is_one_clear_error(kit: MysqlKit, database: str, kind: str) -> None:
    fill(kit, [(kind, "'0000-00-00'", "", "", None)])
    kit.exported()
    with pytest.raises(TargetError, match="text columns"):
        restore(kit, "back", PostgresSource(database))
    run_sql(database, "CREATE TABLE back (id numeric, c0 text)")
    assert restore(kit, "back", PostgresSource(database)).rows == 2
    assert str(run_sql(database, "SELECT c0 FROM back WHERE id = 0")[0][0]).startswith("0000-00-00")


@pytest.mark.parametrize(
    "dialect",
    [
        {"delimiter": "."},
        {"delimiter": "-", "quote": "'"},
        {"delimiter": "|", "null": "\\N"},
        {"null": "0"},
        {"quote": "-"},
    ],
)
def test_each_type_comes_back_from_another_dialect(kit: MysqlKit, dialect: dict[str, str]) -> None:
    fill(kit, TYPES)
    kit.spec = {"table": "t", "format": {"csv": dialect}}
    kit.exported()
    restore(kit, "back")
    assert hexed(kit, "back", TYPES) == hexed(kit, "t", TYPES)


def test_strings_of_any_charset_are_utf8_in_the_file(kit: MysqlKit) -> None:
    kit.spec = {"table": "t"}
    kit.sql(
        "CREATE TABLE t (id INT PRIMARY KEY, a VARCHAR(9) CHARACTER SET latin1, b VARCHAR(9) CHARACTER SET greek, "
        "c CHAR(9) CHARACTER SET utf16, d TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin, e ENUM('ä', 'ö') "
        "CHARACTER SET latin2)",
        "INSERT INTO t VALUES (1, 'ü€', 'αβ', '😀', '\"', 'ö')",
    )
    kit.exported()
    assert list(csv.reader(io.StringIO(raw(kit))))[1] == ["1", "ü€", "αβ", "😀", '"', "ö"]
    restore(kit, "back")
    assert kit.sql("SELECT * FROM back") == [(1, "ü€", "αβ", "😀", '"', "ö")]


def test_a_value_that_the_server_cannot_print_is_an_error_and_no_null(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (id INT PRIMARY KEY, a LONGBLOB)", "INSERT INTO t VALUES (1, REPEAT('a', 33600000))")
    kit.spec = {"table": "t"}
    with pytest.raises(SourceError, match="max_allowed_packet"):
        kit.exported()


def test_a_row_of_several_packets_comes_back(kit: MysqlKit) -> None:
    kit.spec = {"table": "t"}
    kit.sql(
        "CREATE TABLE t (id INT PRIMARY KEY, a LONGBLOB, b LONGTEXT)",
        "INSERT INTO t VALUES (1, REPEAT('a', 9000000), 'x'), (2, 'b', REPEAT('ü', 9000000)), (3, 'c', 'd')",
    )
    assert kit.exported().rows == 3
    restore(kit, "back")
    assert kit.sql("SELECT id, MD5(a), MD5(b) FROM back") == kit.sql("SELECT id, MD5(a), MD5(b) FROM t")


def test_columns_that_only_seem_to_be_never_null_may_be(kit: MysqlKit) -> None:
    kit.sql(
        "CREATE TABLE t (id INT PRIMARY KEY)",
        "INSERT INTO t VALUES (1)",
        "CREATE VIEW v AS SELECT 2 AS id, 'x' AS note",
    )
    with MysqlSource(kit.database).session() as session:
        session.begin()
        query = "SELECT v.* FROM t LEFT JOIN v ON v.id = t.id"
        fields = [field(column, column.name, CsvSpec()) for column in session.describe(query)]
        assert session.one(f"SELECT {', '.join(fields)} FROM ({query}) AS q") == ("", b"")
