"""Load: put a landed file into its table of PostgreSQL, in one transaction with its entry in the registry.

Readers read a view, `schema.name`. They see the rows of before or those of after a load, never a part, never nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from export_pipelines.errors import SourceError, StoreError
from export_pipelines.sources.postgres import Session
from export_pipelines.steps import land
from export_pipelines.steps.load_begin import check_table
from export_pipelines.steps.load_context import LoadContext as LoadContext  # noqa: PLC0414  # part of what this offers
from export_pipelines.steps.load_context import LoadResult, RowDiff, TableVersion
from export_pipelines.steps.load_copy import as_copy
from export_pipelines.steps.load_diff import difference
from export_pipelines.steps.load_outcome import already, note_failure
from export_pipelines.steps.load_run import LoadRun
from export_pipelines.steps.transform import TransformContext
from export_pipelines.targets import registry, schema, versions, views
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.tables import index_pages, make_schema

if TYPE_CHECKING:
    from export_pipelines.manifest import LandedManifest
    from export_pipelines.specs.load import LoadSpec
    from export_pipelines.specs.transform import TransformSpec

_VERSIONS = """
SELECT v.version, v.rows, v.digest, v.created, v.registry_id, coalesce(r.file_name, ''), v.version = t.current_version
FROM operations.table_version v JOIN operations.loaded_table t USING (target_table)
LEFT JOIN operations.datafile_registry r ON r.id = v.registry_id
WHERE v.target_table = %s ORDER BY v.version
"""


Versioned = LoadContext | TransformContext
"""A table whose versions are kept."""


def load_file(ctx: LoadContext, landed: LandedManifest, *, force: bool = False) -> LoadResult:
    """Put a landed file into the table, unless it is there by this version of the definition.

    With `force`, or by another version of the definition, it is loaded anew: in style `append` its rows replace those
    that it gave before. Two at once: the second waits, and finds the file loaded.

    Memory: some tens of mebibytes, whatever the file. Disk: temporary files for records that do not fit; a temporary
    table of the target unless COPY alone will do.

    Crash, lost connection: table, view and registry are as they were (the entry says `processing`); a rerun loads the
    file once. If the connection is lost during the commit, a rerun finds out whether it was.

    Raises:
        TargetError: file, definition and table do not fit together, too many records do not fit, a guard refuses it, or
            the definition was changed meanwhile (transient).
        IntegrityError, RequestError: the file is damaged, or not what the definition says.
        SourceError, StoreError: as they say.
    """
    names = TableNames.of(ctx.load.spec.target)
    ctx = as_copy(ctx, landed)
    with _session(ctx) as session:
        entry, state = registry.begin_entry(session, names.table, landed, ctx.load.version, ctx.run_id)
        if state == "processed" and not force:
            session.begin()
            return already(session, names, entry)
    run: LoadRun | None = None
    try:
        with ctx.target.session(read_only=False) as session:
            make_schema(session, names)
            run = LoadRun(ctx, session, landed, entry, force=force)
            return run.run()
    except BaseException as error:
        with suppress(SourceError, StoreError), ctx.target.session(read_only=False) as session:
            note_failure(session, names, entry, run, error)
        raise
    finally:
        if run is not None and run.misfits is not None:
            run.misfits.close()


def refuse_unloadable(ctx: LoadContext) -> None:
    """Find out before anything lands whether the table may be loaded, if the target answers.

    Raises:
        TargetError: it was dropped by hand, or only another definition has loaded it.
    """
    with suppress(SourceError), ctx.target.session() as session:
        check_table(session, ctx.load)


def landed_files(ctx: LoadContext) -> list[LandedManifest]:
    """All landed files of the table, in the order in which they landed.

    Raises:
        IntegrityError: the chain in the store is damaged.
    """
    return land.landed_files(ctx.store, ctx.load.landed_as)


def pending(ctx: LoadContext, landed: Iterable[LandedManifest] | None = None) -> list[LandedManifest]:
    """Landed files that were never loaded and are not ignored, in the order in which they landed. `landed` are those
    of the table, if they were read already. With `revised: replace`, the newest content of a name comes before older
    ones, which are not loaded any more when it is.

    A change of the definition alone makes none pending: to load old files anew, use `force`.
    """
    known = {registry.landing_id(each): each for each in (landed_files(ctx) if landed is None else landed)}
    names = TableNames.of(ctx.load.spec.target)
    with _session(ctx) as session:
        session.begin()
        settled = registry.settled(session, names.table, known)
    found = [each for landing, each in known.items() if landing not in settled]
    if not ctx.load.spec.revises:
        return found
    newest = {each.name: each.sequence for each in found}
    return sorted(found, key=lambda each: (newest[each.name], -each.sequence))


def waiting_by_name(ctx: LoadContext, name: str) -> list[LandedManifest]:
    """The contents of a file that wait and failed to load; all that wait, where none failed."""
    found = [each for each in pending(ctx) if each.name == name]
    failed = _not_loaded(ctx, "failed")
    return [each for each in found if registry.landing_id(each) in failed] or found


def to_force(ctx: LoadContext, landed: Iterable[LandedManifest]) -> list[LandedManifest]:
    """What `force` loads anew when nothing is named: all landed files but those that are ignored."""
    ignored = _not_loaded(ctx, "ignored")
    return [each for each in landed if registry.landing_id(each) not in ignored]


def _not_loaded(ctx: LoadContext, state: str) -> set[str]:
    with _session(ctx) as session:
        session.begin()
        return registry.not_loaded(session, TableNames.of(ctx.load.spec.target).table, state)


def ignore(ctx: LoadContext, landed: LandedManifest, reason: str = "ignored by hand") -> None:
    """Note that a landed file is never to be loaded. What is loaded stays."""
    names = TableNames.of(ctx.load.spec.target)
    with _session(ctx) as session:
        entry, state = registry.begin_entry(session, names.table, landed, ctx.load.version, ctx.run_id)
        if state != "processed":
            session.begin()
            registry.set_ignored(session, entry, reason)
            session.commit()


def table_versions(ctx: Versioned) -> list[TableVersion]:
    """The versions that are kept, oldest first. Styles that change a table in place have but one."""
    names = TableNames.of(_spec(ctx).target)
    with _session(ctx) as session:
        session.begin()
        found = session.execute(_VERSIONS, (names.table,))
    return [TableVersion(row[0], names.version(row[0]), *row[1:]) for row in found]


def index_published(ctx: LoadContext) -> None:
    """Make the index by which pages are read, of each kept version of a published table that was not published when it
    was loaded. Nothing if somebody is at it.

    Crash: what is left is no index, and is made anew.
    """
    if not ctx.load.spec.target.published:
        return
    names = TableNames.of(ctx.load.spec.target)
    with _session(ctx) as session:
        if not session.one("SELECT pg_try_advisory_lock(%s)", (names.index_lock,))[0]:
            return
        try:
            for number in versions.kept(session, names):
                index_pages(session, names, number)
        finally:
            session.execute("SELECT pg_advisory_unlock(%s)", (names.index_lock,))


def rollback(ctx: Versioned, version: int) -> TableVersion:
    """Make a kept version the one that readers see. Files that were loaded since then stay loaded, and are not pending.

    Crash: done, or not at all.

    Raises:
        TargetError: there is no such version.
    """
    names = TableNames.of(_spec(ctx).target)
    with _session(ctx) as session:
        versions.lock(session, names)
        state = versions.state(session, names)
        versions.require(session, names, version)
        last = max(version, state.last if state else 0)
        # The blocks of a shadow are known of the version that was there: the next load compares with none.
        versions.point(session, names, version, last, state.definition_version if state else "")
        views.show(session, names, versions.kept(session, names), version, {})
        session.commit()
    return next(each for each in table_versions(ctx) if each.number == version)


def diff(ctx: Versioned, old: int, new: int, *, sample: int = 20) -> RowDiff:
    """How two kept versions differ, in one snapshot.

    Raises:
        TargetError: there is no such version.
    """
    names = TableNames.of(_spec(ctx).target)
    with _session(ctx) as session:
        session.begin()
        for number in (old, new):
            versions.require(session, names, number)
        return difference(session, names.version(old), names.version(new), _spec(ctx).key, sample)


@contextmanager
def _session(ctx: Versioned) -> Iterator[Session]:
    with ctx.target.session(read_only=False) as session:
        schema.ensure(session)
        yield session


def _spec(ctx: Versioned) -> LoadSpec | TransformSpec:
    return ctx.load.spec if isinstance(ctx, LoadContext) else ctx.transform.spec
