"""Encryption in the age format: both ways, in bounded memory, with every error where it belongs."""

from __future__ import annotations

import io
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
from pydantic import ValidationError

from export_pipelines.errors import IdentityNeeded, IntegrityError, RequestError, StoreError
from export_pipelines.formats.encryption import AgeReader, AgeWriter, Keyring, Shape, recipients
from export_pipelines.specs.encryption import EncryptionSpec

CHUNK = 65536
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 77, 5_000_000]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [each.name for each in threading.enumerate() if each.name.startswith("age ")] == []


@pytest.fixture(scope="module")
def identity() -> pyrage.x25519.Identity:
    return pyrage.x25519.Identity.generate()


def encrypted(data: bytes, *to: pyrage.x25519.Identity, piece: int = 100_000) -> bytes:
    parts: list[bytes] = []
    writer = AgeWriter(parts.append, [str(each.to_public()) for each in to])
    for start in range(0, len(data), piece):
        writer.write(data[start : start + piece])
    writer.finish()
    return b"".join(parts)


def decrypted(data: bytes, *identities: pyrage.x25519.Identity, size: int = 10_000) -> bytes:
    reader = AgeReader(io.BytesIO(data), identities, name="the file")
    try:
        return b"".join(iter(lambda: reader.read(size), b""))
    finally:
        reader.close()


@pytest.mark.parametrize("size", SIZES)
def test_what_was_encrypted_comes_back_byte_for_byte(identity: pyrage.x25519.Identity, size: int) -> None:
    data = os.urandom(size)
    assert decrypted(encrypted(data, identity), identity) == data


@pytest.mark.parametrize("size", SIZES)
def test_the_shape_tells_the_size_without_a_key(identity: pyrage.x25519.Identity, size: int) -> None:
    shape = Shape()
    stored = encrypted(b"x" * size, identity, pyrage.x25519.Identity.generate())
    for start in range(0, len(stored), 50):
        shape.take(stored[start : start + 50])
        if start > 5000:
            shape.take(stored[start + 50 :])
            break
    assert shape.plain_size("the file") == size


@pytest.mark.parametrize("cut", [1, 15, 17, CHUNK + 16, 2 * CHUNK + 32 + 5])
def test_what_is_cut_off_is_found_with_the_key(identity: pyrage.x25519.Identity, cut: int) -> None:
    stored = encrypted(os.urandom(3 * CHUNK + 77), identity)
    with pytest.raises(IntegrityError, match="altered, or cut off"):
        decrypted(stored[:-cut], identity)


def test_a_shape_that_cannot_be_is_found_without_a_key(identity: pyrage.x25519.Identity) -> None:
    stored = encrypted(b"x" * CHUNK, identity)
    whole = encrypted(b"x" * 2 * CHUNK, identity)
    tails = (stored + b"0123456789abcdef", stored[: -CHUNK - 1], b"", b"no age file at all", whole[: -CHUNK - 3])
    for data in tails:
        shape = Shape()
        shape.take(data)
        with pytest.raises(IntegrityError, match="not an intact age file"):
            shape.plain_size("the file")


@pytest.mark.parametrize("where", [5, 60, -1, -CHUNK, 400])
def test_any_altered_byte_is_found(identity: pyrage.x25519.Identity, where: int) -> None:
    stored = bytearray(encrypted(os.urandom(2 * CHUNK), identity))
    stored[where] ^= 1
    with pytest.raises((IntegrityError, IdentityNeeded)):
        decrypted(bytes(stored), identity)


def test_bytes_after_the_end_are_found(identity: pyrage.x25519.Identity) -> None:
    with pytest.raises(IntegrityError):
        decrypted(encrypted(b"rows", identity) + b"more", identity)


def test_each_of_several_recipients_can_read(identity: pyrage.x25519.Identity) -> None:
    others = [pyrage.x25519.Identity.generate() for _ in range(5)]
    stored = encrypted(b"rows", identity, *others)
    assert {decrypted(stored, each) for each in (identity, *others)} == {b"rows"}
    with pytest.raises(IdentityNeeded, match="no identity that is here opens it"):
        decrypted(stored, pyrage.x25519.Identity.generate())


def test_an_error_of_the_store_comes_out_of_write_and_nothing_is_finished(identity: pyrage.x25519.Identity) -> None:
    def full(data: bytes) -> None:
        raise StoreError("no space left")

    writer = AgeWriter(full, [str(identity.to_public())])
    with pytest.raises(StoreError, match="no space left"):
        for _ in range(100):
            writer.write(os.urandom(CHUNK))
    with pytest.raises(StoreError, match="no space left"):
        writer.finish()
    writer.close()


def test_an_error_of_the_store_at_the_end_comes_out_of_finish(identity: pyrage.x25519.Identity) -> None:
    taken: list[bytes] = []

    def late(data: bytes) -> None:
        if 0 < len(data) < CHUNK and len(taken) > 1:
            raise StoreError("no space left")
        taken.append(data)

    writer = AgeWriter(late, [str(identity.to_public())])
    writer.write(b"x" * (3 * CHUNK + 5))
    with pytest.raises(StoreError, match="no space left"):
        writer.finish()


