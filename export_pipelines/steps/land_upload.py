"""Uploads in the landing store: the pieces of a file while it comes, and its landing, as of any other source."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import BinaryIO, cast

from export_pipelines.errors import ObjectExists, RequestError
from export_pipelines.manifest import LandedManifest
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.uploads import Columns
from export_pipelines.steps.land_storing import Chain, landed_folder, now, spool, store_content
from export_pipelines.stores.base import Store

_CHUNK = 1 << 20


def piece_key(upload: str, offset: int) -> str:
    """Key of a piece; keys sort as offsets do."""
    return f"uploads/{upload}/{offset:015d}"


def store_piece(store: Store, upload: str, offset: int, data: bytes) -> None:
    """Put a piece away. One that is there was never counted: it is replaced."""
    key = piece_key(upload, offset)
    try:
        store.put(key, data)
    except ObjectExists:
        store.delete(key)
        store.put(key, data)


def drop_pieces(store: Store, upload: str) -> None:
    """Delete all pieces of an upload."""
    for each in list(store.list(f"uploads/{upload}/")):
        store.delete(each.key)


def uploads_with_pieces(store: Store) -> set[str]:
    """Ids of the uploads of which there are pieces."""
    return {each.key.split("/")[1] for each in store.list("uploads/")}


def open_pieces(store: Store, upload: str, size: int) -> BinaryIO:
    """The whole file of so many bytes, piece by piece.

    Raises:
        RequestError: some of it is not there any more.
    """
    keys = [(each.key, each.size) for each in store.list(f"uploads/{upload}/")]
    if (kept := sum(length for _, length in keys)) != size:
        raise RequestError(f"{kept} of the file's {size} bytes are kept", hint="send it again: it has waited too long")
    return cast(BinaryIO, io.BufferedReader(_Pieces(store, [key for key, _ in keys]), _CHUNK))


def land_upload(
    load: LoadDefinition, store: Store, upload: str, size: int, name: str, columns: Columns, delimiter: str = ""
) -> LandedManifest:
    """Land an upload of so many bytes, by a name that no other upload of its data set has. Done before, with these
    columns: that landing.

    Crash: as of any landing, the file is there with its manifest or not at all.

    Raises:
        RequestError: some of its pieces are not there any more.
    """
    chain = Chain.read(store, load.landed_as)
    done = chain.latest.get(name)
    if done and landed_columns(done) == [*columns]:
        return done
    with open_pieces(store, upload, size) as stream, spool() as content:
        while data := stream.read(_CHUNK):
            content.write(data)
        content.finish()
        proof = store_content(store, landed_folder(load.landed_as), name, content)
    values = {
        "run_id": "",
        "source": "upload",
        "name": name,
        "url": f"upload:{upload}",
        "version": "",
        "partition": "",
        "file": proof,
        "fetched": now(),
        "definition_version": load.version,
        "state": {
            "mode": "upload",
            "columns": json.dumps([list(each) for each in columns]),
            **({"delimiter": delimiter} if delimiter else {}),
        },
    }
    return chain.add(values)[0]


def landed_columns(landed: LandedManifest) -> Columns:
    """The columns that were chosen for a landed upload."""
    return [(name, source, kind) for name, source, kind in json.loads(landed.state["columns"])]


def landed_delimiter(landed: LandedManifest) -> str:
    """What separates the values of a landed upload; empty if it is what the definition says."""
    return landed.state.get("delimiter", "")


class _Pieces(io.RawIOBase):
    """Pieces as one stream."""

    def __init__(self, store: Store, keys: Sequence[str]) -> None:
        super().__init__()
        self._rest = map(store.get, keys)
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        if not self._left:
            self._left = next(self._rest, b"")
        data, self._left = self._left[: len(view)], self._left[len(view) :]
        view[: len(data)] = data
        return len(data)
