"""Pull and load at once: the rows of a database go into the store and into their table while they are read.

What is loaded this way is committed when its landing has its manifest, not before: it is landed first and loaded behind
that, in less time. It is an attempt: whatever keeps it from its end, it is given up and its transaction with it, and
the landed file is loaded as any other, which then tells what is wrong.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import BinaryIO, TypeVar, cast

from export_pipelines.errors import ExportPipelinesError, SourceError, TargetError
from export_pipelines.manifest import FileProof, LandedManifest
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.load import Style
from export_pipelines.specs.load_sources import DatabaseSource
from export_pipelines.steps.context import silent
from export_pipelines.steps.land import land, pull_name
from export_pipelines.steps.land_context import LandContext, LandResult
from export_pipelines.steps.land_storing import Chain
from export_pipelines.steps.load import pending
from export_pipelines.steps.load_context import LoadContext, LoadResult
from export_pipelines.steps.load_reading import LandedFile, ReadStream
from export_pipelines.steps.load_run import LoadRun
from export_pipelines.targets import registry, schema, versions
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.registry import Counts
from export_pipelines.targets.tables import make_schema

T = TypeVar("T")

_WAITING_BYTES = 8 << 20
"""How much may wait for the target. A piece has about a mebibyte, or a single row that is larger."""
_PATIENCE_SECONDS = 60
"""How long a pull waits for the target: a snapshot of the source must not be held by a table that is locked."""
_LOOK_SECONDS = 0.5
"""How soon who waits finds out that nobody needs it any more."""
_LATER = 2**62
"""Sequence of what has not landed: behind all that has."""
_NOTHING = FileProof(key="", size=0, sha256="", raw_size=0, raw_sha256="")


@dataclass(frozen=True)
class PulledAndLoaded:
    """What a pull landed, and what became of the load beside it."""

    landing: LandResult
    load: LoadResult | None = None
    """None if the landed file is still to be loaded, or nothing has landed."""
    given_up: str = ""
    """Why it was not loaded meanwhile, if that was tried."""


def loads_live(ctx: LoadContext, landed: Sequence[LandedManifest]) -> bool:
    """Whether rows may be loaded while they land. `landed` is all that has landed.

    Not where a pull of all rows may turn out to be nothing new after they were added to a table that is in use: what is
    rolled back there has to be vacuumed. Nor before what waits, where the order of files counts.
    """
    source, style = ctx.load.spec.source, ctx.load.spec.style
    if not isinstance(source, DatabaseSource):
        return False
    if style is Style.APPEND:
        return source.mode != "full" or not landed
    try:
        return not pending(ctx, landed)
    except (SourceError, TargetError):
        # Landing does without the target.
        return False


def pull_and_load(landing: LandContext, loading: LoadContext, chain: Chain | None = None) -> PulledAndLoaded:
    """Land the rows of a `database` source, and load them meanwhile. Small pulls, of less than a mebibyte, only land.
    `chain` as of `land`.

    The snapshot of the source is held until the target has taken the rows. If it takes none for a minute, the load is
    given up and the landing goes on.

    Memory: some tens of mebibytes, whatever the size.

    Crash: of the landing as `land` says. The table and its entry in the registry are as they were until the manifest is
    written; what landed and was not committed then is pending.

    Raises:
        What `land` raises. Errors of the load are told in the result.
    """
    with _Beside(loading, _expected(landing)) as beside:
        result = land(replace(landing, beside=beside.take), chain=chain)
        done = beside.finish(result.landed[0]) if result.landed else None
    return PulledAndLoaded(result, done, beside.given_up)


class _GivenUp(Exception):
    """The load has no use any more."""


class _Beside:
    """A load in a thread of its own, which is given its file piece by piece."""

    def __init__(self, ctx: LoadContext, expected: LandedManifest) -> None:
        # Dagster is told by one thread only.
        self._ctx = replace(ctx, progress=silent)
        self._expected = expected
        self._feed = _Feed()
        self._thread = ThreadPoolExecutor(1, "load")
        self._load: Future[LoadResult] | None = None
        self._given = 0
        self.given_up = ""

    def __enter__(self) -> _Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.give_up()
        self._thread.shutdown()

    def take(self, piece: bytes) -> None:
        """A piece of the file; an empty one is its end. A file of one piece is not worth a thread and a connection."""
        if self._load is None and self._given and piece:
            self._load = self._thread.submit(self._run)
        self._given += bool(piece)
        self._feed.put(piece)

    def finish(self, landed: LandedManifest) -> LoadResult | None:
        """Let the load commit, since this has landed; None if it was not loaded."""
        if self._load is None:
            return None
        self._feed.landed.set_result(landed)
        try:
            return self._load.result()
        except _GivenUp as why:
            self.given_up = str(why)
        except ExportPipelinesError as error:
            self.given_up = error.message
        return None

    def _run(self) -> LoadResult:
        try:
            with self._ctx.target.session(read_only=False, watch=self._feed.check) as session:
                schema.ensure(session)
                make_schema(session, TableNames.of(self._ctx.load.spec.target))
                run = _LiveRun(self._ctx, session, self._expected, self._feed)
                try:
                    return run.run()
                finally:
                    if run.misfits is not None:
                        run.misfits.close()
        finally:
            self._feed.give_up()


def _expected(ctx: LandContext) -> LandedManifest:
    """What is known of a landing before it is there."""
    return LandedManifest(
        sequence=_LATER,
        previous_sha256="",
        table=ctx.load.landed_as,
        written=datetime.now(UTC),
        run_id=ctx.run_id,
        source=ctx.load.spec.source.type,
        name=pull_name(ctx),
        url="",
        partition=ctx.partition,
        file=_NOTHING,
        fetched=datetime.now(UTC),
    )


class _LiveRun(LoadRun):
    """A load whose file is still coming. Its entry in the registry is made at the end, when it is known of what."""

    def __init__(self, ctx: LoadContext, session: Session, landed: LandedManifest, feed: _Feed) -> None:
        super().__init__(ctx, session, landed, 0, force=False)
        self._feed = feed

    def _begin(self) -> tuple[versions.State | None, LoadResult | None]:
        state = self._lock()
        self._entry = registry.reserve(self._session)
        return state, None

    def _open(self, wanted: list[str] | None) -> LandedFile:
        return _LiveFile(self._ctx, self._landed, wanted, self._feed)

    def _manifest(self) -> LandedManifest:
        self._landed = self._feed.manifest()
        return self._landed

    def _note(self, counts: Counts) -> None:
        self._manifest()
        if self._superseded():
            # It landed, and waited for the table, while others landed and loaded what is newer.
            raise _GivenUp("a newer file is loaded already")
        version, run = self._ctx.load.version, self._ctx.run_id
        registry.add(self._session, self._entry, self._names.table, self._manifest(), version, run, counts)


class _LiveFile(LandedFile):
    """The file that is coming. It was hashed on its way into the store: what COPY got is what landed."""

    def __init__(self, ctx: LoadContext, landed: LandedManifest, wanted: list[str] | None, feed: _Feed) -> None:
        super().__init__(ctx, landed, wanted)
        self._feed = feed

    def _open(self) -> BinaryIO:
        return cast(BinaryIO, _Stream(self._feed))

    def verify(self) -> None:
        """Nothing is left to be read."""


class _Feed:
    """Pieces of a file on their way from one thread to another. The first one may be read again, for the header."""

    def __init__(self) -> None:
        self._pieces = _Pieces(_WAITING_BYTES)
        self._first: bytes | None = None
        self._behind = False
        self._over = ""
        self.landed: Future[LandedManifest] = Future()

    def put(self, piece: bytes) -> None:
        """Add a piece, as soon as there is room; nothing if the load was given up."""
        for _ in range(round(_PATIENCE_SECONDS / _LOOK_SECONDS)):
            if self._over:
                return None
            with suppress(queue.Full):
                return self._pieces.put(piece, timeout=_LOOK_SECONDS)
        return self.give_up(f"the target took nothing for {_PATIENCE_SECONDS} seconds")

    def first(self) -> bytes:
        """The first piece. Raises _GivenUp if it is not the next one any more."""
        if self._behind:
            raise _GivenUp("some records do not fit, and the file has to be read again to find them")
        if self._first is None:
            self._first = self._get()
        return self._first

    def next(self) -> bytes:
        """The piece behind the first, or behind the last one that this gave; empty at the end."""
        self._behind, self._first = True, None
        return self._get()

    def manifest(self) -> LandedManifest:
        """Waits until the file has landed."""
        return self._wait(lambda: self.landed.result(_LOOK_SECONDS), TimeoutError)

    def check(self) -> None:
        """Raises _GivenUp if nobody needs the load."""
        if self._over:
            raise _GivenUp(self._over)

    def give_up(self, why: str = "the landing has ended") -> None:
        """Let whoever waits raise _GivenUp, and nobody wait any more."""
        self._over = self._over or why

    def _get(self) -> bytes:
        return self._wait(lambda: self._pieces.get(timeout=_LOOK_SECONDS), queue.Empty)

    def _wait(self, look: Callable[[], T], not_yet: type[Exception]) -> T:
        while True:
            self.check()
            with suppress(not_yet):
                return look()


class _Pieces(queue.Queue[bytes]):
    """A queue that is full by the size of what is in it, not by its number."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._size = 0

    def _qsize(self) -> int:
        return self._size

    def _put(self, item: bytes) -> None:
        super()._put(item)
        # The empty piece at the end counts, too.
        self._size += len(item) + 1

    def _get(self) -> bytes:
        item = super()._get()
        self._size -= len(item) + 1
        return item


class _Stream(ReadStream):
    """The file from its beginning."""

    def __init__(self, feed: _Feed) -> None:
        self._feed = feed
        self._rest: memoryview | None = None

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(1 << 20), b""))
        if self._rest is None:
            self._rest = memoryview(self._feed.first())
        elif not self._rest:
            self._rest = memoryview(self._feed.next())
        data, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return data
