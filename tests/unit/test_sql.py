"""Statements: parameters, what is one reading or one deleting statement, and where an identity can ride along."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pglast import parse_sql

from export_pipelines.errors import SpecError
from export_pipelines.sql import (
    RelationName,
    parameters,
    parameters_used,
    parse_delete,
    parse_select,
    quote_identifier,
    quote_literal,
    render,
)
from export_pipelines.windows import SNAPSHOT, Window

FILE = Path("x.sql")
ZONE = ZoneInfo("Europe/Tallinn")
DAY = Window("2025-03-30", datetime(2025, 3, 30, tzinfo=ZONE), datetime(2025, 3, 31, tzinfo=ZONE))


# Parameters


def test_parameters_are_instants_with_their_offsets() -> None:
    assert parameters(DAY) == {
        "partition_key": "'2025-03-30'",
        "window_start": "'2025-03-30 00:00:00+02:00'::timestamptz",
        "window_end": "'2025-03-31 00:00:00+03:00'::timestamptz",
        "export_boundary": "'2025-03-31 00:00:00+03:00'::timestamptz",
    }


def test_parameters_of_a_naive_column_are_local_times_of_its_zone() -> None:
    assert parameters(DAY, "UTC")["window_start"] == "'2025-03-29 22:00:00'::timestamp"


def test_a_snapshot_has_only_its_key() -> None:
    assert parameters(Window(SNAPSHOT)) == {"partition_key": "'snapshot'"}


def test_a_parameter_is_filled_in_wherever_it_stands() -> None:
    text = "SELECT 1 WHERE a < %(window_end)s AND b = %(partition_key)s -- %(window_end)s"
    assert render(text, {"window_end": "X", "partition_key": "Y"}, file=FILE) == ("SELECT 1 WHERE a < X AND b = Y -- X")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("LIKE '%x%'", "LIKE '%x%'"),
        ("LIKE '50%%'", "LIKE '50%'"),
        ("a %% b", "a % b"),
        ("a % b", "a % b"),
        ("%%(window_end)s", "%(window_end)s"),
        ("%(window_end)s%%", "X%"),
        ("'%s' %d %(window_end)", "'%s' %d %(window_end)"),
    ],
)
def test_a_percent_sign_just_works(text: str, expected: str) -> None:
    assert render(text, {"window_end": "X"}, file=FILE) == expected


def test_an_unknown_parameter_is_an_error_with_its_line() -> None:
    with pytest.raises(SpecError, match=r"x\.sql:3: parameter %\(windowstart\)s does not exist") as error:
        render("SELECT 1\nWHERE\n a > %(windowstart)s", {}, file=FILE)
    assert "window_start" in error.value.hint


def test_a_parameter_of_time_without_partitions_is_an_error() -> None:
    with pytest.raises(SpecError, match="has no value without partitions"):
        render("%(window_end)s", parameters(Window(SNAPSHOT)), file=FILE)


def test_a_parameter_in_a_comment_bounds_nothing() -> None:
    assert parameters_used("SELECT 1 -- %(window_start)s\n/* %(window_end)s /* %(a)s */ */") == set()
    assert parameters_used("SELECT '-- %(window_start)s', %%(b)s") == {"window_start"}


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_literals_and_identifiers_survive_the_parser(text: str) -> None:
    (statement,) = parse_sql(f"SELECT {quote_literal(text)}")
    assert statement.stmt.targetList[0].val.val.sval == text
    if text and len(text.encode()) < 64:
        (statement,) = parse_sql(f"SELECT 1 AS {quote_identifier(text)}")
        assert statement.stmt.targetList[0].name == text


# select.sql

READS = [
    "SELECT 1",
    "SELECT 1;",
    " ;SELECT 1 ; ; ",
    "-- õäö\nSELECT 'Ž', a FROM t -- end",
    "/* a /* nested */ b */ SELECT 1 /* end */",
    "SELECT $$ ; DELETE FROM t; $$",
    "SELECT $a$ ' $a$, E'it\\'s; DROP', U&'\\0041'",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "VALUES (1)",
    "TABLE t",
    "(SELECT 1) UNION (SELECT 2)",
    "SELECT 1 FROM t WHERE a IN (SELECT b FROM u)",
    "COPY (SELECT 1) TO STDOUT WITH CSV HEADER",
    "COPY (SELECT ')' FROM t WHERE a = '(') TO STDOUT (FORMAT csv)",
    "copy t to stdout csv",
]


@pytest.mark.parametrize("text", READS)
def test_one_reading_statement_is_accepted_as_it_was_written(text: str) -> None:
    query = parse_select(text, FILE).query
    assert len(parse_sql(query)) == 1
    assert "SELECT" in query or "VALUES" in query or "TABLE" in query


WRITES = {
    "DELETE FROM t": "must be one SELECT",
    "INSERT INTO t VALUES (1)": "must be one SELECT",
    "UPDATE t SET a = 1": "must be one SELECT",
    "TRUNCATE t": "must be one SELECT",
    "CREATE TABLE u AS SELECT 1": "must be one SELECT",
    "EXPLAIN ANALYZE SELECT 1": "must be one SELECT",
    "DO $$ BEGIN END $$": "must be one SELECT",
    "CALL p()": "must be one SELECT",
    "SELECT 1; SELECT 2": "2 statements",
    "SELECT 1; DELETE FROM t": "2 statements",
    "": "no statement",
    "-- nothing": "no statement",
    ";": "no statement",
    "SELECT FROM WHERE": "does not parse",
    "SELECT 1 INTO u": "SELECT INTO",
    "SELECT * FROM t FOR UPDATE": "FOR UPDATE",
    "SELECT * FROM t FOR KEY SHARE": "FOR UPDATE",
    "SELECT * FROM (SELECT * FROM t FOR UPDATE) s": "FOR UPDATE",
    "WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d": "inside writes",
    "WITH d AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM d": "inside writes",
    "WITH d AS (UPDATE t SET a = 1 RETURNING *) SELECT * FROM d": "inside writes",
    "WITH d AS (MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE RETURNING 1) SELECT * FROM d": "inside writes",
    "COPY (SELECT 1) TO PROGRAM 'rm -rf /'": "TO STDOUT",
    "COPY (SELECT 1) TO '/etc/x' CSV": "TO STDOUT",
    "COPY t FROM STDIN CSV": "TO STDOUT",
    "COPY t FROM PROGRAM 'x'": "TO STDOUT",
    "COPY t TO PROGRAM 'x' CSV": "TO STDOUT",
    "COPY (DELETE FROM t RETURNING *) TO STDOUT CSV": "must be one SELECT",
    "COPY (INSERT INTO t VALUES (1) RETURNING *) TO STDOUT CSV": "must be one SELECT",
    "COPY (WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d) TO STDOUT CSV": "inside writes",
    "COPY (SELECT 1) TO STDOUT": "a format other than CSV",
    "COPY (SELECT 1) TO STDOUT BINARY": "a format other than CSV",
    "COPY (SELECT 1) TO STDOUT (FORMAT csv, FORCE_QUOTE *)": "FORCE_QUOTE",
    "COPY (SELECT 1) TO STDOUT (FORMAT csv, ENCODING 'LATIN1')": "ENCODING",
    "COPY (SELECT 1) TO STDOUT (FORMAT csv, ESCAPE '#')": "ESCAPE",
    "COPY (SELECT 1) TO STDOUT (FORMAT csv, DELIMITER '||')": "DELIMITER",
}


@pytest.mark.parametrize("text", WRITES)
def test_anything_but_one_reading_statement_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=WRITES[text]):
        parse_select(text, FILE)


def test_an_error_of_the_parser_has_its_line() -> None:
    with pytest.raises(SpecError, match=r"x\.sql:3: SQL does not parse: syntax error"):
        parse_select("-- õäö õäö õäö\nSELECT 'õ'\nFRM t WHERE", FILE)


def test_copy_options_are_those_of_the_file() -> None:
    csv = parse_select("COPY (SELECT 1) TO STDOUT (FORMAT csv, HEADER, DELIMITER ';', NULL 'n', QUOTE '''')", FILE).csv
    assert csv is not None
    assert (csv.header, csv.delimiter, csv.null, csv.quote) == (True, ";", "n", "'")
    plain = parse_select("COPY (SELECT 1) TO STDOUT CSV", FILE).csv
    assert plain is not None
    assert not plain.header


def test_copy_of_some_columns_selects_those() -> None:
    assert parse_select('COPY s.t (b, "A") TO STDOUT CSV', FILE).query == 'SELECT "b", "A" FROM "s"."t"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT a FROM t", 'SELECT "t".xmin, "t".ctid,  a FROM t'),
        ("SELECT ALL a FROM t x", 'SELECT ALL "x".xmin, "x".ctid,  a FROM t x'),
        ("-- ž\nWITH c AS (SELECT 1) SELECT/**/a FROM t", None),
        ("COPY (SELECT 'õ', a FROM t) TO STDOUT CSV", None),
    ],
)
def test_the_identity_stands_first_in_the_outermost_select(text: str, expected: str | None) -> None:
    select = parse_select(text, FILE)
    (relation,) = select.relations
    query = select.with_identity(relation, tableoid=False)
    assert expected in (None, query)
    targets = parse_sql(query)[0].stmt.targetList
    assert [field.sval for field in targets[0].val.fields][1] == "xmin"
    assert [field.sval for field in targets[1].val.fields][1] == "ctid"
    assert len(parse_sql(select.with_identity(relation, tableoid=True))[0].stmt.targetList) == len(targets) + 1


RELATIONS = {
    "SELECT 1 FROM t": ["t"],
    "SELECT 1 FROM s.t AS x": ["t"],
    "SELECT 1 FROM t, u": ["t", "u"],
    "SELECT 1 FROM t JOIN u ON true": ["t", "u"],
    "SELECT 1 FROM t NATURAL JOIN u": ["t", "u"],
    "SELECT 1 FROM t LEFT JOIN u ON true": ["t"],
    "SELECT 1 FROM t RIGHT JOIN u ON true": ["u"],
    "SELECT 1 FROM t FULL JOIN u ON true": [],
    "SELECT 1 FROM (t LEFT JOIN u ON true) RIGHT JOIN v ON true": ["v"],
    "SELECT 1 FROM t LEFT JOIN (u JOIN v ON true) ON true": ["t"],
    "SELECT 1 FROM t, t AS x": [],
    "SELECT 1 FROM t, s.t AS x": [],
    "SELECT 1 FROM a.t, b.t AS x": ["t", "t"],
    "SELECT 1 FROM (SELECT * FROM t) x": [],
    "SELECT 1 FROM f() x, t": ["t"],
    "SELECT 1 FROM t AS x (ctid)": [],
    "WITH t AS (SELECT 1) SELECT 1 FROM t": [],
    "WITH t AS (SELECT 1) SELECT 1 FROM public.t": ["t"],
    "SELECT DISTINCT a FROM t": [],
    "SELECT a FROM t GROUP BY a": [],
    "SELECT 1 FROM t HAVING true": [],
    "SELECT a FROM t UNION ALL SELECT a FROM t": [],
    "SELECT a FROM t ORDER BY 1": [],
    "SELECT a FROM t ORDER BY a + 1 LIMIT 3": ["t"],
    "(SELECT a FROM t)": [],
    "VALUES (1)": [],
}


@pytest.mark.parametrize("text", RELATIONS)
def test_identities_ride_along_from_plain_relations_only(text: str) -> None:
    assert [relation.name for relation in parse_select(text, FILE).relations] == RELATIONS[text]


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("SELECT a, b + 1 FROM t WHERE f(a)", False),
        ("SELECT f(a) FROM t", True),
        ("SELECT a FROM t, u", True),
        ("SELECT a FROM t JOIN u USING (a)", True),
    ],
)
def test_only_a_select_of_one_table_without_functions_surely_gives_a_row_once(text: str, repeats: bool) -> None:
    assert parse_select(text, FILE).repeats is repeats


# delete.sql


@pytest.mark.parametrize(
    ("text", "statement"),
    [
        ("DELETE FROM t", " DELETE FROM t WHERE C RETURNING R"),
        ("DELETE FROM t;", " DELETE FROM t WHERE C RETURNING R"),
        ("DELETE FROM t -- end", " DELETE FROM t WHERE C RETURNING R"),
        ("DELETE FROM ONLY s.t AS x WHERE a OR b", " DELETE FROM ONLY s.t AS x WHERE (a OR b\n) AND C RETURNING R"),
        ("DELETE FROM t WHERE a -- why", " DELETE FROM t WHERE (a\n) AND C RETURNING R"),
        ("DELETE FROM t USING u, v WHERE a", " DELETE FROM t USING u, v WHERE (a\n) AND C RETURNING R"),
        ("DELETE FROM t USING u JOIN v USING (a)", " DELETE FROM t USING u JOIN v USING (a) WHERE C RETURNING R"),
        (
            "DELETE FROM t WHERE id IN (SELECT id FROM u WHERE a)",
            " DELETE FROM t WHERE (id IN (SELECT id FROM u WHERE a)\n) AND C RETURNING R",
        ),
        (
            "WITH x AS (DELETE_ME) DELETE FROM t WHERE a".replace("DELETE_ME", "SELECT 1 FROM u WHERE b"),
            "WITH x AS (SELECT 1 FROM u WHERE b)  DELETE FROM t WHERE (a\n) AND C RETURNING R",
        ),
        ("DELETE FROM t WHERE a IS DISTINCT FROM b", " DELETE FROM t WHERE (a IS DISTINCT FROM b\n) AND C RETURNING R"),
        ("delete from t where a = 'WHERE õ'", " DELETE FROM t WHERE (a = 'WHERE õ'\n) AND C RETURNING R"),
    ],
)
def test_a_delete_is_narrowed_by_a_condition(text: str, statement: str) -> None:
    delete = parse_delete(text, FILE)
    assert delete.statement("C", "R") == statement
    assert len(parse_sql(delete.statement("true", "1"))) == 1
    (selection,) = parse_sql(delete.selection("1", "true"))
    assert type(selection.stmt).__name__ == "SelectStmt"


DELETES = {
    "SELECT 1": "must be one DELETE",
    "TRUNCATE t": "must be one DELETE",
    "UPDATE t SET a = 1": "must be one DELETE",
    "DELETE FROM t; DELETE FROM u": "2 statements",
    "": "no statement",
    "DELETE t": "does not parse",
    "DELETE FROM t RETURNING *": "RETURNING",
    "DELETE FROM t WHERE CURRENT OF c": "CURRENT OF",
    "WITH d AS (DELETE FROM u RETURNING *) DELETE FROM t": "inside writes",
    "WITH d AS (INSERT INTO u VALUES (1) RETURNING *) DELETE FROM t USING d": "inside writes",
    "MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE": "must be one DELETE",
    "COPY (DELETE FROM t RETURNING *) TO STDOUT CSV": "must be one DELETE",
    "DO $$ BEGIN DELETE FROM t; END $$": "must be one DELETE",
    "DELETE FROM t WHERE a IN (SELECT a FROM u FOR UPDATE)": "FOR UPDATE",
}


@pytest.mark.parametrize("text", DELETES)
def test_anything_but_one_delete_of_one_table_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=DELETES[text]):
        parse_delete(text, FILE)


def test_names_are_the_same_unless_their_schemas_differ() -> None:
    def name(schema: str | None, table: str = "t") -> RelationName:
        return RelationName(schema, table, table, only=False)

    assert name(None).same(name("a"))
    assert name("a").same(name("a"))
    assert not name("a").same(name("b"))
    assert not name("a", "t").same(name("a", "u"))
