"""Every type of MariaDB in every format: it comes back the same, or the export fails and says what to declare."""

from __future__ import annotations

from typing import Any

import pytest

from export_pipelines.errors import FormatError
from export_pipelines.steps.verify import verify_table
from tests.integration.test_mysql_types import TYPES
from tests.support.mysql_tables import MysqlKit, kit, one_catalog

__all__ = ["kit", "one_catalog"]
pytestmark = pytest.mark.debian


def make_all(kit: MysqlKit, types: list[tuple[str, str, str, str, str | None]]) -> None:
    """A table with a column of each type, a row of their values and one of NULLs."""
    columns = ", ".join(f"c{number} {kind} NULL" for number, (kind, *_) in enumerate(types))
    kit.sql(
        "SET sql_mode = '', time_zone = '+00:00'",
        f"CREATE TABLE t (id INT PRIMARY KEY, {columns}) DEFAULT CHARSET utf8mb4",
        f"INSERT INTO t VALUES (1, {', '.join(value for _, value, *_ in types)})",
        "INSERT INTO t (id) VALUES (2)",
    )


def unfit(kind: str, value: str, name: str) -> bool:
    """Whether a format refuses a value of TYPES unless its column is declared."""
    no_date = kind.startswith(("date", "timestamp")) and ("0000" in value or "-00" in value)
    early = kind == "date" and "1000" in value
    wide = kind.startswith(("bigint", "decimal(65", "datetime(6)"))
    return (no_date and name in ("parquet", "excel")) or (name == "excel" and (early or wide))


@pytest.mark.parametrize("name", ["csv", "json", "jsonl", "parquet", "excel"])
def test_every_type_is_archived_verified_cleaned_up_and_restored(kit: MysqlKit, name: str) -> None:
    types = [each for each in TYPES if name != "excel" or "REPEAT" not in each[1]]
    make_all(kit, types)
    declared = {f"c{n}": "text" for n, (kind, value, *_) in enumerate(types) if unfit(kind, value, name)}
    layout: dict[str, Any] = {"type": name, "conversions": declared} if name != "csv" else {"csv": {"line_end": "crlf"}}
    kit.spec = {"table": "t", "format": layout, "compression": "none"}
    before = kit.sql("SELECT * FROM t ORDER BY id")
    record = kit.exported()
    assert record.rows == 2 and record.format == name
    with kit.opened() as context:
        assert verify_table(context.archive, context.table.id).intact
    assert kit.cleanup().deleted == 2
    assert sorted(kit.restored(), key=lambda row: row[0]) == before
    assert record.exact


@pytest.mark.parametrize("value", ["0000-00-00", "2024-02-00"])
def test_a_date_that_is_none_is_refused_by_parquet_with_a_hint(kit: MysqlKit, value: str) -> None:
    kit.sql("SET sql_mode = ''", "CREATE TABLE t (id INT PRIMARY KEY, d DATE)", f"INSERT INTO t VALUES (1, '{value}')")
    kit.spec = {"table": "t", "format": {"type": "parquet"}}
    with pytest.raises(FormatError, match=f"column 'd' has '{value}'") as caught:
        kit.export()
    assert "conversions: {d: text}" in caught.value.hint
    assert not list((kit.folder / "exports").rglob("*.parquet"))
