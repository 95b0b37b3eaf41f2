"""Transforms: SQL in the target whose result is an asset; what it reads comes before it."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from export_pipelines.errors import TargetError
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.transform import TransformDefinition, TransformSpec
from export_pipelines.steps.read_table import page
from export_pipelines.steps.transform import TransformContext, TransformResult, plan_transform, run_transform
from export_pipelines.steps.transform_sql import read_transform
from tests.integration.test_load_dagster import pull, told
from tests.integration.test_load_sensor import SENSOR, run, tick
from tests.support.dagster_project import Folder, query
from tests.support.load_project import load_folder
from tests.support.servers import run_sql

TOTALS = """
type: export_pipelines.Transform
attributes:
  target: {table: shop.totals}
  key: [name]
"""
TOTALS_SQL = "-- Orders of each\nSELECT name, count(*) AS orders\nFROM shop.orders\nGROUP BY name ORDER BY name"


@pytest.fixture
def folder(tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with the table `shop/orders` and the transform `shop/totals`."""
    folder = load_folder(tmp_path / "project", database, catalog_url, monkeypatch)
    (folder.root / "drops" / "may.csv").write_text("id,name\n1,Ann\n2,Bob\n3,Ann\n")
    folder.write("assets/shop/totals/defs.yaml", TOTALS)
    folder.write("assets/shop/totals/transform.sql", TOTALS_SQL)
    return folder


