"""Make the source that a definition names."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, BinaryIO

from export_pipelines.errors import RequestError
from export_pipelines.formats.parsing import format_of
from export_pipelines.sources.files import FileSource
from export_pipelines.sources.files_folder import FolderFiles
from export_pipelines.sources.files_http import HttpFiles
from export_pipelines.sources.files_s3 import BucketFiles
from export_pipelines.sources.files_sftp import SftpFiles
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.sources.rest import Pages, rest_pages
from export_pipelines.sources.wfs import wfs_pages
from export_pipelines.specs.load import LoadSpec
from export_pipelines.specs.load_sources import (
    FolderSource,
    HttpSource,
    RepeatSpec,
    RestSource,
    S3Source,
    SftpSource,
    WfsSource,
)
from export_pipelines.specs.service import resolve
from export_pipelines.windows import Window


def file_source(spec: LoadSpec, window: Window | None, target: PostgresSource | None) -> FileSource:
    """A source of files or pages. Raises RequestError for a source that has none, or a setting that is missing."""
    source = spec.source
    match source:
        case FolderSource():
            return FolderFiles(resolve(source.path), source.pattern, source.settle_seconds)
        case S3Source():
            return _bucket(source)
        case HttpSource():
            return HttpFiles.of(source, lambda name: format_of(spec.file, name))
        case SftpSource():
            return SftpFiles(source)
        case RestSource() | WfsSource():
            return pages_source(spec, window, target)
    raise RequestError(f"a source of type {source.type!r} has no files to land")


def pages_source(spec: LoadSpec, window: Window | None, target: PostgresSource | None) -> Pages:
    """The pages of an API. Raises as `file_source`."""
    source = spec.source
    prefix = f"{window.partition}/" if window is not None and not window.is_snapshot else ""
    match source:
        case RestSource():
            return rest_pages(
                source,
                records=spec.file.records,
                file_format=spec.file.format,
                repeats=_repeats(source.repeat, target),
                common=_window_values(window),
                prefix=prefix,
            )
        case WfsSource():
            return wfs_pages(source, prefix=prefix)
    raise RequestError(f"a source of type {source.type!r} has no pages")


def _window_values(window: Window | None) -> dict[str, str]:
    if window is None or window.start is None or window.end is None:
        return {}
    return {"window_start": window.start.isoformat(), "window_end": window.end.isoformat()}


def _bucket(source: S3Source) -> BucketFiles:
    from export_pipelines.stores.s3 import S3Store
    from export_pipelines.stores.s3_reader import S3Body

    url = resolve(source.url)
    if not url.startswith("s3://"):
        raise RequestError(f"{url!r} is no URL of a bucket", hint="s3://bucket/prefix")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
    store = S3Store(bucket)

    @cache
    def client() -> Any:
        return store.client

    def read(key: str) -> tuple[BinaryIO, str]:
        body = S3Body(client(), bucket, key, f"s3://{bucket}/{key}")
        return io.BufferedReader(body, 1 << 20), body.etag

    return BucketFiles(client, bucket, prefix, source.pattern, read)


def _repeats(repeat: RepeatSpec | None, target: PostgresSource | None) -> Callable[[], Iterator[Mapping[str, Any]]]:
    """The values of the calls."""

    def values() -> Iterator[Mapping[str, Any]]:
        if repeat is None:
            yield {}
        elif repeat.values:
            yield from repeat.values
        elif repeat.first is not None and repeat.last is not None:
            yield from ({"index": index} for index in range(repeat.first, repeat.last + 1))
        else:
            yield from _rows(repeat.sql or "", target)

    return values


def _rows(sql: str, target: PostgresSource | None) -> Iterator[Mapping[str, Any]]:
    if target is None:
        raise RequestError("`repeat: {sql: …}` needs the database of the table")
    query = sql.strip().rstrip(";")
    with target.session() as session:
        session.begin()
        names = [name for name, _, _ in session.describe(query)]
        found = session.execute(query)
    yield from (dict(zip(names, row, strict=True)) for row in found)
