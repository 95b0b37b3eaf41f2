"""What a run of a table to load does: land what is new at its source, then put each landed file into the table.

Each file is told to Dagster as soon as it is done. A file that fails does not keep the others from being loaded, but
for styles in which the order of files counts (`upsert`, `history`): there the run stops, and the files behind it wait.
A transient error is tried again as the table's `retries` say; what is done is not done again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from export_pipelines import naming, windows
from export_pipelines.components.load_telling import LAND, LOAD, Context, Teller, load_key
from export_pipelines.components.partition_run import names_partitions
from export_pipelines.components.retrying import another_attempt
from export_pipelines.errors import ExportPipelinesError, RequestError
from export_pipelines.manifest import LandedManifest
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load import WHOLE, LoadDefinition, Style
from export_pipelines.specs.load_loader import load_version
from export_pipelines.specs.load_sources import DatabaseSource, UploadSource
from export_pipelines.specs.transform import TransformDefinition
from export_pipelines.stores.base import Store
from export_pipelines.windows import Window

if TYPE_CHECKING:
    from export_pipelines.steps.land_context import LandContext, LandResult
    from export_pipelines.steps.land_storing import Chain
    from export_pipelines.steps.load import LoadContext
    from export_pipelines.steps.load_context import LoadResult

SECRET = "EXPORT_PIPELINES_SECRET"
"""Variable with the key of `transform: hash`."""

_IN_ORDER = (Style.UPSERT, Style.HISTORY)


def partition_of(load: LoadDefinition, landed: LandedManifest) -> str | None:
    """Key of the partition that a landed file is of."""
    if load.spec.by_file:
        return naming.safe(landed.name)
    return landed.partition or None if load.spec.partitions else None


def run_partitions(
    context: dg.AssetExecutionContext, load: LoadDefinition, origin: LoadDefinition | TransformDefinition | None
) -> None:
    """The body of the assets' op: the steps and partitions that were chosen.

    Raises:
        dagster.Failure: some files failed; the others are done.
        dagster.RetryRequested: a transient error.
    """
    selected = context.selected_asset_keys
    keys = _chosen(context, load)
    if isinstance(load.spec.source, UploadSource):
        from export_pipelines.components.upload_run import run_uploads

        force = context.op_execution_context.op_config["force"]
        run_uploads(context, load, [each.replace(".", "/", 1) for each in keys or ()], force=force)
        return
    run = LoadRun(context, load, origin, force=context.op_execution_context.op_config["force"])
    run.run(land=load_key(load.id, LAND) in selected, load=load_key(load.id) in selected, keys=keys)


def run_pull(
    context: dg.OpExecutionContext, load: LoadDefinition, origin: LoadDefinition | TransformDefinition | None
) -> dict[str, Any]:
    """The body of the job's op: all that is new, or what the config names.

    Raises:
        dagster.Failure: some files failed; the others are done.
        dagster.RetryRequested: a transient error.
    """
    config = context.op_config
    if isinstance(load.spec.source, UploadSource):
        from export_pipelines.components.upload_run import run_uploads

        return run_uploads(context, load, config["names"], force=config["force"])
    keys = [naming.safe(each) if load.spec.by_file else each for each in config["names"]]
    if keys and not load.spec.by_file and not load.spec.partitions:
        raise dg.Failure(f"{load.id} has neither files nor windows that could be named", allow_retries=False)
    run = LoadRun(context, load, origin, force=config["force"])
    run.run(land=config["land"], load=config["load"], keys=keys or None)
    return {"landed": run.landed, "loaded": run.loaded, "rows": run.rows}


@dataclass
class LoadRun:
    """One run of one table."""

    context: Context
    load: LoadDefinition
    origin: LoadDefinition | TransformDefinition | None
    """The table that is copied, of a `table` source."""
    force: bool = False
    live: bool = True
    """Whether rows may be loaded while they land. Where they may not, they may not for the rest of the run."""
    landed: int = 0
    loaded: int = 0
    rows: int = 0
    failed: list[tuple[str, Exception]] = field(default_factory=list)

    def run(self, *, land: bool, load: bool, keys: Sequence[str] | None) -> None:
        """Land and load; raise at the end if something failed. `keys` are partitions; all when None."""
        from export_pipelines.steps.load import index_published, refuse_unloadable

        self.context.instance.optimize_for_webserver(statement_timeout=0, pool_recycle=20, max_overflow=20)
        before = self._done_before()
        if load and not self.force and not self._attempt("load", lambda: refuse_unloadable(self._load_context)):
            raise self._ending()
        if land:
            self._land(keys, load=load)
        if load:
            for landed in self._todo(keys):
                if landed.sequence in before:
                    continue
                done = self._attempt(f"load of {landed.name}", partial(self._load, landed))
                if not done and self.load.spec.style in _IN_ORDER:
                    break
            self._attempt("the index of pages", lambda: index_published(self._load_context))
        if self.failed:
            raise self._ending()

    # Land

    def _land(self, keys: Sequence[str] | None, *, load: bool) -> None:
        if self.load.spec.partitions:
            for window in self._windows(keys):
                self._attempt(f"landing of {window.partition}", partial(self._land_one, window, load=load))
            return
        self._attempt("landing", lambda: self._land_one(names=self._names(keys), load=load))

    def _windows(self, keys: Sequence[str] | None) -> list[Window]:
        spec = self.load.spec.partitions
        if keys is not None:
            return [windows.window_of(spec, key) for key in keys]
        have = set() if self.force else {each.partition for each in self._chain.entries}
        return [each for each in windows.closed_windows(spec, datetime.now(UTC)) if each.partition not in have]

    def _names(self, keys: Sequence[str] | None) -> tuple[str, ...]:
        """Names of the files of some partitions."""
        from export_pipelines.steps.land import list_files

        if keys is None or not self.load.spec.by_file:
            return ()
        known = {naming.safe(each.name): each.name for each in self._chain.entries}
        if set(keys) - known.keys():
            known |= {naming.safe(name): name for name in list_files(self._land_context)}
        if unknown := sorted(set(keys) - known.keys()):
            raise RequestError(
                f"the source of {self.load.id} has no file {unknown[0]!r}, and none of that name has landed",
                hint=f"`export-pipelines load status {self.load.id}` shows those that landed",
            )
        return tuple(known[key] for key in keys)

    def _land_one(self, window: Window | None = None, names: tuple[str, ...] = (), *, load: bool = False) -> None:
        """Land, and with `load` load meanwhile what can be; the rest is loaded when all has landed."""
        before = len(self._chain.entries)
        started = time.monotonic()
        try:
            result, loaded = self._pull(replace(self._land_context, window=window, names=names), load=load)
            if result.waiting:
                shown = ", ".join(result.waiting[:3]) + " …" * (len(result.waiting) > 3)
                self.context.log.warning(f"changed a moment ago, by date, and left for the next run: {shown}")
            for name in result.vanished:
                self.context.log.info(f"{name} landed before, and the source has it no more")
        finally:
            # Also what landed before an error.
            new = [each for each in self._chain.entries[before:] if each.run_id == self.run_id]
            for each in new:
                self._tell_landed(each, time.monotonic() - started)
        if new and loaded:
            self._tell_loaded(new[0], loaded, time.monotonic() - started)
        if not new:
            self.context.log.info("nothing new is at the source")
            if window is not None:
                self._teller.nothing_landed(window.partition, result.unchanged)

    def _pull(self, ctx: LandContext, *, load: bool) -> tuple[LandResult, LoadResult | None]:
        from export_pipelines.steps.land import land
        from export_pipelines.steps.load_live import loads_live, pull_and_load

        # It asks about all that has landed: not for each of many windows, once the answer is no.
        self.live = self.live and load and not self.force and loads_live(self._load_context, self._chain.entries)
        if not self.live:
            return land(ctx, force=self.force, chain=self._chain), None
        done = pull_and_load(ctx, self._load_context, self._chain)
        if done.given_up:
            self.context.log.info(f"it was not loaded while it landed, and is loaded now: {done.given_up}")
        return done.landing, done.load

    def _tell_landed(self, landed: LandedManifest, seconds: float) -> None:
        self.landed += 1
        self._teller.landed(landed, self.store.locate(landed.file.key), seconds)

    # Load

    def _todo(self, keys: Sequence[str] | None) -> list[LandedManifest]:
        """The landed files to load, in the order in which they landed."""
        from export_pipelines.steps.load import pending, to_force

        if self.force:
            found = to_force(self._load_context, self._chain.entries) if keys is None else self._chain.entries
        else:
            found = pending(self._load_context, self._chain.entries)
        if keys is not None:
            found = [each for each in found if self._partition(each) in keys]
        if self.force and self.load.spec.revises:
            return [*{each.name: each for each in found}.values()]
        if self.force and self.load.spec.style in WHOLE:
            return found[-1:]
        return found

    def _load(self, landed: LandedManifest) -> None:
        from export_pipelines.steps.load import load_file

        started = time.monotonic()
        result = load_file(self._load_context, landed, force=self.force)
        self._tell_loaded(landed, result, time.monotonic() - started)

    def _tell_loaded(self, landed: LandedManifest, result: LoadResult, seconds: float) -> None:
        self.loaded += 1
        self.rows += result.rows
        self._teller.loaded(landed, result, seconds)

    # What both need

    @property
    def asset_id(self) -> str:
        """Id whose assets are told of."""
        return self.load.id

    def _partition(self, landed: LandedManifest) -> str | None:
        return partition_of(self.load, landed)

    def _current_version(self) -> str:
        return load_version(self.load.folder)

    @cached_property
    def _teller(self) -> Teller:
        return Teller(self.context, self.load, self.asset_id, self._partition, force=self.force)

    @property
    def run_id(self) -> str:
        return str(self.context.run.run_id)

    @cached_property
    def store(self) -> Store:
        store: Store = getattr(self.context.resources, self.load.spec.landing).open()
        return store

    @cached_property
    def target(self) -> PostgresSource:
        source: PostgresSource = getattr(self.context.resources, self.load.spec.target.connection).open()
        return source

    @cached_property
    def _load_context(self) -> LoadContext:
        from export_pipelines.steps.load import LoadContext

        return LoadContext(
            load=self.load,
            target=self.target,
            store=self.store,
            run_id=self.run_id,
            progress=self._teller.reporter(LOAD),
            secret=os.environ.get(SECRET, "").encode(),
            current_version=self._current_version,
        )

    @cached_property
    def _land_context(self) -> LandContext:
        from export_pipelines.steps.land_context import LandContext

        source = self.load.spec.source
        key = source.connection if isinstance(source, DatabaseSource) else None
        if self.origin is not None:
            key = self.origin.spec.target.connection
        database = getattr(self.context.resources, key).open() if key else None
        return LandContext(
            load=self.load,
            store=self.store,
            target=self.target,
            database=database,
            relation=self.origin.spec.target.table if self.origin is not None else "",
            run_id=self.run_id,
            progress=self._teller.reporter(LAND),
        )

    @cached_property
    def _chain(self) -> Chain:
        """What has landed, by others until this run looked and by it."""
        from export_pipelines.steps.land_storing import Chain

        return Chain.read(self.store, self.load.landed_as)

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        """Do something; note its error. A terminated run goes through."""
        try:
            action()
        except Exception as error:
            self.failed.append(
                (f"{what} of {self.load.id}" if what == "landing" else f"{what} ({self.load.id})", error)
            )
            known = isinstance(error, ExportPipelinesError)
            self.context.log.error(f"{what} failed: {error}", exc_info=None if known else error)
            return False
        return True

    def _done_before(self) -> set[int]:
        """Numbers of the manifests that an earlier attempt of this same run has loaded by force."""
        if not self.context.retry_number or not self.force:
            return set()
        logs = self.context.instance.all_logs(self.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        made = [entry.asset_materialization for entry in logs if entry.asset_materialization]
        mine = [each for each in made if each.asset_key == load_key(self.asset_id)]
        return {int(cast(Any, each.metadata["manifest"].value)) for each in mine}

    def _ending(self) -> Exception:
        """Another attempt, or the end of the run: each failure is named, the first ten with their reason."""
        retries, number = self.load.spec.retries, self.context.retry_number
        errors = [error for _, error in self.failed]
        if number < retries.attempts and any(isinstance(e, ExportPipelinesError) and e.transient for e in errors):
            retry = another_attempt(retries, number)
            retry.__cause__ = errors[0]
            return retry
        lines = [f"{what}: {error}" for what, error in self.failed]
        if len(lines) > 1:
            more = [f"… and {len(lines) - 10} more"] if len(lines) > 10 else []
            lines = [f"{len(lines)} things failed", *lines[:10], *more]
        metadata = {"hint": getattr(errors[0], "hint", "") or "see the log", "error": type(errors[0]).__name__}
        return dg.Failure("\n".join(lines), metadata=metadata, allow_retries=False)


def _chosen(context: dg.AssetExecutionContext, load: LoadDefinition) -> list[str] | None:
    """The partitions of this run, whether it was given one or a range; None for a table that has none."""
    if not load.spec.by_file and load.spec.partitions is None:
        return None
    if not names_partitions(context.run):
        raise dg.Failure(
            f"this run of {load.id} names no partition",
            metadata={"hint": "choose files or windows; the job of the table takes all that is new"},
            allow_retries=False,
        )
    return list(context.partition_keys)
