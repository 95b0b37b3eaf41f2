"""Statements in MySQL's dialect: parameters, one reading or one deleting statement, where columns ride along."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlglot import exp, parse_one

from export_pipelines.errors import RequestError, SpecError
from export_pipelines.sql import render
from export_pipelines.sql_mysql import (
    MysqlRelation,
    parameters,
    parameters_used,
    parse_delete,
    parse_select,
    quote_identifier,
    quote_literal,
    split_name,
)
from export_pipelines.windows import SNAPSHOT, Window

FILE = Path("x.sql")
ZONE = ZoneInfo("Europe/Tallinn")
DAY = Window("2025-03-30", datetime(2025, 3, 30, tzinfo=ZONE), datetime(2025, 3, 31, tzinfo=ZONE))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


# Names, literals, parameters


@given(TEXTS)
def test_a_literal_survives_the_parser(text: str) -> None:
    value = parse_one(f"SELECT {quote_literal(text)} FROM t", dialect="mysql").expressions[0]
    if isinstance(value, exp.Introducer):
        assert bytes.fromhex(value.expression.name).decode() == text
    else:
        assert value.is_string
        assert value.name == text


@given(TEXTS)
def test_a_literal_means_the_same_in_each_sql_mode(text: str) -> None:
    literal = quote_literal(text)
    assert "\\" not in literal
    assert literal.count("'") == 2


@given(TEXTS.filter(lambda text: text and "\0" not in text))
def test_an_identifier_survives_the_parser(text: str) -> None:
    column = parse_one(f"SELECT {quote_identifier(text)} FROM t", dialect="mysql").expressions[0]
    assert column.name == text
    assert column.this.quoted


@given(TEXTS, TEXTS.filter(lambda text: text and "\0" not in text))
def test_literals_and_identifiers_have_no_code_in_them(literal: str, name: str) -> None:
    text = f"SELECT {quote_literal(literal)}, {quote_identifier(name)} FROM t"
    select = parse_select(text, FILE)
    assert select.with_columns("e") == text.removesuffix(" FROM t") + ", e FROM t"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("t", (None, "t")),
        ("s.t", ("s", "t")),
        (" s . t ", ("s", "t")),
        ("`a``b`.`c.d`", ("a`b", "c.d")),
        ("`ö ä`.tö", ("ö ä", "tö")),
    ],
)
def test_a_name_is_split_at_its_dot(text: str, name: tuple[str | None, str]) -> None:
    assert split_name(text) == name


@pytest.mark.parametrize("text", ["", ".t", "a.b.c", "t; DROP", "t-x", '"t"', "`t", "``"])
def test_what_is_no_name_is_not_split(text: str) -> None:
    with pytest.raises(RequestError, match="is no name of a table"):
        split_name(text)


def test_parameters_are_local_times_of_the_zone() -> None:
    assert parameters(DAY, "Europe/Tallinn") == {
        "partition_key": "'2025-03-30'",
        "window_start": "TIMESTAMP'2025-03-30 00:00:00'",
        "window_end": "TIMESTAMP'2025-03-31 00:00:00'",
        "export_boundary": "TIMESTAMP'2025-03-31 00:00:00'",
    }
    assert parameters(DAY, "UTC")["window_end"] == "TIMESTAMP'2025-03-30 21:00:00'"


def test_a_fraction_of_a_second_is_kept() -> None:
    start = datetime(2025, 1, 1, 0, 0, 0, 500, tzinfo=ZONE)
    assert parameters(Window("x", start, start), "UTC")["window_start"] == "TIMESTAMP'2024-12-31 22:00:00.000500'"


def test_a_snapshot_has_only_its_key() -> None:
    assert parameters(Window(SNAPSHOT), "UTC") == {"partition_key": "'snapshot'"}


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("SELECT 1 -- %(window_start)s\n/* %(window_end)s */ # %(a)s", set()),
        ("SELECT '-- %(window_start)s', %%(b)s", {"window_start"}),
        ("SELECT 5--%(window_start)s", {"window_start"}),
        ("SELECT 'it\\'s # ', %(window_start)s", {"window_start"}),
        ("SELECT `#`, %(window_start)s", {"window_start"}),
        ("SELECT 1 /*! WHERE a < %(window_end)s */", {"window_end"}),
        ("SELECT 'no end %(window_end)s", {"window_end"}),
    ],
)
def test_a_parameter_counts_unless_it_stands_in_a_comment(text: str, used: set[str]) -> None:
    assert parameters_used(text) == used


def test_a_rendered_statement_parses() -> None:
    text = "SELECT a FROM t WHERE b >= %(window_start)s AND b < %(window_end)s AND c LIKE '5%%' AND d % 2"
    query = parse_select(render(text, parameters(DAY, "UTC"), file=FILE), FILE).query
    assert query.endswith("b < TIMESTAMP'2025-03-30 21:00:00' AND c LIKE '5%' AND d % 2")


# select.sql


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("SELECT 1", "SELECT 1"),
        ("SELECT 1;", "SELECT 1"),
        (" ;SELECT 1 ; ; -- end", "SELECT 1"),
        ("-- õäö\nSELECT 'Ž', a FROM t # end", "-- õäö\nSELECT 'Ž', a FROM t"),
        ("/* a /* b */ SELECT 1 /* end */", "/* a /* b */ SELECT 1"),
        ("SELECT 'a;b', `c;d` FROM t # ; e\n;", "SELECT 'a;b', `c;d` FROM t"),
        ("SELECT '/*! x */', '-- ', \"#\" FROM t", "SELECT '/*! x */', '-- ', \"#\" FROM t"),
    ],
)
def test_a_query_is_the_text_without_what_stands_behind_it(text: str, query: str) -> None:
    assert parse_select(text, FILE).query == query


READS = [
    "SELECT 'it\\'s; INTO', 'a''b', \"x\"\"y\", `q``r`, 'a\\\\' FROM t",
    "SELECT 5--1, 5 - -1, a % 2, a MOD 2, a DIV 2, a <=> b, a || b, a && b, !a FROM t",
    "SELECT N'x', _latin1'x', _utf8mb4 X'61', X'61', b'1', 0x61, 1.5e3, .5, 1. FROM t",
    "SELECT DATE '2024-01-01', TIMESTAMP'2024-01-01 00:00:00', a + INTERVAL 1 DAY_HOUR FROM t",
    "SELECT a->'$.x', a->>'$.y', JSON_VALUE(a, '$.z'), CONVERT(a USING utf8mb4), CAST(a AS SIGNED) FROM t",
    "SELECT EXTRACT(YEAR FROM a), TRIM(BOTH 'x' FROM b), SUBSTRING(a FROM 1 FOR 2), POSITION('a' IN b) FROM t",
    "SELECT MATCH (a) AGAINST ('x' IN BOOLEAN MODE), INSERT(a, 1, 1, 'x'), REPLACE(a, 'b', 'c') FROM t",
    "SELECT a FROM t WHERE (a, b) > (1, 2) AND a > ALL (SELECT 1) AND NOT EXISTS (SELECT 1 FROM u)",
    "SELECT a COLLATE utf8mb4_bin, BINARY a, a REGEXP 'x', a RLIKE 'y', a LIKE 'z' ESCAPE '|' FROM t",
    "SELECT /*+ NO_ICP(t) */ STRAIGHT_JOIN a FROM t",
    "SELECT @@sql_mode, sleep, `into`, `sleep` FROM t",
    "SELECT ROW_NUMBER() OVER w, LAG(a) OVER w, COUNT(*) OVER () FROM t WINDOW w AS (ORDER BY a)",
    "WITH RECURSIVE x (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT * FROM x",
    "SELECT 1 FROM t\r\n\tWHERE a\v\f",
]


@pytest.mark.parametrize("text", READS)
def test_what_only_reads_is_accepted_as_it_was_written(text: str) -> None:
    select = parse_select(text, FILE)
    assert select.query == text.rstrip()
    assert select.opaque == ""


WRITES = {
    "": "no statement",
    "-- nothing": "no statement",
    ";": "no statement",
    "SELECT 1; SELECT 2": "2 statements",
    "SELECT 1; DELETE FROM t": "2 statements",
    "DELETE FROM t": "must be one SELECT",
    "INSERT INTO t VALUES (1)": "must be one SELECT",
    "REPLACE INTO t VALUES (1)": "must be one SELECT",
    "UPDATE t SET a = 1": "must be one SELECT",
    "TRUNCATE t": "must be one SELECT",
    "CREATE TABLE u AS SELECT 1": "must be one SELECT",
    "CALL p()": "must be one SELECT",
    "DO SLEEP(1)": "must be one SELECT",
    "SET a = 1": "must be one SELECT",
    "EXPLAIN SELECT 1": "must be one SELECT",
    "ANALYZE SELECT 1": "must be one SELECT",
    "HANDLER t OPEN": "must be one SELECT",
    "LOAD DATA INFILE 'x' INTO TABLE t": "must be one SELECT",
    "PREPARE s FROM 'DELETE FROM t'": "must be one SELECT",
    "COPY (SELECT 1) TO STDOUT": "must be one SELECT",
    "TABLE t": "must be one SELECT",
    "VALUES (1)": "must be one SELECT",
    "WITH x AS (SELECT 1) TABLE t": "must be one SELECT",
    "WITH x AS (SELECT 1) FROM x": "must be one SELECT",
    "WITH d AS (SELECT 1) DELETE FROM t": "must be one SELECT",
    "WITH d AS (SELECT 1) UPDATE t SET a = 1": "must be one SELECT",
    "WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d": "inside writes",
    "SELECT a INTO OUTFILE '/x' FROM t": "SELECT INTO",
    "SELECT a FROM t INTO DUMPFILE '/x'": "SELECT INTO",
    "SELECT a INTO @x FROM t": "SELECT INTO",
    "SELECT a FROM t WHERE b = 1.INTO OUTFILE '/x'": "SELECT INTO",
    "SELECT `a`INTO OUTFILE '/x' FROM t": "SELECT INTO",
    "SELECT 'a'INTO/**/OUTFILE '/x' FROM t": "SELECT INTO",
    "SELECT 1e3INTO OUTFILE '/x'": "a number runs into a word",
    "SELECT a FROM t WHERE b = .5e-1FOR UPDATE": "a number runs into a word",
    "SELECT 1.a FROM t": "a number runs into a word",
    "SELECT * FROM t FOR UPDATE": "FOR UPDATE",
    "SELECT * FROM t FOR\n UPDATE NOWAIT": "FOR UPDATE",
    "SELECT * FROM t FOR SHARE": "FOR UPDATE",
    "SELECT * FROM t LOCK IN SHARE MODE": "FOR UPDATE",
    "SELECT * FROM t WHERE a IN (SELECT a FROM u FOR/**/UPDATE)": "FOR UPDATE",
    "SELECT /*! 1 */": "the server executes",
    "SELECT 1 /*!50000 INTO OUTFILE '/x' */": "the server executes",
    "SELECT 1 /*M!100000 + 1 */": "the server executes",
    "SELECT /*+ SET_VAR(sql_mode = '') */ a FROM t": "SET_VAR",
    "SELECT @x": "a user variable",
    "SELECT @`x` := 1": "a user variable",
    "SELECT a FROM t WHERE b > :start": "with a colon",
    "SELECT a FROM t WHERE b > ?": "with a question mark",
    "SELECT NEXT VALUE FOR s": "a sequence",
    "SELECT PREVIOUS VALUE  FOR s": "a sequence",
    "SELECT nextval(s)": r"NEXTVAL\(\)",
    "SELECT SETVAL (s, 1)": r"SETVAL\(\)",
    "SELECT sleep(1)": r"SLEEP\(\)",
    "SELECT `sleep` (1)": r"SLEEP\(\)",
    "SELECT sleep/* ( */(1)": r"SLEEP\(\)",
    "SELECT GET_LOCK('a', 1)": r"GET_LOCK\(\)",
    "SELECT RELEASE_LOCK('a')": r"RELEASE_LOCK\(\)",
    "SELECT RELEASE_ALL_LOCKS()": r"RELEASE_ALL_LOCKS\(\)",
    "SELECT LOAD_FILE('/etc/passwd')": r"LOAD_FILE\(\)",
    "SELECT BENCHMARK(1, 1)": r"BENCHMARK\(\)",
    "SELECT a FROM t LIMIT ROWS EXAMINED 5": "ROWS EXAMINED",
    "SELECT SQL_NO_CACHE a FROM t": "SQL_NO_CACHE",
    "SELECT HIGH_PRIORITY a FROM t": "a modifier",
    "SELECT SQL_CALC_FOUND_ROWS a FROM t": "a modifier",
    "SELECT 'a": "' has no end",
    'SELECT "a\\"': '" has no end',
    "SELECT `a": "` has no end",
    "SELECT 1 /* a": r"/\* has no end",
    "SELECT a\u00a0FROM t": r"U\+00A0",
    "\ufeffSELECT a FROM t": r"U\+FEFF",
    "SELECT 1 -- \0 INTO": r"U\+0000",
    "SELECT FROM WHERE": "does not parse",
    "SELECT a FROM t WHERE": "an expression is missing",
    "SELECT a FROM t WHERE a) OR (b": "does not parse",
    "SELECT a FROM t PROCEDURE ANALYSE()": "does not parse",
    f"SELECT {'(' * 500}1{')' * 500}": "does not parse",
}


@pytest.mark.parametrize("text", WRITES)
def test_anything_but_one_reading_statement_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=WRITES[text]):
        parse_select(text, FILE)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("COPY (SELECT 1) TO STDOUT", "PostgreSQL's"),
        ("TABLE t", "MariaDB has no TABLE"),
        ("VALUES (1)", "UNION ALL"),
        ("SELECT :start", r"%(window_start)s"),
        ("SELECT a INTO OUTFILE 'x' FROM t", "backticks"),
    ],
)
def test_a_refusal_says_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_select(text, FILE)
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("-- õäö 😀\nSELECT 'õ\n'\nFRM t WHERE", 4),
        ("/* a\n b */\nSELECT\n sleep(1)", 4),
        ("SELECT 'a\nb',\n @x", 3),
        ("SELECT 1\n/*! 1 */", 2),
        ("SELECT 1,\n\n 'a", 3),
        ("\n;\nSELECT 1\nINTO @x", 4),
        ("\n;\n-- a\nSELECT a FROM t\nWHERE WHERE", 5),
    ],
)
def test_an_error_has_its_line(text: str, line: int) -> None:
    with pytest.raises(SpecError) as error:
        parse_select(text, FILE)
    assert error.value.line == line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT a FROM t", "SELECT a, E FROM t"),
        ("SELECT *FROM t", "SELECT *, E FROM t"),
        ("SELECT (a)FROM t", "SELECT (a), E FROM t"),
        ("SELECT 'ö😀', a -- 😀 FROM\nFROM tö", "SELECT 'ö😀', a, E -- 😀 FROM\nFROM tö"),
        ("SELECT a/* ž */FROM t", "SELECT a, E /* ž */FROM t"),
        ('SELECT `ü``FROM`, "FROM" FROM t', 'SELECT `ü``FROM`, "FROM", E FROM t'),
        ("SELECT (SELECT 1 FROM u) FROM t", "SELECT (SELECT 1 FROM u), E FROM t"),
        ("SELECT EXTRACT(DAY FROM a) b FROM t", "SELECT EXTRACT(DAY FROM a) b, E FROM t"),
        ("WITH c AS (SELECT 1 FROM u) SELECT a FROM t", "WITH c AS (SELECT 1 FROM u) SELECT a, E FROM t"),
        ("SELECT a FROM t WHERE b IN (SELECT c FROM u)", "SELECT a, E FROM t WHERE b IN (SELECT c FROM u)"),
        (
            "SELECT a FROM t PARTITION (p0) AS x USE INDEX (i) IGNORE INDEX FOR JOIN (j) LIMIT 1",
            "SELECT a, E FROM t PARTITION (p0) AS x USE INDEX (i) IGNORE INDEX FOR JOIN (j) LIMIT 1",
        ),
    ],
)
def test_more_columns_stand_last_in_the_outermost_select(text: str, expected: str) -> None:
    query = parse_select(text, FILE).with_columns("E")
    assert query == expected
    assert parse_one(query, dialect="mysql").expressions[-1].name == "E"


@given(TEXTS.filter(lambda text: "\0" not in text and text), st.sampled_from(["'", '"', "`"]))
def test_offsets_count_characters_whatever_stands_between_quotes(text: str, quote: str) -> None:
    quoted = quote + text.replace("\\", "\\\\" if quote != "`" else "\\").replace(quote, quote * 2) + quote
    select = parse_select(f"SELECT {quoted}, a FROM t WHERE {quoted} = b", FILE)
    assert select.with_columns("E") == f"SELECT {quoted}, a, E FROM t WHERE {quoted} = b"


RELATIONS = {
    "SELECT 1 FROM t": ["`t`"],
    "SELECT 1 FROM s.t": ["`s`.`t`"],
    "SELECT 1 FROM s.t AS x": ["`x`"],
    "SELECT 1 FROM `a``b`.`c d` `e``f`": ["`e``f`"],
    "SELECT 1 FROM t, u": ["`t`", "`u`"],
    "SELECT 1 FROM t JOIN u ON 1": ["`t`", "`u`"],
    "SELECT 1 FROM t CROSS JOIN u STRAIGHT_JOIN v": ["`t`", "`u`", "`v`"],
    "SELECT 1 FROM t NATURAL JOIN u": ["`t`", "`u`"],
    "SELECT 1 FROM t NATURAL LEFT JOIN u": ["`t`"],
    "SELECT 1 FROM t LEFT OUTER JOIN u ON 1": ["`t`"],
    "SELECT 1 FROM t RIGHT JOIN u ON 1": ["`u`"],
    "SELECT 1 FROM t FULL JOIN u ON 1": [],
    "SELECT 1 FROM a, b LEFT JOIN c ON 1": ["`a`", "`b`"],
    "SELECT 1 FROM a RIGHT JOIN b ON 1, c": ["`b`", "`c`"],
    "SELECT 1 FROM a LEFT JOIN b JOIN c ON 1 ON 2": ["`a`"],
    "SELECT 1 FROM a JOIN b LEFT JOIN c ON 1 ON 2": ["`a`", "`b`"],
    "SELECT 1 FROM (t)": ["`t`"],
    "SELECT 1 FROM (t, u)": ["`t`", "`u`"],
    "SELECT 1 FROM ((t JOIN u ON 1) LEFT JOIN v ON 1)": ["`t`", "`u`"],
    "SELECT 1 FROM (t LEFT JOIN u ON 1) RIGHT JOIN v ON 1": ["`v`"],
    "SELECT 1 FROM t LEFT JOIN (u JOIN v ON 1) ON 1": ["`t`"],
    "SELECT 1 FROM t, t AS x": [],
    "SELECT 1 FROM t, T AS x": [],
    "SELECT 1 FROM t, s.t AS x": [],
    "SELECT 1 FROM a.t, b.t": ["`a`.`t`", "`b`.`t`"],
    "SELECT 1 FROM t LEFT JOIN t u ON 1": ["`t`"],
    "SELECT 1 FROM (SELECT * FROM t) x": [],
    "SELECT 1 FROM t, (SELECT 1) x": ["`t`"],
    "SELECT 1 FROM t, LATERAL (SELECT 1) x": ["`t`"],
    "SELECT 1 FROM JSON_TABLE('[]', '$[*]' COLUMNS (x INT PATH '$')) AS j, t": ["`t`"],
    "SELECT 1 FROM t PARTITION (p0) x USE INDEX (i)": ["`x`"],
    "SELECT 1 FROM t FOR SYSTEM_TIME ALL": [],
    "SELECT 1 FROM t FOR SYSTEM_TIME AS OF NOW() x, u": ["`u`"],
    "SELECT 1 FROM t AS x (a)": [],
    "SELECT 1 FROM DUAL": [],
    "SELECT 1 FROM `dual`": ["`dual`"],
    "SELECT 1": [],
    "WITH t AS (SELECT 1) SELECT 1 FROM t": [],
    "WITH T AS (SELECT 1) SELECT 1 FROM t, u": ["`u`"],
    "WITH t AS (SELECT 1) SELECT 1 FROM s.t": ["`s`.`t`"],
    "SELECT a FROM t ORDER BY 1 LIMIT 3": ["`t`"],
}


@pytest.mark.parametrize("text", RELATIONS)
def test_columns_ride_along_from_plain_tables_only(text: str) -> None:
    assert [relation.qualifier for relation in parse_select(text, FILE).relations] == RELATIONS[text]


OPAQUE = {
    "SELECT a FROM t UNION ALL SELECT a FROM t": "a set operation (UNION)",
    "SELECT a FROM t UNION VALUES (1)": "a set operation (UNION)",
    "(SELECT 1) UNION (SELECT 2)": "a set operation (UNION)",
    "SELECT a FROM t EXCEPT SELECT 1": "a set operation (EXCEPT)",
    "SELECT a FROM t INTERSECT SELECT 1": "a set operation (INTERSECT)",
    "(SELECT a FROM t)": "a SELECT in parentheses of its own",
    "((SELECT a FROM t)) LIMIT 1": "a SELECT in parentheses of its own",
    "SELECT DISTINCT a FROM t": "DISTINCT",
    "SELECT DISTINCTROW a FROM t": "DISTINCT",
    "SELECT a FROM t GROUP BY a": "GROUP BY",
    "SELECT a, COUNT(*) FROM t GROUP BY a WITH ROLLUP": "GROUP BY",
    "SELECT a FROM t HAVING a > 1": "HAVING",
    "SELECT a FROM t ORDER BY COUNT(*)": "an aggregate function (COUNT)",
    "SELECT RANK() OVER w FROM t WINDOW w AS (ORDER BY COUNT(*))": "an aggregate function (COUNT)",
    "SELECT SUM(COUNT(*)) OVER () FROM t": "an aggregate function (COUNT)",
    "SELECT 1 + `max`(a) FROM t": "an aggregate function (MAX)",
    "SELECT (SELECT SUM(t.a)) FROM t": "an aggregate function (SUM)",
    "SELECT (SELECT SUM(t.a) FROM u) FROM t": "an aggregate function (SUM)",
    "SELECT (SELECT SUM(a) FROM u) FROM t": "an aggregate function (SUM)",
}


@pytest.mark.parametrize("text", OPAQUE)
def test_a_result_whose_rows_are_not_those_of_a_table_says_why(text: str) -> None:
    select = parse_select(text, FILE)
    assert select.opaque == OPAQUE[text]
    assert select.relations == ()


@pytest.mark.parametrize(
    "name",
    [
        "AVG",
        "BIT_AND",
        "BIT_OR",
        "BIT_XOR",
        "COUNT",
        "GROUP_CONCAT",
        "JSON_ARRAYAGG",
        "JSON_OBJECTAGG",
        "MAX",
        "MIN",
        "STD",
        "STDDEV",
        "STDDEV_POP",
        "STDDEV_SAMP",
        "SUM",
        "VAR_POP",
        "VAR_SAMP",
        "VARIANCE",
        "ST_COLLECT",
    ],
)
def test_each_aggregate_makes_a_result_opaque_unless_it_has_a_window(name: str) -> None:
    arguments = "a, b" if name == "JSON_OBJECTAGG" else "a"
    assert parse_select(f"SELECT {name.lower()}({arguments}) FROM t", FILE).opaque
    assert parse_select(f"SELECT {name}({arguments}) OVER (PARTITION BY c) FROM t", FILE).opaque == ""


@pytest.mark.parametrize(
    "text",
    [
        "SELECT a, (SELECT COUNT(*) FROM u WHERE u.x = t.x) FROM t",
        "SELECT a, (SELECT MAX(u.y) FROM u) FROM t",
        "SELECT a FROM t WHERE a = (SELECT MAX(a) FROM t)",
        "SELECT a FROM t WHERE EXISTS (SELECT DISTINCT 1 FROM u GROUP BY b HAVING 1)",
        "SELECT a, x.n FROM t JOIN (SELECT b, COUNT(*) n FROM u GROUP BY b) x ON 1",
    ],
)
def test_an_aggregate_of_a_subquery_is_the_subquerys_own(text: str) -> None:
    select = parse_select(text, FILE)
    assert select.opaque == ""
    assert [relation.name for relation in select.relations] == ["t"]


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("SELECT a, f(b) FROM t WHERE c", False),
        ("SELECT a FROM t PARTITION (p0) x", False),
        ("SELECT a FROM t, u", True),
        ("SELECT a FROM t JOIN u USING (a)", True),
        ("SELECT a FROM t, JSON_TABLE('[]', '$[*]' COLUMNS (x INT PATH '$')) AS j", True),
        ("SELECT a FROM (SELECT a FROM t) x", True),
        ("SELECT a FROM t UNION SELECT 1", True),
    ],
)
def test_only_a_select_of_one_table_surely_gives_a_row_once(text: str, repeats: bool) -> None:
    assert parse_select(text, FILE).repeats is repeats


@pytest.mark.parametrize(
    ("text", "ordered", "limited"),
    [
        ("SELECT a FROM t", False, False),
        ("SELECT a FROM t ORDER BY a", True, False),
        ("SELECT a FROM t ORDER BY a LIMIT 5, 10", True, True),
        ("SELECT a FROM t LIMIT 5 OFFSET 10", False, True),
        ("SELECT a FROM t ORDER BY a OFFSET 3 ROWS FETCH NEXT 5 ROWS ONLY", True, True),
        ("SELECT a FROM t WHERE b = (SELECT c FROM u ORDER BY c LIMIT 1)", False, False),
        ("SELECT a, RANK() OVER (ORDER BY b) FROM t", False, False),
        ("SELECT a FROM t UNION SELECT 1 ORDER BY 1 LIMIT 1", True, True),
        ("(SELECT a FROM t ORDER BY a LIMIT 1) UNION (SELECT 2 LIMIT 1)", False, False),
        ("(SELECT a FROM t ORDER BY a)", True, False),
        ("(SELECT a FROM t LIMIT 3) ORDER BY a", True, False),
    ],
)
def test_the_order_and_limit_of_a_query_are_its_own(text: str, ordered: bool, limited: bool) -> None:
    select = parse_select(text, FILE)
    assert (select.ordered, select.limited) == (ordered, limited)


# delete.sql


@pytest.mark.parametrize(
    ("text", "target", "where"),
    [
        ("DELETE FROM t", "t", ""),
        ("DELETE FROM t;", "t", ""),
        ("DELETE FROM t -- end", "t", ""),
        ("-- ž\ndelete from t where a = 1 # why", "t", "a = 1"),
        ("DELETE FROM s . t WHERE a OR b", "s . t", "a OR b"),
        ("DELETE FROM `s`.`t` PARTITION (p0, p1) WHERE a", "`s`.`t` PARTITION (p0, p1)", "a"),
        ("DELETE FROM /* a */ t /* b */ WHERE a -- c\n AND d", "/* a */ t /* b */", "a -- c\n AND d"),
        ("DELETE FROM `or``der` WHERE `limit` = 1", "`or``der`", "`limit` = 1"),
        ("DELETE FROM tö WHERE a = 'WHERE õ😀' AND b > N'limit'", "tö", "a = 'WHERE õ😀' AND b > N'limit'"),
        (
            "DELETE FROM t WHERE id IN (SELECT id FROM u, v WHERE a ORDER BY b LIMIT 3)",
            "t",
            "id IN (SELECT id FROM u, v WHERE a ORDER BY b LIMIT 3)",
        ),
    ],
)
def test_a_delete_is_cut_into_its_clauses(text: str, target: str, where: str) -> None:
    delete = parse_delete(text, FILE)
    assert (delete.target, delete.where) == (target, where)
    for query in (delete.selection("1"), delete.selection("1", "TRUE"), f"SELECT {delete.matches()} FROM t"):
        assert isinstance(parse_one(query, dialect="mysql"), exp.Select)


def test_a_selection_has_the_rows_of_the_delete_that_fulfil_a_condition() -> None:
    every, some = parse_delete("DELETE FROM t", FILE), parse_delete("DELETE FROM s.t WHERE a OR b", FILE)
    assert every.selection("x") == "SELECT x FROM t"
    assert every.selection("x", "C") == "SELECT x FROM t WHERE C"
    assert every.matches() == "TRUE"
    assert some.selection("x") == "SELECT x FROM s.t WHERE (a OR b\n)"
    assert some.selection("x", "C") == "SELECT x FROM s.t WHERE (a OR b\n) AND C"
    assert some.matches() == "((a OR b\n)) IS TRUE"


def test_a_delete_knows_its_table_and_how_its_columns_are_qualified() -> None:
    relation = parse_delete("DELETE FROM `a``b`.t WHERE c", FILE).relation
    assert relation == MysqlRelation("a`b", "t", "`a``b`.`t`")
    assert relation.sql == "`a``b`.`t`"
    assert parse_delete("DELETE FROM t", FILE).relation == MysqlRelation(None, "t", "`t`")


DELETES = {
    "": "no statement",
    "DELETE FROM t; DELETE FROM u": "2 statements",
    "SELECT 1": "must be one DELETE",
    "TRUNCATE t": "must be one DELETE",
    "UPDATE t SET a = 1": "must be one DELETE",
    "REPLACE INTO t VALUES (1)": "must be one DELETE",
    "CALL p()": "must be one DELETE",
    "WITH x AS (SELECT 1) DELETE FROM t": "must be one DELETE",
    "DELETE": "without FROM",
    "DELETE t": "names tables before FROM",
    "DELETE t FROM t JOIN u": "names tables before FROM",
    "DELETE t.* FROM t": "names tables before FROM",
    "DELETE FROM t, u USING t JOIN u": "several tables",
    "DELETE FROM t.* USING t": "several tables",
    "DELETE FROM t USING t JOIN u": "USING",
    "DELETE FROM t JOIN u": "JOIN",
    "DELETE FROM t AS x WHERE a": "an alias",
    "DELETE FROM t x WHERE a": "an alias",
    "DELETE FROM t `x`": "an alias",
    "DELETE FROM t WHERE a ORDER  BY b": "ORDER BY",
    "DELETE FROM t ORDER BY a LIMIT 1": "ORDER BY",
    "DELETE FROM t WHERE a LIMIT 5": "LIMIT",
    "DELETE FROM t LIMIT 5": "LIMIT",
    "DELETE FROM t RETURNING *": "RETURNING",
    "DELETE FROM t WHERE a RETURNING b": "RETURNING",
    "DELETE QUICK FROM t": "QUICK",
    "DELETE LOW_PRIORITY FROM t": "LOW_PRIORITY",
    "DELETE IGNORE FROM t": "IGNORE",
    "DELETE HISTORY FROM t": "HISTORY",
    "DELETE FROM t FOR PORTION OF p FROM '1' TO '2'": "PORTION OF",
    "DELETE FROM t USE INDEX (a) WHERE 1": "'USE' behind the table",
    "DELETE FROM t SET a = 1": "'SET' behind the table",
    "DELETE FROM (SELECT 1) x": "must be one DELETE",
    "DELETE FROM a.b.c WHERE 1": "must be one DELETE",
    "DELETE FROM": "does not parse",
    "DELETE FROM t WHERE": "an expression is missing",
    "DELETE FROM t WHERE a) OR (b": "does not parse",
    "DELETE FROM t WHERE a GROUP BY b": "does not parse",
    "DELETE FROM t WHERE a UNION SELECT 1": "does not parse",
    "DELETE FROM t WHERE CURRENT OF c": "does not parse",
    "DELETE FROM t WHERE a = @x": "a user variable",
    "DELETE FROM t WHERE a = :x": "with a colon",
    "DELETE FROM t WHERE SLEEP(1)": r"SLEEP\(\)",
    "DELETE FROM t WHERE GET_LOCK('a', 1)": r"GET_LOCK\(\)",
    "DELETE FROM t WHERE a = LOAD_FILE('x')": r"LOAD_FILE\(\)",
    "DELETE FROM t WHERE a < NEXT VALUE FOR s": "a sequence",
    "DELETE FROM t WHERE a IN (SELECT a FROM u FOR UPDATE)": "FOR UPDATE",
    "DELETE FROM t WHERE a IN (SELECT a INTO OUTFILE 'x' FROM u)": "SELECT INTO",
    "DELETE FROM t /*! WHERE 1 */": "the server executes",
    "DELETE FROM t WHERE a = 'x": "has no end",
    "DELETE FROM t WHERE\u2003a": r"U\+2003",
}


@pytest.mark.parametrize("text", DELETES)
def test_anything_but_one_delete_of_one_table_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=DELETES[text]):
        parse_delete(text, FILE)


def test_a_delete_knows_what_it_may_call_whatever_stands_between() -> None:
    text = (
        "DELETE FROM t WHERE f (id) > 1 /* x(1) */ AND `My``Db` . `G`(note, 'y(2)', Other.h(1)) IN (SELECT z.z FROM z)"
    )
    called = parse_delete(text, FILE).called
    assert called >= {(None, "f"), ("my`db", "g"), ("other", "h")}
    assert not {name for _, name in called} & {"x", "y", "z"}


def test_an_error_of_a_delete_has_its_line() -> None:
    with pytest.raises(SpecError, match=r"x\.sql:3: DELETE with LIMIT"):
        parse_delete("DELETE FROM t -- 😀\nWHERE a = 'ö'\nLIMIT 5", FILE)


def test_names_are_the_same_unless_their_schemas_differ() -> None:
    def name(schema: str | None, table: str = "t") -> MysqlRelation:
        return MysqlRelation(schema, table, table)

    assert name(None).same(name("a"))
    assert name("a").same(name("a"))
    assert name("A", "T").same(name("a"))
    assert not name("a").same(name("b"))
    assert not name("a", "t").same(name("a", "u"))
