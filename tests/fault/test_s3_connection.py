"""S3 over a connection that breaks, and from servers that answer amiss: a real server behind a faulty proxy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from export_pipelines.errors import ObjectExists, StoreError
from export_pipelines.manifest import CleanupReceipt
from export_pipelines.steps import chain
from export_pipelines.stores.s3 import S3Store
from tests.support.faulty_proxy import Fault, FaultyProxy, error_answer, faulty_proxy
from tests.support.servers import Seaweed

MIB = 1 << 20
DATA = bytes(range(256)) * 4096 * 20  # 20 MiB: three parts


@pytest.fixture
def proxy(seaweed: Seaweed, bucket_url: str) -> Iterator[FaultyProxy]:
    with faulty_proxy(seaweed.endpoint) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultyProxy, bucket_url: str) -> Iterator[S3Store]:
    """Through the proxy."""
    store = S3Store(bucket_url.removeprefix("s3://"), "p", endpoint_url=proxy.endpoint)
    yield store
    store.client.close()


@pytest.fixture
def direct(seaweed: Seaweed, store: S3Store) -> S3Store:
    """The same store past the proxy."""
    return S3Store(store.bucket, "p", endpoint_url=seaweed.endpoint)


def times(count: int, fault: Fault, wanted: Callable[[str], bool]) -> Callable[[str], Fault | None]:
    """The fault for the first `count` requests that are wanted."""
    left = [count]

    def choose(line: str) -> Fault | None:
        if wanted(line) and left[0] > 0:
            left[0] -= 1
            return fault
        return None

    return choose


def is_complete(line: str) -> bool:
    return line.startswith("POST ") and "uploadId=" in line


def is_part(line: str) -> bool:
    return "partNumber=" in line


def is_read(line: str) -> bool:
    return line.startswith("GET ")


def is_put(line: str) -> bool:
    return line.startswith("PUT ")


def write(store: S3Store, data: bytes) -> None:
    with store.writer("a/b") as writer:
        writer.write(data)
        writer.publish()


def receipt(sequence: int, previous: str, written: datetime) -> CleanupReceipt:
    return CleanupReceipt(
        sequence=sequence, previous_sha256=previous, table="t", written=written, run_id="", partition="p",
        artifact_sequence=1, deleted_rows=0, deleted=(), proof="row",
    )  # fmt: skip


def unfinished(store: S3Store) -> list[Any]:
    answer = store.client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix)
    return list(answer.get("Uploads", []))


@pytest.mark.parametrize("lost", [1, 99])
@pytest.mark.parametrize("case", [(1000, is_put), (20 * MIB, is_complete)])
def test_a_publish_whose_answer_was_lost_is_found_to_have_succeeded(
    store: S3Store, direct: S3Store, proxy: FaultyProxy, lost: int, case: tuple[int, Callable[[str], bool]]
) -> None:
    size, wanted = case
    proxy.choose = times(lost, Fault(lose_answer=True), wanted)
    write(store, DATA[:size])
    assert direct.get("a/b") == DATA[:size]
    assert unfinished(direct) == []


@pytest.mark.parametrize(("size", "wanted"), [(1000, is_put), (20 * MIB, is_complete)])
def test_a_publish_is_refused_when_the_object_there_is_of_another(
    store: S3Store, direct: S3Store, proxy: FaultyProxy, size: int, wanted: Callable[[str], bool]
) -> None:
    def another_is_quicker(line: str) -> Fault | None:
        if wanted(line) and direct.head("a/b") is None:
            direct.put("a/b", b"theirs")
            return Fault(cut_after=0, answer=b"")
        return None

    proxy.choose = another_is_quicker
    with pytest.raises(ObjectExists):
        write(store, DATA[:size])
    assert direct.get("a/b") == b"theirs"
    assert unfinished(direct) == []


def test_an_outcome_that_cannot_be_known_is_told_as_that(store: S3Store, proxy: FaultyProxy) -> None:
    store.head("warm")

    def choose(line: str) -> Fault | None:
        return Fault(answer=b"") if line.startswith(("PUT ", "HEAD /", "DELETE ")) and "/p/" in line else None

    proxy.choose = choose
    with pytest.raises(StoreError, match="it is not known whether") as caught:
        store.put("a", b"x")
    assert caught.value.transient


def test_parts_that_break_are_sent_again(store: S3Store, direct: S3Store, proxy: FaultyProxy) -> None:
    proxy.choose = times(4, Fault(lose_answer=True), is_part)
    write(store, DATA)
    assert direct.get("a/b") == DATA


def test_an_upload_that_cannot_go_on_fails_and_leaves_nothing(
    store: S3Store, direct: S3Store, proxy: FaultyProxy
) -> None:
    proxy.choose = times(999, Fault(answer=error_answer(403, "AccessDenied")), is_part)
    with pytest.raises(StoreError, match="access denied"):
        write(store, DATA)
    assert direct.head("a/b") is None
    assert unfinished(direct) == []


def test_a_download_goes_on_where_the_connection_broke(store: S3Store, direct: S3Store, proxy: FaultyProxy) -> None:
    write(direct, DATA)
    proxy.choose = times(7, Fault(cut_after=2 * MIB + 12345), is_read)
    assert store.get("a/b") == DATA
    assert sum(map(is_read, proxy.requests)) == 8


def test_a_download_without_progress_fails_after_a_bounded_time(
    store: S3Store, direct: S3Store, proxy: FaultyProxy
) -> None:
    write(direct, DATA)
    proxy.choose = times(1, Fault(cut_after=MIB), is_read)
    with store.open("a/b") as body:
        body.read(1000)
        proxy.choose = lambda line: Fault(answer=b"")
        begun = time.monotonic()
        with pytest.raises(StoreError, match=r"connection broke|not answer") as caught:
            body.read()
    assert caught.value.transient
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("ask", [S3Store.head, S3Store.get])
def test_an_answer_that_is_cut_within_its_head_is_a_transient_error(
    store: S3Store, direct: S3Store, proxy: FaultyProxy, ask: Callable[[S3Store, str], object]
) -> None:
    """Python's client takes the rest of a head for a whole one."""
    write(direct, DATA[:1000])
    assert store.head("a/b")
    proxy.choose = lambda line: Fault(cut_after=40)
    with pytest.raises(StoreError, match="was cut short") as caught:
        ask(store, "a/b")
    assert caught.value.transient


