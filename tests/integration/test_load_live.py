"""Pulls that are loaded while they land: in this order all the same, and what fails is loaded as any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import SourceError
from export_pipelines.specs.load import Style
from export_pipelines.steps import load_live
from export_pipelines.steps.land import check_landed, land
from export_pipelines.steps.load import pending
from export_pipelines.steps.load_live import loads_live
from export_pipelines.steps.load_run import LoadRun
from export_pipelines.targets import registry, schema
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.tables import make_schema
from tests.support.proxy import database_proxy
from tests.support.pulls import ROWS, PullKit
from tests.support.servers import run_sql
from tests.support.threads import meanwhile, wait_until

STYLES: dict[str, dict[str, Any]] = {
    "append": {"pull": {"mode": "changes"}},
    "raw": {"pull": {"mode": "changes"}, "raw": True},
    "replace": {"style": "replace"},
    "shadow": {"style": "shadow", "key": ["id"]},
    "upsert": {"style": "upsert", "key": ["id"], "pull": {"mode": "changes"}},
    "snapshot": {"style": "snapshot", "key": ["id"]},
    "history": {"style": "history", "key": ["id"]},
    "partition": {"style": "partition", "partition_by": "all"},
}


@pytest.fixture
def kit(tmp_path: Path, database: str, second_database: str) -> PullKit:
    made = PullKit(tmp_path, database, second_database, {"style": "replace"})
    made.make_origin()
    return made


QUICK = ("append", "replace", "upsert")
SOME = [style if style in QUICK else pytest.param(style, marks=pytest.mark.slow) for style in STYLES]


@pytest.mark.parametrize("style", SOME)
def test_what_is_pulled_is_loaded_meanwhile_in_every_style_and_only_once(style: str, kit: PullKit) -> None:
    kit.spec = STYLES[style]
    done = kit.pull()
    (landed,) = done.landing.landed
    assert done.load is not None and (done.load.action, done.load.rows, done.given_up) == ("loaded", ROWS, "")
    assert kit.rows() == ROWS
    assert kit.entries() == [("processed", 1, ROWS)]
    assert kit.sql("SELECT DISTINCT file_id FROM shop.orders") == [(done.load.registry_id,)]
    assert pending(kit.loading) == [] and check_landed(kit.store, [landed]) == []
    assert kit.load(landed).action == "already"
    kit.add(ROWS + 1, 2 * ROWS)
    assert loads_live(kit.loading, kit.landed())
    again = kit.pull()
    assert again.load is not None and again.load.quarantined == 0
    assert kit.rows() == 2 * ROWS
    assert [entry[:2] for entry in kit.entries()] == [("processed", 1), ("processed", 2)]


def test_a_small_pull_only_lands(kit: PullKit) -> None:
    run_sql(kit.source, "DELETE FROM origin WHERE id::int > 10")
    done = kit.pull()
    assert (done.load, done.given_up) == (None, "")
    assert [each.sequence for each in pending(kit.loading)] == [1]


def test_rows_that_are_nothing_new_leave_the_table_as_it_is(kit: PullKit) -> None:
    kit.pull()
    done = kit.pull()
    assert (done.landing.unchanged, done.load, done.given_up) == (1, None, "")
    assert kit.entries() == [("processed", 1, ROWS)]
    assert kit.sql("SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '^orders__v'") == [(1,)]


def test_rows_that_do_not_fit_are_found_when_the_landed_file_is_loaded(kit: PullKit) -> None:
    kit.spec = {"style": "replace", "quarantine": {"max_rows": 1}}
    run_sql(kit.source, "INSERT INTO origin VALUES ('none', 'x')")
    done = kit.pull()
    assert done.load is None and "do not fit" in done.given_up
    (landed,) = done.landing.landed
    assert kit.rows() == 0
    loaded = kit.load(landed)
    assert (loaded.rows, loaded.quarantined, kit.rows()) == (ROWS, 1, ROWS)
    assert kit.sql("SELECT file_line, column_name FROM shop.orders__quarantine") == [(ROWS + 2, "id")]


def test_a_target_that_is_cut_off_or_away_does_not_keep_rows_from_landing(kit: PullKit) -> None:
    with database_proxy(kit.target) as proxy:
        proxy.fault, proxy.statement = "after", b"FREEZE)"
        url, kit.target = kit.target, proxy.url
        done = kit.pull()
        assert done.load is None and done.given_up and proxy.hit.is_set()
        kit.target = url
    (landed,) = done.landing.landed
    assert kit.rows() == 0 and check_landed(kit.store, [landed]) == []
    assert kit.load(landed).rows == ROWS == kit.rows()
    kit.add(ROWS + 1, 2 * ROWS)
    kit.target = "postgresql://nobody@127.0.0.1:1/nothing"
    assert not loads_live(kit.loading, kit.landed())
    assert kit.pull().load is None and len(kit.landed()) == 2


@pytest.fixture
def locked(kit: PullKit) -> Iterator[None]:
    """Another loader of the table that does not come to an end."""
    kit.pull()
    with kit.loading.target.session(read_only=False) as session:
        session.begin()
        session.execute("SELECT pg_advisory_xact_lock(%s)", (TableNames.of(kit.definition.spec.target).lock,))
        yield


@pytest.mark.usefixtures("locked")
def test_a_pull_does_not_wait_for_ever_for_a_table_at_which_another_loader_is(
    kit: PullKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_live, "_PATIENCE_SECONDS", 2)
    monkeypatch.setattr(load_live, "_WAITING_BYTES", 1)
    kit.add(ROWS + 1, 2 * ROWS)
    done = kit.pull()
    assert done.load is None and "took nothing for 2 seconds" in done.given_up
    assert kit.rows() == ROWS and len(kit.landed()) == 2


def test_a_source_that_fails_on_the_way_leaves_store_and_table_as_they_were(kit: PullKit) -> None:
    run_sql(kit.source, "ALTER TABLE origin RENAME TO all_rows")
    broken = f"SELECT (id::int * (1 / ({ROWS - 5} - id::int) + 1))::text AS id, word FROM all_rows"
    run_sql(kit.source, f"CREATE VIEW origin AS {broken}")
    with pytest.raises(SourceError, match="division by zero"):
        kit.pull()
    assert kit.landed() == [] and kit.rows() == 0
    assert kit.sql("SELECT count(*) FROM operations.datafile_registry") == [(0,)]


def test_nothing_is_loaded_before_what_waits_where_the_order_of_files_counts(kit: PullKit) -> None:
    kit.target, target = "postgresql://nobody@127.0.0.1:1/nothing", kit.target
    assert kit.pull().load is None
    kit.target = target
    for style in Style:
        more = {"key": ["id"]} if style in (Style.UPSERT, Style.SNAPSHOT, Style.HISTORY) else {}
        kit.spec = {**STYLES.get(style.value, {}), **more, "style": style.value}
        assert loads_live(kit.loading, kit.landed()) is (style is Style.APPEND)
    kit.spec = {"style": "append", "pull": {"mode": "full"}}
    assert not loads_live(kit.loading, kit.landed())


def test_a_whole_that_landed_before_one_that_is_loaded_does_not_take_its_place(kit: PullKit) -> None:
    kit.spec = STYLES["partition"]
    older = land(kit.landing).landed[0]
    kit.add(ROWS + 1, 2 * ROWS)
    assert kit.pull().load is not None
    assert (kit.load(older).action, kit.rows()) == ("superseded", 2 * ROWS)
    assert pending(kit.loading) == []


def test_a_whole_that_waited_for_its_table_while_a_newer_one_was_loaded_does_not_take_its_place(kit: PullKit) -> None:
    names = TableNames.of(kit.definition.spec.target)
    with kit.loading.target.session(read_only=False) as session:
        schema.ensure(session)
        make_schema(session, names)
        session.execute("SELECT pg_advisory_lock(%s)", (names.lock,))
        with meanwhile(kit.pull) as older:
            wait_until(lambda: older.done() or kit.landed())
            kit.add(ROWS + 1, ROWS + 10)
            newer = land(kit.landing).landed[0]
            entry, _ = registry.begin_entry(session, names.table, newer, "v1", "run")
            run = LoadRun(kit.loading, session, newer, entry, force=False)
            assert run.run().action == "loaded" and run.misfits
            run.misfits.close()
            session.execute("SELECT pg_advisory_unlock(%s)", (names.lock,))
            done = older.result()
    assert done.load is None and "newer" in done.given_up
    assert kit.load(done.landing.landed[0]).action == "superseded"
    assert kit.rows() == ROWS + 10


def test_a_target_of_a_newer_program_does_not_keep_rows_from_landing(kit: PullKit) -> None:
    kit.pull()
    kit.sql("UPDATE operations.loading_version SET version = 99")
    assert not loads_live(kit.loading, kit.landed())


def test_what_waits_for_the_target_is_bounded_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_live, "_PATIENCE_SECONDS", 1)
    monkeypatch.setattr(load_live, "_WAITING_BYTES", 10)
    feed = load_live._Feed()
    feed.put(bytes(20))
    feed.check()
    feed.put(b"x")
    with pytest.raises(load_live._GivenUp):
        feed.check()


def test_pieces_that_are_larger_than_what_may_wait_are_loaded_one_by_one(
    kit: PullKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_live, "_WAITING_BYTES", 1)
    done = kit.pull()
    assert done.load is not None and (done.load.rows, done.given_up) == (ROWS, "")
