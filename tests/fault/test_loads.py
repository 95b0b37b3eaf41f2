"""Loads that are killed or cut off at any edge: nothing is half loaded, and a rerun loads the file once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from export_pipelines.errors import ExportPipelinesError
from export_pipelines.manifest import LandedManifest
from tests.support.killed import Edge
from tests.support.loads import LoadKit
from tests.support.processes import context
from tests.support.proxy import database_proxy

TYPED = {"id": {"type": "bigint"}, "name": {"sql": "upper(name)"}}
STYLES: dict[str, dict[str, Any]] = {
    "append": {},
    "raw": {"raw": True},
    "replace": {"style": "replace"},
    "shadow": {"style": "shadow", "key": ["id"]},
    "upsert": {"style": "upsert", "key": ["id"]},
    "snapshot": {"style": "snapshot", "key": ["id"], "removal": {"share": 1}},
    "history": {"style": "history", "key": ["id"]},
}
EDGES = [
    Edge("before", "sources.postgres:Session.copy_in"),
    Edge("after", "sources.postgres:Session.copy_in"),
    Edge("before", "targets.registry:finish"),
    Edge("after", "targets.registry:finish"),
    Edge("after", "targets.registry:begin_entry"),
    Edge("after", "targets.versions:point"),
    Edge("after", "targets.views:show"),
    Edge("before", "targets.versions:sweep"),
]
# Commits of a load: the one of its entry, and the one of all else.
COMMITS = [Edge(side, "sources.postgres:Session.commit", number) for number in (1, 2) for side in ("before", "after")]  # type: ignore[arg-type]


def kit_of(style: str, folder: Path, url: str) -> LoadKit:
    kit = LoadKit(folder, url, {"columns": TYPED, **STYLES[style]})
    kit.load("id,name\n1,a\n2,b\n")
    return kit


OLD, NEW = [(1, "A"), (2, "B")], [(2, "C"), (3, "D")]
LOADED = {
    "append": sorted(OLD + NEW), "raw": sorted(OLD + NEW), "replace": NEW, "shadow": NEW, "snapshot": NEW,
    "upsert": [(1, "A"), *NEW], "history": sorted(OLD + NEW),
}  # fmt: skip


def work(edge: Edge, kit: LoadKit, landed: LandedManifest) -> None:
    edge.arm()
    kit.load(landed)


def killed_at(edge: Edge, kit: LoadKit, landed: LandedManifest) -> int | None:
    process = context.Process(target=work, args=(edge, kit, landed))
    process.start()
    process.join(180)
    return process.exitcode


def assert_whole(kit: LoadKit, style: str) -> str:
    """All old or all new, and the registry says which."""
    states = kit.sql("SELECT state FROM operations.datafile_registry ORDER BY sequence")
    done = len(states) == 2 and states[1] == ("processed",)
    assert kit.rows() == (LOADED[style] if done else OLD)
    if style == "raw":
        assert kit.sql("SELECT count(*) FROM shop.orders__raw") == [(4 if done else 2,)]
    return "new" if done else "old"


def assert_once(kit: LoadKit, style: str, landed: LandedManifest) -> None:
    """A rerun loads it if it was not, and a third one does nothing."""
    kit.load(landed)
    assert kit.load(landed).action == "already"
    assert assert_whole(kit, style) == "new"
    left = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '^orders__v'"
    assert kit.sql(left) == [(2 if style in ("replace",) or (style == "shadow" and table_version(kit) == 2) else 1,)]


def table_version(kit: LoadKit) -> int:
    return int(kit.sql("SELECT current_version FROM operations.loaded_table")[0][0])


QUICK = ("raw", "shadow", "upsert")
SOME = [style if style in QUICK else pytest.param(style, marks=pytest.mark.slow) for style in STYLES]


@pytest.mark.parametrize("style", SOME)
@pytest.mark.parametrize("edge", [*EDGES, *COMMITS], ids=str)
def test_a_load_that_is_killed_is_whole_or_not_there_and_is_done_once(
    style: str, edge: Edge, tmp_path: Path, database: str
) -> None:
    kit = kit_of(style, tmp_path, database)
    landed = kit.land("id,name\n2,c\n3,d\n")
    code = killed_at(edge, kit, landed)
    # What is only done for some styles has no edge in the others.
    assert code == -signal.SIGKILL or (code == 0 and edge.function == "targets.views:show")
    assert_whole(kit, style)
    assert_once(kit, style, landed)


@pytest.mark.parametrize("style", SOME)
@pytest.mark.parametrize(
    ("fault", "statement", "skip"),
    [
        ("before", b"SAVEPOINT filling", 0),
        ("after", b"RELEASE filling", 0),
        ("before", b"COMMIT", 1),
        ("after", b"COMMIT", 1),
    ],
)
def test_a_load_whose_connection_is_cut_is_whole_or_not_there_and_is_done_once(
    style: str, fault: Any, statement: bytes, skip: int, tmp_path: Path, database: str
) -> None:
    kit = kit_of(style, tmp_path, database)
    landed = kit.land("id,name\n2,c\n3,d\n")
    with database_proxy(database) as proxy:
        proxy.fault, proxy.statement, proxy.skip = fault, statement, skip
        kit.url = proxy.url
        with pytest.raises(ExportPipelinesError) as raised:
            kit.load(landed)
        assert raised.value.transient
        assert proxy.hit.is_set()
    kit.url = database
    assert_whole(kit, style)
    assert_once(kit, style, landed)


@pytest.fixture
def poller(database: str) -> Iterator[list[Any]]:
    """Reads the table again and again, and keeps what is neither old nor new."""
    wrong: list[Any] = []
    stop = threading.Event()

    def poll() -> None:
        with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not stop.is_set():
                cursor.execute("SELECT to_regclass('shop.orders')")
                if cursor.fetchone() == (None,):
                    continue
                cursor.execute("SELECT count(*) FROM shop.orders")
                if (found := cursor.fetchone()) not in ((2,), (20000,)):
                    wrong.append(found)

    thread = threading.Thread(target=poll)
    thread.start()
    yield wrong
    stop.set()
    thread.join()
    assert wrong == []


@pytest.mark.parametrize("style", ["replace", "shadow", "snapshot"])
def test_kills_at_any_moment_under_readers_leave_old_or_new(
    style: str, tmp_path: Path, database: str, poller: list[Any]
) -> None:
    kit = kit_of(style, tmp_path, database)
    landed = kit.land("id,name\n" + "".join(f"{n},x\n" for n in range(20000)))
    for moment in (0.05, 0.15, 0.3, 0.5):
        process = context.Process(target=work, args=(Edge("after", "targets.schema:ensure", 99), kit, landed))
        process.start()
        time.sleep(moment)
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert kit.sql("SELECT count(*) FROM shop.orders")[0][0] in (2, 20000)
    kit.load(landed)
    assert kit.sql("SELECT count(*) FROM shop.orders") == [(20000,)]
    assert poller == []