def test_an_object_that_was_replaced_while_it_was_read_is_told(
    store: S3Store, direct: S3Store, proxy: FaultyProxy
) -> None:
    write(direct, DATA)
    proxy.choose = times(1, Fault(cut_after=MIB), is_read)
    with store.open("a/b") as body:
        body.read(1000)
        direct.delete("a/b")
        write(direct, DATA[::-1])
        with pytest.raises(StoreError, match="was replaced while it was read") as caught:
            body.read()
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("refusal", "says", "transient"),
    [
        ((503, "SlowDown"), "SlowDown", True),
        ((500, "InternalError"), "InternalError", True),
        ((400, "ExpiredToken"), "session token has expired", False),
        ((403, "RequestTimeTooSkewed"), "clock", False),
        ((301, "PermanentRedirect"), "region", False),
        ((507, "InsufficientStorage"), "store is full", False),
        ((501, "NotImplemented"), "does not know", False),
        ((418, "Teapot"), "Teapot", False),
    ],
)
def test_what_the_server_refuses_is_told_with_what_to_do(
    store: S3Store, proxy: FaultyProxy, refusal: tuple[int, str], says: str, transient: bool
) -> None:
    # Only reads: after a 301 botocore asks with HEAD for the region of the bucket.
    proxy.choose = times(99, Fault(answer=error_answer(*refusal)), is_read)
    with pytest.raises(StoreError, match=says) as caught:
        store.get("a")
    assert caught.value.transient is transient


