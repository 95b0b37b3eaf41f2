"""Names are one-to-one, readable, and stay where they belong."""

from __future__ import annotations

import itertools
import re
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export_pipelines.naming import (
    MAX_PART,
    archive_folder,
    asset_key,
    dagster_name,
    file_key,
    group_name,
    pool_name,
    safe,
    template_problems,
)
from export_pipelines.specs.table import Cadence, PartitionsSpec, TableDefinition, TableSpec
from export_pipelines.windows import SNAPSHOT, Window, first_windows, window_of

DAILY = PartitionsSpec(every=Cadence.DAY, start=datetime(2024, 12, 31), timezone="Europe/Tallinn")
anything = st.text(st.characters(), max_size=80) | st.text("ab/.%_~\0é\u0301E ", max_size=300)


def table(group: str = "exports", name: str = "agency", **fields: Any) -> TableDefinition:
    return TableDefinition(
        name=name,
        group=group,
        folder=Path(),
        spec=TableSpec(**{"partitions": DAILY, "table": "t", "time_column": "c", **fields}),
    )


def key(template: str, window: Window | None = None, generation: int = 1, **fields: Any) -> str:
    return file_key(table(file_name=template, **fields), window or window_of(DAILY, "2024-12-31"), generation)


@given(anything)
def test_a_safe_part_cannot_escape_its_folder(text: str) -> None:
    part = safe(text)
    assert part
    assert "/" not in part and "\\" not in part
    assert part[0] != "." and part[-1] != "."
    assert not any(unicodedata.category(c)[0] in "CZ" for c in part)
    assert len(part.encode()) <= MAX_PART
    assert unicodedata.is_normalized("NFC", part)


@given(anything, anything)
def test_two_names_never_share_a_safe_part(one: str, other: str) -> None:
    assert (safe(one) == safe(other)) == (one == other)


@settings(max_examples=30)
@given(st.text("aé%/", min_size=60, max_size=400), st.text("aé%/", max_size=3))
def test_long_names_are_cut_and_stay_apart(text: str, end: str) -> None:
    assert (safe(text + end) == safe(text)) == (not end)


@pytest.mark.parametrize(
    "name", ["agency", "source_run_page", "v1.2", "tellimus-ülevaade", "注文", "Заказы", "2013-11-03"]
)
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert safe(name) == name


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("..", "%2E%2E"),
        ("a/b", "a%2Fb"),
        (".hidden", "%2Ehidden"),
        ("", "%_"),
        ("100%", "100%25"),
        ("2013-11-03-01:00-0500", "2013-11-03-01%3A00-0500"),
        ("2013-10-27-03:00+0200", "2013-10-27-03%3A00%2B0200"),
        ("e\u0301", "e%CC%81"),
        ("two words", "two%20words"),
    ],
)
def test_what_is_unsafe_is_percent_encoded(name: str, part: str) -> None:
    assert safe(name) == part


def test_every_part_of_a_table_and_its_partition_is_made_safe() -> None:
    definition = table("a b/c", "d'e")
    assert archive_folder(definition, Window("2013-01-01-05:00")) == "a%20b/c/d%27e/2013-01-01-05%3A00"


def test_the_name_of_older_export_services_is_a_template() -> None:
    window = window_of(DAILY, "2024-12-31")
    assert key("{table}-{window_end:%Y_%m_%d-%I_%M_%S_%p}", window) == "agency-2025_01_01-12_00_00_AM.csv.gz"


def test_times_in_names_are_those_of_the_partitions_zone() -> None:
    window = Window("2024-12-31", datetime(2024, 12, 30, 22, tzinfo=UTC), datetime(2024, 12, 31, 22, tzinfo=UTC))
    assert key("{window_start:%Y/%m/%d}", window) == "2024/12/31.csv.gz"


def test_a_later_generation_has_a_suffix_unless_the_template_places_it() -> None:
    assert key("{partition}", generation=3) == "2024-12-31-g3.csv.gz"
    assert key("{generation}/{partition}", generation=3) == "3/2024-12-31.csv.gz"
    assert key("{partition}") == "2024-12-31.csv.gz"


@pytest.mark.parametrize(("compression", "end"), [("gzip", ".csv.gz"), ("zstd", ".csv.zst"), ("none", ".csv")])
def test_the_extension_says_format_and_compression(compression: str, end: str) -> None:
    assert key("{partition}", compression=compression) == f"2024-12-31{end}"


