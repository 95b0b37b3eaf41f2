"""Where artifacts and manifests lie: `open_store` gives the store of a URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from export_pipelines.errors import StoreError
from export_pipelines.stores.base import ObjectInfo, ObjectWriter, Store

__all__ = ["ObjectInfo", "ObjectWriter", "Store", "open_store"]


def open_store(url: str, *, endpoint_url: str | None = None, region: str | None = None) -> Store:
    """The store of `file:///folder`, of a plain absolute path (`~` allowed), or of `s3://bucket/prefix`.

    Cheap: nothing is made, read or asked before the store is used. `endpoint_url` and `region` concern S3 only; without
    them boto3 looks in AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the profile.

    Raises:
        StoreError: the URL is of another kind, or is not complete.
    """
    from export_pipelines.stores.filesystem import FilesystemStore

    scheme, mark, rest = url.partition("://")
    if url and not mark:
        return FilesystemStore(Path(url).expanduser())
    if scheme.lower() == "file":
        return FilesystemStore(_path_of(rest))
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise StoreError("the URL of a store has credentials in it", hint="give them in AWS_… variables or a profile")
    if scheme.lower() == "s3":
        from export_pipelines.stores.s3 import S3Store

        return S3Store(bucket, prefix, endpoint_url=endpoint_url, region=region)
    raise StoreError(
        f"'{url}' is not the URL of a store", hint="allowed are file:///folder, /folder and s3://bucket/prefix"
    )


def _path_of(rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise StoreError(
            f"'file://{rest}' is not the URL of a folder on this machine", hint="write file:///folder, three slashes"
        )
    return Path("/" + unquote(path))
