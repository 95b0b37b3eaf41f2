"""One load: the transaction that changes a table and turns its entry of the registry `processed`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from export_pipelines.sources.postgres import Session
from export_pipelines.specs.load import Style
from export_pipelines.steps.context import Progress
from export_pipelines.steps.load_begin import lock_table
from export_pipelines.steps.load_columns import (
    Plan,
    columns_to_add,
    file_columns,
    given_columns,
    make_plan,
    own_columns,
    wanted_columns,
)
from export_pipelines.steps.load_context import Action, LoadContext, LoadResult
from export_pipelines.steps.load_copy import compare_copy, is_whole
from export_pipelines.steps.load_fill import Destination, Filler
from export_pipelines.steps.load_merge import TYPED, Merge, Place, make_typed, repeated_keys
from export_pipelines.steps.load_migrations import migrate, migrate_new, pending_migrations
from export_pipelines.steps.load_outcome import already, grown, refuse_changed, result_of, superseded
from export_pipelines.steps.load_quarantine import Quarantine, TooMany
from export_pipelines.steps.load_reading import LandedFile, header_of
from export_pipelines.steps.load_shadow import change_blocks, compare, keep, measure
from export_pipelines.targets import registry, versions, views
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.registry import Counts
from export_pipelines.targets.tables import (
    FILE_SETTING,
    TableColumn,
    add_columns,
    add_key,
    add_primary_key,
    columns_of,
    copy_structure,
    create_version,
    delete_files,
    delete_raw,
    ensure_companions,
    exists,
    lacking,
    lock_for_change,
    patiently,
    settle,
    typed_names,
)

if TYPE_CHECKING:
    from export_pipelines.manifest import LandedManifest

_ANEW = (Style.REPLACE, Style.SHADOW)
"""Styles that build a new version of the table."""


@dataclass
class _Table:
    """The version that is worked on."""

    number: int
    relation: str
    anew: bool
    """Whether it was made in this transaction."""


class LoadRun:
    """A load of one file. `run` is done once.

    Crash at any point: the table, the registry and the view are as they were.
    """

    def __init__(self, ctx: LoadContext, session: Session, landed: LandedManifest, entry: int, *, force: bool) -> None:
        self._ctx = ctx
        self._spec = ctx.load.spec
        self._session = session
        self._landed = landed
        self._entry = entry
        self._force = force
        self._names = TableNames.of(self._spec.target)
        self._last = 0
        """The highest number of a version that was ever given."""
        self._filler: Filler | None = None

    @property
    def misfits(self) -> Quarantine | None:
        """What did not fit, for whoever notes the failure."""
        return self._filler.misfits if self._filler else None

    def run(self) -> LoadResult:
        """Load. Raises what the functions of steps/load.py say; the caller rolls back."""
        self._migrate()
        state, result = self._begin()
        if result is None and state and self._widen(state):
            self._session.commit()
            state, result = self._begin()
        if result is not None:
            return result
        self._session.execute("SELECT set_config(%s, %s, true)", (FILE_SETTING, str(self._entry)))
        result = self._load(state)
        self._session.commit()
        versions.sweep(self._session, self._names, raw=self._spec.raw and self._spec.ends_absent)
        return result

    def _begin(self) -> tuple[versions.State | None, LoadResult | None]:
        """Begin the transaction, with the table locked against other loaders; a result if there is nothing to do."""
        state = self._lock()
        if registry.state_of(self._session, self._entry) == "processed" and not self._force:
            return state, already(self._session, self._names, self._entry)
        if self._superseded():
            return state, superseded(self._session, self._entry, state.current if state else 0)
        return state, None

    def _lock(self) -> versions.State | None:
        """Begin a transaction, with the table locked: see `lock_table`."""
        state, self._last = lock_table(self._session, self._ctx.load, self._landed.table, force=self._force)
        return state

    def _open(self, wanted: list[str] | None) -> LandedFile:
        """The file, with these columns of it; see LandedFile."""
        return LandedFile(self._ctx, self._landed, wanted)

    def _manifest(self) -> LandedManifest:
        """Of what is loaded, as soon as it has landed."""
        return self._landed

    def _note(self, counts: Counts) -> None:
        """Turn the entry `processed`."""
        registry.finish(self._session, self._entry, counts)

    # Before the load

    def _migrate(self) -> None:
        """Run what is in ver/ and did not run yet, if there is a table. A transaction of its own, so that readers wait
        for this only, and not for a load."""
        if not self._ctx.load.migrations:
            return
        state = self._lock()
        todo = pending_migrations(self._session, self._names, self._ctx.load.migrations) if state else ()
        if state and todo:
            migrate(self._session, self._names, state.current, todo, self._spec.reserved)
            self._show(state.current)
            self._session.commit()
        else:
            self._session.rollback()

    def _superseded(self) -> bool:
        revised = self._spec.revises
        if self._force or not (revised or self._spec.ends_absent):
            return False
        return bool(registry.later_entries(self._session, self._names.table, self._landed, same_name=revised))

    def _widen(self, state: versions.State) -> bool:
        """Add the columns that the tables lack, and make the view anew; whether there were any.

        The caller commits at once: readers have to wait for this, and should not wait for a load. If that fails, the
        columns are there, and empty.
        """
        plan, _ = self._plan(state)
        ensure_companions(self._session, self._names, plan.header if self._spec.raw else None)
        texts = [TableColumn(name, "text") for name in plan.header] if self._spec.raw else []
        raw = lacking(self._session, self._names.raw, texts)
        if raw:
            patiently(self._session, lambda: add_columns(self._session, self._names.raw, raw))
        relation = self._names.version(state.current)
        anew = self._spec.style in _ANEW
        new = [] if anew else columns_to_add(self._session, relation, self._spec, plan.new)
        if new:
            lock_for_change(self._session, self._names, relation)
            add_columns(self._session, relation, new)
            self._show(state.current)
        return bool(raw or new)

    # The load

    def _load(self, state: versions.State | None) -> LoadResult:
        plan, passthrough = self._plan(state)
        ensure_companions(self._session, self._names, plan.header if self._spec.raw else None)
        table = self._table(state, plan)
        filler = Filler(self._session, self._names, self._spec, self._file, plan, passthrough, self._report)
        self._filler = filler
        try:
            if self._spec.style is Style.APPEND:
                action, counts, digest = self._append(table, filler)
            elif self._spec.style in _ANEW:
                action, counts, digest = self._build(table, plan, filler, state)
            else:
                action, counts, digest = self._merge(table, plan, filler)
        except TooMany:
            raise filler.misfits.error() from None
        return self._finish(state, table, action, counts, digest)

    def _plan(self, state: versions.State | None) -> tuple[Plan, bool]:
        names = list(self._spec.columns)
        types = typed_names(self._session, [column.type for column in self._spec.columns.values()])
        wanted = wanted_columns(self._spec, dict(zip(names, types, strict=True)))
        there = None
        if state and not (self._spec.style in _ANEW and wanted):
            there = given_columns(self._session, self._names.version(state.current))
        self._file = self._open(file_columns(self._spec, [c.name for c in there or ()]))
        header, passthrough = header_of(self._file)
        return make_plan(self._spec, header, wanted, there), passthrough

    def _table(self, state: versions.State | None, plan: Plan) -> _Table:
        """The table to work on: that of the current version with all columns that it needs, or a new one."""
        if state and self._spec.style not in _ANEW:
            return _Table(state.current, self._names.version(state.current), False)
        if state is None:
            views.refuse_foreign(self._session, self._names, self._ctx.load.id)
        number = self._last + 1
        columns = [*own_columns(self._spec), *plan.table]
        relation = create_version(self._session, self._names, number, columns, self._entry)
        if state is None and self._ctx.load.migrations:
            todo = pending_migrations(self._session, self._names, self._ctx.load.migrations)
            migrate_new(self._session, self._names, number, todo, self._spec.reserved)
        return _Table(number, relation, True)

    # Styles

    def _append(self, table: _Table, filler: Filler) -> tuple[Action, Counts, str]:
        earlier = registry.earlier_entries(self._session, self._names.table, self._landed, same_name=self._spec.revises)
        removed = delete_files(self._session, table.relation, earlier) if earlier and not table.anew else 0
        if earlier and self._spec.raw:
            delete_raw(self._session, self._names, earlier, self._entry)
        rows = filler.fill(Destination(table.relation, table.anew, "row_id"))
        filler.misfits.refuse(rows)
        where = f"WHERE file_id = {self._entry}"
        compare_copy(self._ctx, self._session, table.relation, where, quarantined=filler.misfits.count)
        self._index_pages(table)
        return "loaded", self._counted(filler, Counts(rows=rows, added=rows, removed=removed)), ""

    def _build(
        self, table: _Table, plan: Plan, filler: Filler, state: versions.State | None
    ) -> tuple[Action, Counts, str]:
        rows = filler.fill(Destination(table.relation, True, "row_id"))
        if self._spec.key and not add_key(self._session, table.relation, self._spec.key):
            rows -= self._drop_repeated(filler, table.relation, "row_id")
            add_key(self._session, table.relation, self._spec.key)
        filler.misfits.refuse(rows)
        counts = self._counted(filler, Counts(rows=rows, added=rows))
        if self._spec.style is Style.SHADOW:
            return self._shadow(table, plan, counts, state)
        self._index(table, state)
        return "loaded", counts, ""

    def _shadow(
        self, table: _Table, plan: Plan, counts: Counts, state: versions.State | None
    ) -> tuple[Action, Counts, str]:
        columns = plan.table
        measure(self._session, table.relation, self._spec.key, columns)
        found = compare(self._session, self._names, state.current if state else None)
        if state and not found.differing and self._same_columns(table, state):
            self._give_up(table, state)
            return "unchanged", replace(counts, added=0), found.digest
        if state and self._spec.key and found.few and self._same_columns(table, state):
            old = self._names.version(state.current)
            more = ["file_id", *(["raw_id"] if self._spec.raw else [])]
            changed = change_blocks(self._session, old, table.relation, self._spec.key, columns, more, found.differing)
            self._give_up(table, state)
            keep(self._session, self._names, state.current)
            return "upserted", replace(changed, rows=counts.rows, quarantined=counts.quarantined), found.digest
        self._index(table, state)
        keep(self._session, self._names, table.number)
        return "loaded", counts, found.digest

    def _same_columns(self, table: _Table, state: versions.State) -> bool:
        new, old = (columns_of(self._session, r) for r in (table.relation, self._names.version(state.current)))
        return {(c.name, c.type) for c in new} == {(c.name, c.type) for c in old}

    def _give_up(self, table: _Table, state: versions.State) -> None:
        self._session.execute(f"DROP TABLE {table.relation}")
        table.number, table.relation, table.anew = state.current, self._names.version(state.current), False

    def _index_pages(self, table: _Table) -> None:
        """Who publishes a table later has it indexed by the next run."""
        if table.anew and self._spec.target.published:
            add_primary_key(self._session, table.relation)

    def _index(self, table: _Table, state: versions.State | None) -> None:
        self._index_pages(table)
        if state:
            own = [["row_id"] if self._spec.target.published else [], ["file_id"], list(self._spec.key)]
            copy_structure(self._session, self._names.version(state.current), table.relation, own)

    def _merge(self, table: _Table, plan: Plan, filler: Filler) -> tuple[Action, Counts, str]:
        self._index_pages(table)
        if table.anew and self._spec.key and self._spec.style is not Style.PARTITION:
            where = "WHERE valid_to IS NULL" if self._spec.style is Style.HISTORY else ""
            add_key(self._session, table.relation, self._spec.key, where)
        make_typed(self._session, plan.filled)
        rows = filler.fill(Destination(TYPED, True, "load ordinal"))
        rows -= self._drop_repeated(filler, TYPED, '"load ordinal"')
        filler.misfits.refuse(rows)
        if not is_whole(self._spec):
            compare_copy(self._ctx, self._session, TYPED, quarantined=filler.misfits.count)
        columns = tuple(filled.name for filled in plan.filled)
        place = Place.of(self._session, self._names.table, self._manifest(), force=self._force)
        merge = Merge(self._session, self._spec, table.relation, columns, self._entry, place)
        return "loaded", self._counted(filler, replace(merge.run(), rows=rows)), ""

    def _drop_repeated(self, filler: Filler, relation: str, order: str) -> int:
        """Rows whose key comes again further on do not fit."""
        if not self._spec.key or self._spec.style is Style.PARTITION:
            return 0
        most, key = filler.misfits.most, self._spec.key
        found = repeated_keys(self._session, relation, order, key, most, raw=self._spec.raw)
        for number, record, raw_id in found:
            filler.misfits.bad_row(number, "", f"its key ({', '.join(key)}) comes again further on", record, raw_id)
        return len(found)

    def _counted(self, filler: Filler, counts: Counts) -> Counts:
        filler.misfits.write(self._session, self._names, self._entry)
        return replace(counts, quarantined=filler.misfits.count)

    # The end

    def _finish(
        self, state: versions.State | None, table: _Table, action: Action, counts: Counts, digest: str
    ) -> LoadResult:
        counts = replace(counts, table_version=table.number)
        last = max(table.number, self._last)
        self._note(counts)
        if table.anew:
            settle(self._session, table.relation)
        self._file.verify()
        if is_whole(self._spec):
            compare_copy(self._ctx, self._session, table.relation, quarantined=counts.quarantined)
        # From here on readers may wait for the view.
        total = versions.rows_of(self._session, self._names, table.number) + grown(self._spec, counts)
        versions.record(self._session, self._names, table.number, total, digest, self._entry)
        versions.point(self._session, self._names, table.number, last, self._ctx.load.version)
        # Also where somebody dropped the view.
        unseen = not exists(self._session, self._names.view)
        if unseen or state is None or table.anew or state.definition_version != self._ctx.load.version:
            versions.forget_old(self._session, self._names, table.number, self._spec.target.keep_versions)
            self._show(table.number)
        if unseen:
            views.grant(self._session, self._names, self._spec.target.grants)
        refuse_changed(self._ctx)
        return result_of(action, self._entry, counts, given_columns(self._session, table.relation), digest)

    def _show(self, current: int) -> None:
        comments = {name: column.description for name, column in self._spec.columns.items() if column.description}
        if self._spec.description:
            comments[""] = self._spec.description
        numbers = versions.kept(self._session, self._names)
        views.show(self._session, self._names, numbers, current, comments)

    def _report(self, _: int) -> None:
        read, size = self._file.place, self._landed.file.size
        self._ctx.progress(Progress("load", self._ctx.load.id, self._landed.partition, 0, read, size))
