"""Batches of a sidecar: lines that one transaction may delete the rows of."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter

from export_pipelines.manifest import ArtifactManifest
from export_pipelines.scratch import scratch_database
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.reading import open_stored
from export_pipelines.steps.receipts import RecordSet
from export_pipelines.steps.sidecar import read_buckets


@dataclass(frozen=True)
class Batch:
    """Identities that one transaction may delete, with the record numbers that they prove. `number` counts from 0."""

    number: int
    identities: list[bytes]
    ordinals: list[int]


@contextmanager
def batches(
    ctx: StepContext, manifest: ArtifactManifest, done: RecordSet, *, repeats: bool, drop: int = 0
) -> Iterator[Iterator[Batch]]:
    """The sidecar's buckets as batches, without the records in `done`; the last `drop` fields of each line go.

    Those of a file with repeated rows are put together so that all the records of a row are in one batch, since it can
    be deleted only once.
    """
    found = _from_sidecar(ctx, manifest, done, drop)
    if not repeats:
        yield found
        return
    with scratch_database() as database:
        database.execute("CREATE TABLE matched (number INTEGER PRIMARY KEY, identity BLOB, ordinal INTEGER)")
        for batch in found:
            pairs = zip(batch.identities, batch.ordinals, strict=True)
            database.executemany("INSERT INTO matched (identity, ordinal) VALUES (?, ?)", pairs)
        yield _grouped(database, ctx.table.spec.cleanup.batch_rows)


def _grouped(database: sqlite3.Connection, batch_rows: int) -> Iterator[Batch]:
    rows = database.execute("SELECT identity, ordinal FROM matched ORDER BY identity, ordinal")
    groups = groupby(rows, key=itemgetter(0))
    number = 0
    while chunk := [(identity, n) for _, group in islice(groups, batch_rows) for identity, n in group]:
        yield Batch(number, [identity for identity, _ in chunk], [n for _, n in chunk])
        number += 1


def _from_sidecar(ctx: StepContext, manifest: ArtifactManifest, done: RecordSet, drop: int) -> Iterator[Batch]:
    assert manifest.identity_file is not None
    first = 0
    with open_stored(ctx.archive, manifest.identity_file, ctx.keyring) as stream:
        for number, (bucket, raw) in enumerate(read_buckets(stream, manifest.export.identity)):
            last = first + bucket.rows - 1
            ordinals = list(range(first, last + 1))
            first = last + 1
            if done.covers(ordinals[0], last):
                continue
            lines = raw.splitlines()
            if drop:
                lines = [line.rsplit(b",", drop)[0] for line in lines]
            if done.touches(ordinals[0], last):
                kept = [(line, n) for line, n in zip(lines, ordinals, strict=True) if n not in done]
                lines, ordinals = [line for line, _ in kept], [n for _, n in kept]
            if lines:
                yield Batch(number, lines, ordinals)


def proved(returned: list[bytes], batch: Batch) -> list[int] | None:
    """Record numbers of identities of the batch; None if one of them is not of it."""
    if returned == batch.identities:
        return batch.ordinals
    numbers: dict[bytes, list[int]] = {}
    for identity, ordinal in zip(batch.identities, batch.ordinals, strict=True):
        numbers.setdefault(identity, []).append(ordinal)
    if any(identity not in numbers for identity in returned):
        return None
    return sorted(ordinal for identity in set(returned) for ordinal in numbers[identity])
