"""A scenario: one table with its ledger and writers, which faults strike one after another, with a proof after each."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from typing import Any

from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.steps.restore import restore_partition
from export_pipelines.stores import open_store
from tests.fault.acting import STEPS, Acting, Typical
from tests.fault.attempts import LedgerTable, day_window
from tests.fault.ledger import DAYS, Writers, insert_rows, make_table, paused
from tests.fault.outside import Outside, bucket_objects, chain, folder_objects, living
from tests.fault.proofs import deaths, last_death, prove, prove_restored
from tests.fault.world import World, rival
from tests.support.servers import run_sql


class Scenario(Acting):
    """One table. Use as a context manager; `at_the_end` makes the last proof."""

    def __init__(self, world: World, rng: random.Random, number: int, *, s3: bool) -> None:
        self.world, self.rng, self.number, self.s3 = world, rng, number, s3
        self.typical = Typical(dict.fromkeys(STEPS, 25), dict.fromkeys(STEPS, 0.15))
        self.by_key = rng.random() < 0.2
        self.partitioned = not self.by_key and rng.random() < 0.5
        self.excused = 0
        self.in_doubt = False
        folder = world.folder / f"scenario-{number}"
        name = f"t{number}_{rng.randrange(1 << 30):08x}"
        self.client, self._seen = world.seaweed.client(), dict[tuple[str, str], bytes]()
        self.bucket = world.seaweed.new_bucket().removeprefix("s3://") if s3 else ""
        self.table = LedgerTable(world.source, world.catalog, folder, self._spec(), name=name)
        self.table.archive_url = f"s3://{self.bucket}/a" if s3 else (folder / "archive").as_uri()
        self.table.environment = {**world.seaweed.environment(), "AWS_ENDPOINT_URL": world.proxy.endpoint} if s3 else {}
        self.table.window = day_window(DAYS[0])
        if self.by_key:
            self.table.select, self.table.delete = _OPAQUE, _DELETE
        self.outside = Outside(self.objects, self.table.table.id)
        self.writers = Writers(world.source, rng.randrange(1 << 30))

    def __str__(self) -> str:
        kind = "by key" if self.by_key else "partitioned" if self.partitioned else "plain"
        return f"scenario {self.number} ({kind}, {'S3' if self.s3 else 'folder'}, {self.table.spec})"

    def _spec(self) -> dict[str, Any]:
        rng = self.rng
        spec: dict[str, Any] = {
            "cleanup": {
                "mode": "after_archive",
                "batch_rows": rng.choice((2, 3, 5, 8, 100)),
                "acknowledge": ["ledger"],
            },
            "compression": rng.choice(("gzip", "gzip", "zstd", "none")),
            "keep_export": rng.random() < 0.7,
            # What a later file holds as well, or nobody has any more, may go; what is the only copy of a row may not.
            "retention": {"keep": "30 days"},
            "lock_timeout": "5s",
        }
        return {**spec, "key": ["id"]} if self.by_key else {**spec, "table": "t", "time_column": "at"}

    def __enter__(self) -> Scenario:
        make_table(self.world.source, partitioned=self.partitioned)
        for day in DAYS:
            self.insert(day, 8)
        self.writers.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.writers.stop()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.table.folder)

    def insert(self, day: str, number: int, long: int = 1) -> None:
        with rival(self.world.source) as cursor:
            insert_rows(cursor, day, number, long)
            cursor.connection.commit()

    def deaths(self, how: str) -> int:
        return deaths(self.world.source, how)

    def last_death(self) -> int:
        return last_death(self.world.source)

    # The archive, past the program

    def objects(self) -> dict[str, bytes]:
        """All objects of the archive."""
        if self.s3:
            return bucket_objects(self.client, self.bucket, "a/", self._seen)
        return folder_objects(self.table.folder / "archive")

    def put(self, key: str, data: bytes | None) -> None:
        """Change an object of the archive behind the program's back; None removes it."""
        client, path = self.client, self.table.folder / "archive" / key
        if self.s3 and data is None:
            client.delete_object(Bucket=self.bucket, Key=f"a/{key}")
        elif self.s3:
            client.put_object(Bucket=self.bucket, Key=f"a/{key}", Body=data)
        elif data is None:
            path.unlink()
        else:
            path.write_bytes(data)

    # Proofs

    def prove(self) -> int:
        """Compare source and archive with the ledger."""
        return prove(
            self.world.source,
            self.outside,
            excused=self.excused,
            receipts_exact=not self.in_doubt,
            by_key=self.by_key,
        )

    def prove_restored(self, *, at_the_end: bool = False) -> None:
        """Restore all partitions, one by one, and compare with the ledger."""
        manifests = living(chain(self.objects(), self.table.table.id))
        partitions = sorted({m["export"]["partition"] for m in manifests})
        names = {column["name"] for m in manifests for column in m["export"]["columns"]} - _TYPES.keys()
        columns = ", ".join([*(f"{n} {t}" for n, t in _TYPES.items()), *(f'"{name}" text' for name in sorted(names))])
        run_sql(self.world.source, "DROP TABLE IF EXISTS restored, one_restored")
        run_sql(self.world.source, f"CREATE TABLE restored (partition text, {columns})")
        with self.direct():
            archive = open_store(self.table.archive_url)
            for partition in partitions:
                run_sql(self.world.source, f"DROP TABLE IF EXISTS one_restored; CREATE TABLE one_restored ({columns})")
                source = PostgresSource(self.world.source)
                restore_partition(archive, self.table.table.id, partition, source, "one_restored")
                run_sql(self.world.source, "INSERT INTO restored SELECT %s, * FROM one_restored", (partition,))
        prove_restored(self.world.source, partitions, exact=not self.in_doubt, at_the_end=at_the_end)

    def at_the_end(self) -> None:
        """All steps without faults while nobody writes; then the archive is all that there is, and each row once."""
        with paused(self.world.source):
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


_TYPES = {
    "id": "bigint", "at": "timestamptz", "note": "text", "amount": "numeric", "life": "bigint", "version": "bigint"
}  # fmt: skip
_WINDOW = "at >= %(window_start)s AND at < %(window_end)s"
_OPAQUE = f"SELECT DISTINCT id, at, note, amount, life, version FROM t WHERE {_WINDOW}"
_DELETE = f"DELETE FROM t WHERE {_WINDOW}"
