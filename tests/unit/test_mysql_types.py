"""Types of MySQL as PostgreSQL has them, and fields of CSV as literals of MySQL."""

from __future__ import annotations

import pytest

from export_pipelines.errors import IntegrityError, TargetError
from export_pipelines.manifest import Column
from export_pipelines.sources.mysql_types import ResultColumn, declared_types, field, postgres_type
from export_pipelines.specs.table import CsvSpec
from export_pipelines.steps.ddl import mysql_table_sql, refuse_foreign_types
from export_pipelines.steps.mysql.literals import Literals, inserts

INT = ResultColumn("n", 3, 63, 1, 11, 0, "d", "t", "n")
TEXT = ResultColumn("n", 253, 45, 0, 80, 0, "d", "t", "n")


@pytest.mark.parametrize(
    ("mysql", "postgres"),
    [
        ("tinyint(1)", "smallint"),
        ("tinyint(3) unsigned", "smallint"),
        ("smallint(5) unsigned", "integer"),
        ("mediumint(8) unsigned", "integer"),
        ("int(11)", "integer"),
        ("int(10) unsigned zerofill", "bigint"),
        ("int unsigned", "bigint"),
        ("bigint(20)", "bigint"),
        ("bigint(20) unsigned", "numeric(20,0)"),
        ("decimal(65,30)", "numeric(65,30)"),
        ("decimal(10,2) unsigned", "numeric(10,2)"),
        ("float(10,2)", "real"),
        ("double", "double precision"),
        ("bit(64)", "bit(64)"),
        ("year(4)", "smallint"),
        ("date", "date"),
        ("datetime", "timestamp(0)"),
        ("datetime(6)", "timestamp(6)"),
        ("timestamp(3)", "timestamp(3) with time zone"),
        ("time(2)", "interval"),
        ("char(5)", "varchar(5)"),
        ("varchar(0)", "text"),
        ("varchar(10) /*M!100301 COMPRESSED*/", "varchar(10)"),
        ("longtext", "text"),
        ("enum('a','b(''),c')", "text"),
        ("set('unsigned','blob')", "text"),
        ("json", "json"),
        ("uuid", "uuid"),
        ("inet4", "inet"),
        ("inet6", "inet"),
        ("varbinary(9)", "bytea"),
        ("mediumblob", "bytea"),
        ("multipolygon", "bytea"),
        ("vector(3)", "bytea"),
    ],
)
def test_each_type_has_one_in_postgresql(mysql: str, postgres: str) -> None:
    assert postgres_type(mysql) == postgres


def test_a_column_that_is_never_null_costs_no_function() -> None:
    assert field(INT, "`n`", CsvSpec()) == "`n`"


@pytest.mark.parametrize("csv", [CsvSpec(delimiter="."), CsvSpec(delimiter="-"), CsvSpec(quote="-"), CsvSpec(null="-")])
def test_a_number_stands_in_quotes_where_its_signs_mean_something_else(csv: CsvSpec) -> None:
    assert field(INT, "`n`", csv).startswith("CONCAT(")


def test_a_text_that_is_too_long_is_not_taken_for_null() -> None:
    assert field(TEXT, "`n`", CsvSpec()).startswith("IF(`n` IS NULL, '', ")
    binary = ResultColumn("n", 252, 63, 128, 65535, 0, "d", "t", "n")
    assert field(binary, "`n`", CsvSpec()).startswith("IF(`n` IS NULL, '', ")


def test_the_type_of_a_table_does_not_count_for_a_column_that_cannot_be_of_it() -> None:
    base = {("d", "t", "n"): "bigint(20) unsigned"}
    assert declared_types([INT, TEXT], base) == (Column(name="n", type="int"), Column(name="n", type="varchar(20)"))


def literals(*kinds: str, csv: CsvSpec | None = None) -> Literals:
    return Literals([Column(name=kind, type=kind) for kind in kinds], csv or CsvSpec())


def test_fields_become_literals_of_their_types() -> None:
    made = literals("bigint(20) unsigned", "double", "bit(3)", "blob", "date", "varchar(9)", "varchar(9)", "text")
    row = made.row(b'18446744073709551615,0.1,101,\\x00ff,0000-00-00,"a""b,\'\\",,""\n')
    assert row == "(18446744073709551615,0.1e0,b'101',X'00ff','0000-00-00','a\"b,''\\\\',NULL,'')"


@pytest.mark.parametrize("kind", ["int", "double", "bit(3)", "blob", "decimal(5,2)", "geometry", "year"])
def test_what_is_no_field_of_its_type_is_no_sql_either(kind: str) -> None:
    assert literals(kind).row(b"1); DROP TABLE t; --\n") == "('1); DROP TABLE t; --')"


@pytest.mark.parametrize("record", [b"1\n", b"1,2,3\n", b'"a"b,2\n', b'"a,2\n', b"\xff,1\n"])
def test_a_record_with_other_fields_is_an_error(record: bytes) -> None:
    with pytest.raises(IntegrityError):
        literals("int", "text").row(record)


def test_another_dialect_is_read_as_it_was_written() -> None:
    csv = CsvSpec(delimiter="|", quote="'", null="\\N")
    assert literals("int", "text", "text", csv=csv).row(b"\\N|'it''s|'|''\n") == "(NULL,'it''s|','')"


def test_statements_stay_below_their_limit_and_no_row_is_left_out() -> None:
    rows = [f"({'ü' * n})" for n in (1, 2, 3, 40, 1)]
    made = list(inserts("HEAD ", rows, 30))
    assert [number for _, number in made] == [3, 1, 1]
    assert all(len(text.encode()) <= 30 for text, number in made if number > 1)
    assert ",".join(text.removeprefix("HEAD ") for text, _ in made) == ",".join(rows)


@pytest.mark.parametrize(
    "kind", ["int) SELECT 1 -- ", "integer[]", "timestamp with time zone", "enum('a'", "int(1), x int"]
)
def test_a_type_that_is_none_of_mysqls_is_refused(kind: str) -> None:
    with pytest.raises(TargetError, match="none of MySQL's"):
        refuse_foreign_types([Column(name="c", type=kind)])


def test_labels_of_an_enum_stay_as_they_are() -> None:
    column = Column(name="a`b", type="enum('/*x*/','it''s','d\\\\e')")
    refuse_foreign_types([column])
    assert "`a``b` enum('/*x*/','it''s','d\\\\e') NULL" in mysql_table_sql("`t`", [column])
    assert "`c` varchar(10) NULL" in mysql_table_sql(
        "`t`", [Column(name="c", type="varchar(10) /*M!100301 COMPRESSED*/")]
    )
    assert "`c` longtext NULL" in mysql_table_sql("`t`", [Column(name="c", type="varchar(60000)")])
