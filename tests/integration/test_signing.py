"""Signed manifests: what a key proves without any database, and how a crash between entry and signature is mended."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.manifest import digest
from export_pipelines.signing import PublicKey, Signer, make_keys, read_public_key, read_signer
from export_pipelines.steps.chain import read_entry
from export_pipelines.steps.chain_keys import head_key, signature_key
from export_pipelines.steps.signatures import seal_all
from export_pipelines.steps.verify import VerifyReport, tables_in, verify_table
from export_pipelines.stores import open_store
from export_pipelines.stores.filesystem import FilesystemStore
from tests.support.killed import Edge, run_until
from tests.support.servers import run_sql
from tests.support.step_tables import StepTable, new_step_table
from tests.support.tables import DAY, NEXT_DAY, Kit

DAYS = ("2025-01-01", "2025-01-02")
SPEC = {
    "table": "events",
    "time_column": "at",
    "partitions": {"every": "day", "start": "2025-01-01"},
    "cleanup": "after_archive",
}


def new_signer(folder: Path, name: str = "signing.pem", others: tuple[PublicKey, ...] = ()) -> Signer:
    folder.mkdir(exist_ok=True)
    make_keys(folder / name)
    return read_signer((folder / name).read_bytes(), name, others)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return new_signer(tmp_path / "keys")


@pytest.fixture
def unsigned(tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    """Two days of events, nothing archived, no key."""
    run_sql(database, "CREATE TABLE events (id int PRIMARY KEY, at timestamptz)")
    run_sql(
        database,
        "INSERT INTO events SELECT n, timestamptz '2025-01-01 00:00Z' + n * interval '1 hour' "
        "FROM generate_series(0, 47) n",
    )
    return new_step_table(tmp_path, database, catalog_url, SPEC)


def with_key(table: StepTable, signer: Signer | None) -> StepTable:
    return replace(table, ctx=replace(table.ctx, signer=signer))


@pytest.fixture
def events(unsigned: StepTable, signer: Signer) -> StepTable:
    """The same with a key: manifests 1 and 2, and receipt 3."""
    table = with_key(unsigned, signer)
    for day in DAYS:
        table.into_archive(day)
    table.cleanup(DAYS[0])
    return table


def verify(table: StepTable, *keys: PublicKey) -> VerifyReport:
    """With the keys alone: no catalog."""
    return verify_table(table.ctx.archive, table.id, keys=keys)


def stored(table: StepTable, key: str) -> Path:
    return table.folder / "archive" / key


def test_every_entry_of_every_kind_is_signed_and_the_public_key_alone_checks_them(
    events: StepTable, signer: Signer
) -> None:
    report = verify(events, signer.public)
    assert (report.problems, report.unaccounted, report.signed) == ((), (), 3)
    assert verify(events).signed is None


def test_openssl_checks_an_entry_and_the_head(events: StepTable, tmp_path: Path) -> None:
    public = tmp_path / "keys" / "signing.pem.pub"
    pairs = [
        (events.manifest(3), stored(events, signature_key(events.id, 3))),
        (stored(events, head_key(events.id, 3, "json")), stored(events, head_key(events.id, 3, "sig"))),
    ]
    for data, signature in pairs:
        assert openssl_says(public, data, signature) == 0
        data.write_bytes(data.read_bytes() + b" ")
        assert openssl_says(public, data, signature) == 1


def openssl_says(public: Path, data: Path, signature: Path) -> int:
    """Exit code of the check that the documentation shows."""
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        public,
        "-rawin",
        "-in",
        data,
        "-sigfile",
        signature,
    ]
    return subprocess.run([*command, "-sigfile", signature], capture_output=True, check=False).returncode


def test_keys_of_openssl_sign(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(file)], check=True)
    public = subprocess.run(["openssl", "pkey", "-in", str(file), "-pubout"], capture_output=True, check=True).stdout
    (tmp_path / "public.pem").write_bytes(public)
    signer = read_signer(file.read_bytes(), "key")
    assert signer.public == read_public_key(tmp_path / "public.pem")
    assert signer.public.fits(signer.sign(b"data"), b"data")
    assert not signer.public.fits(signer.sign(b"data"), b"other")


def test_an_entry_that_was_forged_together_with_the_chain_after_it_is_found(events: StepTable, signer: Signer) -> None:
    """All digests agree: only the signatures show it."""
    previous = ""
    for number in (1, 2, 3):
        said = json.loads(events.manifest(number).read_text())
        said |= {"run_id": "forged", "previous_sha256": previous}
        text = json.dumps(said)
        events.manifest(number).write_text(text)
        previous = digest(text.encode())
    shutil.rmtree(stored(events, head_key(events.id, 3, "json")).parent)
    assert verify(events).intact
    problems = "\n".join(verify(events, signer.public).problems)
    for number in (1, 2, 3):
        assert f"manifest {number} is not what was signed" in problems
    assert "no signed head" in problems


@pytest.mark.parametrize("what", ["entry", "head"])
def test_a_signature_of_another_key_is_found(events: StepTable, tmp_path: Path, signer: Signer, what: str) -> None:
    other = new_signer(tmp_path / "other")
    assert len(verify(events, other.public).problems) == 4
    assert verify(events, other.public, signer.public).intact
    key = signature_key(events.id, 2) if what == "entry" else head_key(events.id, 3, "sig")
    data = events.manifest(2) if what == "entry" else stored(events, head_key(events.id, 3, "json"))
    stored(events, key).write_bytes(other.sign(data.read_bytes()))
    (problem,) = verify(events, signer.public).problems
    assert "another key" in problem


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 64])
def test_a_damaged_signature_is_found(events: StepTable, signer: Signer, damage: bytes) -> None:
    stored(events, signature_key(events.id, 1)).write_bytes(damage)
    (problem,) = verify(events, signer.public).problems
    assert "manifest 1 is not what was signed" in problem


def test_a_cut_off_tail_shows_by_the_signatures_left_behind(events: StepTable) -> None:
    events.manifest(3).unlink()
    problems = verify(events).problems
    assert "manifest 3 is signed and not there: the chain's tail is cut off" in problems
    assert "the chain ends at manifest 2, the signed head knows 3: its tail is cut off" in problems


@pytest.mark.parametrize("head", ["stays", "is removed", "is made anew without the key"])
def test_a_tail_cut_off_with_its_signatures_shows_by_the_signed_head(
    events: StepTable, signer: Signer, tmp_path: Path, head: str
) -> None:
    events.manifest(3).unlink()
    stored(events, signature_key(events.id, 3)).unlink()
    if head != "stays":
        shutil.rmtree(stored(events, head_key(events.id, 3, "json")).parent)
        assert verify(events).intact
    if head == "is made anew without the key":
        entry = read_entry(events.ctx.archive, events.id, 2)[1]
        forged = new_signer(tmp_path / "other")
        seal_all(events.ctx.archive, events.id, (2, digest(entry)), forged)
    (problem,) = verify(events, signer.public).problems
    assert {
        "stays": "the signed head knows 3",
        "is removed": "no signed head",
        "is made anew without the key": "signed by another key",
    }[head] in problem


def test_a_chain_that_was_removed_whole_is_still_looked_for_where_its_signatures_lie(
    events: StepTable, signer: Signer
) -> None:
    shutil.rmtree(events.manifest(1).parent)
    assert tables_in(events.ctx.archive) == [events.id]
    assert any("3 manifests from 1 to 3 are signed and not there" in each for each in verify(events).problems)


def test_there_is_one_head_and_older_ones_cannot_be_shown(events: StepTable) -> None:
    folder = stored(events, head_key(events.id, 3, "json")).parent
    assert sorted(each.name for each in folder.iterdir()) == ["00000003.json", "00000003.sig"]


def test_entries_from_before_signing_began_are_proved_by_the_chain(unsigned: StepTable, signer: Signer) -> None:
    unsigned.into_archive(DAYS[0])
    assert "no manifest is signed" in verify(unsigned, signer.public).problems[0]
    table = with_key(unsigned, signer)
    table.into_archive(DAYS[1])
    assert not stored(table, signature_key(table.id, 1)).exists()
    report = verify(table, signer.public)
    assert (report.problems, report.signed) == ((), 1)
    said = json.loads(table.manifest(1).read_text())
    table.manifest(1).write_text(json.dumps({**said, "run_id": "forged"}))
    assert any("manifest 2 does not follow" in each for each in verify(table, signer.public).problems)


def test_an_unsigned_entry_after_a_signed_one_is_found_and_the_next_entry_brings_its_signature(
    events: StepTable, signer: Signer
) -> None:
    with_key(events, None).cleanup(DAYS[1])
    assert events.manifest(4).exists()
    problems = verify(events, signer.public).problems
    assert "manifest 4 is not signed" in problems[0] and "the signed head is manifest 3" in problems[1]
    assert verify(events).intact
    events.sql("INSERT INTO events VALUES (100, '2025-01-02 12:00Z')")
    events.into_archive(DAYS[1])
    assert (verify(events, signer.public).problems, verify(events, signer.public).signed) == ((), 5)


@pytest.mark.parametrize(
    "edge",
    [
        Edge("before", "steps.chain:seal"),
        Edge("before", "steps.signatures:_sign"),
        Edge("after", "steps.signatures:_sign"),
        Edge("before", "stores.filesystem:FilesystemStore.delete"),
        Edge("after", "steps.chain:seal"),
    ],
    ids=str,
)
def test_a_killed_archive_leaves_what_the_next_run_completes(kit: Kit, tmp_path: Path, edge: Edge) -> None:
    kit.signing_key, kit.window = tmp_path / "signing.pem", DAY
    public = read_public_key(make_keys(kit.signing_key))
    kit.spec = {"table": "t", "time_column": "at"}
    kit.sql("CREATE TABLE t (id int PRIMARY KEY, at timestamptz)", "INSERT INTO t VALUES (1, '2025-01-01 01:00Z')")
    kit.exported()
    kit.sql("INSERT INTO t VALUES (2, '2025-01-02 01:00Z')")
    kit.window = NEXT_DAY
    assert run_until(edge, kit, ("export", "archive")) == -signal.SIGKILL
    archive = open_store((kit.folder / "archive").as_uri())
    assert verify_table(archive, kit.table.id).intact
    kit.archive()
    report = verify_table(archive, kit.table.id, keys=[public])
    assert (report.problems, report.unaccounted, report.signed) == ((), (), 2)


def test_two_entries_that_were_left_unsigned_are_signed_in_their_order(events: StepTable, signer: Signer) -> None:
    blind = with_key(events, None)
    blind.cleanup(DAYS[1])
    blind.sql("INSERT INTO events VALUES (100, '2025-01-02 12:00Z')")
    blind.into_archive(DAYS[1])
    events.cleanup(DAYS[1])
    report = verify(events, signer.public)
    assert (report.problems, report.signed) == ((), 6)


def test_an_unsigned_entry_that_does_not_belong_to_the_chain_is_not_signed(events: StepTable, signer: Signer) -> None:
    with_key(events, None).cleanup(DAYS[1])
    _, data = read_entry(events.ctx.archive, events.id, 4)
    events.manifest(4).write_bytes(data.replace(b'"kind"', b' "kind"'))
    with pytest.raises(IntegrityError, match="manifest 4"):
        events.into_archive(DAYS[0])
    assert not stored(events, signature_key(events.id, 4)).exists()


def test_a_signature_that_was_put_there_before_the_entry_is_an_error(events: StepTable, signer: Signer) -> None:
    stored(events, signature_key(events.id, 4)).write_bytes(b"x" * 64)
    with pytest.raises(IntegrityError, match="no signature of its entry"):
        events.cleanup(DAYS[1])
    assert any("manifest 4" in each for each in verify(events, signer.public).problems)


def test_a_second_key_pair_goes_on_where_the_first_ended(events: StepTable, signer: Signer, tmp_path: Path) -> None:
    second = new_signer(tmp_path / "keys", "second.pem", (signer.public,))
    table = with_key(events, second)
    table.cleanup(DAYS[1])
    assert verify(table, *second.keys).signed == 4
    assert verify(table, *second.keys).intact
    assert len(verify(table, second.public).problems) == 3


def test_signing_all_signs_the_old_entries_too_and_once(unsigned: StepTable, signer: Signer) -> None:
    for day in DAYS:
        unsigned.into_archive(day)
    head = unsigned.ctx.catalog.head(unsigned.id, unsigned.ctx.archive.url)
    assert head is not None
    assert seal_all(unsigned.ctx.archive, unsigned.id, head, signer) == 2
    assert seal_all(unsigned.ctx.archive, unsigned.id, head, signer) == 0
    assert verify(unsigned, signer.public).signed == 2
    with pytest.raises(IntegrityError):
        seal_all(unsigned.ctx.archive, unsigned.id, (2, "0" * 64), signer)


def test_a_head_that_was_left_half_written_is_completed(events: StepTable, signer: Signer) -> None:
    stored(events, head_key(events.id, 3, "sig")).unlink()
    assert len(verify(events, signer.public).problems) == 1
    head = events.ctx.catalog.head(events.id, events.ctx.archive.url)
    assert head is not None
    seal_all(events.ctx.archive, events.id, head, signer)
    assert verify(events, signer.public).intact


def test_keys_are_made_once_and_for_their_owner_only(tmp_path: Path) -> None:
    public = make_keys(tmp_path / "k.pem")
    assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600
    before = (tmp_path / "k.pem").read_bytes()
    for name in ("k.pem", "new.pem"):
        (tmp_path / "new.pem.pub").touch()
        with pytest.raises(RequestError, match="exists"):
            make_keys(tmp_path / name)
    assert (tmp_path / "k.pem").read_bytes() == before
    assert read_public_key(public)


def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path, signer: Signer) -> None:
    private = tmp_path / "keys" / "signing.pem"
    with pytest.raises(RequestError) as caught:
        read_public_key(private)
    assert "PRIVATE" not in str(caught.value).replace("-in PRIVATE", "")
    with pytest.raises(RequestError) as caught:
        read_signer(b"s3cret words", "the key")
    assert "s3cret" not in str(caught.value)
    secret = private.read_text().splitlines()[1]
    assert secret not in repr(signer) + repr(vars(signer))
    with pytest.raises(TypeError):
        pickle.dumps(signer)


def test_signatures_are_read_and_written_in_s3(
    unsigned: StepTable, signer: Signer, bucket_url: str, tmp_path: Path, database: str, catalog_url: str
) -> None:
    table = with_key(new_step_table(tmp_path, database, catalog_url, SPEC, archive_url=f"{bucket_url}/deep"), signer)
    for day in DAYS:
        table.into_archive(day)
    report = verify(table, signer.public)
    assert (report.problems, report.unaccounted, report.signed) == ((), (), 2)
    assert not isinstance(table.ctx.archive, FilesystemStore)
    table.ctx.archive.delete(signature_key(table.id, 2))
    assert len(verify(table, signer.public).problems) == 1
