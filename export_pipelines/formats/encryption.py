"""Encryption at rest in the `age` format (https://age-encryption.org/v1), as streams in bounded memory.

The library pulls from a reader and pushes to a writer, and our streams do it the other way round, so it works in a
thread of its own with a bounded pipe between. An error on either side of the pipe comes out on the other.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from export_pipelines.errors import IdentityNeeded, IntegrityError, RequestError
from export_pipelines.specs.encryption import EncryptionSpec, RecipientsFileError, recipients_in

_CHUNK = 64 << 10
_TAG = 16
_NONCE = 16
_PIPE_BYTES = 1 << 20
_LONGEST_HEADER = 1 << 20


class Readable(Protocol):
    """What can be read in pieces."""

    def read(self, size: int, /) -> bytes: ...


def recipients(spec: EncryptionSpec | None) -> tuple[str, ...]:
    """The public keys that a setting names, those of its file too; none without a setting.

    Raises:
        RequestError: the file cannot be read, or has a line that is no recipient.
    """
    if spec is None:
        return ()
    try:
        listed = recipients_in(spec.recipients_file) if spec.recipients_file else ()
    except RecipientsFileError as error:
        raise RequestError(str(error), hint="nothing is written unencrypted; correct `recipients_file`") from error
    return tuple(dict.fromkeys((*spec.recipients, *listed)))


@dataclass(frozen=True)
class Keyring:
    """Where private identities are, by file and by variable. They are read when a file is opened, and never shown."""

    files: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()

    def identities(self) -> list[Any]:
        """All identities that are here; a file that does not exist and a variable that is not set have none.

        Raises:
            RequestError: a file cannot be read, or something is no identity. What it is instead is not said.
        """
        found = []
        for name in self.files:
            path = Path(name).expanduser()
            try:
                found += _identities(path.read_text(encoding="utf-8"), name)
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not text"
                raise RequestError(f"the identity file {name} cannot be read: {reason}", hint="see its owner") from None
        for name in self.variables:
            found += _identities(os.environ.get(name, ""), f"variable {name}")
        return found

    def open_to_others(self) -> list[str]:
        """Files that their owner is not alone to read."""
        paths = [Path(name).expanduser() for name in self.files]
        return [str(path) for path in paths if path.exists() and path.stat().st_mode & 0o077]

    def __add__(self, other: Keyring) -> Keyring:
        return Keyring(self.files + other.files, self.variables + other.variables)

    def needed(self, place: str) -> list[Any]:
        """The identities, to open a file with. Raises IdentityNeeded: there is none here."""
        if found := self.identities():
            return found
        looked = ", ".join((*self.files, *(f"variable {name}" for name in self.variables)))
        raise IdentityNeeded(
            f"{place} is encrypted, and there is no identity to open it with here",
            hint=f"there is none in {looked}" if looked else "name one in resources/: export_pipelines.AgeIdentity",
        )


NO_KEYS = Keyring()


def _identities(text: str, place: str) -> list[Any]:
    from pyrage import IdentityError, x25519

    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not (word := line.strip()) or word.startswith("#"):
            continue
        try:
            found.append(x25519.Identity.from_str(word))
        except IdentityError:
            raise RequestError(
                f"{place} has no identity on line {number}", hint="it starts with AGE-SECRET-KEY-1; see `age-keygen`"
            ) from None
    return found


class AgeWriter:
    """Encrypts what is written and hands it to `write`, which is called in another thread.

    Memory: about a mebibyte. Without `finish` what was written is no age file: its end is missing.
    """

    def __init__(self, write: Callable[[bytes], object], recipients: Sequence[str]) -> None:
        from pyrage import x25519

        self._pipe = _Pipe()
        self._sink = _Sink(write)
        self._plain = 0
        self._worker = _Worker(
            "encrypt_io", self._pipe, self._sink, [x25519.Recipient.from_str(each) for each in recipients]
        )
        self._worker.start()

    def write(self, data: bytes) -> None:
        """Take plain bytes. Raises what `write` raised."""
        self._plain += len(data)
        try:
            self._pipe.write(data)
        except BrokenPipeError:
            self._raise()

    def finish(self) -> None:
        """Write the end. Raises what `write` raised; IntegrityError if the stream has another size than it must."""
        self._pipe.end()
        self._worker.join()
        # The library does not tell of an error of its last write.
        if self._worker.error is not None or self._sink.error is not None:
            self._raise()
        if self._sink.shape.plain_size("the encrypted stream") != self._plain:
            raise IntegrityError("the encrypted stream has another size than what was written to it")

    def close(self) -> None:
        """End the thread, if `finish` has not."""
        self._pipe.close()
        self._worker.join()

    def _raise(self) -> None:
        self._worker.join()
        if self._sink.error is not None:
            raise self._sink.error
        raise IntegrityError(f"encryption failed: {self._worker.error}") from self._worker.error


class AgeReader:
    """Decrypts what `stream` gives, which is read in another thread. Memory: about a mebibyte.

    `close` ends the thread, also in the middle.
    """

    def __init__(self, stream: Readable, identities: Sequence[Any], *, name: str) -> None:
        self._name = name
        self._pipe = _Pipe()
        self._source = _Source(stream)
        self._worker = _Worker("decrypt_io", self._source, self._pipe, list(identities))
        self._worker.start()

    def read(self, size: int, /) -> bytes:
        """At most `size` plain bytes; none at the end.

        Raises:
            IdentityNeeded: none of the identities opens it. IntegrityError: it is altered, cut off, or no age file.
        """
        data = self._pipe.read(size)
        if not data:
            self._worker.join()
            if self._worker.error is not None:
                self._raise(self._worker.error)
        return data

    def _raise(self, error: BaseException) -> None:
        if self._source.error is not None:
            raise self._source.error
        if "No matching keys" in str(error):
            raise IdentityNeeded(
                f"{self._name} is encrypted, and no identity that is here opens it",
                hint="it was encrypted to other recipients; give the identity of one of them",
            ) from None
        raise IntegrityError(f"{self._name} is not an intact age file: it is altered, or cut off") from None

    def close(self) -> None:
        self._pipe.close()
        self._worker.join()


class Shape:
    """Counts what an age file has, without a key: a header, and a payload whose size must be that of whole chunks."""

    def __init__(self) -> None:
        self._head = b""
        self._size = 0

    def take(self, data: bytes) -> None:
        """Count stored bytes, in order."""
        self._size += len(data)
        if not self._header_size() and len(self._head) < _LONGEST_HEADER:
            self._head += data[: _LONGEST_HEADER - len(self._head)]

    def plain_size(self, name: str) -> int:
        """Size of what is encrypted. Raises IntegrityError: it is no age file, or its end is missing."""
        header = self._header_size()
        sealed = self._size - header - _NONCE
        chunks = -(-sealed // (_CHUNK + _TAG))
        last = sealed - (chunks - 1) * (_CHUNK + _TAG)
        if not header or chunks < 1 or last < _TAG + (chunks > 1):
            raise IntegrityError(f"{name} is not an intact age file: its header or its size cannot be")
        return sealed - chunks * _TAG

    def _header_size(self) -> int:
        found = _HEADER.match(self._head)
        return found.end() if found else 0


_BODY = rb"(?:[A-Za-z0-9+/]{64}\n)*[A-Za-z0-9+/]{0,63}\n"
_HEADER = re.compile(rb"age-encryption\.org/v1\n(?:-> [^\n]*\n" + _BODY + rb")+--- [A-Za-z0-9+/]{43}\n")


class _Pipe:
    """A bounded pipe between two threads: about a mebibyte is in it at most."""

    def __init__(self) -> None:
        self._pieces: deque[memoryview] = deque()
        self._size = 0
        self._ended = self._closed = False
        self._changed = threading.Condition()

    def write(self, data: bytes) -> int:
        """Raises BrokenPipeError: nobody reads any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._size < _PIPE_BYTES or self._closed)
            if self._closed:
                raise BrokenPipeError
            if data:
                self._pieces.append(memoryview(bytes(data)))
                self._size += len(data)
                self._changed.notify_all()
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Raises BrokenPipeError: the writer gave up, so this is not all."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended or self._closed)
            if self._closed and not self._ended:
                raise BrokenPipeError
            if not self._pieces:
                return b""
            piece = self._pieces.popleft()
            if 0 <= size < len(piece):
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            self._size -= len(piece)
            self._changed.notify_all()
        return bytes(piece)

    def flush(self) -> None:
        """Nothing is kept back."""

    def end(self) -> None:
        """Nothing more will be written."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will be written or read: who waits is woken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Worker(threading.Thread):
    """Runs one of the library's functions from a reader to a writer; `error` is how it failed."""

    def __init__(self, function: str, reader: Any, writer: Any, keys: list[Any]) -> None:
        super().__init__(name=f"age {function}", daemon=True)
        self._function, self._reader, self._writer, self._keys = function, reader, writer, keys
        self.error: BaseException | None = None

    def run(self) -> None:
        import pyrage

        try:
            getattr(pyrage, self._function)(self._reader, self._writer, self._keys)
        except BaseException as error:
            self.error = error
        for pipe, done in ((self._reader, _Pipe.close), (self._writer, _Pipe.end)):
            if isinstance(pipe, _Pipe):
                done(pipe)


class _Sink:
    """Where ciphertext goes. The library tells only the text of an error, so it is kept."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self.shape = Shape()
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            self._write(data)
        except BaseException as error:
            self.error = error
            raise
        self.shape.take(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""


class _Source:
    """Where ciphertext comes from; its error is kept."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.error: BaseException | None = None

    def read(self, size: int = _CHUNK) -> bytes:
        try:
            return self._stream.read(size)
        except BaseException as error:
            self.error = error
            raise
