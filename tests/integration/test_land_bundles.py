"""Bundles of manifests: a long chain of landings is read from few objects, and the manifests are the truth."""

from __future__ import annotations

import gzip
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import IntegrityError, StoreError
from export_pipelines.manifest import FileProof, LandedManifest, to_bytes
from export_pipelines.steps import chain_bundles
from export_pipelines.steps.chain_check import check_chain, unaccounted
from export_pipelines.steps.chain_keys import bundle_key, manifest_key
from export_pipelines.steps.land import landed_files, read_singly
from export_pipelines.steps.land_storing import Chain, now
from export_pipelines.stores import Store, open_store
from export_pipelines.stores.filesystem import FilesystemStore
from tests.support.killed import Edge
from tests.support.processes import context

ID = "shop/orders"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles of three entries."""
    monkeypatch.setattr(chain_bundles, "ENTRIES", 3)


@pytest.fixture(params=["filesystem", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = tmp_path.as_uri() if request.param == "filesystem" else request.getfixturevalue("bucket_url")
    return open_store(f"{url}/landing")


def values(name: str) -> dict[str, Any]:
    file = FileProof(key=f"shop/orders/landed/{name}", size=1, sha256="1", raw_size=1, raw_sha256="1")
    return {"run_id": "", "source": "folder", "name": name, "url": "", "partition": "", "file": file, "fetched": now()}


def landed(store: Store, count: int, table: str = ID, begin: int = 1) -> Chain:
    """A chain, after so many landings."""
    chain = Chain(store, table)
    for number in range(begin, begin + count):
        chain.add(values(f"{number}.csv\n}}\n"))
    return chain


def put(store: Store, key: str, data: bytes) -> None:
    """In place of what is there."""
    store.delete(key)
    store.put(key, data)


def bundles(store: Store, table: str = ID) -> list[int]:
    return list(chain_bundles.bundles(store, table))


def asked(store: Store, monkeypatch: pytest.MonkeyPatch, table: str = ID) -> tuple[list[LandedManifest], list[str]]:
    """What landed, and keys of what was read to know it."""
    keys: list[str] = []
    get = store.get

    def noted(key: str) -> bytes:
        keys.append(key)
        return get(key)

    with monkeypatch.context() as patch:
        patch.setattr(store, "get", noted)
        return Chain.read(store, table).entries, sorted(keys)


def test_a_chain_is_read_from_bundles_and_the_manifests_behind_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = landed(store, 8).entries
    assert bundles(store) == []
    manifests = [manifest_key(ID, number) for number in range(1, 9)]
    assert asked(store, monkeypatch) == (entries, manifests)
    assert bundles(store) == [3, 6]
    assert asked(store, monkeypatch) == (entries, [bundle_key(ID, 3), bundle_key(ID, 6), *manifests[5:]])
    whole = b"".join(gzip.decompress(store.get(bundle_key(ID, last))) for last in (3, 6))
    assert whole == b"".join(map(store.get, manifests[:6]))
    checked = check_chain(store, ID)
    assert (checked.problems, unaccounted(store, ID, checked)) == ([], [])


def test_landings_go_on_behind_bundles_that_others_wrote(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    landed(store, 6)
    mine, theirs = Chain.read(store, ID), Chain.read(store, ID)
    for number in range(7, 10):
        theirs.add(values(str(number)))
    Chain.read(store, ID)
    assert (mine.add(values("10"))[0].sequence, bundles(store)) == (10, [3, 6, 9])
    entries, keys = asked(store, monkeypatch)
    assert [entry.sequence for entry in entries] == list(range(1, 11))
    assert entries == mine.entries
    assert len(keys) == 5


def damaged(store: Store) -> None:
    data = bytearray(store.get(bundle_key(ID, 6)))
    data[len(data) // 2] ^= 1
    put(store, bundle_key(ID, 6), bytes(data))


def cut(store: Store) -> None:
    put(store, bundle_key(ID, 6), store.get(bundle_key(ID, 6))[:-30])


def empty(store: Store) -> None:
    put(store, bundle_key(ID, 6), b"")


def with_fewer_entries(store: Store) -> None:
    whole = gzip.decompress(store.get(bundle_key(ID, 6)))
    put(store, bundle_key(ID, 6), gzip.compress(whole[: whole.rindex(b"\n}\n", 0, -3) + 3]))


def of_another_place(store: Store) -> None:
    put(store, bundle_key(ID, 6), store.get(bundle_key(ID, 3)))


def of_another_table(store: Store) -> None:
    landed(store, 6, "shop/others")
    Chain.read(store, "shop/others")
    put(store, bundle_key(ID, 6), store.get(bundle_key("shop/others", 6)))


def forged(store: Store) -> None:
    """Its last entry follows, and is not the one of the chain."""
    whole = gzip.decompress(store.get(bundle_key(ID, 6)))
    start, _, end = whole.rpartition(b'"definition_version": ""')
    put(store, bundle_key(ID, 6), gzip.compress(start + b'"definition_version": "x"' + end))


HARMS = [damaged, cut, empty, with_fewer_entries, of_another_place, of_another_table, forged]


@pytest.mark.parametrize("harm", HARMS)
def test_a_bundle_that_does_not_fit_is_passed_over_and_told_by_verify(
    tmp_path: Path, harm: Callable[[Store], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FilesystemStore(tmp_path)
    landed(store, 10)
    entries = Chain.read(store, ID).entries
    harm(store)
    found, keys = asked(store, monkeypatch)
    assert found == entries
    assert {manifest_key(ID, number) for number in range(4, 11)} <= set(keys)
    for problems in (check_chain(store, ID).problems, read_singly(store, ID)[1]):
        assert len(problems) == 1
        assert problems[0].startswith(bundle_key(ID, 6))


def test_a_bundle_that_is_gone_is_written_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    landed(store, 9)
    entries = Chain.read(store, ID).entries
    store.delete(bundle_key(ID, 6))
    assert asked(store, monkeypatch)[0] == entries
    assert bundles(store) == [3, 6, 9]
    assert check_chain(store, ID).problems == []


def test_verify_tells_a_manifest_that_is_gone_though_a_bundle_has_it(store: Store) -> None:
    landed(store, 8)
    entries = Chain.read(store, ID).entries
    store.delete(manifest_key(ID, 2))
    assert Chain.read(store, ID).entries == entries
    problems = check_chain(store, ID).problems
    assert problems[0] == f"manifest {manifest_key(ID, 2)} is missing"
    assert f"{bundle_key(ID, 3)} has a manifest 2 that is not there" in problems[1]
    with pytest.raises(IntegrityError, match="number 2 is expected"):
        read_singly(store, ID)


def test_a_gap_behind_bundles_is_an_error(store: Store) -> None:
    landed(store, 9)
    Chain.read(store, ID)
    store.delete(bundle_key(ID, 9))
    store.delete(manifest_key(ID, 8))
    with pytest.raises(IntegrityError, match="number 8 is expected"):
        Chain.read(store, ID)


def test_bundles_give_no_entries_that_the_chain_has_not_got(store: Store) -> None:
    landed(store, 6)
    Chain.read(store, ID)
    for number in (5, 6):
        store.delete(manifest_key(ID, number))
    assert len(Chain.read(store, ID).entries) == 4
    assert "has a manifest 5 that is not there" in check_chain(store, ID).problems[0]


def test_a_bundle_of_a_tail_that_was_cut_off_leaves_those_before_it_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FilesystemStore(tmp_path)
    landed(store, 6)
    Chain.read(store, ID)
    for number in (5, 6):
        store.delete(manifest_key(ID, number))
    landed(store, 5, begin=5)
    found, keys = asked(store, monkeypatch)
    assert [each.sequence for each in found] == [*range(1, 10)]
    assert not {manifest_key(ID, number) for number in (1, 2)} & set(keys)


def test_who_only_looks_at_what_has_landed_writes_no_bundle(store: Store) -> None:
    entries = landed(store, 6).entries
    assert landed_files(store, ID) == entries
    assert bundles(store) == []


def test_an_altered_manifest_behind_bundles_does_not_follow(store: Store) -> None:
    landed(store, 7)
    (*_, last) = Chain.read(store, ID).entries
    put(store, manifest_key(ID, 7), to_bytes(last.model_copy(update={"previous_sha256": "0"})))
    with pytest.raises(IntegrityError, match=r"manifest 7 .* does not follow"):
        Chain.read(store, ID)


def test_readers_at_once_write_each_bundle_once(store: Store) -> None:
    landed(store, 10)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(Chain.read(store, ID).entries))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [10] * 4
    assert bundles(store) == [3, 6, 9]
    assert check_chain(store, ID).problems == []


class Closed(FilesystemStore):
    """May be read only. Counts what was tried."""

    tried = 0

    def put(self, key: str, data: bytes) -> None:
        self.tried += 1
        raise StoreError("access denied")


def test_a_reader_who_may_not_write_reads_all_and_tries_once(tmp_path: Path) -> None:
    entries = landed(FilesystemStore(tmp_path), 10).entries
    store = Closed(tmp_path)
    assert Chain.read(store, ID).entries == entries
    assert store.tried == 1


def test_bundles_that_may_not_even_be_listed_are_done_without(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    entries = landed(store, 10).entries
    store.put("shop/orders/bundles", b"")
    assert Chain.read(store, ID).entries == entries
    assert read_singly(store, ID) == (entries, [])


def test_verify_tells_a_bundle_that_nobody_reads(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    landed(store, 4)
    entries = Chain.read(store, ID).entries
    store.put(bundle_key(ID, 4), store.get(bundle_key(ID, 3)))
    assert Chain.read(store, ID).entries == entries
    assert "00000004.json.gz is not named as bundles" in check_chain(store, ID).problems[0]


def test_verify_compares_bundles_that_were_there_when_it_began(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = landed(store, 3)
    get = store.get

    def while_others_land(key: str) -> bytes:
        if key == manifest_key(ID, 2) and len(chain.entries) == 3:
            for number in range(4, 8):
                chain.add(values(str(number)))
            Chain.read(store, ID)
        return get(key)

    monkeypatch.setattr(store, "get", while_others_land)
    assert check_chain(store, ID).problems == []
    assert bundles(store) == [3, 6]


def read_until(edge: Edge, root: Path) -> None:
    chain_bundles.ENTRIES = 3
    edge.arm()
    Chain.read(FilesystemStore(root), ID)


@pytest.mark.parametrize(
    ("edge", "left"),
    [
        (Edge("before", "stores.file_writer:FileWriter.publish", 2), [3]),
        (Edge("after", "stores.file_writer:FileWriter.publish", 2), [3, 6]),
    ],
    ids=str,
)
def test_a_killed_reader_leaves_whole_bundles_only(edge: Edge, left: list[int], tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    entries = landed(store, 10).entries
    process = context.Process(target=read_until, args=(edge, tmp_path))
    process.start()
    process.join(180)
    assert process.exitcode == -signal.SIGKILL
    assert bundles(store) == left
    assert Chain.read(store, ID).entries == entries
    assert bundles(store) == [3, 6, 9]
    assert check_chain(store, ID).problems == []


def test_manifests_that_could_not_be_told_apart_are_not_bundled(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    (*_, last) = landed(store, 2).entries
    put(store, manifest_key(ID, 2), last.model_dump_json().encode())
    chain = Chain.read(store, ID)
    for number in range(3, 8):
        chain.add(values(str(number)))
    assert Chain.read(store, ID).entries == chain.entries
    assert bundles(store) == []
    assert check_chain(store, ID).problems == []