def test_what_is_not_finished_cannot_be_decrypted(identity: pyrage.x25519.Identity) -> None:
    parts: list[bytes] = []
    writer = AgeWriter(parts.append, [str(identity.to_public())])
    writer.write(os.urandom(10 * CHUNK))
    writer.close()
    with pytest.raises(IntegrityError):
        decrypted(b"".join(parts), identity)


def test_an_error_of_the_source_comes_out_of_read(identity: pyrage.x25519.Identity) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 2 * CHUNK:
                raise StoreError("the disk reported an input/output error")
            return super().read(size)

    reader = AgeReader(Failing(encrypted(os.urandom(10 * CHUNK), identity)), [identity], name="the file")
    with pytest.raises(StoreError, match="input/output error"):
        while reader.read(CHUNK):
            pass
    reader.close()


def test_a_reader_that_is_left_early_ends_its_thread(identity: pyrage.x25519.Identity) -> None:
    reader = AgeReader(io.BytesIO(encrypted(os.urandom(100 * CHUNK), identity)), [identity], name="the file")
    assert reader.read(10)
    reader.close()


def test_the_pipe_is_bounded_when_the_store_is_slow(identity: pyrage.x25519.Identity) -> None:
    go = threading.Event()
    writer = AgeWriter(lambda data: go.wait(30), [str(identity.to_public())])
    written = 0

    def fill() -> None:
        nonlocal written
        for _ in range(200):
            writer.write(b"\0" * CHUNK)
            written += CHUNK

    feeder = threading.Thread(target=fill)
    feeder.start()
    feeder.join(0.5)
    assert feeder.is_alive() and written <= 2 << 20
    go.set()
    feeder.join()
    writer.finish()


def test_a_recipient_that_is_none_is_refused_without_repeating_it(identity: pyrage.x25519.Identity) -> None:
    for bad, why in (("age1nonsense", "Bech32"), (str(identity), "private identity"), ("", "age1")):
        with pytest.raises(ValidationError) as caught:
            EncryptionSpec(recipients=(str(identity.to_public()), bad))
        message = caught.value.errors()[0]["msg"]
        assert "number 2" in message and why in message
        assert not bad or bad not in message


def test_recipients_come_from_the_list_and_the_file(identity: pyrage.x25519.Identity, tmp_path: Path) -> None:
    other = str(pyrage.x25519.Identity.generate().to_public())
    file = tmp_path / "recipients.txt"
    file.write_text(f"# the archive's owners\n\n{identity.to_public()}\n  {other}\n")
    spec = EncryptionSpec(recipients=(other,), recipients_file=str(file))
    assert recipients(spec) == (other, str(identity.to_public()))
    file.write_text(f"{other}\nage1broken\n")
    with pytest.raises(RequestError, match=r"recipients\.txt:2 is not a recipient"):
        recipients(spec)
    for text, why in (("# none\n", "has no recipients"), (None, "cannot be read")):
        file.unlink(missing_ok=True)
        if text:
            file.write_text(text)
        with pytest.raises(ValidationError, match=why):
            EncryptionSpec(recipients_file=str(file))
    with pytest.raises(ValidationError, match="not an absolute path"):
        EncryptionSpec(recipients_file="recipients.txt")
    with pytest.raises(ValidationError, match="nobody could read"):
        EncryptionSpec()


def test_a_keyring_reads_files_and_variables_and_never_shows_them(
    identity: pyrage.x25519.Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "identity.txt"
    keyring = Keyring((str(file),), ("AGE_IDENTITY",))
    assert keyring.identities() == []
    with pytest.raises(IdentityNeeded, match="f is encrypted") as caught:
        keyring.needed("f")
    assert str(file) in caught.value.hint and "variable AGE_IDENTITY" in caught.value.hint
    monkeypatch.setenv("AGE_IDENTITY", str(identity))
    file.write_text(f"# created: now\n{identity}\n")
    assert [str(each) for each in keyring.needed("f")] == [str(identity)] * 2
    assert str(identity) not in repr(keyring)
    file.write_text("AGE-SECRET-KEY-1SECRETSECRET")
    with pytest.raises(RequestError, match="no identity on line 1") as refused:
        keyring.identities()
    assert "SECRETSECRET" not in str(refused.value)


@pytest.mark.debian
def test_debians_age_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    subprocess.run(["age-keygen", "-o", tmp_path / "key"], check=True, capture_output=True)
    [identity] = Keyring((str(tmp_path / "key"),)).identities()
    data = os.urandom(3 * CHUNK + 5)
    (tmp_path / "ours.age").write_bytes(encrypted(data, identity, pyrage.x25519.Identity.generate()))
    age = ["age", "-d", "-i", tmp_path / "key", tmp_path / "ours.age"]
    assert subprocess.run(age, check=True, capture_output=True).stdout == data
    (tmp_path / "plain").write_bytes(data)
    subprocess.run(["age", "-r", str(identity.to_public()), "-o", tmp_path / "its.age", tmp_path / "plain"], check=True)
    its = (tmp_path / "its.age").read_bytes()
    shape = Shape()
    shape.take(its)
    assert decrypted(its, identity) == data and shape.plain_size("its") == len(data)
