"""Cleanup with its proof against a plain DELETE of the same rows, on byte-for-byte copies of one database.

The table has half as many rows again as are deleted, a primary key and two indexes. It is exported and archived once;
for each measurement the database (CREATE DATABASE … STRATEGY FILE_COPY, which keeps file nodes and row identities), the
catalog and the files are copied, so that every run finds the same pages, hint bits and write-ahead log.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.export import forget
from benchmarks.measure import ratios, say, seconds, spread, table
from benchmarks.server import Database, load_lineitem
from benchmarks.worker import in_own_process

BATCHES = (10_000, 25_000, 50_000, 100_000, 200_000)
_BATCH = 50_000
_COPY = "item_copy"


@dataclass(frozen=True)
class Case:
    """A way of proof: how the rows are selected, and whether the table was rewritten after its export."""

    title: str
    select: str
    rewritten: bool = False
    bar: float = 2.5


CASES = {
    "row": Case("identity (rows of one table)", "SELECT * FROM item WHERE {where}"),
    "key": Case("identity, key in the file (opaque query)", "SELECT DISTINCT * FROM item WHERE {where}"),
    "row, rewritten": Case("content, after VACUUM FULL", "SELECT * FROM item WHERE {where}", True, 4.5),
    "key, rewritten": Case(
        "keys and content, after VACUUM FULL", "SELECT DISTINCT * FROM item WHERE {where}", True, 4.5
    ),
}


@dataclass(frozen=True)
class Prepared:
    """An archived table: template databases (source and catalog), its files, and the rows to delete."""

    base: Database
    template: str
    catalog_template: str
    files: Path
    where: str
    case: Case
    batch_rows: int

    @property
    def job(self) -> dict[str, Any]:
        select = self.case.select.format(where=self.where)
        delete = f"DELETE FROM item WHERE {self.where}"
        return {"table": "item", "select_sql": select, "delete_sql": delete, "batch_rows": self.batch_rows}


def run(base: Database, pairs: int, scale: float, rows: int) -> str:
    """Measure; the result as Markdown."""
    load_lineitem(base, scale)
    where = _fill(base, rows)
    parts = [_proofs(base, where, pairs), _sizes(base, where, max(1, pairs // 2))]
    base.run("DROP TABLE item")
    return "\n".join(parts)


def _fill(base: Database, rows: int) -> str:
    """Make the table; a condition that as good as `rows` of it fulfil."""
    base.run(
        "DROP TABLE IF EXISTS item",
        "CREATE TABLE item (LIKE lineitem) WITH (autovacuum_enabled = false)",
        f"INSERT INTO item SELECT * FROM lineitem LIMIT {rows * 3 // 2}",
        "ALTER TABLE item ADD PRIMARY KEY (l_orderkey, l_linenumber)",
        "CREATE INDEX ON item (l_partkey)",
        "CREATE INDEX ON item (l_shipdate)",
        "VACUUM (ANALYZE) item",
    )
    (last,) = base.run(f"SELECT l_orderkey FROM item ORDER BY l_orderkey OFFSET {rows} LIMIT 1")[0]
    return f"l_orderkey < {last}"


def _proofs(base: Database, where: str, pairs: int) -> str:
    lines = []
    for name, case in CASES.items():
        with _prepared(base, where, case, _BATCH) as prepared:
            plain, ours, memory, deleted = [], [], 0.0, 0
            for number in range(pairs):
                plain.append(_plain(prepared))
                figures = _cleanup(prepared)
                ours.append(figures["seconds"])
                memory, deleted = max(memory, figures["peak_mb"]), figures["deleted"]
                say(f"cleanup {name} {number + 1}/{pairs}: plain {plain[-1]:.2f} s, ours {ours[-1]:.2f} s, "
                    f"{figures['peak_mb']:.0f} MB, {figures['deleted']} by {figures['proof']}")  # fmt: skip
        found = ratios(ours, plain)
        lines.append(
            [case.title, spread(plain).text(), spread(ours).text(), found.text(), f"{case.bar}", f"{memory:.0f}"]
        )
    head = ["proof", "plain DELETE, s", "cleanup, s", "ratio of the pairs", "bar", "memory, MB"]
    return f"{deleted:,} rows in batches of {_BATCH:,}; {pairs} pairs.\n\n" + table(head, lines)


def _sizes(base: Database, where: str, pairs: int) -> str:
    """What other sizes of a batch give, and how much of it is the server's: the same batches as bare DELETEs."""
    lines = []
    for size in BATCHES:
        with _prepared(base, where, CASES["row"], size) as prepared:
            plain, bare, ours, memory = [], [], [], 0.0
            for _ in range(pairs):
                plain.append(_plain(prepared))
                bare.append(_batched(prepared))
                figures = _cleanup(prepared)
                ours.append(figures["seconds"])
                memory = max(memory, figures["peak_mb"])
        say(f"batches of {size}: plain {spread(plain).text()}, bare {spread(bare).text()}, ours {spread(ours).text()}")
        lines.append([f"{size:,}", ratios(bare, plain).text(), ratios(ours, plain).text(), f"{memory:.0f}"])
    head = ["rows a batch", "bare DELETEs of as many rows / plain DELETE", "cleanup / plain DELETE", "memory, MB"]
    return "Sizes of a batch, proof by identity:\n\n" + table(head, lines)


