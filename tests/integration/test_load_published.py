"""The index by which pages are read: only published tables have it, also those that are published later."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from export_pipelines.errors import SourceError
from export_pipelines.steps.load import index_published
from tests.support.loads import LoadKit
from tests.support.threads import meanwhile, wait_until

PUBLISHED = {"target": {"table": "shop.orders", "published": True}}
INDEXED = """
SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
WHERE i.indisvalid AND i.indisunique AND a.attname = 'row_id' AND c.relname ~ '^orders__v' ORDER BY 1
"""
WAITS = (
    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE UNIQUE INDEX CONC%' AND wait_event_type = 'Lock'"
)
STYLES: dict[str, dict[str, Any]] = {
    "append": {},
    "replace": {"style": "replace"},
    "shadow": {"style": "shadow", "key": ["id"]},
    "upsert": {"style": "upsert", "key": ["id"]},
}


@pytest.fixture
def kit(tmp_path: Path, database: str) -> LoadKit:
    return LoadKit(tmp_path, database, {})


@pytest.mark.parametrize("style", STYLES)
def test_tables_have_it_as_soon_as_they_are_published_and_not_before(style: str, kit: LoadKit) -> None:
    kit.spec = STYLES[style]
    kit.load("id,name\n1,a\n2,b\n")
    kit.load("id,name\n2,c\n3,d\n")
    tables = ["orders__v1", "orders__v2"] if style in ("replace", "shadow") else ["orders__v1"]
    index_published(kit.context)
    assert kit.sql(INDEXED) == []
    kit.spec = {**STYLES[style], **PUBLISHED}
    index_published(kit.context)
    assert kit.sql(INDEXED) == [(table,) for table in tables]
    kit.version = "v2"
    kit.load("id,name\n4,e\n")
    index_published(kit.context)
    assert len(kit.sql(INDEXED)) == (3 if len(tables) == 2 else 1)


def test_a_load_of_a_published_table_makes_it_itself(kit: LoadKit) -> None:
    kit.spec = PUBLISHED
    kit.load("id,name\n1,a\n")
    assert kit.sql(INDEXED) == [("orders__v1",)]


def test_an_index_of_somebody_else_stays_when_the_table_is_built_anew(kit: LoadKit) -> None:
    kit.spec = {"style": "replace"}
    kit.load("id,name\n1,a\n")
    kit.sql("CREATE UNIQUE INDEX mine ON shop.orders__v1 (row_id)")
    kit.load("id,name\n2,b\n")
    assert kit.sql(INDEXED) == [("orders__v1",), ("orders__v2",)]


def test_half_an_index_is_made_anew(kit: LoadKit) -> None:
    kit.load("id,name\n1,a\n2,b\n")
    kit.spec = PUBLISHED
    kit.sql("UPDATE shop.orders__v1 SET row_id = 7")
    with pytest.raises(SourceError, match="could not create unique index"):
        index_published(kit.context)
    kit.sql("UPDATE shop.orders__v1 SET row_id = id::bigint")
    index_published(kit.context)
    assert kit.sql(INDEXED) == [("orders__v1",)]


def test_a_load_that_is_at_work_and_the_index_do_not_wait_for_each_other_for_ever(kit: LoadKit) -> None:
    kit.load("id,name\n1,a\n")
    kit.spec = PUBLISHED
    with closing(psycopg2.connect(kit.url)) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO shop.orders__v1 (file_id, id) VALUES (1, '2')")
        with meanwhile(lambda: index_published(kit.context)) as first:
            wait_until(lambda: kit.sql(WAITS) == [(1,)])
            with meanwhile(lambda: index_published(kit.context)) as second:
                second.result(30)  # somebody is at it
            assert not first.done()
            connection.commit()
            first.result(30)
    assert kit.sql(INDEXED) == [("orders__v1",)]
