"""A scenario: one table with its ledger and writers, which faults strike one after another, with a proof after each."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from export_pipelines.errors import ExportPipelinesError, PartitionBusy
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.steps.restore import restore_partition
from export_pipelines.stores import open_store
from tests.fault.attempts import Attempt, Halt, LedgerTable, Outcome, Sabotage, day_window
from tests.fault.ledger import DAYS, Writers, insert_rows, make_table, paused
from tests.fault.outside import Outside, bucket_objects, chain, folder_objects, living
from tests.fault.proofs import Violated, prove, prove_restored
from tests.fault.world import World, rival
from tests.support.servers import run_sql

STEPS = ("export", "archive", "cleanup", "expire")
PATIENCE = 90.0


@dataclass
class Typical:
    """How many points a step has, and how long it takes: learnt on the way, so that moments fall into it."""

    points: dict[str, int]
    seconds: dict[str, float]


class Scenario:
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
        with rival(self.world.source) as cursor:
            for day in DAYS:
                insert_rows(cursor, day, 8)
            cursor.connection.commit()
        self.writers.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.writers.stop()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.table.folder)

    # Steps

    def attempt(
        self, step: str, day: str, *, halt: Halt | None = None, sabotage: Sabotage | None = None, **changes: Any
    ) -> Attempt:
        """Begin a step in a process of its own; `changes` are those of the table."""
        return Attempt(replace(self.table, **changes), step, day_window(day), halt=halt, sabotage=sabotage)

    def whole(self, step: str, day: str, **options: Any) -> Outcome:
        """An attempt, to its end."""
        return self.ended(step, self.attempt(step, day, **options))

    def ended(self, step: str, attempt: Attempt) -> Outcome:
        """The outcome. Raises Violated if the step failed with what is no error of ours."""
        outcome = attempt.finish()
        if outcome.ended == "broken":
            raise Violated(f"{step} failed with {outcome.error}:\n{outcome.text}")
        if outcome.points:
            self.typical.points[step] = outcome.points
        return outcome

    def at_a_moment(self, step: str, day: str, deed: Callable[[Attempt], object], **options: Any) -> Outcome | None:
        """A step, and a deed at one of its points or at a random moment. None if it did not come to the deed."""
        if self.rng.random() < 0.7:
            number = self.rng.randint(1, self.typical.points[step])
            halt = Halt(self.rng.choice(("before", "after")), number)
            attempt = self.attempt(step, day, halt=halt, **options)
            struck = attempt.halted() and bool(deed(attempt))
            attempt.go_on()
        else:
            attempt = self.attempt(step, day, **options)
            begun = time.monotonic()
            time.sleep(self.rng.uniform(0, self.typical.seconds[step]))
            struck = attempt.running() and bool(deed(attempt))
            outcome = self.ended(step, attempt)
            self.typical.seconds[step] = 0.7 * self.typical.seconds[step] + 0.3 * (time.monotonic() - begun)
            return outcome if struck else None
        outcome = self.ended(step, attempt)
        return outcome if struck else None

    def patiently(self, step: str, day: str) -> Any:
        """A step without faults. What others are at work on, and what a killed server still holds, is waited for."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.direct():
                    return getattr(self.table, step)(day_window(day))
            except ExportPipelinesError as error:
                if not (error.transient or isinstance(error, PartitionBusy)) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    @contextmanager
    def direct(self) -> Iterator[None]:
        """No fault of the S3 proxy."""
        with _environment(self.table.environment):
            yield

    def prepare(self, step: str, day: str) -> None:
        """Let the step have something to do."""
        with rival(self.world.source) as cursor:
            insert_rows(cursor, day, 2, self.rng.choice((1, 1, 20)))
            cursor.connection.commit()
        for before in STEPS[: STEPS.index(step)]:
            self.patiently(before, day)

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

    def newest(self, day: str) -> dict[str, Any]:
        """The last artifact's manifest of a day."""
        found = [
            m for m in living(chain(self.objects(), self.table.table.id)) if m["export"]["partition"] == day
        ]  # fmt: skip
        return dict(found[-1])

    def newest_records(self, day: str) -> list[dict[str, str]]:
        """The records of the last artifact of a day."""
        found = [artifact for artifact in self.outside.read()[0] if artifact.partition == day]
        return found[-1].records or []

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


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
