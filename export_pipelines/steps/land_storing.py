"""Store what comes from a source under the SHA-256 of its content, and write its manifest behind it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

from export_pipelines.errors import IntegrityError, ObjectExists
from export_pipelines.formats.compression import compressor, decompressed
from export_pipelines.manifest import Entry, FileProof, LandedManifest, digest
from export_pipelines.naming import safe, table_folder
from export_pipelines.scratch import scratch_errors
from export_pipelines.specs.table import Compression
from export_pipelines.steps import chain, chain_bundles
from export_pipelines.stores.base import Store

if TYPE_CHECKING:
    from export_pipelines.sources.files import Found
    from export_pipelines.steps.land_context import LandContext
    from export_pipelines.steps.land_rows import Pulled

_IN_MEMORY = 8 << 20
_CHUNK = 1 << 20
_PIECE_BYTES = 1 << 20


class Spool:
    """What comes from a source, in a temporary file (TMPDIR) until it is whole and its SHA-256 is known.

    So a file that landed before is not stored again, and one that is cut leaves nothing in the store.
    """

    def __init__(self, compression: Compression = Compression.NONE) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY, prefix="export_pipelines-")  # noqa: SIM115
        self._compressor = compressor(compression)
        self.compression = compression
        self._raw, self._stored = hashlib.sha256(), hashlib.sha256()
        self.raw_size = self.size = 0

    def write(self, data: bytes) -> None:
        """Raises ScratchError when the disk is full."""
        self._raw.update(data)
        self.raw_size += len(data)
        self._put(self._compressor.compress(data))

    def finish(self) -> None:
        """All was written."""
        self._put(self._compressor.flush())

    def _put(self, data: bytes) -> None:
        if not data:
            return
        if self.compression is not Compression.NONE:
            self._stored.update(data)
        self.size += len(data)
        with scratch_errors():
            self._file.write(data)

    @property
    def raw_sha256(self) -> str:
        return self._raw.hexdigest()

    @property
    def sha256(self) -> str:
        return self.raw_sha256 if self.compression is Compression.NONE else self._stored.hexdigest()

    def pieces(self) -> Iterator[bytes]:
        self._file.seek(0)
        while data := self._file.read(_CHUNK):
            yield data

    def proof(self, key: str) -> FileProof:
        return FileProof(
            key=key, size=self.size, sha256=self.sha256, raw_size=self.raw_size, raw_sha256=self.raw_sha256
        )

    def close(self) -> None:
        self._file.close()


@contextmanager
def spool(compression: Compression = Compression.NONE) -> Iterator[Spool]:
    """A spool that is gone at the end."""
    with closing(Spool(compression)) as made:
        yield made


class Batched:
    """Records come one by one, and are hashed and compressed in larger pieces, one of them while the next is read.

    `beside` is given the pieces, too, and an empty one at the end.
    """

    def __init__(
        self, content: Spool, report: Callable[[int], None], beside: Callable[[bytes], None] | None = None
    ) -> None:
        self._content = content
        self._report = report
        self._beside = beside or (lambda piece: None)
        self._records: list[bytes] = []
        self._size = self._whole = 0
        self._thread = ThreadPoolExecutor(1, "landing")
        self._before: Future[None] | None = None

    def __enter__(self) -> Batched:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def write(self, record: bytes) -> None:
        self._records.append(record)
        self._size += len(record)
        if self._size >= _PIECE_BYTES:
            self._flush()

    def finished(self) -> Spool:
        """Where they are, all of them."""
        self._flush()
        self._beside(b"")
        self._wait()
        self._content.finish()
        return self._content

    def _flush(self) -> None:
        """Hand over what was taken. Raises what went wrong with the piece before it."""
        piece = b"".join(self._records)
        self._whole += self._size
        self._records, self._size = [], 0
        self._wait()
        self._before = self._thread.submit(self._content.write, piece)
        if piece:
            self._beside(piece)
        self._report(self._whole)

    def _wait(self) -> None:
        if self._before is not None:
            self._before.result()


def store_content(store: Store, folder: str, name: str, content: Spool) -> FileProof:
    """Publish under the content's SHA-256, unless it is there: from a landing before, or from one that was killed
    before it could write its manifest. What is there is read again before it counts.

    Raises:
        IntegrityError: the object of that name has other content.
    """
    key = f"{folder}/{content.raw_sha256}/{safe(name)}{content.compression.extension}"
    try:
        if store.head(key) is not None:
            return adopted(store, key, content)
        with store.writer(key) as writer:
            for piece in content.pieces():
                writer.write(piece)
            writer.publish()
    except ObjectExists:
        return adopted(store, key, content)
    return content.proof(key)


def adopted(store: Store, key: str, content: Spool) -> FileProof:
    """The proof of an object that is there, whose content must be that of the spool."""
    found = read_proof(store, key, content.compression)
    if found.raw_sha256 != content.raw_sha256:
        raise IntegrityError(
            f"{store.locate(key)} does not hold what its name says: its SHA-256 differs",
            hint="move it away, and land again",
        )
    return found


def read_proof(store: Store, key: str, compression: Compression = Compression.NONE) -> FileProof:
    """Read an object and tell its sizes and digests. Raises ObjectMissing, IntegrityError if it is damaged."""
    raw, stored = hashlib.sha256(), hashlib.sha256()
    sizes = [0, 0]

    class Counted:
        def read(self, size: int, /) -> bytes:
            data = stream.read(size)
            stored.update(data)
            sizes[1] += len(data)
            return data

    with store.open(key) as stream:
        for piece in decompressed(Counted(), compression, name=key):
            raw.update(piece)
            sizes[0] += len(piece)
    return FileProof(key=key, size=sizes[1], sha256=stored.hexdigest(), raw_size=sizes[0], raw_sha256=raw.hexdigest())


def land_content(
    ctx: LandContext,
    landings: Chain,
    found: Found,
    content: Spool,
    *,
    version: str = "",
    pulled: Pulled | None = None,
    state_file: FileProof | None = None,
) -> tuple[LandedManifest, bool]:
    """Store what was read, and write its manifest behind it: see `Chain.add`.

    Args:
        version: what the source says of it.
        pulled: of rows and pages, what is known of the pull.
        state_file: stored already; what the next pull needs.
    """
    proof = store_content(ctx.store, landed_folder(ctx.load.landed_as), found.name, content)
    return landings.add(
        {
            "run_id": ctx.run_id,
            "source": ctx.load.spec.source.type,
            "name": found.name,
            "url": found.url,
            "version": version,
            "partition": ctx.partition,
            "file": proof,
            "fetched": now(),
            "definition_version": ctx.load.version,
            "rows": pulled.rows if pulled else None,
            "state": pulled.state if pulled else {},
            "state_file": state_file,
        }
    )


def landed_folder(table_id: str) -> str:
    """Folder of the files of a table in the landing store, beside its manifests."""
    return f"{table_folder(table_id)}/landed"


class _AlreadyLanded(Exception):
    """Another landing was first."""

    def __init__(self, entry: LandedManifest) -> None:
        self.entry = entry


@dataclass
class Chain:
    """The landings of a table, as they are known; grows with each that is added."""

    store: Store
    table_id: str
    entries: list[LandedManifest] = field(default_factory=list)
    latest: dict[str, LandedManifest] = field(default_factory=dict)
    """The newest landing of each name."""
    _end: tuple[int, str] | None = None

    @classmethod
    def read(cls, store: Store, table_id: str, *, bundle: bool = True) -> Chain:
        """Read all entries, of a long chain from its bundles, and with `bundle` write those that are not there yet.
        Raises IntegrityError if the chain is broken."""
        found = cls(store, table_id)
        for entry, sha256 in chain_bundles.digested(store, table_id, write=bundle):
            found._note(entry, sha256)
        return found

    def add(self, values: Mapping[str, Any]) -> tuple[LandedManifest, bool]:
        """Write the manifest of a file that is stored, the commit point. False if another landing of the same content
        under the same name was first, or any other of a pull that goes on from the one before: then it is that one."""
        before = self.latest.get(values["name"])

        def make(sequence: int, previous: str, written: datetime) -> LandedManifest:
            self._catch_up(sequence - 1)
            last = self.latest.get(values["name"])
            overtaken = values.get("state") and last is not before
            if last is not None and (overtaken or _same(last, values)):
                raise _AlreadyLanded(last)
            return LandedManifest(
                sequence=sequence, previous_sha256=previous, table=self.table_id, written=written, **values
            )

        try:
            entry, sha256 = chain.append(self.store, self.table_id, self._end, make)
        except _AlreadyLanded as already:
            return already.entry, False
        self._note(entry, sha256)
        return entry, True

    def _catch_up(self, last: int) -> None:
        """Read what others have written meanwhile."""
        for sequence in range((self._end[0] if self._end else 0) + 1, last + 1):
            entry, data = chain.read_entry(self.store, self.table_id, sequence)
            self._note(entry, digest(data))

    def _note(self, entry: Entry, sha256: str) -> None:
        # Not of the entry written anew: an older program may have written it with fewer fields.
        self._end = (entry.sequence, sha256)
        if isinstance(entry, LandedManifest):
            self.entries.append(entry)
            self.latest[entry.name] = entry


def _same(last: LandedManifest, values: Mapping[str, Any]) -> bool:
    """Whether a landing is one that is there. A pull that goes on from the one before never is."""
    if values.get("state", {}).get("mode", "full") != "full":
        return False
    file: FileProof = values["file"]
    return last.file.raw_sha256 == file.raw_sha256 and last.partition == values["partition"]


def now() -> datetime:
    return datetime.now(UTC)
