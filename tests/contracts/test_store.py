"""What every store promises, tried on a folder and on a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export_pipelines.errors import ObjectExists, ObjectMissing, StoreError
from export_pipelines.stores import Store, open_store
from export_pipelines.stores.keys import is_key
from tests.support.servers import Seaweed

MIB = 1 << 20
ESCAPES = ["", "/a", "../a", "a/../../b", "a//b", "a/", "a\\..\\b", "a\0b", ".", "a/./b", ".tmp-a", "\ud800", "k" * 300]
ODD_KEYS = ["a b/c d.csv", "ü/日本/é.csv", "plus+%2F%20&?#=;@:$,!*'()/x", "'quotes\"/x", "a.b/..c/d..", "-/~^[]{}|`<>"]


@pytest.fixture(params=["filesystem", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that is empty, and not made yet."""
    if request.param == "filesystem":
        return f"file://{tmp_path}/new/root"
    bucket: str = request.getfixturevalue("bucket_url")
    return f"{bucket}/a prefix/ü+"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def blocks(size: int) -> Iterator[bytes]:
    """`size` bytes that do not repeat, in pieces of odd sizes."""
    seed, sent = 0, 0
    while sent < size:
        seed += 1
        block = hashlib.shake_128(seed.to_bytes(4, "big")).digest(65_537) * 3
        yield block[: size - sent]
        sent += len(block)


def write(store: Store, key: str, size: int) -> str:
    """Publish an object of that size and give its digest."""
    digest = hashlib.sha256()
    with store.writer(key) as writer:
        for block in blocks(size):
            writer.write(block)
            digest.update(block)
        writer.publish()
    return digest.hexdigest()


def digest_of(store: Store, key: str) -> str:
    digest = hashlib.sha256()
    with store.open(key) as body:
        while block := body.read(100_003):
            digest.update(block)
    return digest.hexdigest()


def python(program: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start a program in a process of its own, with this one's variables and packages."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_store_shows_an_object_only_after_publish(store: Store) -> None:
    with store.writer("a/b.csv") as writer:
        writer.write(b"one,")
        assert store.head("a/b.csv") is None
        assert keys(store) == []
        with pytest.raises(ObjectMissing):
            store.open("a/b.csv")
        writer.write(b"two")
        writer.publish()
        assert store.get("a/b.csv") == b"one,two"
    info = store.head("a/b.csv")
    assert info is not None
    assert (info.key, info.size) == ("a/b.csv", 7)
    assert abs(datetime.now(UTC) - info.modified) < timedelta(minutes=1)
    assert [(each.key, each.size) for each in store.list()] == [("a/b.csv", 7)]


def test_store_refuses_to_overwrite_a_published_object(store: Store) -> None:
    store.put("a", b"first")
    with pytest.raises(ObjectExists, match="exists already"):
        store.put("a", b"second")
    for size in (3, 9 * MIB):
        with pytest.raises(ObjectExists):
            write(store, "a", size)
    assert store.get("a") == b"first"
    assert keys(store) == ["a"]
    assert store.sweep(0) == []


@pytest.mark.parametrize("size", [1000, 9 * MIB])
@pytest.mark.parametrize("attempt", range(4))  # a race is not lost every time
def test_of_concurrent_writers_of_one_key_exactly_one_wins(store: Store, size: int, attempt: int) -> None:
    results: list[int | None] = []
    barrier = threading.Barrier(4)

    def compete(number: int) -> None:
        with store.writer("a/b") as writer:
            writer.write(bytes([number]) * size)
            barrier.wait(timeout=60)
            try:
                writer.publish()
                results.append(number)
            except ObjectExists:
                results.append(None)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number in results if number is not None]
    assert len(results) == 4
    assert len(winners) == 1
    assert store.get("a/b") == bytes(winners) * size
    assert store.sweep(0) == []


@pytest.mark.parametrize("size", [3, 20 * MIB])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_leaving_a_writer_without_publish_leaves_nothing(
    store: Store, size: int, error: type[BaseException] | None
) -> None:
    try:
        with store.writer("a/b") as writer:
            for block in blocks(size):
                writer.write(block)
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert keys(store) == []
    assert store.head("a/b") is None
    assert store.sweep(0) == []
    with pytest.raises(StoreError, match="aborted"):
        writer.publish()


