"""Writing an object of S3 as a stream: one put when it is small, a multipart upload when it is not."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from export_pipelines.errors import ObjectExists, StoreError
from export_pipelines.stores.file_errors import object_exists
from export_pipelines.stores.s3_errors import FAILURES, code_of, explain, status_of

PART_SIZE = 8 << 20
"""Bytes. The least that S3 takes for a part but the last is 5 MiB."""

ATTEMPT = "attempt"
"""Metadata of an object: which attempt wrote it, so that a lost answer can be told from another writer."""

CLAIM_SECONDS = 20.0
"""How long to wait for another writer that is publishing the same key."""

_IN_FLIGHT = 2
_PART_ATTEMPTS = 4
_ABORT_SECONDS = 5.0


class _Vanished(StoreError):
    """The key was taken, but a moment later there is nothing."""


def part_size(number: int) -> int:
    """Bytes of part `number` (from 1).

    Parts are equal for the first 31 GiB (some stores, R2 for one, want equal parts) and then grow, so that the 10,000
    parts that S3 allows hold its 5 TiB.
    """
    for last, factor in ((4000, 1), (6000, 8), (8000, 64)):
        if number <= last:
            return PART_SIZE * factor
    return PART_SIZE * 288


class S3Writer:
    """Writes one object; see ObjectWriter. In memory: one part being filled and two on their way.

    `claim` is the key of a small object that is there while the upload is being published; who has it is alone. On
    SeaweedFS 4.48 the condition of a put is atomic (300 of 300 rounds of six writers had one winner), but that of
    CompleteMultipartUpload looks first and writes then (61 of 150 rounds had two to six, each overwriting the one
    before). AWS promises both and needs no claim. A key must be written either always with a claim, or never.

    Crash: an unfinished upload stays, which is not visible and which `sweep` aborts; so may a claim, which bars its
    key until it is swept.
    """

    def __init__(self, client: Any, bucket: str, key: str, place: str, *, claim: str = "") -> None:
        self._client, self._bucket, self._key, self._place, self._claim = client, bucket, key, place, claim
        self._attempt = uuid.uuid4().hex
        self._buffer = bytearray()
        self._upload = ""
        self._begun = 0
        self._parts: list[dict[str, Any]] = []
        self._running: deque[Future[dict[str, Any]]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        self._done = False

    def write(self, data: bytes) -> int:
        """Add to the object; waits while two parts are on their way. Raises StoreError, also of an earlier part."""
        self._refuse_when_done()
        rest = memoryview(data).cast("B")
        size = part_size(self._begun + 1)
        while len(self._buffer) + len(rest) >= size:
            cut = size - len(self._buffer)
            self._buffer += rest[:cut]
            rest = rest[cut:]
            self.cut()
            size = part_size(self._begun + 1)
        self._buffer += rest
        return len(data)

    def cut(self) -> None:
        """Send what is buffered as a part, whatever its size (S3 takes one of less than 5 MiB only as the last)."""
        if not self._upload:
            self._begin()
        body, self._buffer = self._buffer, bytearray()
        self._begun += 1
        while len(self._running) >= _IN_FLIGHT:
            self._parts.append(self._running.popleft().result())
        assert self._threads is not None
        self._running.append(self._threads.submit(self._upload_part, self._begun, body))

    def publish(self) -> None:
        """Make it visible if its key is free. Raises ObjectExists, or StoreError; then it was aborted.

        When the answer of the server is lost, the object that is there is looked at: if it is of this attempt, all is
        well. Only if even that cannot be done, the error says that the outcome is not known.
        """
        self._refuse_when_done()
        try:
            if self._upload:
                self._send_rest()
            with self._claimed():
                self._commit(self._complete if self._upload else self._put)
        except BaseException:
            self._abort()
            raise
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abort()

    def _refuse_when_done(self) -> None:
        if self._done:
            raise StoreError(f"'{self._place}' is published or aborted already", hint="begin a new writer")

    def _begin(self) -> None:
        try:
            answer = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=self._key, ChecksumAlgorithm="SHA256", Metadata={ATTEMPT: self._attempt}
            )
        except FAILURES as error:
            raise explain(error, "write", self._place) from error
        self._upload = answer["UploadId"]
        self._threads = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="s3-part")

    def _upload_part(self, number: int, body: bytearray) -> dict[str, Any]:
        """In a thread of its own. Tries longer than botocore does: much work may have gone before this part."""
        checksum = _sha256(body)
        for attempt in range(1, _PART_ATTEMPTS + 1):
            try:
                answer = self._client.upload_part(
                    Bucket=self._bucket,
                    Key=self._key,
                    UploadId=self._upload,
                    PartNumber=number,
                    Body=body,
                    ChecksumSHA256=checksum,
                )
                break
            except FAILURES as error:
                failure = explain(error, "write", self._place)
                if attempt == _PART_ATTEMPTS or not failure.transient or self._done:
                    raise failure from error
                time.sleep(2 ** (attempt - 1))
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _put(self) -> None:
        self._client.put_object(
            Bucket=self._bucket,
            Key=self._key,
            Body=self._buffer,
            ChecksumSHA256=_sha256(self._buffer),
            Metadata={ATTEMPT: self._attempt},
            IfNoneMatch="*",
        )

    def _send_rest(self) -> None:
        if self._buffer:
            self.cut()
        while self._running:
            self._parts.append(self._running.popleft().result())

    def _complete(self) -> None:
        self._client.complete_multipart_upload(
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._upload,
            MultipartUpload={"Parts": self._parts},
            IfNoneMatch="*",
        )

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        if not self._claim:
            yield
            return
        self._take_claim()
        try:
            yield
        finally:
            with suppress(*FAILURES):
                self._client.delete_object(Bucket=self._bucket, Key=self._claim)

    def _take_claim(self) -> None:
        deadline = time.monotonic() + CLAIM_SECONDS
        while True:
            try:
                with S3Writer(self._client, self._bucket, self._claim, f"s3://{self._bucket}/{self._claim}") as claim:
                    return claim.publish()
            except (ObjectExists, _Vanished) as taken:
                if self._attempt_found(taken) is not None:
                    raise object_exists(self._place) from None
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"another writer has been publishing '{self._place}' for more than {CLAIM_SECONDS:.0f} s",
                        hint=f"if there is none, it died: sweep the store, which removes its claim '{self._claim}'",
                        transient=True,
                    ) from None
            time.sleep(0.1)

    def _commit(self, call: Callable[[], None]) -> None:
        try:
            call()
        except FAILURES as error:
            if _is_certain(error):
                raise explain(error, "write", self._place) from error
            self._decide(error)

    def _decide(self, error: Exception) -> None:
        """Return if what is there is of this attempt.

        A 412 may be the answer to botocore's second try, after the first one did it and its answer was lost.
        """
        found = self._attempt_found(error)
        if found == self._attempt:
            return
        if found is not None:
            raise object_exists(self._place) from None
        if status_of(error) in (409, 412):
            raise _Vanished(
                f"'{self._place}' was being written or deleted by somebody else", hint="run it again", transient=True
            ) from error
        raise explain(error, "write", self._place) from error

    def _attempt_found(self, cause: Exception) -> str | None:
        """The attempt that wrote what is there, '' if it says none; None if nothing is there."""
        try:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._key)
        except FAILURES as error:
            if status_of(error) == 404:
                return None
            raise StoreError(
                f"it is not known whether '{self._place}' was written: the answer was lost, and so was the next one",
                hint="check the network; then run it again, an object without a manifest counts for nothing",
                transient=True,
            ) from cause
        return str(answer.get("Metadata", {}).get(ATTEMPT, ""))

    def _abort(self) -> None:
        """Give up what was uploaded. What cannot be aborted now stays invisible, for `sweep`."""
        if self._done:
            return
        self._finish()
        if self._upload:
            # A part that arrives after the abort would stay, and be paid for.
            wait(self._running, timeout=_ABORT_SECONDS)
            with suppress(*FAILURES):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._key, UploadId=self._upload)

    def _finish(self) -> None:
        self._done = True
        self._buffer = bytearray()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _is_certain(error: Exception) -> bool:
    """Whether the server said that it did not write, and nothing else can have happened."""
    if code_of(error) in ("NoSuchUpload", "RequestTimeout"):
        return False  # the upload is also gone after it was completed
    return 400 <= status_of(error) < 500 and status_of(error) not in (408, 409, 412, 429)


def _sha256(data: bytes | bytearray) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()