def test_entries_of_a_chain_come_over_connections_that_break_until_one_is_refused(
    store: S3Store, direct: S3Store, proxy: FaultyProxy
) -> None:
    for _ in range(8):
        chain.append(direct, "t", None, receipt)
    broken = times(1, Fault(cut_after=500), lambda line: "00000003.json" in line)
    refused = Fault(answer=error_answer(403, "AccessDenied"))
    proxy.choose = lambda line: refused if "00000006.json" in line else broken(line)
    found = []
    with pytest.raises(StoreError, match=r"00000006\.json"):
        for entry in chain.entries(store, "t"):
            found.append(entry.sequence)
            if len(found) == 2:
                assert any(thread.name.startswith("chain") for thread in threading.enumerate())
    assert found == [1, 2, 3, 4, 5]
    assert not any(thread.name.startswith("chain") for thread in threading.enumerate())


@pytest.mark.parametrize("operation", ["PutObject", "CompleteMultipartUpload"])
def test_a_probe_finds_a_store_that_ignores_conditions(seaweed: Seaweed, bucket_url: str, operation: str) -> None:
    client = boto3.session.Session().client("s3", endpoint_url=seaweed.endpoint)

    def forget(params: dict[str, Any], **others: object) -> dict[str, Any]:
        return {name: value for name, value in params.items() if name != "IfNoneMatch"}

    client.meta.events.register(f"provide-client-params.s3.{operation}", forget)
    store = S3Store(bucket_url.removeprefix("s3://"), "p", client=lambda: client)
    with pytest.raises(StoreError, match="ignores If-None-Match") as caught:
        store.probe()
    assert "conditional puts" in caught.value.hint
    assert client.list_objects_v2(Bucket=store.bucket)["KeyCount"] == 0


def test_what_a_killed_probe_left_is_swept_and_never_listed(direct: S3Store) -> None:
    direct.client.put_object(Bucket=direct.bucket, Key="p/.tmp-probe-1", Body=b"x")
    assert list(direct.list()) == []
    assert direct.sweep(3600) == []
    assert direct.sweep(0, dry_run=True) == [".tmp-probe-1"]
    assert direct.sweep(0) == [".tmp-probe-1"]
    assert direct.sweep(0) == []


def test_a_claim_left_by_a_killed_writer_is_told_and_swept(
    seaweed: Seaweed, direct: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = boto3.session.Session().client("s3", endpoint_url=seaweed.endpoint)

    def keep_claims(params: dict[str, Any], **others: object) -> None:
        if "/.tmp-claim-" in params["Key"]:
            raise KeyboardInterrupt

    client.meta.events.register("provide-client-params.s3.DeleteObject", keep_claims)
    killed = S3Store(direct.bucket, "p", client=lambda: client)
    with pytest.raises(KeyboardInterrupt):
        write(killed, DATA)
    direct.delete("a/b")
    monkeypatch.setattr("export_pipelines.stores.s3_writer.CLAIM_SECONDS", 0.5)
    with pytest.raises(StoreError, match="another writer has been publishing") as caught:
        write(direct, DATA)
    assert caught.value.transient
    assert list(direct.list()) == []
    assert [name[:11] for name in direct.sweep(0)] == [".tmp-claim-"]
    write(direct, DATA)
    assert direct.sweep(0) == []


def test_a_sweep_keeps_to_its_prefix(seaweed: Seaweed, direct: S3Store) -> None:
    begun = seaweed.client().create_multipart_upload(Bucket=direct.bucket, Key="other/a")
    assert direct.sweep(0) == []
    direct.client.abort_multipart_upload(Bucket=direct.bucket, Key="other/a", UploadId=begun["UploadId"])


def test_importing_the_stores_does_not_import_boto3() -> None:
    opened = "import export_pipelines.stores as stores; stores.open_store('s3://bucket/a')"
    program = f"{opened}; import sys; print('botocore' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
