"""Land: copy what a source has into the landing store, as it is, once.

Each file is stored under the SHA-256 of its content, and its manifest is the commit point: the chain of a table's
manifests says what landed, in which order. A file without a manifest does not exist.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import BinaryIO

from export_pipelines.errors import IntegrityError, ObjectMissing, RequestError
from export_pipelines.manifest import LandedManifest
from export_pipelines.sources.files import Found
from export_pipelines.sources.http_client import shown_url
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.sources.table_api import TableApi
from export_pipelines.specs.load_sources import (
    DatabaseSource,
    FolderSource,
    HttpSource,
    S3Source,
    SftpSource,
    TableApiSource,
    TableSource,
)
from export_pipelines.specs.table import Compression
from export_pipelines.steps.chain import digested
from export_pipelines.steps.chain_bundles import bundles, differing
from export_pipelines.steps.land_context import LandContext, LandResult
from export_pipelines.steps.land_files import FilesLanding
from export_pipelines.steps.land_pages import PullPages, pull_together
from export_pipelines.steps.land_rows import Before, Pull, Pulled
from export_pipelines.steps.land_sources import file_source, pages_source
from export_pipelines.steps.land_storing import (
    Batched,
    Chain,
    land_content,
    landed_folder,
    read_proof,
    spool,
    store_content,
)
from export_pipelines.steps.land_table import pull_pages, pull_table
from export_pipelines.stores.base import Store

__all__ = [
    "LandContext",
    "LandResult",
    "check_landed",
    "land",
    "landed_files",
    "list_files",
    "pull_name",
    "read_singly",
]


def land(ctx: LandContext, *, force: bool = False, chain: Chain | None = None) -> LandResult:
    """Copy what is new at the source. The same name with the same content is landed once; with other content it is a
    new landing: A → B → A is three. With `force`, content is fetched even where the source says that it did not change.
    `chain` is what landed before, if it was read already; what lands is added to it.

    Crash: each file is there with its manifest, or it is not there for anybody; a file that was stored without its
    manifest is adopted by the next landing instead of being stored twice.

    Raises:
        SourceError: the source refused or failed, or its answer is not what was asked for. What landed before stays.
        StoreError: the landing store failed.
        RequestError: what the definition asks for cannot be done.
    """
    chain = chain or Chain.read(ctx.store, ctx.load.landed_as)
    source = ctx.load.spec.source
    if isinstance(source, TableApiSource):
        api = TableApi(source)
        return _land_pages(ctx, chain, Found(_rows_name(ctx), api.url), partial(pull_pages, api), force=force)
    if ctx.load.spec.one_file:
        pages = pages_source(ctx.load.spec, ctx.window, ctx.target)
        pull = partial(pull_together, pages, ctx.load.spec.file.records)
        return _land_pages(ctx, chain, Found(pages.whole_name, shown_url(pages.call.url)), pull, force=force)
    if isinstance(source, DatabaseSource | TableSource):
        return _land_rows(ctx, chain)
    return FilesLanding(ctx, chain, force).run()


def list_files(ctx: LandContext) -> list[str]:
    """The names that a source lists now: the keys of file partitions. Empty of sources that list no files."""
    if not isinstance(ctx.load.spec.source, FolderSource | S3Source | HttpSource | SftpSource):
        return []
    source = file_source(ctx.load.spec, ctx.window, ctx.target)
    return [found.name for found in source.list()]


def landed_files(store: Store, table_id: str) -> list[LandedManifest]:
    """All landings of a table, in the order in which they landed.

    Raises:
        IntegrityError: the chain of manifests is broken.
    """
    return Chain.read(store, table_id, bundle=False).entries


def read_singly(store: Store, table_id: str) -> tuple[list[LandedManifest], list[str]]:
    """What has landed, by every single manifest; and what is wrong with the bundles, which are copies of these. Raises
    IntegrityError if the chain is broken."""
    there = bundles(store, table_id)
    found = list(digested(store, table_id))
    problems = list(differing(store, there, {entry.sequence: sha256 for entry, sha256 in found}))
    return [entry for entry, _ in found if isinstance(entry, LandedManifest)], problems


def check_landed(store: Store, landed: Iterable[LandedManifest]) -> list[str]:
    """What is wrong with landed files: each is read again and compared with its manifest."""
    problems: list[str] = []
    proofs = {proof.key: proof for entry in landed for proof in entry.objects}
    for key, proof in proofs.items():
        try:
            found = read_proof(store, key)
        except (ObjectMissing, IntegrityError) as error:
            problems.append(error.message)
            continue
        if (found.size, found.sha256) != (proof.size, proof.sha256):
            problems.append(f"{key} is not what its manifest says: {found.size} bytes, and another SHA-256")
    return problems


# Rows of databases


def _land_rows(ctx: LandContext, chain: Chain) -> LandResult:
    source = ctx.load.spec.source
    name = pull_name(ctx)
    mine = [entry for entry in chain.entries if entry.partition == ctx.partition and entry.name == name]
    spec = source if isinstance(source, DatabaseSource) else None
    with (
        spool(Compression.GZIP) as content,
        spool() as digests,
        Batched(content, ctx.report, ctx.beside) as written,
    ):
        if spec is not None:
            pull = Pull(_checked(ctx, spec), ctx.database, ctx.load.select_sql, ctx.window, _before(ctx, spec, mine))
            pulled = pull.run(written.write, digests.write)
        else:
            pulled = pull_table(*_table(ctx), written.write)
        written.finished()
        digests.finish()
        last = mine[-1] if mine else None
        if not pulled.changed or (_is_full(pulled) and last and last.file.raw_sha256 == content.raw_sha256):
            return LandResult((), 1)
        state_file = None
        if digests.raw_size:
            state_file = store_content(ctx.store, landed_folder(ctx.load.landed_as), "digests", digests)
        found = Found(name, ctx.database.name if ctx.database else "")
        entry, new = land_content(
            ctx, chain, found, content, version=pulled.state.get("seen", ""), pulled=pulled, state_file=state_file
        )
    return LandResult((entry,), 0) if new else LandResult((), 1)


def pull_name(ctx: LandContext) -> str:
    """The name of what a pull of rows lands."""
    return f"{ctx.partition}/{_rows_name(ctx)}" if ctx.partition else _rows_name(ctx)


def _rows_name(ctx: LandContext) -> str:
    source = ctx.load.spec.source
    table = source.table if isinstance(source, DatabaseSource | TableApiSource) else ctx.relation
    return f"{table or ctx.load.name}.csv"


def _checked(ctx: LandContext, source: DatabaseSource) -> DatabaseSource:
    if source.connection and ctx.database is None:
        raise RequestError(f"the connection {source.connection!r} is not there", hint="look into resources/")
    return source


def _table(ctx: LandContext) -> tuple[PostgresSource, str]:
    if not isinstance(ctx.database, PostgresSource) or not ctx.relation:
        raise RequestError("the table of a `table` source is not known", hint="its id must be one of a loaded table")
    return ctx.database, ctx.relation


def _is_full(pulled: Pulled) -> bool:
    """Whether it gave all that there is, so that the same again is nothing new."""
    return pulled.state.get("mode") == "full"


def _before(ctx: LandContext, spec: DatabaseSource, mine: list[LandedManifest]) -> Before:
    """What earlier pulls left; nothing if they pulled in another way."""
    mine = [entry for entry in mine if entry.state.get("mode") == spec.mode]
    if not mine:
        return Before()
    proof = mine[-1].state_file

    def opened() -> BinaryIO:
        return ctx.store.open(proof.key) if proof else io.BytesIO()

    return Before(mine[-1].state, opened, tuple((entry.fetched, entry.state) for entry in mine))


# Pages that are one file


def _land_pages(ctx: LandContext, chain: Chain, found: Found, pull: PullPages, *, force: bool) -> LandResult:
    """What comes page by page and is one file: it lands when all of it is there, if it is not what landed last."""
    last = chain.latest.get(found.name)
    before = last.state.get("digest", "") if last is not None and not force else ""
    with ExitStack() as stack:
        written: list[Batched] = []

        def begin() -> Callable[[bytes], object]:
            content = stack.enter_context(spool(Compression.GZIP))
            written.append(stack.enter_context(Batched(content, ctx.report)))
            return written[-1].write

        pulled = pull(before, begin)
        if not pulled.changed:
            return LandResult((), 1)
        content = written[-1].finished()
        entry, new = land_content(ctx, chain, found, content, pulled=pulled)
    return LandResult((entry,), 0) if new else LandResult((), 1)