def test_a_writer_that_was_killed_leaves_nothing_visible_and_is_swept(store: Store, url: str, tmp_path: Path) -> None:
    program = """
        import sys, time
        from export_pipelines.stores import open_store
        with open_store(sys.argv[1]).writer("a/b") as writer:
            for _ in range(40):
                writer.write(b"x" * 1048576)
            print("written", flush=True)
            time.sleep(60)
    """
    with python(program, url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.kill()
    assert keys(store) == []
    assert store.head("a/b") is None
    assert store.sweep(3600) == []
    would_be_swept = store.sweep(0, dry_run=True)
    swept = store.sweep(0)
    assert swept == would_be_swept
    assert len(swept) == 1
    assert swept[0].startswith("a/")
    assert store.sweep(0) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "root" in path.parts] == []
    assert write(store, "a/b", 10) == digest_of(store, "a/b")


@pytest.mark.parametrize("size", [0, 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 40 * MIB])
def test_what_was_written_is_what_is_read(store: Store, size: int) -> None:
    written = write(store, "a/b", size)
    assert digest_of(store, "a/b") == written
    info = store.head("a/b")
    assert info is not None
    assert info.size == size


def test_a_stream_can_be_left_before_its_end(store: Store) -> None:
    write(store, "a", 20 * MIB)
    with store.open("a") as body:
        assert body.read(10) == next(blocks(10))
    assert body.closed


def test_a_list_is_in_the_order_of_keys_and_keeps_to_its_prefix(store: Store) -> None:
    names = ["a-b", "a/b", "a/b-c", "a/b c/d", "a.b", "a/c/d", "a0", "B", "z/é", "z/日", "ab/c"]
    for name in names:
        store.put(name, name.encode())
    assert keys(store) == sorted(names)
    for prefix in ["a", "a/", "a/b", "a/c/d", "z/é", "none", "a/none/", "B"]:
        assert keys(store, prefix) == sorted(name for name in names if name.startswith(prefix))


def test_a_list_goes_on_past_one_page_of_the_server_and_begins_behind_a_key(store: Store) -> None:
    names = [*(f"p/{number % 7}/{number}" for number in range(50)), *(f"q/{number:05d}.json" for number in range(1050))]
    for name in names:
        store.put(name, b"")
    assert keys(store) == sorted(names)
    for after, left in [("q/00000.jso", 1050), ("q/00009.json", 1040), ("q/01048.json", 1), ("q/01049.json", 0)]:
        assert [info.key for info in store.list("q/", after=after)] == names[len(names) - left :]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_characters_in_keys_are_kept(store: Store, key: str) -> None:
    store.put(key, key.encode())
    assert store.get(key) == key.encode()
    assert keys(store) == [key]
    store.delete(key)
    assert store.head(key) is None


@pytest.mark.parametrize("key", ESCAPES)
def test_keys_that_escape_are_refused_by_every_method(store: Store, key: str) -> None:
    methods: list[Callable[[], object]] = [
        lambda: store.writer(key),
        lambda: store.put(key, b"x"),
        lambda: store.open(key),
        lambda: store.get(key),
        lambda: store.head(key),
        lambda: store.delete(key),
        lambda: store.locate(key),
    ]
    for method in methods:
        with pytest.raises(StoreError, match="is not a key"):
            method()


def test_a_prefix_that_escapes_is_refused(store: Store) -> None:
    for prefix in ("../", "/etc/", "a/../"):
        with pytest.raises(StoreError, match="is not a key"):
            list(store.list(prefix))


