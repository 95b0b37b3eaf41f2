"""Encrypted tables: nothing plain reaches a disk, a writer needs no key, and each command says what it cannot do."""

from __future__ import annotations

import gzip
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyrage
import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.errors import IdentityNeeded, StoreError
from export_pipelines.formats.encryption import NO_KEYS, Keyring
from export_pipelines.steps.adopt import adopt_folder
from export_pipelines.steps.verify import VerifyReport, verify_table
from export_pipelines.stores import open_store
from tests.support.tables import DAY, Kit
from tests.support.threads import wait_until

MARKER = "Konradin the rows of nobody else"
MAGIC = b"age-encryption.org/v1\n"


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """A file with a private identity."""
    made = pyrage.x25519.Identity.generate()
    file = tmp_path / "identity.txt"
    file.write_text(f"# public key: {made.to_public()}\n{made}\n")
    file.chmod(0o600)
    return file


def public(identity: Path) -> str:
    return identity.read_text().splitlines()[0].rpartition(" ")[2]


@pytest.fixture
def sealed(kit: Kit, identity: Path) -> Kit:
    """A table of 200 rows, encrypted; whoever works with it has no identity."""
    kit.sql(
        "CREATE TABLE t (id int PRIMARY KEY, note text)",
        f"INSERT INTO t SELECT n, '{MARKER} ' || n FROM generate_series(1, 200) n",
    )
    kit.spec = {"table": "t", "compression": "none", "encryption": {"recipients": [public(identity)]}}
    kit.spec["cleanup"] = {"mode": "after_archive", "batch_rows": 50}
    return kit


@pytest.fixture
def by_key(sealed: Kit) -> Kit:
    """The same table, whose rows are proved by key."""
    sealed.spec = {k: v for k, v in sealed.spec.items() if k != "table"} | {"key": ["id"]}
    sealed.select = "SELECT id, note FROM t GROUP BY id, note"
    sealed.delete = "DELETE FROM t"
    return sealed


def verified(kit: Kit, keyring: Keyring = NO_KEYS) -> VerifyReport:
    return verify_table(open_store((kit.folder / "archive").as_uri()), kit.table.id, keyring=keyring)


def contents(kit: Kit) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in kit.folder.rglob("*") if path.is_file()}


def test_no_plain_row_is_in_any_file(sealed: Kit) -> None:
    record = sealed.exported()
    assert record.file.key.endswith(".csv.age") and record.file.encryption == "age"
    assert (record.rows, record.recipients) == (200, tuple(sealed.spec["encryption"]["recipients"]))
    found = contents(sealed)
    assert all(MARKER.encode() not in data for data in found.values())
    assert sum(data.startswith(MAGIC) for name, data in found.items() if name.endswith(".age")) == 2
    assert len([name for name in found if name.endswith(".age")]) == 2


def test_the_archive_has_the_ciphertext_of_the_export_as_it_is(sealed: Kit) -> None:
    record = sealed.exported()
    [entry] = sealed.entries()
    assert (sealed.folder / "exports" / record.file.key).read_bytes() == (
        sealed.folder / "archive" / entry.file.key
    ).read_bytes()


def test_a_writer_without_any_identity_exports_archives_and_cleans_up(sealed: Kit) -> None:
    sealed.exported()
    result = sealed.cleanup()
    assert (result.deleted, result.complete, result.proof) == (200, True, "row")
    assert sealed.rows() == []


def test_verify_without_an_identity_says_what_it_could_not_prove(sealed: Kit, identity: Path) -> None:
    sealed.exported()
    report = verified(sealed)
    assert report.intact and (report.sealed, report.rows) == (1, 0)
    assert "rows were not counted" in report.limits and "SHA-256 of the stored bytes" in report.limits
    opened = verified(sealed, Keyring((str(identity),)))
    assert opened.intact and (opened.sealed, opened.rows, opened.limits) == (0, 200, "")


def test_verify_with_the_identity_of_another_opens_nothing_and_says_so(sealed: Kit, tmp_path: Path) -> None:
    sealed.exported()
    (tmp_path / "other").write_text(str(pyrage.x25519.Identity.generate()))
    report = verified(sealed, Keyring((str(tmp_path / "other"),)))
    assert report.intact and (report.sealed, report.rows) == (1, 0)


@pytest.mark.parametrize("with_identity", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "altered", "longer"])
def test_damaged_ciphertext_is_found_with_and_without_the_identity(
    sealed: Kit, identity: Path, damage: str, with_identity: bool
) -> None:
    sealed.exported()
    [entry] = sealed.entries()
    file = sealed.folder / "archive" / entry.file.key
    data = file.read_bytes()
    file.write_bytes({"truncated": data[:-20], "altered": data[:-9] + b"x" + data[-8:], "longer": data + b"x"}[damage])
    report = verified(sealed, Keyring((str(identity),)) if with_identity else NO_KEYS)
    [problem] = report.problems
    assert entry.file.key in problem


