"""Exports of MariaDB: what a file says, what an error leaves behind, and what is not read twice."""

from __future__ import annotations

import csv
import gzip
import io
import resource
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyrage
import pytest
import zstandard

from export_pipelines.errors import IdentityNeeded, SourceError, SpecError
from export_pipelines.formats.encryption import Keyring
from export_pipelines.steps.archive import archive_partition
from export_pipelines.steps.cleanup import cleanup_partition
from export_pipelines.steps.export import export_partition
from export_pipelines.stores import open_store
from tests.support.mariadb import mysql_connection
from tests.support.mysql_tables import MysqlKit, kit, one_catalog
from tests.support.tables import DAY

__all__ = ["kit", "one_catalog"]
pytestmark = pytest.mark.debian

TABLE = "CREATE TABLE t (id INT PRIMARY KEY, note TEXT, at DATETIME NOT NULL)"
ROWS = "INSERT INTO t SELECT seq, CONCAT('note ', seq), '2025-01-01 12:00' FROM seq_1_to_5"


@pytest.fixture
def whole(kit: MysqlKit) -> MysqlKit:
    """Rows 1 to 5 of a table without partitions."""
    kit.sql(TABLE, ROWS)
    kit.spec["table"] = "t"
    return kit


def text_of_export(kit: MysqlKit, key: str) -> str:
    data = (kit.folder / "exports" / key).read_bytes()
    if key.endswith(".gz"):
        return gzip.decompress(data).decode()
    return (zstandard.ZstdDecompressor().decompressobj().decompress(data) if key.endswith(".zst") else data).decode()


# What is in the file


@pytest.mark.parametrize(
    ("select", "ids"),
    [
        ("SELECT id FROM t ORDER BY note DESC", [5, 4, 3, 2, 1]),
        ("SELECT id FROM t ORDER BY id % 2, id DESC LIMIT 3", [4, 2, 5]),
        ("SELECT id FROM t ORDER BY 1 DESC LIMIT 1, 2", [4, 3]),
        ("SELECT t.id FROM t JOIN (SELECT id FROM t ORDER BY 1 DESC LIMIT 3) l USING (id) ORDER BY -t.id", [5, 4, 3]),
        ("(SELECT id FROM t WHERE id < 3) UNION ALL (SELECT id FROM t WHERE id > 4) ORDER BY id DESC", [5, 2, 1]),
        ("WITH x AS (SELECT id FROM t) SELECT id FROM x WHERE id > 3 ORDER BY id -- the end", [4, 5]),
        ("SELECT id FROM t WHERE note LIKE '%%5' OR id = 1 ORDER BY id; # nothing more", [1, 5]),
    ],
)  # fmt: skip
def test_records_are_in_the_order_and_number_of_the_query(whole: MysqlKit, select: str, ids: list[int]) -> None:
    whole.sql("INSERT INTO t SELECT seq, 'zero', '2024-01-01' FROM seq_100_to_3000", "DELETE FROM t WHERE id > 5")
    whole.select = select
    assert whole.exported().rows == len(ids)
    assert [int(record[0]) for record in whole.archived_records()] == ids


def test_columns_of_one_name_are_an_error_with_a_way_out(whole: MysqlKit) -> None:
    whole.sql("CREATE TABLE o (id INT)", "INSERT INTO o VALUES (1)")
    whole.select = "SELECT * FROM t JOIN o ON o.id = t.id"
    with pytest.raises(SourceError, match="Duplicate column name 'id'") as error:
        whole.export()
    assert "AS" in error.value.hint
    assert not error.value.transient
    assert whole.all_files() == []


@pytest.mark.parametrize("delete", [None, "DELETE FROM t"])
def test_no_rows_give_a_file_of_none(kit: MysqlKit, delete: str | None) -> None:
    kit.sql(TABLE)
    kit.select, kit.delete = "SELECT * FROM t", delete
    record = kit.exported()
    assert (record.rows, text_of_export(kit, record.file.key)) == (0, "id,note,at\n")
    if delete:
        assert kit.cleanup().complete


def test_names_of_columns_and_tables_may_have_any_sign(kit: MysqlKit) -> None:
    kit.sql(
        'CREATE TABLE `a "b%s` (`x,y` INT PRIMARY KEY, `q"``%%` TEXT, `ö` INT)',
        "INSERT INTO `a \"b%s` VALUES (1, 'x', 2)",
    )
    kit.spec["table"] = '`a "b%s`'
    kit.exported()
    assert [column.name for column in kit.entries()[0].export.columns] == ["x,y", 'q"`%%', "ö"]
    assert kit.archived_records() == [["1", "x", "2"]]
    assert kit.cleanup().deleted == 1


