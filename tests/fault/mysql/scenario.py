"""A scenario on MariaDB: one table with its ledger and writers, and a proof after each fault."""

from __future__ import annotations

import random
import shutil
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.specs.table import TableDefinition
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import Unprovable
from export_pipelines.steps.restore import restore_partition
from export_pipelines.stores import open_store
from tests.fault.acting import STEPS, Acting, Typical
from tests.fault.attempts import LedgerTable, day_window
from tests.fault.ledger import DAYS, Writers
from tests.fault.mysql.ledger import KINDS, TRIGGER, insert_mysql_rows, make_mysql_table, write_mysql
from tests.fault.mysql.proofs import Numbers, prove_mysql, prove_mysql_restored
from tests.fault.mysql.world import WRITER, MysqlWorld, end_mysql_sessions, mysql_rival
from tests.fault.outside import Outside, chain, folder_objects, living
from tests.fault.world import wait_until
from tests.support.mariadb import mysql_connection, run_mysql
from tests.support.servers import run_sql

_WINDOW = "at >= %(window_start)s AND at < %(window_end)s"
_OPAQUE = f"SELECT DISTINCT id, at, note, amount, life, version FROM t WHERE {_WINDOW}"
_DELETE = f"DELETE FROM t WHERE {_WINDOW}"
_COLUMNS = ("id", "at", "note", "amount", "life", "version")
_TYPES = "id VARCHAR(80), at DATETIME(6), note TEXT, amount VARCHAR(40), life BIGINT, version BIGINT"
_DOUBTED = """
SELECT e.sequence, b.deleted FROM export_pipelines.cleanup_batch b JOIN export_pipelines.export e ON e.id = b.export_id
WHERE b.state = 'committing' AND e.table_id = %s AND e.sequence IS NOT NULL
"""


@dataclass
class MysqlLedgerTable(LedgerTable):
    """A table of MariaDB with a ledger."""

    @property
    def table(self) -> TableDefinition:
        return super().table.model_copy(update={"engine": "mysql"})

    @property
    def context(self) -> StepContext:
        return replace(super().context, source=MysqlSource(self.database))