def test_restore_needs_the_identity_and_gives_every_row(sealed: Kit, identity: Path) -> None:
    before = sealed.rows("SELECT * FROM t ORDER BY id")
    sealed.exported()
    sealed.cleanup()
    with pytest.raises(IdentityNeeded, match="is encrypted"):
        sealed.restored()
    sealed.keyring = Keyring((str(identity),))
    assert sealed.restored() == before


def test_two_generations_are_restored_from_ciphertext(sealed: Kit, identity: Path) -> None:
    sealed.keyring = Keyring((str(identity),))
    before = sealed.rows("SELECT * FROM t ORDER BY id")
    sealed.exported()
    sealed.cleanup()
    sealed.sql("INSERT INTO t VALUES (1000, 'late')")
    sealed.exported()
    assert sealed.restored() == [*before, (1000, "late")]


def test_sidecars_by_key_are_encrypted_and_cleanup_needs_the_identity(by_key: Kit, identity: Path) -> None:
    record = by_key.exported()
    assert record.identity.mode == "key" and record.identity.file is not None
    assert record.identity.file.encryption == "age" and record.identity.file.key.endswith(".identities.zst.age")
    found = [data for name, data in contents(by_key).items() if name.endswith(".age")]
    assert len(found) == 4 and all(data.startswith(MAGIC) for data in found)
    assert verified(by_key).intact and verified(by_key).sealed == 2
    with pytest.raises(IdentityNeeded):
        by_key.cleanup()
    assert len(by_key.rows()) == 200
    by_key.keyring = Keyring((str(identity),))
    assert verified(by_key, by_key.keyring).intact and verified(by_key, by_key.keyring).sealed == 0
    assert by_key.cleanup().deleted == 200
    assert by_key.rows() == [] and len(by_key.restored()) == 200


def test_an_export_that_changed_nothing_is_no_new_generation(sealed: Kit) -> None:
    sealed.exported()
    assert sealed.export().unchanged


def test_other_recipients_make_a_new_generation(sealed: Kit) -> None:
    sealed.exported()
    other = str(pyrage.x25519.Identity.generate().to_public())
    sealed.spec["encryption"] = {"recipients": [*sealed.spec["encryption"]["recipients"], other]}
    record = sealed.export()
    assert not record.unchanged and record.generation == 2 and other in record.recipients


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 3_000_000])
def test_a_disk_that_refuses_leaves_no_published_file(sealed: Kit, size: int) -> None:
    sealed.sql("INSERT INTO t SELECT n, md5(n::text) || repeat('x', 100) FROM generate_series(1000, 40000) n")
    with largest_file(size), pytest.raises(StoreError, match="larger than is allowed"):
        sealed.export()
    assert sealed.all_files() == ["identity.txt"]
    # The server needs a moment to see that the session has gone, whose transaction has the partition's lock.
    locks = "FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE locktype = 'advisory'"
    wait_until(lambda: sealed.sql(f"SELECT count(*) {locks} AND datname = current_database()") == [(0,)])
    assert sealed.export().rows == 39_201


def test_an_adopted_file_is_encrypted_in_the_archive(sealed: Kit, identity: Path) -> None:
    sealed.window = DAY
    sealed.spec |= {"table": "t", "time_column": "at", "compression": "gzip"}
    old = sealed.folder / "old"
    old.mkdir()
    name = f"{sealed.name}-2025_01_02-12_00_00_AM.csv.gz"
    (old / name).write_bytes(gzip.compress(f"id,note\n1,{MARKER}\n".encode()))
    catalog = Catalog(sealed.catalog_url)
    try:
        archive = open_store((sealed.folder / "archive").as_uri())
        for new in (True, False):
            [adopted] = adopt_folder(sealed.table, old, archive, catalog)
            assert (adopted.problem, adopted.new) == ("", new)
    finally:
        catalog.close()
    [entry] = sealed.entries()
    assert entry.file.key.endswith(".csv.gz.age") and entry.file.encryption == "age" and entry.adopted
    assert verified(sealed).intact and verified(sealed).sealed == 1
    assert verified(sealed, Keyring((str(identity),))).rows == 1
    sealed.keyring = Keyring((str(identity),))
    assert sealed.restored() == [("1", MARKER)]


@pytest.mark.debian
def test_the_standard_command_reads_an_archived_file(sealed: Kit, identity: Path) -> None:
    sealed.spec["compression"] = "zstd"
    sealed.exported()
    [entry] = sealed.entries()
    file = sealed.folder / "archive" / entry.file.key
    assert file.name.endswith(".csv.zst.age")
    command = f"age -d -i {identity} {file} | zstd -dc"
    out = subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, capture_output=True, text=True).stdout
    assert out.splitlines()[:2] == ["id,note", f"1,{MARKER} 1"] and len(out.splitlines()) == 201