@pytest.mark.parametrize("charset", ["latin1", "utf8mb3", "utf16", "utf32", "ucs2", "cp1251", "sjis", "gbk"])
def test_text_of_any_charset_is_utf8_in_the_file(kit: MysqlKit, charset: str) -> None:
    text = {"latin1": "€ ö ÿ", "cp1251": "жук", "sjis": "表ソ", "gbk": "中文"}.get(charset, "ж ö 中")
    kit.sql(f"CREATE TABLE t (k VARCHAR(20) PRIMARY KEY, v TEXT) CHARACTER SET {charset}")
    kit.sql(f"INSERT INTO t VALUES ('{text}', '{text}\"'), ('x', '')")
    kit.spec["table"] = "t"
    kit.exported()
    assert sorted(kit.archived_records()) == sorted([[text, text + '"'], ["x", ""]])
    assert kit.cleanup().deleted == 2


DIALECTS = [
    {"delimiter": ";"},
    {"delimiter": "\t", "null": r"\N", "header": False},
    {"quote": "'", "null": "NULL"},
    {"delimiter": "-", "null": "x"},
    {"delimiter": "|", "quote": "\\", "null": "-"},
]


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_dialects_and_compressions_say_the_same(kit: MysqlKit, dialect: dict[str, Any], compression: str) -> None:
    texts = ["", "NULL", r"\N", "x", "-", "a;b", "a\tb", "it's", 'say "x"', "line\nline", "back\\slash", "|", "1-2"]
    kit.sql("CREATE TABLE t (id INT PRIMARY KEY, v TEXT, d DATE, b VARBINARY(9))")
    with closing(mysql_connection(kit.database)) as connection, connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t VALUES (%s, %s, '2025-01-02', X'00ff')", list(enumerate(texts, start=-3)))
        cursor.execute("INSERT INTO t VALUES (99, NULL, NULL, NULL)")
    kit.spec.update(table="t", format={"csv": dialect}, compression=compression)
    record = kit.exported()
    text = text_of_export(kit, record.file.key)
    delimiter, quote = dialect.get("delimiter", ","), dialect.get("quote", '"')
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quotechar=quote, strict=True))
    rows = rows[1:] if dialect.get("header", True) else rows
    assert [row[:2] for row in rows[:-1]] == [[str(n), each] for n, each in enumerate(texts, start=-3)]
    assert [row[2:] for row in rows[:-1]] == [["2025-01-02", r"\x00ff"]] * len(texts)
    assert rows[-1] == ["99", *[dialect.get("null", "")] * 3]
    assert kit.restored() == kit.sql("SELECT * FROM t ORDER BY id")
    assert kit.cleanup().deleted == len(texts) + 1


def test_an_encrypted_export_is_cleaned_up_by_who_has_the_identity(whole: MysqlKit, tmp_path: Path) -> None:
    made = pyrage.x25519.Identity.generate()
    file = tmp_path / "identity.txt"
    file.write_text(f"{made}\n")
    file.chmod(0o600)
    whole.spec.update(encryption={"recipients": [str(made.to_public())]}, compression="none")
    record = whole.exported()
    assert record.file.key.endswith(".age")
    assert not any(b"note 3" in path.read_bytes() for path in whole.folder.rglob("*") if path.is_file())
    with pytest.raises(IdentityNeeded):
        whole.cleanup()
    assert len(whole.rows()) == 5
    whole.keyring = Keyring(files=(file,))
    assert whole.cleanup().deleted == 5


def test_files_in_s3_prove_rows_too(whole: MysqlKit, bucket_url: str) -> None:
    with whole.opened() as context:
        context = replace(
            context, exports=open_store(f"{bucket_url}/exports"), archive=open_store(f"{bucket_url}/archive")
        )
        assert export_partition(context, whole.window).rows == 5
        archive_partition(context, whole.window)
        assert export_partition(context, whole.window).unchanged
        assert cleanup_partition(context, whole.window).deleted == 5
    assert whole.rows() == []


def test_the_same_export_again_publishes_nothing(whole: MysqlKit) -> None:
    first = whole.exported()
    before = whole.all_files()
    second = whole.exported()
    assert (second.unchanged, second.generation) == (True, first.generation)
    assert whole.all_files() == before
    whole.sql("UPDATE t SET note = 'x' WHERE id = 1")
    assert not whole.exported().unchanged


def test_a_change_of_a_column_that_is_left_out_makes_a_new_generation(whole: MysqlKit) -> None:
    whole.spec["exclude_columns"] = ["note"]
    whole.exported()
    whole.sql("UPDATE t SET note = 'x' WHERE id = 1")
    assert not whole.exported().unchanged
    assert whole.cleanup().deleted == 5