@given(text=st.text(max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_key_is_refused_or_round_trips(store: Store, text: str) -> None:
    if not is_key(text):
        with pytest.raises(StoreError):
            store.put(text, b"x")
        return
    store.put(text, text.encode())
    try:
        assert store.get(text) == text.encode()
        assert text in keys(store)
    finally:
        store.delete(text)


def test_a_missing_object_is_told(store: Store) -> None:
    store.put("there", b"x")
    for _ in range(2):
        assert store.head("a/b") is None
        with pytest.raises(ObjectMissing, match=r"a/b(.|\n)*hint"):
            store.open("a/b")
        with pytest.raises(ObjectMissing):
            store.get("a/b")
    store.delete("a/b")
    assert keys(store, "a/") == []


def test_a_deleted_object_is_gone_and_its_key_free(store: Store) -> None:
    store.put("a/b", b"one")
    store.delete("a/b")
    assert store.head("a/b") is None
    store.put("a/b", b"two")
    assert store.get("a/b") == b"two"


def test_an_empty_store_can_be_looked_at(store: Store) -> None:
    assert keys(store) == []
    assert store.head("a") is None
    assert store.sweep(0) == []


def test_a_probe_passes_and_leaves_nothing(store: Store) -> None:
    store.probe()
    assert keys(store) == []
    assert store.sweep(0) == []


def test_a_writer_publishes_once(store: Store) -> None:
    with store.writer("a") as writer:
        writer.write(b"x")
        writer.publish()
        with pytest.raises(StoreError, match="already"):
            writer.publish()
    assert store.get("a") == b"x"


def test_memory_stays_bounded_whatever_the_size(url: str) -> None:
    program = """
        import json, resource, sys
        from pathlib import Path
        from export_pipelines.stores import open_store

        def peak():  # MiB; ru_maxrss of a child starts at what its parent had
            status = Path("/proc/self/status")
            if status.exists():
                return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

        store, block, peaks = open_store(sys.argv[1]), bytes(1048576), []
        for size in (1, 300):
            with store.writer(f"{size}") as writer:
                for _ in range(size):
                    writer.write(block)
                writer.publish()
            with store.open(f"{size}") as body:
                assert sum(len(read) for read in iter(lambda: body.read(1048576), b"")) == size << 20
            peaks.append(peak())
        print(json.dumps(peaks))
    """
    with python(program, url) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    small, large = json.loads(output)
    assert large < 130
    assert large - small < (40 if url.startswith("s3") else 3)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    program = """
        import resource, sys
        from export_pipelines.errors import StoreError
        from export_pipelines.stores import open_store
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
        try:
            with open_store(sys.argv[1]).writer("a/b") as writer:
                for _ in range(10):
                    writer.write(b"x" * 1048576)
        except StoreError as error:
            print(error)
    """
    with python(program, str(tmp_path)) as process:
        output, errors = process.communicate(timeout=120)
    assert f"cannot write '{tmp_path}/a/b': the file would be larger than is allowed\nhint: " in output, errors
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_may_not_be_written_is_told() -> None:
    program = """
        import os, sys
        from export_pipelines.errors import StoreError
        from export_pipelines.stores import open_store
        store = open_store(sys.argv[1])
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        attempts = store.probe, lambda: store.put("a/b", b"x"), lambda: store.writer("a"), lambda: store.delete("x")
        for attempt in attempts:
            try:
                attempt()
                print("nothing")
            except StoreError as error:
                print(error.message, "|", error.hint)
    """
    with TemporaryDirectory() as folder:  # not tmp_path: others may not even enter that
        Path(folder).chmod(0o755)
        root = Path(folder) / "store"
        root.mkdir()
        (root / "x").touch()
        root.chmod(0o555)
        with python(program, str(root)) as process:
            output, errors = process.communicate(timeout=120)
        root.chmod(0o755)
    lines = output.splitlines()
    assert len(lines) == 4, errors
    assert all(f"'{root}" in line and ": permission denied | let user " in line for line in lines), output


def _of_s3(url: str, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch, **changes: str) -> Store:
    for name, value in {**seaweed.environment(), **changes}.items():
        monkeypatch.setenv(name, value)
    return open_store(url)


def _all_fail(store: Store, match: str) -> list[StoreError]:
    errors = []
    for attempt in (
        store.probe,
        lambda: store.put("a", b"x"),
        lambda: store.get("a"),
        lambda: store.head("a"),
        lambda: list(store.list()),
        lambda: store.sweep(0),
    ):
        begun = time.monotonic()
        with pytest.raises(StoreError, match=match) as caught:
            attempt()
        assert time.monotonic() - begun < 60
        assert caught.value.hint
        errors.append(caught.value)
    return errors


def test_a_wrong_secret_is_told_and_not_repeated(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _of_s3(seaweed.new_bucket(), seaweed, monkeypatch, AWS_SECRET_ACCESS_KEY="wrong-secret-123")
    for error in _all_fail(store, "secret key is wrong|access denied"):
        assert not error.transient
        assert "wrong-secret" not in str(error)
        assert seaweed.secret_key not in str(error)
        assert "AWS_SECRET_ACCESS_KEY" in error.hint


def test_an_unknown_access_key_is_told(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _of_s3(seaweed.new_bucket(), seaweed, monkeypatch, AWS_ACCESS_KEY_ID="nobody")
    _all_fail(store, "access key is unknown|access denied")


def test_a_missing_bucket_is_told_and_not_made(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = _all_fail(_of_s3("s3://no-such-bucket/a", seaweed, monkeypatch), "there is no such bucket")
    assert not any(error.transient for error in errors)
    assert "no-such-bucket" not in str(seaweed.client().list_buckets()["Buckets"])


def test_a_dead_endpoint_is_told_soon(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _of_s3("s3://bucket/a", seaweed, monkeypatch, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert all(error.transient for error in _all_fail(store, "the endpoint does not answer"))


def test_an_endpoint_that_is_no_url_is_told() -> None:
    with pytest.raises(StoreError, match="endpoint"):
        open_store("s3://bucket/a", endpoint_url="not a url").head("a")


def test_missing_credentials_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreError, match="there are no credentials"):
        open_store("s3://bucket/a", endpoint_url="http://127.0.0.1:9").head("a")