class MysqlScenario(Acting):
    """One table. Use as a context manager; `at_the_end` makes the last proof."""

    def __init__(self, world: MysqlWorld, rng: random.Random, number: int) -> None:
        self.world, self.rng, self.number = world, rng, number
        self.typical = Typical(dict.fromkeys(STEPS, 40), dict.fromkeys(STEPS, 0.3))
        self.kind = list(KINDS)[number % len(KINDS)]
        self.excused = 0
        self.clock_was_wrong = False
        folder = world.folder / f"scenario-{number}"
        name = f"t{number}_{rng.randrange(1 << 30):08x}"
        self.table = MysqlLedgerTable(world.source, world.catalog, folder, self._spec(), name=name)
        self.table.archive_url = (folder / "archive").as_uri()
        self.table.window = day_window(DAYS[0])
        if self.kind == "by key":
            self.table.select, self.table.delete = _OPAQUE, _DELETE
        self.outside = Outside(self.objects, self.table.table.id)
        self.writers = Writers(f"{world.writer}#{self.kind}", rng.randrange(1 << 30), work=write_mysql)

    def __str__(self) -> str:
        return f"scenario {self.number} ({self.kind}, {self.table.spec})"

    def _spec(self) -> dict[str, Any]:
        rng = self.rng
        spec: dict[str, Any] = {
            "cleanup": {
                "mode": "after_archive",
                "batch_rows": rng.choice((2, 3, 5, 8, 100)),
                "acknowledge": [TRIGGER],
            },
            "compression": rng.choice(("gzip", "gzip", "zstd", "none")),
            "keep_export": rng.random() < 0.7,
            "retention": {"keep": "30 days"},
            "lock_timeout": "5s",
        }
        if self.kind == "by key":
            return {**spec, "key": ["id"]}
        return {**spec, "table": "t", "time_column": "at"}

    def __enter__(self) -> MysqlScenario:
        make_mysql_table(self.world.admin, self.kind)
        for day in DAYS:
            self.insert(day, 8)
        self.writers.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop_writers()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.table.folder)

    def stop_writers(self) -> None:
        """End them, and what they had not committed."""
        self.writers.stop()
        wait_until(lambda: not end_mysql_sessions(self.world.admin, WRITER), "the writers' sessions to end")

    def patiently(self, step: str, day: str) -> Any:
        """As for all engines; a cleanup that refuses since columns were altered wants an export before it."""
        try:
            return super().patiently(step, day)
        except Unprovable:
            for before in ("export", "archive"):
                super().patiently(before, day)
            return super().patiently(step, day)

    def insert(self, day: str, number: int, long: int = 1) -> None:
        with mysql_rival(self.world.writer) as cursor:
            insert_mysql_rows(cursor, self.kind, self.rng, day, number, long)
            cursor.connection.commit()

    def deaths(self, how: str) -> int:
        return int(run_mysql(self.world.admin, "SELECT COUNT(*) FROM ledger.death WHERE how = %s", (how,))[0][0])

    def last_death(self) -> int:
        return int(run_mysql(self.world.admin, "SELECT COALESCE(MAX(number), 0) FROM ledger.death")[0][0])

    def note(self) -> None:
        """Remember the rows of batches whose outcome nobody was told."""
        found = run_sql(self.world.catalog, _DOUBTED, (self.table.table.id,))
        if not found:
            return
        numbers = Numbers(self.outside, self.outside.read()[0])
        versions = {
            numbers.records[sequence][record]["version"]
            for sequence, deleted in found
            for first, last in deleted
            for number in range(first, last + 1)
            if (record := numbers.record(sequence, number)) is not None
        }
        with closing(mysql_connection(self.world.admin)) as connection, connection.cursor() as cursor:
            rows = [(version,) for version in versions]
            cursor.executemany("INSERT IGNORE INTO ledger.doubted VALUES (%s)", rows)

    # The archive, past the program

    def objects(self) -> dict[str, bytes]:
        return folder_objects(self.table.folder / "archive")

    def put(self, key: str, data: bytes | None) -> None:
        path = self.table.folder / "archive" / key
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)

    # Proofs

    def prove(self) -> int:
        return prove_mysql(self.world.admin, self.outside, excused=self.excused)

    def prove_restored(self, *, at_the_end: bool = False) -> None:
        admin = self.world.admin
        manifests = living(chain(self.objects(), self.table.table.id))
        partitions = sorted({m["export"]["partition"] for m in manifests})
        extras = sorted({c["name"] for m in manifests for c in m["export"]["columns"]} - set(_COLUMNS))
        columns = ", ".join([_TYPES, *(f"`{name}` TEXT" for name in extras)])
        run_mysql(admin, f"CREATE OR REPLACE TABLE ledger.restored (part VARCHAR(20), {columns})")
        archive, target = open_store(self.table.archive_url), MysqlSource(admin)
        for partition in partitions:
            run_mysql(admin, f"CREATE OR REPLACE TABLE ledger.one_restored ({columns})")
            restore_partition(archive, self.table.table.id, partition, target, "ledger.one_restored")
            run_mysql(admin, "INSERT INTO ledger.restored SELECT %s, r.* FROM ledger.one_restored r", (partition,))
        # Rows without a key are told apart by the times of files and receipts.
        keyless = self.kind == "keyless"
        exact = not (self.clock_was_wrong and keyless)
        prove_mysql_restored(admin, partitions, exact=exact, keyless=keyless, at_the_end=at_the_end)

    def at_the_end(self) -> None:
        self.stop_writers()
        for step in STEPS[:3]:
            for day in DAYS:
                self.patiently(step, day)
        if self.rng.random() < 0.25:
            # What is archived now is nothing, and stands in for nothing.
            for step in ("export", "archive"):
                for day in DAYS:
                    self.patiently(step, day)
        self.patiently("expire", DAYS[0])
        self.prove()
        self.prove_restored(at_the_end=True)
