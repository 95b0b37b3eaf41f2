"""Objects of a bucket as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from export_pipelines.errors import ObjectMissing, SourceError
from export_pipelines.sources.files import Download, Found, Gone, checked_name, matches

_CHUNK = 1 << 20


@dataclass
class BucketFiles:
    """Objects below a prefix whose names match. `client` is a boto3 client; `read` opens an object by its key, as a
    stream of one version that survives lost connections, and gives its ETag."""

    client: Callable[[], Any]
    bucket: str
    prefix: str
    pattern: str
    read: Callable[[str], tuple[BinaryIO, str]]

    def list(self) -> Iterator[Found]:
        """Objects in the order of the listing. Folders (keys that end in a slash) are none."""
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"s3://{self.bucket}/{self.prefix}"
        try:
            pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    name = item["Key"].removeprefix(self.prefix)
                    if not name or name.endswith("/") or not matches(name, self.pattern):
                        continue
                    yield Found(checked_name(name, where), f"s3://{self.bucket}/{item['Key']}", item["ETag"].strip('"'))
        except (BotoCoreError, ClientError) as error:
            raise SourceError(f"{where} cannot be listed: {error}", hint="check bucket, keys and endpoint") from error

    @contextmanager
    def open(self, found: Found, known: str) -> Iterator[Download | None]:
        """Read an object, in the version that is there now."""
        if known and found.version == known:
            yield None
            return
        try:
            stream, version = self.read(self.prefix + found.name)
        except ObjectMissing as error:
            raise Gone(error.message) from error
        with stream:
            yield Download(iter(lambda: stream.read(_CHUNK), b""), version.strip('"'))
