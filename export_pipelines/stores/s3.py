"""Objects in a bucket of S3, or of a store that speaks S3."""

from __future__ import annotations

import builtins
import hashlib
import io
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from export_pipelines.errors import ObjectExists, StoreError
from export_pipelines.stores.base import ObjectInfo
from export_pipelines.stores.keys import MAX_KEY_BYTES, TEMPORARY, check_key, check_prefix, is_key

if TYPE_CHECKING:
    from export_pipelines.stores.s3_writer import S3Writer

_BUFFER = 1 << 20
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class S3Store:
    """Objects in a bucket, below a prefix. Cheap to make; boto3 is imported and the server asked when it is used.

    Credentials, region and endpoint come from where boto3 looks for them (AWS_… variables, profile, role of the
    machine) unless they are given. `client` makes a boto3 client of S3, in place of our own: its time-outs and retries
    are then its maker's choice.

    Crash: an object is there whole, or not at all; what is left is an unfinished upload, which `sweep` aborts.
    """

    # Fewer than the ten connections that botocore keeps.
    reads_at_once = 8

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        client: Callable[[], Any] | None = None,
    ) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise StoreError(
                f"'{bucket}' is not the name of a bucket", hint="3 to 63 of a-z, 0-9, '.' and '-': s3://bucket/prefix"
            )
        prefix = prefix.strip("/")
        self.bucket = bucket
        self.prefix = "".join(f"{part}/" for part in check_key(prefix)) if prefix else ""
        self.url = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._make_client = client or partial(_make_client, endpoint_url, region)
        self._lock = threading.Lock()
        self._made: Any = None
        self._bucket_seen = False

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which makes a client of its own."""
        return {**self.__dict__, "_lock": None, "_made": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def client(self) -> Any:
        """The boto3 client, made on first use. Raises StoreError if the settings are wrong."""
        with self._lock:
            if self._made is None:
                with self._explained("use", self.url):
                    self._made = self._make_client()
        return self._made

    def locate(self, key: str) -> str:
        """`s3://bucket/prefix/key`, as the command line of AWS takes it."""
        return f"s3://{self.bucket}/{self._full(key)}"

    def writer(self, key: str) -> S3Writer:
        """Begin to write an object, streaming: about 24 MiB in memory up to 31 GiB, more only beyond that."""
        full = self._full(key)
        return self._writer(full, claim="" if self._is_aws() else self._claim(full))

    def put(self, key: str, data: bytes) -> None:
        """Write a small object at once, if absent. Raises ObjectExists.

        A key is for `put` or for `writer`, not now for one and now for the other: see the claim of S3Writer.
        """
        self._put(self._full(key), data)

    def open(self, key: str) -> BinaryIO:
        """Read an object as a stream that survives dropped connections. Raises ObjectMissing."""
        from export_pipelines.stores.s3_reader import S3Body

        return io.BufferedReader(S3Body(self.client, self.bucket, self._full(key), self.locate(key)), _BUFFER)

    def get(self, key: str) -> bytes:
        """Read a small object whole. Raises ObjectMissing."""
        with self.open(key) as body:
            return body.read()

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object, None if there is none."""
        from export_pipelines.stores.s3_errors import size_of

        with self._explained("look at", self.locate(key)):
            answer = self._unless_missing(self._full(key))
        return ObjectInfo(key, size_of(answer, self.locate(key)), answer["LastModified"]) if answer else None

    def presigned(self, key: str, name: str, media_type: str, seconds: int) -> str:
        """An address at which anybody may download an object for some seconds, under a file name. It is a secret."""
        from urllib.parse import quote

        full = self._full(key)
        # boto3 would sign links by version 2, which many stores do not know.
        self.client.meta.events.register_first("choose-signer.s3.GetObject", _version_4, unique_id="version 4")
        with self._explained("sign a link to", f"s3://{self.bucket}/{full}"):
            url: str = self.client.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self.bucket,
                    "Key": full,
                    "ResponseContentType": media_type,
                    "ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
                },
                ExpiresIn=seconds,
            )
        return url

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix` and comes after `after`, in the order of their keys.

        AWS lists in that order, a page of 1,000 at a time. Other stores do not all (SeaweedFS goes folder by folder),
        so their list is sorted here, at about 0.3 KB of memory an object.
        """
        check_prefix(prefix)
        found = self._listed(self.prefix + prefix, self._full(after) if after else "")
        return found if self._is_aws() else iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none. In a bucket with versions, its versions stay."""
        self._delete(self._full(key))

    def sweep(self, older_than_seconds: float, *, dry_run: bool = False) -> builtins.list[str]:
        """Abort uploads begun so long ago, and remove what was left of probes and claims.

        The server does not tell whether somebody is still at work on an upload: give more seconds than the longest
        export takes.
        """
        oldest = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        return [*self._sweep_uploads(oldest, dry_run), *self._sweep_objects(oldest, dry_run)]

    def probe(self) -> None:
        """Check the bucket, that it can be written, read and deleted, and that conditional puts are honoured.

        Raises:
            StoreError: with the reason and a hint.
        """
        key, data = f"{self.prefix}{TEMPORARY}probe-{secrets.token_hex(8)}", secrets.token_bytes(64)
        place = f"s3://{self.bucket}/{key}"
        self._bucket_seen = False
        self._put(key, data)
        try:
            with self._explained("read", place):
                if self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read() != data:
                    raise StoreError(f"'{place}' gave back other bytes than were written", hint="check the store")
            for multipart in (False, True):
                self._probe_refusal(key, multipart)
        finally:
            self._delete(key)

    def _probe_refusal(self, key: str, multipart: bool) -> None:
        """Check that a second object of a name is refused: both kinds of upload have a condition of their own."""
        with suppress(ObjectExists), self._writer(key) as writer:
            writer.write(b"another")
            if multipart:
                writer.cut()
            writer.publish()
            kind = "multipart uploads" if multipart else "puts"
            raise StoreError(
                f"{self.url} lets a taken name be overwritten: it ignores If-None-Match of {kind}",
                hint="use a store with conditional puts (AWS, SeaweedFS 4, MinIO, Ceph 19, R2), or update it",
            )

    def _full(self, key: str) -> str:
        check_key(key)
        full = self.prefix + key
        if len(full.encode()) > MAX_KEY_BYTES:
            raise StoreError(
                f"'{full:.80}…' is longer than the {MAX_KEY_BYTES} bytes that S3 allows", hint="shorten prefix or key"
            )
        return full

    def _claim(self, full: str) -> str:
        return f"{self.prefix}{TEMPORARY}claim-{hashlib.sha256(full.encode()).hexdigest()[:32]}"

    def _writer(self, full: str, claim: str = "") -> S3Writer:
        from export_pipelines.stores.s3_writer import S3Writer

        # Some stores create a bucket that is missing: a mistyped name would become a new archive.
        self._check_bucket()
        return S3Writer(self.client, self.bucket, full, f"s3://{self.bucket}/{full}", claim=claim)

    def _put(self, full: str, data: bytes) -> None:
        with self._writer(full) as writer:
            writer.write(data)
            writer.publish()

    def _delete(self, full: str) -> None:
        with self._explained("delete", f"s3://{self.bucket}/{full}"):
            self.client.delete_object(Bucket=self.bucket, Key=full)

    def _unless_missing(self, full: str) -> dict[str, Any] | None:
        from export_pipelines.stores.s3_errors import FAILURES, status_of

        try:
            answer: dict[str, Any] = self.client.head_object(Bucket=self.bucket, Key=full)
        except FAILURES as error:
            if status_of(error) != 404:
                raise
            self._check_bucket()  # the answer to a HEAD has no text, and a missing bucket gives 404 as well
            return None
        return answer

    def _check_bucket(self) -> None:
        """Once: whether the bucket is there. That this may not be asked (403) is no reason to stop."""
        from export_pipelines.stores.s3_errors import FAILURES, explain, status_of

        if self._bucket_seen:
            return
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except FAILURES as error:
            if status_of(error) == 404:
                raise StoreError(
                    f"cannot use '{self.url}': there is no such bucket",
                    hint="create the bucket, or correct its name, endpoint or region",
                ) from None
            if status_of(error) != 403:
                raise explain(error, "use", self.url) from error
        self._bucket_seen = True

    def _listed(self, start: str, after: str) -> Iterator[ObjectInfo]:
        behind = {"StartAfter": after} if after else {}
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start, **behind)
        with self._explained("list", self.url):
            for page in pages:
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self.prefix)
                    # Again: not every store knows StartAfter.
                    if item["Key"] > after and is_key(key):
                        yield ObjectInfo(key, item["Size"], item["LastModified"])

    def _is_aws(self) -> bool:
        return ".amazonaws.com" in self.client.meta.endpoint_url

    def _sweep_uploads(self, oldest: datetime, dry_run: bool) -> builtins.list[str]:
        swept = []
        with self._explained("sweep", self.url):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
            stale = [item for page in pages for item in page.get("Uploads", ()) if item["Initiated"] <= oldest]
            for item in stale:
                if not dry_run:
                    self.client.abort_multipart_upload(Bucket=self.bucket, Key=item["Key"], UploadId=item["UploadId"])
                swept.append(f"{item['Key'].removeprefix(self.prefix)} (upload of {item['Initiated']:%Y-%m-%d %H:%M})")
        return swept

    def _sweep_objects(self, oldest: datetime, dry_run: bool) -> builtins.list[str]:
        with self._explained("sweep", self.url):
            start = self.prefix + TEMPORARY
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
            items = [item for page in pages for item in page.get("Contents", ()) if item["LastModified"] <= oldest]
        for item in [] if dry_run else items:
            self._delete(item["Key"])
        return [item["Key"].removeprefix(self.prefix) for item in items]

    @contextmanager
    def _explained(self, action: str, place: str) -> Iterator[None]:
        """Turn what boto3 raises into a StoreError."""
        from export_pipelines.stores.s3_errors import FAILURES, explain

        try:
            yield
        except (*FAILURES, ValueError) as error:  # ValueError: an endpoint that is not a URL
            raise explain(error, action, place) from error


def _version_4(**_: Any) -> str:
    return "s3v4"


def _make_client(endpoint_url: str | None, region: str | None) -> Any:
    """A client whose errors come within 15 s, also when the endpoint does not answer at all (3 × 3 s and pauses)."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 3},
        connect_timeout=3,
        read_timeout=60,
        tcp_keepalive=True,
        # Each put brings a SHA-256 of its own, and what is read is checked against the manifest's.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # Not the default session: it is shared between threads, and making a client of it is not safe.
    session = boto3.session.Session(region_name=region)
    return session.client("s3", endpoint_url=endpoint_url, config=config)