def test_the_default_template_names_group_table_and_partition() -> None:
    snapshot = table("g/h", "t", partitions=None, time_column=None)
    assert file_key(snapshot, Window(SNAPSHOT), 1) == "g/h/t/t-snapshot.csv.gz"


def test_the_two_equal_hours_of_autumn_have_two_names() -> None:
    hourly = PartitionsSpec(every=Cadence.HOUR, start=datetime(2013, 10, 27), timezone="Europe/Tallinn")
    names = [key("{window_start:%Y%m%d%H}", window, partitions=hourly) for window in first_windows(hourly, 25)]
    assert len(set(names)) == 25


def test_a_part_of_a_file_name_is_cut_when_it_is_too_long() -> None:
    name = key("{group}/{table}-{table}-{partition}", name="ü" * 90).split("/")[-1]
    assert len(name.encode()) <= MAX_PART + len(".csv.gz")


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{tabel}-{partition}", "unknown field"),
        ("{partition", "cannot be read"),
        ("{}", "unknown field"),
        ("{table.spec}-{partition}", "unknown field"),
        ("{partition!r}", "conversions"),
        ("{partition:>10}", "only window_start"),
        ("{window_start:%Q}", "%Q"),
        ("{window_start:%Y%}", "cannot be used"),
        ("/{partition}", "absolute"),
        ("a/../{partition}", "'..'"),
        ("a//{partition}", "empty part"),
        (".a/{partition}", "starts with a dot"),
        ("{partition}/", "empty part"),
        ("{partition}\n", "control character"),
        ("a\\{partition}", "backslash"),
        ("{table}", "same name"),
        ("", "empty part"),
    ],
)
def test_a_bad_template_is_told(template: str, word: str) -> None:
    found = template_problems(template, partitioned=True)
    assert len(found) == 1
    assert word in found[0]


def test_a_table_without_partitions_has_no_times_to_name() -> None:
    assert template_problems("{table}", partitioned=False) == []
    assert "no partitions" in template_problems("{window_end:%Y}", partitioned=False)[0]


def test_good_templates_have_no_problems() -> None:
    for template in (
        TableSpec().file_name,
        "{table}-{window_end:%Y_%m_%d-%I_%M_%S_%p}",
        "{window_start:%Y/%m/%d}/{group} {table}.{generation}",
    ):
        assert template_problems(template, partitioned=True) == []


small_ids = ["".join(each) for n in range(1, 6) for each in itertools.product("_x4/é-", repeat=n)]


def test_names_for_dagster_are_one_to_one() -> None:
    names = {dagster_name(each) for each in small_ids}
    assert len(names) == len(small_ids)
    keys = {tuple(asset_key(each, "export")) for each in small_ids}
    assert len(keys) == len(small_ids)


@given(anything.filter(bool))
def test_names_for_dagster_have_the_characters_that_it_allows(table_id: str) -> None:
    assert re.fullmatch("[A-Za-z0-9_]*", dagster_name(table_id))
    assert all(re.fullmatch("[A-Za-z0-9_.-]*", part) for part in asset_key(table_id, "export"))
    assert re.fullmatch(r"\S+", pool_name(table_id))


@pytest.mark.parametrize("table_id", ["knowledge_base/source_run_page", "a-b/c.d", "müük/注 文", "g/class", "g/it's"])
def test_dagster_takes_the_names(table_id: str) -> None:
    group = table_id.split("/", maxsplit=1)[0]

    @dg.multi_asset(
        name=dagster_name(table_id),
        specs=[dg.AssetSpec(asset_key(table_id, "export"), group_name=group_name(group))],
        pool=pool_name(table_id),
    )
    def step() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult()

    job = dg.define_asset_job(f"{dagster_name(table_id)}__run", selection=[step])
    dg.Definitions.validate_loadable(dg.Definitions(assets=[step], jobs=[job]))


def test_ordinary_ids_stay_readable_in_dagster() -> None:
    assert asset_key("knowledge_base/agency", "export") == ["knowledge_base", "agency_export"]
    assert dagster_name("knowledge_base/agency") == "knowledge_base__agency"
    assert group_name("knowledge-base/2024") == "knowledge_base/2024"