# Large rows


@pytest.mark.parametrize("size", [(1 << 24) - 20, (1 << 24) - 10, 1 << 24, (1 << 25) + 7])
def test_rows_of_more_than_a_packet_are_read_and_proved(kit: MysqlKit, size: int) -> None:
    kit.sql(
        "CREATE TABLE t (id INT PRIMARY KEY, note LONGTEXT)", f"INSERT INTO t VALUES (1, REPEAT('x', {size})), (2, 'y')"
    )
    kit.spec.update(table="t", compression="none")
    record = kit.exported()
    text = text_of_export(kit, record.file.key)
    assert len(text) == len('id,note\n1,""\n2,"y"\n') + size
    assert text.count("x") == size
    assert kit.cleanup().deleted == 2


def test_each_size_around_a_packets_limit_is_read(kit: MysqlKit) -> None:
    limit = (1 << 24) - 1
    kit.sql("CREATE TABLE t (id INT, note LONGTEXT)")
    kit.sql(*(f"INSERT INTO t VALUES ({n}, REPEAT('x', {limit - 13 + n}))" for n in range(1, 9)))
    kit.spec.update(table="t", compression="zstd")
    assert kit.exported().rows == 8
    assert kit.cleanup().deleted == 8


@pytest.mark.parametrize("keyed", [True, False])
def test_a_value_that_the_server_cannot_make_is_an_error_and_publishes_nothing(kit: MysqlKit, keyed: bool) -> None:
    key = " PRIMARY KEY" if keyed else ""
    kit.sql(f"CREATE TABLE t (id INT{key}, note LONGBLOB)", "INSERT INTO t VALUES (1, 'x'), (2, REPEAT('x', 600000))")
    kit.spec["table"] = "t"
    before = kit.rows("SELECT @@global.max_allowed_packet")[0]
    try:
        kit.sql("SET GLOBAL max_allowed_packet = 1048576")
        with pytest.raises(SourceError, match="max_allowed_packet") as error:
            kit.export()
    finally:
        kit.sql(f"SET GLOBAL max_allowed_packet = {before}")
    assert not error.value.transient
    assert kit.all_files() == []
    kit.exported()
    try:
        kit.sql("SET GLOBAL max_allowed_packet = 1048576")
        with pytest.raises(SourceError, match="max_allowed_packet"):
            kit.cleanup()
        assert len(kit.rows()) == 2
    finally:
        kit.sql(f"SET GLOBAL max_allowed_packet = {before}")
    assert kit.cleanup().deleted == 2