@contextmanager
def _prepared(base: Database, where: str, case: Case, batch_rows: int) -> Iterator[Prepared]:
    """Export and archive the table, and make templates of all that a cleanup changes."""
    files = base.folder / "archived"
    shutil.rmtree(files, ignore_errors=True)
    forget(base)
    prepared = Prepared(base, "item_template", "catalog_template", files, where, case, batch_rows)
    # Exported under the name that the copies have later: in another database identities are not sound.
    with _copied(base, "source", _COPY) as source:
        for step in ("export", "archive"):
            in_own_process({**prepared.job, **_places(source, files), "step": step})
    shutil.rmtree(files / "exports")
    with _copied(base, "source", prepared.template), _copied(base, "catalog", prepared.catalog_template):
        if case.rewritten:
            _in(base, prepared.template, "VACUUM (FULL, ANALYZE) item")
        yield prepared
    shutil.rmtree(files)


def _plain(prepared: Prepared) -> float:
    """Seconds of a plain DELETE of the same rows."""
    return _on_copy(prepared, lambda copy: _psql(copy, prepared.job["delete_sql"]))


def _batched(prepared: Prepared) -> float:
    """Seconds of plain DELETEs that take as many rows at a time as the cleanup does."""
    rows = prepared.batch_rows
    (least, most) = _in(
        prepared.base, prepared.template, f"SELECT min(l_orderkey), max(l_orderkey) FROM item WHERE {prepared.where}"
    )[0]
    (total,) = _in(prepared.base, prepared.template, f"SELECT count(*) FROM item WHERE {prepared.where}")[0]
    step = (most - least + 1) * rows // total + 1
    bounds = range(least, most + 1, step)
    deletes = [
        f"DELETE FROM item WHERE {prepared.where} AND l_orderkey >= {b} AND l_orderkey < {b + step}" for b in bounds
    ]
    return _on_copy(prepared, lambda copy: _psql(copy, *deletes))


def _on_copy(prepared: Prepared, action: Callable[[Database], object]) -> float:
    with _copied(prepared.base, prepared.template, _COPY) as copy:
        return seconds(lambda: action(copy))


def _cleanup(prepared: Prepared) -> dict[str, Any]:
    """Figures of a cleanup in a process of its own."""
    base, files = prepared.base, prepared.base.folder / "cleaned"
    shutil.copytree(prepared.files, files)
    try:
        with (
            _copied(base, prepared.template, _COPY) as source,
            _copied(base, prepared.catalog_template, "catalog_copy") as catalog,
        ):
            places = _places(replace(source, catalog=catalog.source), files)
            # The manifests name the archive where it was; files are found by key.
            return in_own_process({**prepared.job, **places, "step": "cleanup"})
    finally:
        shutil.rmtree(files)


def _places(base: Database, files: Path) -> dict[str, str]:
    return {"source": base.source, "catalog": base.catalog, "folder": str(files)}


@contextmanager
def _copied(base: Database, template: str, name: str) -> Iterator[Database]:
    """A copy of a whole database for the time of the block."""
    server = _named(base, "postgres")
    server.run(
        f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)',
        f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY',
    )
    try:
        yield _named(base, name)
    finally:
        server.run(f'DROP DATABASE "{name}" WITH (FORCE)')


def _named(base: Database, name: str) -> Database:
    return replace(base, source=f"{base.source.rpartition('/')[0]}/{name}")


def _in(base: Database, name: str, statement: str) -> list[tuple[Any, ...]]:
    return _named(base, name).run(statement)


def _psql(base: Database, *statements: str) -> None:
    commands = [part for statement in statements for part in ("-c", statement)]
    subprocess.run([base.programs / "psql", "-X", "-q", base.source, *commands], check=True)
