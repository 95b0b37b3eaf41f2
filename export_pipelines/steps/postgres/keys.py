"""Proof by key in PostgreSQL: the rows that delete.sql matches, with their identity, MD5 and key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from export_pipelines.formats.csv import copy_options
from export_pipelines.sources.postgres import Session
from export_pipelines.sql import Delete, RelationName, identity_columns, quote_identifier
from export_pipelines.steps.keys import PLAIN, KeyCollector, batched, key_digest, parse
from export_pipelines.steps.postgres.identity import IdentityPlan
from export_pipelines.steps.sidecar import SidecarWriter


def write_sidecar(
    session: Session, plan: IdentityPlan, delete: Delete, collected: KeyCollector, sidecar: SidecarWriter
) -> None:
    """Read the rows that delete.sql matches, in the session's snapshot, and write those that are in the file."""

    def take(records: list[bytes]) -> None:
        lines = [line for line, key in sidecar_lines(records) if collected.has(key)]
        if lines:
            sidecar.add(lines)

    with batched(take) as write:
        session.copy_out(delete.selection(selected(plan.relation, plan.tableoid, plan.key)), copy_options(PLAIN), write)


def selected(relation: RelationName | None, tableoid: bool, key: Sequence[str]) -> str:
    """The columns by which rows are known: identity, MD5 of the whole row, key."""
    assert relation is not None
    name = relation.qualifier
    identity = identity_columns(name, tableoid=tableoid)
    return ", ".join([identity, f"md5(ROW({name}.*)::text)", *(f"{name}.{quote_identifier(k)}" for k in key)])


def sidecar_lines(records: Iterable[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
    """From records of `selected`: the sidecar's line, and the digest of the key (None if a part of it is NULL)."""
    for record in records:
        # `xmin,"(block,offset)",md5,key…`, perhaps with a tableoid in front.
        cut = record.index(b'",') + 34
        head, text = record[:cut], record[cut + 1 : -1].decode()
        # Quotes are rare in keys; splitting takes a third of the time of the parser.
        values = next(parse([record[cut + 1 :]], PLAIN)) if '"' in text else text.split(",")
        key = key_digest(values, "")
        yield head + b"," + (key.hex().encode() if key else b""), key
