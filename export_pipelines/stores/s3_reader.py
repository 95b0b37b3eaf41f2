"""Reading an object of S3 as a stream which survives dropped connections."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from typing import Any

from export_pipelines.errors import ObjectMissing, StoreError
from export_pipelines.stores.s3_errors import FAILURES, code_of, explain, size_of, status_of

_ATTEMPTS = 5
"""In a row without a byte of progress; with the pauses between, about 6 s."""


class S3Body(io.RawIOBase):
    """The bytes of one version of one object, told by its ETag. Wrap it in a BufferedReader.

    A dropped connection is taken up again at the next byte, on condition that the object is still the same.
    """

    def __init__(self, client: Any, bucket: str, key: str, place: str) -> None:
        super().__init__()
        self._client, self._bucket, self._key, self._place = client, bucket, key, place
        self._position = 0
        self._body: Any = None
        try:
            answer = client.get_object(Bucket=bucket, Key=key)
        except FAILURES as error:
            if code_of(error) in ("NoSuchKey", "404"):
                raise ObjectMissing(f"there is no '{place}'", hint="check the key, the bucket and its prefix") from None
            raise explain(error, "read", place) from error
        self._body = answer["Body"]
        try:
            self._size, self._etag = size_of(answer, place), answer["ETag"]
        except StoreError:
            self._drop()
            raise

    @property
    def etag(self) -> str:
        """ETag of the version that is read."""
        return str(self._etag)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of the buffer; 0 at the end. Raises StoreError, transient when another try may do."""
        target = memoryview(buffer).cast("B")
        wanted = min(len(target), self._size - self._position)
        if wanted == 0:
            return 0
        data = self._read(wanted)
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _read(self, wanted: int) -> bytes:
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            try:
                if self._body is None:
                    time.sleep(0.2 * (2**attempt - 1))
                    self._reopen()
                data: bytes = self._body.read(wanted)
            except FAILURES as error:
                failure = error
                self._drop()
                if status_of(error) == 412:
                    break
                continue
            if data:
                return data
            self._drop()
        raise self._explained(failure)

    def _reopen(self) -> None:
        wanted = f"bytes={self._position}-"
        answer = self._client.get_object(Bucket=self._bucket, Key=self._key, Range=wanted, IfMatch=self._etag)
        # A proxy or store that ignores Range would give the wrong bytes.
        if size_of(answer, self._place) != self._size - self._position:
            raise StoreError(
                f"'{self._place}' was asked for from byte {self._position} on, and came from another",
                hint="check what stands between this machine and the store",
            )
        self._body = answer["Body"]

    def _drop(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            with suppress(*FAILURES):
                body.close()

    def _explained(self, failure: Exception | None) -> StoreError:
        if failure is None:
            return StoreError(
                f"'{self._place}' ended at byte {self._position} of {self._size}", hint="run it again", transient=True
            )
        if status_of(failure) == 412:
            return StoreError(
                f"'{self._place}' was replaced while it was read", hint="see who writes into this store beside us"
            )
        return explain(failure, "read", self._place)