def test_memory_does_not_grow_with_the_rows(kit: MysqlKit) -> None:
    kit.sql(
        "CREATE TABLE t (id BIGINT PRIMARY KEY, a VARCHAR(40), b DECIMAL(12,2), c DATETIME(6), d DOUBLE)",
        "INSERT INTO t SELECT seq, CONCAT('some text of row ', seq), seq / 7, '2025-01-01', seq / 3 FROM seq_1_to_1000",
    )
    kit.spec["table"] = "t"
    kit.export()
    kit.sql(
        "INSERT INTO t SELECT seq, CONCAT('some text of row ', seq), seq / 7, '2025-01-01', seq / 3 "
        "FROM seq_1001_to_1000000"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert kit.exported().rows == 1_000_000
    exported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert kit.cleanup().deleted == 1_000_000
    cleaned = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB. The rows are 90 MiB as text.
    assert exported - before < 40 << 10
    assert cleaned - before < 80 << 10


# Values that the server would give otherwise than they are


@pytest.mark.parametrize(
    "value",
    [
        *("CONCAT(a, a)", "MD5(CONCAT(a, a))", "HEX(a)", "RPAD(a, 2000000, 'x')", "IFNULL(REPEAT(a, 2), 'none')"),
        *("GROUP_CONCAT(a)", "LENGTH(GROUP_CONCAT(a))", "MD5(JSON_ARRAYAGG(a))"),
    ],
)
def test_a_value_that_is_cut_off_or_null_for_its_size_is_an_error(kit: MysqlKit, value: str) -> None:
    kit.sql("CREATE TABLE t (id INT PRIMARY KEY, a LONGTEXT)")
    kit.sql("INSERT INTO t VALUES (1, REPEAT('x', 900000)), (2, REPEAT('y', 900000))")
    kit.select = f"SELECT {value} AS v FROM t"
    before = kit.rows("SELECT @@global.max_allowed_packet")[0]
    try:
        kit.sql("SET GLOBAL max_allowed_packet = 1048576")
        with pytest.raises(SourceError) as error:
            kit.export()
    finally:
        kit.sql(f"SET GLOBAL max_allowed_packet = {before}")
    assert "max_allowed_packet" in str(error.value)
    assert kit.all_files() == []


@pytest.mark.parametrize(
    ("charset", "stored"), [("ascii", "E4"), ("hebrew", "A1"), ("gbk", "FEFE"), ("cp1250", "81"), ("ucs2", "D800")]
)
@pytest.mark.parametrize("key", ["", ", PRIMARY KEY (id)"])
def test_a_text_that_unicode_has_not_is_an_error_and_no_question_mark(
    kit: MysqlKit, charset: str, stored: str, key: str
) -> None:
    kit.sql(f"CREATE TABLE t (id INT, a VARCHAR(9) CHARACTER SET {charset}{key})")
    kit.sql(f"INSERT INTO t VALUES (1, X'{stored}')")
    kit.spec["table"] = "t"
    with pytest.raises(SourceError, match="a text has") as error:
        kit.export()
    assert (kit.all_files(), "VARBINARY" in error.value.hint) == ([], True)
    kit.sql("ALTER TABLE t MODIFY a VARBINARY(9)")
    kit.exported()
    assert [[id, a.upper()] for id, a in kit.archived_records()] == [["1", f"\\X{stored}"]]
    assert kit.cleanup().deleted == 1


def test_a_recursion_is_not_ended_in_silence(kit: MysqlKit) -> None:
    numbers = "SELECT 1 AS id UNION ALL SELECT id + 1 FROM n WHERE id < 5000"
    kit.select = f"WITH RECURSIVE n AS ({numbers}) SELECT * FROM n"
    assert kit.export().rows == 5000


def test_warnings_of_what_a_query_means_are_none_of_ours(whole: MysqlKit) -> None:
    whole.select = "SELECT id, CAST('x' AS INT) AS a, id / 0 AS b FROM t"
    assert whole.export().rows == 5


# What is refused


def test_a_function_that_writes_fails_in_select_sql(whole: MysqlKit) -> None:
    whole.sql(
        "CREATE TABLE log (id INT)",
        "CREATE FUNCTION f() RETURNS INT MODIFIES SQL DATA BEGIN INSERT INTO log VALUES (1); RETURN 1; END",
    )
    whole.select = "SELECT id, f() AS n FROM t"
    with pytest.raises(SourceError) as error:
        whole.export()
    assert "select.sql only reads" in error.value.hint
    assert whole.rows("SELECT COUNT(*) FROM log") == [0]
    assert whole.all_files() == []


@pytest.mark.parametrize(
    "select",
    [
        "SELECT * FROM t INTO OUTFILE 'x'",
        "SELECT * FROM t FOR UPDATE",
        "DELETE FROM t",
        "SELECT SLEEP(1)",
        "SELECT @x := 1 AS x",
        "SELECT 1 AS a; SELECT 2 AS b",
        "/*! DELETE FROM t */",
    ],
)
def test_what_is_no_mere_reading_is_refused(whole: MysqlKit, select: str) -> None:
    whole.select = select
    with pytest.raises(SpecError):
        whole.export()
    assert (len(whole.rows()), whole.all_files()) == (5, [])


def test_an_error_in_the_middle_of_the_rows_publishes_nothing(whole: MysqlKit) -> None:
    whole.sql("INSERT INTO t SELECT seq, REPEAT('x', 100), '2025-01-01' FROM seq_100_to_20000")
    whole.select = "SELECT id, note, IF(id = 19999, (SELECT id FROM t), 1) AS x FROM t"
    with pytest.raises(SourceError, match="more than 1 row"):
        whole.export()
    assert whole.all_files() == []
    ((state, error),) = whole.catalog_sql(f"SELECT state, error FROM export WHERE table_id = '{whole.table.id}'")
    assert state == "failed" and "more than 1 row" in error


def test_a_partition_without_bounds_is_refused(whole: MysqlKit) -> None:
    whole.window, whole.spec = DAY, {}
    whole.select = "SELECT * FROM t"
    with pytest.raises(SpecError, match="uses no parameter"):
        whole.export()


def test_a_view_is_exported_and_never_cleaned_up(whole: MysqlKit) -> None:
    whole.sql("CREATE VIEW v AS SELECT id, note FROM t WHERE id > 2")
    whole.spec["table"] = "v"
    record = whole.exported()
    assert (record.rows, record.identity.mode) == (3, "none")
    assert "view" in record.identity.reason
