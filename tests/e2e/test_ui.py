"""What a person does in Dagster's UI, done by a browser: backfill, termination, a broken folder, lineage."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.ui import DAYS, ROWS, RunningProject, chromium, page_of, running_project, wait_for

# Two cores that have other work too need more than the usual limit.
pytestmark = [pytest.mark.debian, pytest.mark.timeout(600)]

PARTITIONS = [f"2025-01-{day:02}" for day in range(1, DAYS + 1)]
STAGES = ["export", "archive", "cleanup"]

MATERIALIZATIONS = """
query ($key: [String!]!) { assetOrError(assetKey: {path: $key}) { ... on Asset { assetMaterializations(limit: 1000) {
  partition runId metadataEntries { label ... on IntMetadataEntry { intValue } ... on PathMetadataEntry { path }
  ... on TextMetadataEntry { text } } } } } }
"""
BACKFILLS = """
{ partitionBackfillsOrError { ... on PartitionBackfills { results { status runs(limit: 50) { id status } } } } }
"""
RUNS = "{ runsOrError { ... on Runs { results { id status assetSelection { path } } } } }"
EVENTS = """
query ($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events { ... on MessageEvent {
  timestamp eventType message } ... on MaterializationEvent { partition assetKey { path } } } } } }
"""
NODES = """
{ assetNodes { assetKey { path } groupName dependencyKeys { path } } }
"""


@pytest.fixture(scope="module")
def project() -> Iterator[RunningProject]:
    """The project, up; its end is checked."""
    with running_project() as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def materialized(project: RunningProject, *key: str) -> list[dict[str, Any]]:
    """Materialisations of an asset: partition, run, metadata by name."""
    found = project.graphql(MATERIALIZATIONS, key=key)["assetOrError"].get("assetMaterializations", [])
    value = ("intValue", "path", "text")
    return [
        {
            "partition": each["partition"],
            "run": each["runId"],
            **{
                entry["label"]: next(entry[kind] for kind in value if kind in entry)
                for entry in each["metadataEntries"]
                if any(kind in entry for kind in value)
            },
        }
        for each in found
    ]


def events(project: RunningProject, run: str) -> list[dict[str, Any]]:
    """Events of a run, oldest first."""
    return list(project.graphql(EVENTS, run=run)["logsForRun"]["events"])


def launch(page: Page, address: str, materialize: str, choice: str, confirm: str) -> None:
    """Click from an asset's or a group's page through the dialog of partitions."""
    page.goto(address)
    page.get_by_role("button", name=materialize).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=choice, exact=True).click()
    dialog.get_by_role("button", name=confirm).click()
    expect(dialog).to_have_count(0)


def source_statements(project: RunningProject) -> list[str]:
    """All that the server was asked to read from, or delete in, the table `events`."""
    text = project.server_log.read_text(encoding="utf-8", errors="replace")
    entries = re.split(r"^\d{4}-\d\d-\d\d \S+ \w+ \[\d+\] ", text, flags=re.MULTILINE)
    return [entry for entry in entries if "FROM public.events" in entry]


def test_backfill_of_all_partitions_is_one_run_with_a_result_for_each_and_bounds_in_every_statement(
    project: RunningProject, browser: Browser, tmp_path: Path
) -> None:
    with page_of(browser, tmp_path) as page:
        group = project.url("locations/ui_project/asset-groups/demo/lineage")
        launch(page, group, "Materialize all", "All", "Launch backfill")
        run = wait_for(lambda: _completed_run(project), "the backfill ends", seconds=180)
        for stage in STAGES:
            page.goto(project.url(f"assets/demo/events_{stage}?view=partitions"))
            for state in (f"Materialized ({DAYS})", "Missing (0)", "Failed (0)"):
                expect(page.get_by_text(state)).to_be_visible()
        page.goto(project.url("assets/demo/events_export?view=partitions&partition=2025-01-03"))
        expect(page.get_by_text("events-2025-01-03.csv.gz")).to_be_visible()
        expect(page.get_by_text("2025-01-03T00:00:00+00:00 → 2025-01-04T00:00:00+00:00")).to_be_visible()
        page.goto(project.url("assets/demo/events_export"))
        page.get_by_role("button", name="Plots").click()
        expect(page.locator("canvas").first).to_be_visible()
        for plot in ("rows", "raw_bytes", "stored_bytes", "compression_ratio", "seconds", "mb_per_second"):
            expect(page.get_by_text(plot, exact=True)).to_be_visible()
    _assert_each_partition_told_in_turn(project, run)
    _assert_files_hold_their_partitions(project)
    assert project.query("SELECT id FROM events ORDER BY id") == [(-2,), (-1,)]
    _assert_bounds(source_statements(project))


def _completed_run(project: RunningProject) -> str:
    """The only run of the only backfill, once that has succeeded; until then empty."""
    (backfill,) = project.graphql(BACKFILLS)["partitionBackfillsOrError"]["results"] or [{"status": "", "runs": []}]
    if "FAIL" in backfill["status"] or "CANCEL" in backfill["status"]:
        told = [each["message"] for run in backfill["runs"] for each in events(project, run["id"])]
        pytest.fail("\n".join([str(backfill), *told]))
    if backfill["status"] != "COMPLETED_SUCCESS":
        return ""
    (run,) = backfill["runs"]
    return str(run["id"])


def _assert_each_partition_told_in_turn(project: RunningProject, run: str) -> None:
    """Every stage of a partition is told before the next partition begins, and not at the end of the run."""
    told = [each for each in events(project, run) if each["eventType"] in ("ASSET_MATERIALIZATION", "STEP_SUCCESS")]
    names = [(each["partition"], each["assetKey"]["path"][-1]) for each in told[:-1]]
    assert names == [(partition, f"events_{stage}") for partition in PARTITIONS for stage in STAGES]
    assert told[-1]["eventType"] == "STEP_SUCCESS"
    times = [int(each["timestamp"]) for each in told]
    assert len(set(times[:: len(STAGES)])) == DAYS + 1
    for stage in STAGES:
        found = materialized(project, "demo", f"events_{stage}")
        assert sorted(each["partition"] for each in found) == PARTITIONS
        assert {each["run"] for each in found} == {run}
        assert {each["deleted" if stage == "cleanup" else "rows"] for each in found} == {ROWS}


def _assert_files_hold_their_partitions(project: RunningProject) -> None:
    for each in materialized(project, "demo", "events_export"):
        day = PARTITIONS.index(each["partition"])
        assert each["window"].startswith(each["partition"])
        lines = gzip.decompress(Path(each["path"]).read_bytes()).decode().splitlines()
        assert [line.split(",")[0] for line in lines] == ["id", *(str(day * 1000 + n) for n in range(1, ROWS + 1))]


def _assert_bounds(statements: list[str]) -> None:
    """Every statement is held to one partition, and exports and deletes met each partition."""
    bounds = re.compile(r"""at" >= '(\d{4}-\d\d-\d\d) 00:00:00\+00:00'.*?at" < '(\d{4}-\d\d-\d\d) 00:00:00\+00:00'""")
    days = set(zip(PARTITIONS, [*PARTITIONS[1:], f"2025-01-{DAYS + 1}"], strict=True))
    found = [(statement, bounds.search(statement)) for statement in statements]
    assert [statement for statement, match in found if not match or match.groups() not in days] == []
    for kind in ("COPY (SELECT", "COPY ( DELETE"):
        assert {match.groups() for statement, match in found if match and kind in statement} == days


def test_termination_cancels_the_run_ends_its_query_and_leaves_no_file(
    project: RunningProject, browser: Browser, tmp_path: Path
) -> None:
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%pg_sleep(0.02)%' AND state = 'active'"
    with page_of(browser, tmp_path) as page:
        launch(page, project.url("assets/slow/slow_export"), "Materialize", "Latest", "Launch 1 run")
        run = wait_for(lambda: _run_of(project, "slow"), "the run is there")
        page.goto(project.url(f"runs/{run}"))
        # How far it is, told while it runs.
        expect(page.get_by_text("ASSET_OBSERVATION").first).to_be_visible()
        assert project.query(active) == [(1,)]
        assert [file.name[:5] for file in _files(project.exports / "slow")] == [".tmp-"] * 2
        page.get_by_role("button", name="Terminate").first.click()
        page.get_by_role("dialog").get_by_role("button", name="Terminate 1 run").click()
        wait_for(lambda: project.query(active) == [(0,)], "the query ends on the server")
        expect(page.get_by_text("Canceled", exact=True).first).to_be_visible()
    times = {each["eventType"]: int(each["timestamp"]) for each in events(project, run)}
    assert times["RUN_CANCELED"] - times["RUN_CANCELING"] < 30_000
    assert "STEP_UP_FOR_RETRY" not in times
    assert list(_files(project.exports / "slow")) == []
    assert materialized(project, "slow", "slow_export") == []


def _run_of(project: RunningProject, table: str) -> str:
    """Id of the run that concerns a table; empty if there is none."""
    found = project.graphql(RUNS)["runsOrError"]["results"]
    mine = [each["id"] for each in found if any(key["path"][0] == table for key in each["assetSelection"] or ())]
    return str(mine[0]) if mine else ""


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_broken_folder_is_an_asset_with_its_error_and_the_others_work(
    project: RunningProject, browser: Browser, tmp_path: Path
) -> None:
    with page_of(browser, tmp_path) as page:
        page.goto(project.url("assets/demo/misspelt_broken"))
        expect(page.get_by_text("Left out, since it is broken")).to_be_visible()
        shown = page.get_by_text("assets/demo/misspelt/defs.yaml:3: partitons: unknown field").first
        expect(shown).to_be_visible()
        expect(shown).to_contain_text("did you mean 'partitions'?")
        page.goto(project.url("locations/ui_project/asset-groups/broken/list"))
        expect(page.get_by_text("misspelt").first).to_be_visible()
        page.goto(project.url("assets/demo/events_export"))
        expect(page.get_by_role("button", name="Materialize").first).to_be_enabled()
    tables = {node["assetKey"]["path"][-1].rpartition("_")[0] for node in project.graphql(NODES)["assetNodes"]}
    assert tables == {"events", "slow", "misspelt"}


def test_lineage_shows_the_four_assets_of_a_table_in_one_chain(
    project: RunningProject, browser: Browser, tmp_path: Path
) -> None:
    chain = [f"events_{stage}" for stage in ("source", *STAGES)]
    with page_of(browser, tmp_path) as page:
        page.goto(project.url("locations/ui_project/asset-groups/demo/lineage"))
        places = []
        for stage in chain:
            name = page.locator(f'foreignObject [data-tooltip="{stage}"]')
            expect(name).to_be_visible()
            places.append(name.bounding_box() or {"x": -1.0, "y": -1.0})
    across = [place["x"] for place in places]
    assert across == sorted(across) and len(set(across)) == len(chain)
    assert len({round(place["y"]) for place in places}) == 1
    nodes = {node["assetKey"]["path"][-1]: node for node in project.graphql(NODES)["assetNodes"]
             if node["assetKey"]["path"][-1] in chain}  # fmt: skip
    needs = {name: [key["path"][-1] for key in node["dependencyKeys"]] for name, node in nodes.items()}
    assert needs == dict(zip(chain, [[], *([name] for name in chain)], strict=False))
    assert {node["groupName"] for node in nodes.values()} == {"demo"}
