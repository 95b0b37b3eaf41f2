"""The pure parts of the command line: figures for people, errors without secrets, what is left to do."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest

from export_pipelines.catalog import CleanupRow, ExportRow
from export_pipelines.cli import output
from export_pipelines.cli.doctor import _address
from export_pipelines.cli.errors import lines_of
from export_pipelines.cli.launch import without_class_path
from export_pipelines.cli.places import line_of
from export_pipelines.cli.plan import own_statement
from export_pipelines.cli.selection import Known, chosen, digest_sum, is_due, newest, to_do
from export_pipelines.components.automation import Stage
from export_pipelines.errors import RequestError, SourceError, SpecError, SpecErrors
from export_pipelines.specs.table import TableDefinition, TableSpec
from export_pipelines.sql import parse_delete
from export_pipelines.sql_mysql import parse_delete as parse_mysql_delete

NOW = datetime(2025, 1, 5, 12, tzinfo=UTC)


def table(**attributes: object) -> TableDefinition:
    """Five days of January, of which four have ended at NOW."""
    spec = {"partitions": {"every": "day", "start": "2025-01-01"}, "table": "t", "time_column": "at", **attributes}
    return TableDefinition(name="t", group="g", folder=Path("g/t"), spec=TableSpec.model_validate(spec))


@pytest.mark.parametrize(
    ("size", "text"), [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (11_300_000, "11.3 MB")]
)
def test_sizes_are_in_powers_of_ten(size: int | None, text: str) -> None:
    assert output.size(size) == text


def test_cells_group_thousands_and_show_nothing_as_a_dash() -> None:
    assert [output.cell(value) for value in (336_776, 2.94, None, "", True)] == ["336,776", "2.9", "-", "-", "yes"]


def test_a_plain_bar_says_one_line_for_each_thing_that_is_over() -> None:
    stream = io.StringIO()
    bar = output.bar(stream)
    bar.start("a", 2)
    bar.update(1, "half")
    bar.update(2, "whole")
    bar.start("b", None)
    bar.close()
    assert stream.getvalue() == "a: whole\n"


def test_a_bar_does_not_call_done_what_has_failed() -> None:
    stream = io.StringIO()
    bar = output.bar(stream)
    bar.start("a", None)
    bar.update(1, "half")
    bar.fail()
    bar.close()
    assert stream.getvalue() == ""


def test_one_of_a_thing_is_not_many() -> None:
    assert [output.count(n, "partition") for n in (0, 1, 1200)] == ["0 partitions", "1 partition", "1,200 partitions"]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("export_pipelines.errors.StoreError: no room: /x\nhint: make some", "no room: /x\nhint: make some"),
        ("psycopg2.errors.Oops: no", "Oops: no"),
        ("export of a/b failed: no", "export of a/b failed: no"),
    ],
)
def test_errors_of_a_run_show_no_class_path(told: str, shown: str) -> None:
    assert without_class_path(told) == shown


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM t",
        "DELETE FROM t\nWHERE a < 1 OR (b)",
        "WITH x AS (SELECT 1 WHERE (true)) DELETE FROM t USING x\nWHERE (a = 1) AND (b = 2) -- old",
    ],
)
def test_a_plan_shows_the_delete_of_the_definition(statement: str) -> None:
    made = parse_delete(statement, Path("delete.sql")).statement("<identity of an archived row>", "ctid, xmin")
    assert " ".join(own_statement(made).split()) == " ".join(statement.removesuffix(" -- old").split())


@pytest.mark.parametrize(
    "statement", ["DELETE FROM t", "DELETE FROM `t`\nWHERE a < 1 OR (b)", "DELETE FROM d.t WHERE a\n"]
)
def test_a_plan_in_mysql_shows_the_delete_of_the_definition(statement: str) -> None:
    read = parse_mysql_delete(statement, Path("delete.sql")).selection(
        "<key>, <all columns>", "<key of an archived row>"
    )
    made = own_statement(f"{read} FOR UPDATE; DELETE FROM `t` WHERE <key of a row that is proved>")
    assert made == statement.strip().replace(" WHERE", "\nWHERE")


def test_addresses_have_neither_password_nor_query() -> None:
    assert _address("postgresql://me:s3cret@db:5433/app?keepalives=1&x=") == "a URL that is not valid"
    assert _address("postgresql://me:s3cret@db:5433/app?keepalives=1") == "postgresql://me@db:5433/app"
    assert _address("host=db user=me password=s3cret dbname=app") == "postgresql://me@db/app"


def test_errors_are_told_without_passwords() -> None:
    error = SourceError("cannot reach postgresql://me:s3cret@host/db", hint="password=s3cret is wrong")
    assert not any("s3cret" in line for line in lines_of(error))
    assert not any("s3cret" in line for line in lines_of(ValueError("postgresql://me:s3cret@host/db")))


def test_every_one_of_several_errors_is_told() -> None:
    errors = [SpecError("a", file="x.yaml", line=1), SpecError("b", file="x.yaml", line=2)]
    assert lines_of(SpecErrors(errors)) == ["x.yaml:1: a", "x.yaml:2: b"]


def test_the_line_of_a_snippet_is_found() -> None:
    assert line_of("SELECT *\nFROM t\nWHERE no_such = 1", "no_such = 1") == 3
    assert line_of("SELECT 1", "something else") == 1


def test_row_digests_of_partitions_add_up() -> None:
    assert digest_sum(["ffffffffffffffff", "0000000000000002"]) == "0000000000000001"
    assert digest_sum([]) == "0" * 16


def test_without_bounds_all_closed_partitions_are_chosen() -> None:
    assert [window.partition for window in chosen(table(), None, None, None, NOW)] == [
        f"2025-01-0{day}" for day in range(1, 5)
    ]


def test_an_open_partition_is_not_chosen() -> None:
    with pytest.raises(RequestError, match="is open until"):
        chosen(table(), "2025-01-05", None, None, NOW)


def test_a_range_may_leave_out_either_end() -> None:
    assert len(chosen(table(), None, "2025-01-03", None, NOW)) == 2
    assert len(chosen(table(), None, None, "2025-01-03", NOW)) == 3


def test_what_is_cleaned_up_is_not_to_be_done_again_and_what_is_incomplete_is() -> None:
    found = chosen(table(), None, None, None, NOW)
    rows = {
        "2025-01-01": CleanupRow("g/t", "2025-01-01", True, {}, "", NOW),
        "2025-01-02": CleanupRow("g/t", "2025-01-02", False, {"late": 3}, "", NOW),
    }
    have = Known(table(cleanup="after_archive"), {"2025-01-01": [], "2025-01-02": []}, rows)
    assert [window.partition for window in to_do(have, found, Stage.CHAIN, NOW)] == [
        "2025-01-02",
        "2025-01-03",
        "2025-01-04",
    ]
    assert [window.partition for window in to_do(have, found, Stage.EXPORT, NOW)] == ["2025-01-03", "2025-01-04"]
    assert have.late_rows == 3


def exported(partition: str, state: str = "archived") -> ExportRow:
    """A generation in the catalog."""
    return ExportRow(
        id=1,
        table_id="g/t",
        partition=partition,
        generation=1,
        attempt="",
        state=state,
        store_url="",
        file_key="",
        record=None,
        archive_url=None,
        sequence=None,
        run_id="",
        started_at=NOW,
        finished_at=NOW,
        error=None,
    )


def newest_of(have: Known) -> list[str]:
    """What a run of a cumulative table without bounds takes."""
    closed = chosen(have.table, None, None, None, NOW)
    return [window.partition for window in newest(have, to_do(have, closed, Stage.CHAIN, NOW), closed, NOW)]


def test_of_a_cumulative_table_the_newest_partition_is_taken_and_once() -> None:
    cumulative = table(cleanup="after_archive")
    assert newest_of(Known(cumulative, {}, {})) == ["2025-01-04"]
    rows = {"2025-01-04": CleanupRow("g/t", "2025-01-04", True, {}, "", NOW)}
    assert newest_of(Known(cumulative, {"2025-01-04": [exported("2025-01-04")]}, rows)) == []


def test_of_a_cumulative_table_what_was_begun_is_finished() -> None:
    begun = {"2025-01-02": [exported("2025-01-02", "published")], "2025-01-03": [exported("2025-01-03")]}
    assert newest_of(Known(table(cleanup="after_archive"), begun, {})) == ["2025-01-02", "2025-01-04"]
    keeping = table(cleanup={"mode": "keep", "keep_days": 1})
    assert newest_of(Known(keeping, {f"2025-01-0{n}": [exported(f"2025-01-0{n}")] for n in (1, 2, 3, 4)}, {})) == [
        "2025-01-03"
    ]


def test_a_cleanup_is_due_when_the_keep_period_is_over() -> None:
    keeping = table(cleanup={"mode": "keep", "keep_days": 2})
    due = [window.partition for window in chosen(keeping, None, None, None, NOW) if is_due(keeping, window, NOW)]
    assert due == ["2025-01-01", "2025-01-02"]
    assert not is_due(table(cleanup="off"), chosen(table(), "2025-01-01", None, None, NOW)[0], NOW)
