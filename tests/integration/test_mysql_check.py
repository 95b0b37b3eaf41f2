"""What `check` says of tables of MariaDB, and that the accounts which `roles` prints are enough."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from export_pipelines.cli.inspection import TableFindings, check_connection, check_sql, check_table
from export_pipelines.cli.inspection_mysql import accounts
from export_pipelines.errors import CleanupRefused, SourceError
from export_pipelines.sources.mysql import MysqlSource
from tests.support.mysql_tables import MysqlKit, kit, one_catalog
from tests.support.tables import DAY

__all__ = ["kit", "one_catalog"]
pytestmark = pytest.mark.debian

TABLE = "CREATE TABLE t (id INT PRIMARY KEY, note TEXT, at DATETIME NOT NULL)"
ROWS = "INSERT INTO t SELECT seq, CONCAT('note ', seq), '2025-01-01 12:00' FROM seq_1_to_5"


@pytest.fixture
def daily(kit: MysqlKit) -> MysqlKit:
    """Rows 1 to 5 of a day, in a table whose statements are derived."""
    kit.sql(TABLE, ROWS)
    kit.spec.update(table="t", time_column="at")
    kit.window = DAY
    return kit


@pytest.fixture
def names(kit: MysqlKit) -> Iterator[tuple[str, str]]:
    """Names of a reader and a deleter, who are gone afterwards."""
    found = (f"r{kit.name}", f"d{kit.name}")
    yield found
    kit.sql(*(f"DROP USER IF EXISTS `{name}`@'%'" for name in found))


def url_of(kit: MysqlKit, name: str, password: str = "secret") -> str:
    parts = urlsplit(kit.database)
    return f"mysql://{name}:{password}@{parts.hostname}:{parts.port}{parts.path}"


def let_in(kit: MysqlKit, *names: str) -> None:
    kit.sql(*(f"ALTER USER `{name}`@'%' IDENTIFIED BY 'secret' ACCOUNT UNLOCK" for name in names))


def grant(kit: MysqlKit, names: tuple[str, str]) -> list[str]:
    """Make the accounts that `roles` prints; its lines."""
    lines = list(accounts(MysqlSource(kit.database), [kit.table], {kit.table.id: kit.window}, names))
    kit.sql(*(line.removesuffix(";") for line in lines if not line.startswith("--")))
    let_in(kit, *(name for name in names if any(name in line for line in lines)))
    return lines


def checked(kit: MysqlKit, url: str = "", deleter: str = "") -> TableFindings:
    assert check_sql(kit.table) == []
    source = MysqlSource(url or kit.database)
    return check_table(source, kit.table, MysqlSource(deleter) if deleter else None)


def said(found: TableFindings) -> tuple[list[str], list[str]]:
    warnings = [*found.warnings, *found.of_connections.values()]
    return [error.message for error in found.errors], [warning.message for warning in warnings]


def test_a_good_table_is_told_how_it_is_proved(daily: MysqlKit) -> None:
    found = checked(daily)
    assert (found.errors, found.columns, found.proof) == ([], 3, "by key id and content")
    # Root may do more than is needed.
    assert (found.warnings, list(found.of_connections)) == ([], ["source"])
    assert "SUPER" in found.of_connections["source"].message


def test_a_table_without_a_key_is_told_how_it_is_proved(daily: MysqlKit) -> None:
    daily.sql("ALTER TABLE t DROP PRIMARY KEY")
    assert checked(daily).proof == "by content of each row"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"table": "nowhere"}, "nowhere does not exist"),
        ({"table": "no_database.t"}, "exist"),
        ({"time_column": "made_at"}, "'made_at' of .* is missing"),
        ({"time_column": "note"}, "is text"),
        ({"exclude_columns": ["gone"]}, r"\['gone'\] to exclude or mask are not in t"),
        ({"mask_columns": {"note": "NO_SUCH_COLUMN"}}, "NO_SUCH_COLUMN"),
    ],
)
def test_what_the_database_does_not_have_is_an_error(daily: MysqlKit, spec: dict[str, object], message: str) -> None:
    daily.spec.update(spec)
    found = checked(daily)
    assert len(found.errors) == 1
    assert re.search(message, found.errors[0].message)


@pytest.mark.parametrize(
    ("select", "delete", "message"),
    [
        ("SELECT gone FROM t WHERE at < %(window_end)s", "DELETE FROM t WHERE at < %(window_end)s", "gone"),
        ("SELECT * FROM t WHERE at < %(window_end)s", "DELETE FROM t WHERE gone < %(window_end)s", "gone"),
        ("SELECT * FROM t WHERE at < %(window_end)s", "DELETE FROM nowhere WHERE at < %(window_end)s", "nowhere"),
        (
            "SELECT note FROM t WHERE at < %(window_end)s GROUP BY note",
            "DELETE FROM t WHERE at < %(window_end)s",
            "proves",
        ),
    ],
)  # fmt: skip
def test_statements_are_compared_with_the_database(daily: MysqlKit, select: str, delete: str, message: str) -> None:
    daily.spec = {}
    daily.select, daily.delete = select, delete
    errors, _ = said(checked(daily))
    assert len(errors) == 1 and message in errors[0]


def test_what_does_not_parse_is_told_without_a_database(daily: MysqlKit) -> None:
    daily.spec = {}
    daily.select, daily.delete = "SELECT * FROM t", "DELETE t, o FROM t, o WHERE at < %(window_end)s"
    found = check_sql(daily.table)
    assert found and "no parameter" in found[0].message


def test_side_effects_are_errors_until_they_are_acknowledged(daily: MysqlKit) -> None:
    daily.sql("CREATE TABLE o (t INT, CONSTRAINT gone FOREIGN KEY (t) REFERENCES t (id) ON DELETE CASCADE)")
    errors, _ = said(checked(daily))
    assert len(errors) == 1 and "'gone'" in errors[0]
    daily.spec["cleanup"] = {"mode": "after_archive", "acknowledge": ["gone"]}
    assert checked(daily).errors == []
    daily.spec["cleanup"] = "off"
    errors, warnings = said(checked(daily))
    assert errors == [] and any("'gone'" in each for each in warnings)


@pytest.mark.parametrize("engine", ["MyISAM", "Aria"])
def test_a_table_without_transactions_cannot_be_cleaned_up(daily: MysqlKit, engine: str) -> None:
    daily.sql(f"ALTER TABLE t ENGINE = {engine}")
    errors, _ = said(checked(daily))
    assert len(errors) == 1 and engine in errors[0]


# Accounts


def test_the_printed_accounts_are_enough_and_no_more(daily: MysqlKit, names: tuple[str, str]) -> None:
    lines = grant(daily, names)
    grant(daily, names)
    assert sum(line.startswith("GRANT") for line in lines) == 4
    reader, deleter = (url_of(daily, name) for name in names)
    found = checked(daily, reader, deleter)
    assert said(found) == ([], [])
    exporting = replace(daily, database=reader)
    assert exporting.exported().rows == 5
    with pytest.raises(CleanupRefused, match="unseen_foreign_keys"):
        exporting.cleanup()
    exporting.spec = {**daily.spec, "cleanup": {"mode": "after_archive", "acknowledge": ["unseen_foreign_keys"]}}
    with pytest.raises(SourceError, match="denied") as error:
        exporting.cleanup()
    assert "secret" not in str(error.value) and "DELETE" in error.value.hint and not error.value.transient
    assert len(daily.rows()) == 5
    assert replace(daily, database=deleter).cleanup().deleted == 5


def test_accounts_are_enough_for_joins_views_and_subqueries(kit: MysqlKit, names: tuple[str, str]) -> None:
    kit.sql(TABLE, ROWS, "CREATE TABLE o (id INT, n INT)", "INSERT INTO o VALUES (1, 1), (2, 1)")
    kit.sql("CREATE TABLE x (id INT)", "INSERT INTO x VALUES (2)", "CREATE VIEW v AS SELECT id FROM x")
    kit.select = "SELECT t.* FROM t JOIN o ON o.id = t.id WHERE t.id NOT IN (SELECT id FROM v)"
    kit.delete = "DELETE FROM t WHERE id IN (SELECT id FROM o) AND id NOT IN (SELECT id FROM x)"
    grant(kit, names)
    reader, deleter = (url_of(kit, name) for name in names)
    assert said(checked(kit, reader, deleter)) == ([], [])
    assert replace(kit, database=reader).exported().rows == 1
    assert replace(kit, database=deleter).cleanup().deleted == 1


def test_no_deleter_is_printed_where_nothing_is_deleted(daily: MysqlKit, names: tuple[str, str]) -> None:
    daily.spec["cleanup"] = "off"
    assert not any(names[1] in line for line in grant(daily, names))


def test_a_table_that_is_missing_is_left_out_with_a_word(daily: MysqlKit, names: tuple[str, str]) -> None:
    daily.spec["table"] = "nowhere"
    lines = list(accounts(MysqlSource(daily.database), [daily.table], {daily.table.id: daily.window}, names))
    assert "left out" in lines[0] and "nowhere" in lines[0]
    assert not any(line.startswith("GRANT") for line in lines)


def test_foreign_keys_that_an_account_cannot_see_are_refused(daily: MysqlKit, names: tuple[str, str]) -> None:
    grant(daily, names)
    daily.sql(f"REVOKE PROCESS ON *.* FROM `{names[1]}`@'%'")
    deleter = url_of(daily, names[1])
    daily.exported()
    errors, _ = said(checked(daily, deleter, deleter))
    assert len(errors) == 1 and "unseen_foreign_keys" in errors[0]
    limited = replace(daily, database=deleter)
    with pytest.raises(CleanupRefused, match="unseen_foreign_keys") as error:
        limited.cleanup()
    assert "PROCESS" in error.value.hint
    assert len(daily.rows()) == 5
    limited.spec["cleanup"] = {"mode": "after_archive", "acknowledge": ["unseen_foreign_keys"]}
    assert limited.cleanup().deleted == 5


def test_triggers_that_an_account_cannot_see_are_refused(daily: MysqlKit, names: tuple[str, str]) -> None:
    daily.sql("CREATE TABLE log (id INT)")
    daily.sql("CREATE TRIGGER audit AFTER DELETE ON t FOR EACH ROW INSERT INTO log VALUES (OLD.id)")
    grant(daily, names)
    daily.exported()
    daily.sql(f"REVOKE TRIGGER ON t FROM `{names[1]}`@'%'")
    limited = replace(daily, database=url_of(daily, names[1]))
    with pytest.raises(CleanupRefused, match="trigger"):
        limited.cleanup()
    assert (len(daily.rows()), daily.rows("SELECT * FROM log")) == (5, [])


def test_a_missing_right_to_delete_is_an_error(daily: MysqlKit, names: tuple[str, str]) -> None:
    grant(daily, names)
    reader = url_of(daily, names[0])
    errors, _ = said(checked(daily, reader, reader))
    assert any("may not DELETE" in each for each in errors)


@pytest.mark.parametrize(
    ("right", "told"),
    [("SUPER ON *.*", "SUPER"), ("FILE ON *.*", "FILE"), ("INSERT ON t", "INSERT"), ("DROP ON {0}.*", "DROP")],
)
def test_excess_rights_are_told(daily: MysqlKit, names: tuple[str, str], right: str, told: str) -> None:
    grant(daily, names)
    database = daily.rows("SELECT DATABASE()")[0]
    daily.sql(f"GRANT {right.format(database)} TO `{names[1]}`@'%'")
    _, warnings = said(checked(daily, url_of(daily, names[0]), url_of(daily, names[1])))
    assert any(told in each for each in warnings)


def test_excess_rights_of_the_reader_are_told(daily: MysqlKit, names: tuple[str, str]) -> None:
    grant(daily, names)
    daily.sql(f"GRANT UPDATE ON t TO `{names[0]}`@'%'")
    _, warnings = said(checked(daily, url_of(daily, names[0]), url_of(daily, names[1])))
    assert any("UPDATE" in each for each in warnings)


def test_rights_that_come_by_a_role_are_known(daily: MysqlKit, names: tuple[str, str]) -> None:
    role = f"role_{daily.name}"
    user = f"`{names[1]}`@'%'"
    daily.sql(
        f"CREATE ROLE `{role}`", f"GRANT SELECT, DELETE, TRIGGER ON t TO `{role}`", f"GRANT PROCESS ON *.* TO `{role}`"
    )
    daily.sql(f"CREATE USER {user}", f"GRANT `{role}` TO {user}", f"SET DEFAULT ROLE `{role}` FOR {user}")
    let_in(daily, names[1])
    try:
        url = url_of(daily, names[1])
        assert said(checked(daily, url, url)) == ([], [])
        daily.exported()
        assert replace(daily, database=url).cleanup().deleted == 5
    finally:
        daily.sql(f"DROP ROLE `{role}`")


# Connections


def test_a_connection_that_is_refused_says_so() -> None:
    with pytest.raises(SourceError) as error:
        check_connection(MysqlSource("mysql://someone:hidden@127.0.0.1:1/none"))
    assert error.value.transient
    assert "export-pipelines check" in error.value.hint
    assert "hidden" not in str(error.value)


def test_a_server_that_is_new_enough_is_fine(daily: MysqlKit) -> None:
    check_connection(MysqlSource(daily.database))


def test_a_wrong_password_or_database_is_told_without_the_password(daily: MysqlKit) -> None:
    wrong = [url_of(daily, "root", "hid%40den"), daily.database.rpartition("/")[0] + "/hidden_nowhere"]
    for url in wrong:
        with pytest.raises(SourceError) as error:
            check_connection(MysqlSource(url))
        assert not error.value.transient
        assert "hid@den" not in str(error.value) and "hid%40den" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://someone:hidden@127.0.0.1:1/none",
        "mysql://someone:hid%ZZden@127.0.0.1:1/none",
        "mysql://someone:hid@hidden@127.0.0.1:1/none",
        "mysql://someone:hid:den@127.0.0.1:1/none",
        "mysql://someone:hid/den@127.0.0.1:1/none",
        "mysql://127.0.0.1:1/none?password=hidden&user=someone",
        "host=127.0.0.1 password=hidden",
        "mysql://someone:hidden@127.0.0.1:1x/none",
        "mysql://someone:hidden@127.0.0.1:1/none?no_such=option",
    ],
)
def test_no_error_tells_a_password(url: str) -> None:
    source = MysqlSource(url)
    with pytest.raises(SourceError) as error:
        source.connect()
    for text in (str(error.value), repr(source), source.name):
        assert "hid" not in text and "den@" not in text


def test_a_statement_that_fails_does_not_quote_values(daily: MysqlKit) -> None:
    with MysqlSource(daily.database).session() as session, pytest.raises(SourceError) as error:
        session.execute("SELECT *\nFROM t WHERE secret = 'hidden'")
    assert "hidden" not in str(error.value)
