"""An archive as anybody can read it: with a hash, a decompressor and parsers of JSON and CSV. Nothing of ours is used.

That is on purpose: what proves the program must not rely on it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard


class BrokenChain(AssertionError):
    """The chain of manifests is not what it must be."""


@dataclass(frozen=True)
class Artifact:
    """An archived file. `records` are dicts of its columns; None when its bytes are not what the manifest says."""

    sequence: int
    partition: str
    generation: int
    records: list[dict[str, str]] | None


@dataclass
class Outside:
    """`objects` gives all objects of the archive, by key."""

    objects: Callable[[], dict[str, bytes]]
    table: str
    _parsed: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def read(self) -> tuple[list[Artifact], list[dict[str, Any]]]:
        """Artifacts and receipts, in the order of the chain. Raises BrokenChain."""
        objects = self.objects()
        artifacts = []
        manifests = chain(objects, self.table)
        for manifest in living(manifests):
            export = manifest["export"]
            records = self._records(objects, manifest)
            artifacts.append(Artifact(manifest["sequence"], export["partition"], export["generation"], records))
        receipts = [manifest for manifest in manifests if manifest["kind"] == "cleanup"]
        return artifacts, receipts

    def _records(self, objects: dict[str, bytes], manifest: dict[str, Any]) -> list[dict[str, str]] | None:
        for proof in filter(None, (manifest["identity_file"], manifest["file"])):
            data = objects.get(proof["key"])
            if data is None or hashlib.sha256(data).hexdigest() != proof["sha256"] or len(data) != proof["size"]:
                return None
        sha256 = manifest["file"]["sha256"]
        if sha256 not in self._parsed:
            raw = decompress(objects[manifest["file"]["key"]], manifest["export"]["compression"])
            assert hashlib.sha256(raw).hexdigest() == manifest["file"]["raw_sha256"]
            records = list(csv.DictReader(io.StringIO(raw.decode(), newline="")))
            assert len(records) == manifest["export"]["rows"]
            self._parsed[sha256] = records
        return self._parsed[sha256]


def chain(objects: dict[str, bytes], table: str) -> list[dict[str, Any]]:
    """The manifests of a table, whose numbers have no gap and whose digests fit."""
    keys = sorted(key for key in objects if key.startswith(f"{table}/manifests/"))
    found, before = [], ""
    for number, key in enumerate(keys, start=1):
        manifest = json.loads(objects[key])
        if not key.endswith(f"/{number:08d}.json") or manifest["sequence"] != number:
            raise BrokenChain(f"{key} stands at place {number}")
        if manifest["previous_sha256"] != before:
            raise BrokenChain(f"{key} does not follow the one before")
        before = hashlib.sha256(objects[key]).hexdigest()
        found.append(manifest)
    return found


def living(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The artifacts among manifests that no tombstone gives up."""
    given_up = {manifest["artifact_sequence"] for manifest in manifests if manifest["kind"] == "expire"}
    return [m for m in manifests if m["kind"] == "artifact" and m["sequence"] not in given_up]


def decompress(data: bytes, compression: str) -> bytes:
    """What a file holds."""
    if compression == "gzip":
        return gzip.decompress(data)
    if compression == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
            return reader.read()
    return data


def folder_objects(folder: Path) -> dict[str, bytes]:
    """All published files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def bucket_objects(client: Any, bucket: str, prefix: str, seen: dict[tuple[str, str], bytes]) -> dict[str, bytes]:
    """All objects of a bucket below a prefix. What was `seen` and has the same ETag is not read again."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = {}
    for item in (item for page in pages for item in page.get("Contents", ())):
        key, mark = item["Key"], (item["Key"], item["ETag"])
        if key.removeprefix(prefix).startswith("."):
            continue
        if mark not in seen:
            seen[mark] = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        found[key.removeprefix(prefix)] = seen[mark]
    return found