class Kit:
    """A transform in a database of its own, whose SQL and spec may be changed between runs."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.spec: dict[str, object] = {"target": {"table": "mart.totals"}}
        self.sql = "SELECT n AS id, n * 2 AS twice FROM generate_series(1, 5) AS n"

    @property
    def context(self) -> TransformContext:
        spec = TransformSpec.model_validate(self.spec)
        made = TransformDefinition(
            name="totals", group="mart", folder=self.folder, spec=spec, sql=self.sql, version="v1"
        )
        return TransformContext(made, PostgresSource(self.url))

    def run(self, sql: str | None = None, **spec: object) -> TransformResult:
        self.sql = sql or self.sql
        self.spec |= spec
        return run_transform(self.context)

    def rows(self) -> list[tuple[object, ...]]:
        return run_sql(self.url, "SELECT * FROM mart.totals ORDER BY 1")


@pytest.fixture
def kit(database: str, tmp_path: Path) -> Kit:
    """A transform `mart/totals`."""
    return Kit(database, tmp_path)


def test_a_table_is_built_beside_and_swapped_with_rights_indexes_and_pages_kept(kit: Kit) -> None:
    first = kit.run(key=["id"])
    assert (first.rows, first.table_version) == (5, 1)
    assert first.columns == (("id", "integer"), ("twice", "integer"))
    run_sql(kit.url, "CREATE INDEX ON mart.totals__v1 (twice); GRANT SELECT ON mart.totals TO PUBLIC")
    second = kit.run("SELECT n AS id, n * 3 AS twice FROM generate_series(1, 3) AS n")
    assert (second.rows, second.table_version) == (3, 2)
    assert kit.rows() == [(1, 1, 3), (2, 2, 6), (3, 3, 9)]
    assert run_sql(kit.url, "SELECT has_table_privilege('public', 'mart.totals', 'SELECT')") == [(True,)]
    indexes = run_sql(kit.url, "SELECT indexdef FROM pg_indexes WHERE tablename = 'totals__v2'")
    assert sum("(twice)" in text for (text,) in indexes) == 1 and len(indexes) == 3
    target = kit.context.transform.spec.target
    found = page(PostgresSource(kit.url), target, "records", 0, 2, None)
    assert found.rows == '{"id":1,"twice":3},{"id":2,"twice":6}' and found.next_id == 3
    # A page of the version before is still there.
    assert page(PostgresSource(kit.url), target, "tabular", 5, 2, 1).rows == "[5,10]"


def test_what_fails_has_its_line_and_changes_nothing(kit: Kit) -> None:
    kit.run()
    with pytest.raises(TargetError, match=r"mart/totals, transform\.sql:3: column \"m\" does not exist"):
        kit.run("-- a comment\nSELECT n,\n  m FROM generate_series(1, 5) AS n")
    with pytest.raises(TargetError, match="division by zero"):
        kit.run("SELECT 1 / (n - 3) AS id FROM generate_series(1, 5) AS n")
    with pytest.raises(TargetError, match="have the same key"):
        kit.run("SELECT n % 2 AS id FROM generate_series(1, 5) AS n", key=["id"])
    with pytest.raises(TargetError, match="no column 'none'"):
        kit.run(key=["none"])
    assert len(kit.rows()) == 5
    assert run_sql(kit.url, "SELECT relname FROM pg_class WHERE relname LIKE 'totals\\_\\_v_'") == [("totals__v1",)]


def test_what_somebody_else_made_is_not_replaced(kit: Kit) -> None:
    run_sql(kit.url, "CREATE SCHEMA mart; CREATE VIEW mart.totals AS SELECT 1 AS theirs")
    with pytest.raises(TargetError, match="did not make it"):
        kit.run()
    assert kit.rows() == [(1,)]


def test_a_view_becomes_a_table_and_a_table_a_view(kit: Kit) -> None:
    assert kit.run(materialize="view").rows is None
    run_sql(kit.url, "GRANT SELECT ON mart.totals TO PUBLIC")
    assert kit.rows()[0] == (1, 2)
    kit.run(materialize="table")
    assert run_sql(kit.url, "SELECT row_id, id, twice FROM mart.totals ORDER BY 1")[0] == (1, 1, 2)
    made = kit.run("SELECT 7 AS id, 'x' AS twice", materialize="view")
    assert made.columns == (("id", "integer"), ("twice", "text"))
    assert kit.rows() == [(7, "x")]
    assert run_sql(kit.url, "SELECT has_table_privilege('public', 'mart.totals', 'SELECT')") == [(True,)]
    assert run_sql(kit.url, "SELECT relname FROM pg_class WHERE relname LIKE 'totals\\_\\_v_'") == []


def test_statements_run_all_or_not_at_all(kit: Kit) -> None:
    run_sql(kit.url, "CREATE TABLE seen (n integer)")
    kit.spec = {"materialize": "statements", "settings": {"work_mem": "8MB"}}
    made = kit.run("INSERT INTO seen SELECT generate_series(1, 4); DELETE FROM seen WHERE n > 3;\nANALYZE seen")
    assert made.statements == (("INSERT", 4), ("DELETE", 1), ("VACUUM", 0)) and made.rows == 5
    with pytest.raises(TargetError, match=r"transform\.sql:2: "):
        kit.run("DELETE FROM seen;\nSELECT * FROM nowhere")
    assert run_sql(kit.url, "SELECT count(*) FROM seen") == [(3,)]


def test_a_plan_changes_nothing(kit: Kit) -> None:
    found = plan_transform(kit.context)
    assert (found.table_version, found.columns[1]) == (1, ("twice", "integer")) and found.plan
    assert run_sql(kit.url, "SELECT to_regnamespace('mart')::text, to_regnamespace('operations')::text") == [
        (None, None)
    ]


@pytest.mark.parametrize(
    ("sql", "reads", "writes"),
    [
        (
            "WITH old AS (SELECT * FROM a.b) SELECT * FROM old JOIN c.d USING (id), (SELECT 1 FROM e) AS q",
            ["a.b", "c.d", "e"],
            [],
        ),
        (
            "CREATE TEMP TABLE t AS SELECT * FROM a.b; INSERT INTO c.d SELECT * FROM t; UPDATE c.d SET x = y FROM a.e",
            ["a.b", "a.e"],
            ["c.d"],
        ),
        (
            "TRUNCATE a.b, a.c; MERGE INTO a.d USING a.e ON true WHEN MATCHED THEN DELETE",
            ["a.e"],
            ["a.b", "a.c", "a.d"],
        ),
        ("SELECT * FROM pg_catalog.pg_class, information_schema.tables", [], []),
    ],
)
def test_what_is_read_and_made_is_known_from_the_sql(kit: Kit, sql: str, reads: list[str], writes: list[str]) -> None:
    kit.spec = {"materialize": "statements"}
    kit.sql = sql
    found = read_transform(kit.context.transform)
    assert (sorted(found.reads), sorted(found.writes)) == (reads, writes)


def test_a_load_comes_before_what_reads_it_and_starts_it(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    folder.write("schedules/loading/defs.yaml", SENSOR)
    project = folder.load()
    assert not project.broken
    totals = project.transforms["shop/totals"]
    assert totals.upstream == ("shop/orders",) and not totals.unknown
    assert totals.deps == (dg.AssetKey(["shop", "orders_load"]),)
    jobs, cursor = tick(folder, instance)
    assert jobs == ["shop__orders_load"]
    assert pull(folder, instance).success
    jobs, cursor = tick(folder, instance, cursor)
    assert jobs == ["shop__totals_transform"]
    assert run(folder, instance, "shop__totals_transform")
    assert query(database, "SELECT name, orders FROM shop.totals") == [("Ann", 2), ("Bob", 1)]
    assert tick(folder, instance, cursor)[0] == []


def test_the_copy_of_a_transform_in_a_second_database_follows_it(
    folder: Folder, instance: dg.DagsterInstance, second_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASETS_URL", second_database)
    folder.write("schedules/loading/defs.yaml", SENSOR)
    folder.write(
        "resources/datasets/defs.yaml",
        "type: export_pipelines.PostgresConnection\nattributes: {resource_key: datasets, url: {env: DATASETS_URL}}\n",
    )
    folder.write(
        "assets/datasets/totals/defs.yaml",
        """
        type: export_pipelines.LoadTable
        attributes:
          source: {type: table, table: shop/totals}
          target: {connection: datasets, table: shop.totals}
          style: shadow
          key: [name]
        """,
    )
    assert not folder.load().broken
    pull(folder, instance)
    _, cursor = tick(folder, instance)
    assert run(folder, instance, "shop__totals_transform")
    jobs, _ = tick(folder, instance, cursor)
    assert "datasets__totals_load" in jobs
    assert run(folder, instance, "datasets__totals_load")
    assert query(second_database, "SELECT name, orders FROM shop.totals ORDER BY 1") == [("Ann", 2), ("Bob", 1)]


def test_the_asset_is_made_from_the_ui_and_tells_rows_and_sql(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    pull(folder, instance)
    job = folder.load().definitions().resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(["shop", "totals_transform"])])
    (made,) = told(instance, result, "transform")
    values = {name: value.value for name, value in made.metadata.items()}
    assert (values["rows"], values["table_version"]) == (2, 1) and "GROUP BY name" in values["sql"]
    assert [c.name for c in values["dagster/column_schema"].columns] == ["name", "orders"]


def test_a_failed_transform_is_tried_again_and_a_cron_waits_for_its_tick(
    folder: Folder, instance: dg.DagsterInstance
) -> None:
    folder.write("schedules/loading/defs.yaml", SENSOR.replace("loading}", "loading, failure_pause_minutes: 0}"))
    folder.write("assets/shop/totals/defs.yaml", TOTALS + "  retries: {attempts: 0}\n")
    assert not run(folder, instance, "shop__totals_transform")  # nothing is loaded yet
    assert "shop__totals_transform" in tick(folder, instance)[0]
    assert run(folder, instance, "shop__orders_load") and run(folder, instance, "shop__totals_transform")
    folder.write("assets/shop/totals/defs.yaml", TOTALS + '  cron: "0 0 1 1 *"\n')
    assert "shop__totals_transform" not in tick(folder, instance)[0]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("transform.sql", "SELECT 1;\nSELEKT 2", "SQL does not parse"),
        ("transform.sql", "SELECT 1 AS a;\nDELETE FROM x", "one SELECT"),
        ("transform.sql", "WITH d AS (DELETE FROM x RETURNING 1) SELECT * FROM d", "writes or locks"),
        ("transform.sql", "  ", "is empty"),
        ("defs.yaml", TOTALS + "  cron: daily\n", "no cron expression"),
        ("defs.yaml", TOTALS + "  depends: [shop/order]\n", "'shop/order'"),
        ("defs.yaml", TOTALS + "  materialize: view\n", "`key` is for"),
        ("defs.yaml", TOTALS.replace("shop.totals}", "shop.totals, connection: none}"), "'none'"),
        ("defs.yaml", TOTALS.replace("shop.totals", "shop.orders"), "makes shop.orders, as 'shop/orders'"),
    ],
)
def test_an_error_of_a_definition_has_its_place_and_breaks_no_other(
    folder: Folder, file: str, text: str, message: str
) -> None:
    folder.write(f"assets/shop/totals/{file}", text)
    project = folder.load()
    (broken,) = project.broken
    assert broken.id == "shop/totals" and list(project.loads) == ["shop/orders"]
    assert message in str(broken.errors[0]) and broken.errors[0].file
    assert project.definitions()


def test_transforms_that_wait_for_each_other_are_broken(folder: Folder) -> None:
    folder.write("assets/shop/more/defs.yaml", "type: export_pipelines.Transform\nattributes: {target: {table: a.b}}\n")
    folder.write("assets/shop/more/transform.sql", "SELECT * FROM shop.totals")
    folder.write("assets/shop/totals/transform.sql", "SELECT name FROM shop.orders, a.b")
    assert all("wait for each other" in str(each.errors[0]) for each in folder.load().broken)
    folder.write("assets/shop/totals/transform.sql", "SELECT name FROM shop.orders, erp.customers, public.events")
    project = folder.load()
    assert not project.broken
    assert project.transforms["shop/totals"].unknown == ("erp.customers", "public.events")
    assert dg.AssetKey(["warehouse", "erp", "customers"]) in project.transforms["shop/totals"].deps
    assert project.definitions().resolve_all_asset_keys()
