"""A login at an SFTP server, whose key must be the one that is known."""

from __future__ import annotations

import base64
import logging
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export_pipelines.errors import RequestError, SourceError
from export_pipelines.sources.files import Gone, need
from export_pipelines.specs.load_sources import SftpSource
from export_pipelines.specs.service import resolve

if TYPE_CHECKING:
    import paramiko

_PIECE = 32 << 10
"""Bytes of one read: what every server can answer at once."""
_AHEAD = 128
"""Reads that are on their way at once: 4 MiB."""
_KEEPALIVE_SECONDS = 30
_LOG = "export_pipelines.sftp"

# What paramiko logs comes as an error of ours, too; without any handler it would be on stderr a second time.
logging.getLogger(_LOG).addHandler(logging.NullHandler())


class Session:
    """One login. Each error of it may have ended the connection: close it then, and make another one.

    Raises (all methods):
        Gone: there is no such file or folder.
        SourceError: the server refused or failed; transient where another login may help.
    """

    def __init__(self, spec: SftpSource) -> None:
        """Log in. Raises RequestError as well: a setting is missing, or a key cannot be read."""
        self._timeout = spec.read_timeout
        host = need(resolve(spec.host), "`host`")
        self.where = _where(host, spec.port)
        self._client = _connected(spec, host, self.where)
        try:
            with self._errors("its SFTP"):
                self._sftp = _opened(self._client, spec.read_timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the connection, whatever is under way."""
        self._client.close()

    def entries(self, folder: str) -> list[Any]:
        """Attributes of all that is in a folder, as paramiko gives them."""
        with self._errors(f"the folder {folder!r}"):
            return list(self._sftp.listdir_attr(folder))

    def status(self, path: str) -> Any:
        """Attributes of a file or folder; of a symbolic link its own."""
        with self._errors(repr(path)):
            return self._sftp.lstat(path)

    def read(self, path: str, size: int, check: Callable[[Any], None]) -> Iterator[bytes]:
        """So many bytes of a file in pieces, fewer where it is shorter. Then `check` gets the attributes of the very
        file that was read."""
        with self._errors(repr(path)):
            file = self._sftp.open(path, "rb")
            yield from _Reads(self._sftp, file).pieces(size)
            check(file.stat())
            file.close()

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        from paramiko import SFTPError, SSHException

        try:
            yield
        except FileNotFoundError as error:
            raise Gone(f"{self.where} does not have {what}", hint="check `path` of the source") from error
        except PermissionError as error:
            raise SourceError(f"{self.where} refuses {what}", hint="check the rights of `user` there") from error
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.where} has a name that is no UTF-8 in {what}", hint="rename it") from error
        except TimeoutError as error:
            what = f"{self.where} is silent for {self._timeout:g} s about {what}"
            raise SourceError(what, hint="is the server up?", transient=True) from error
        except (OSError, EOFError, SSHException, SFTPError, struct.error) as error:
            what = f"{self.where} failed at {what}: {_reason(error)}"
            raise SourceError(what, hint="is the server up?", transient=True) from error


class _Reads:
    """Reads of an open file, many on their way at once: one by one, each would wait for the way there and back.

    Not by paramiko's `prefetch` or `readv`. They ask in a thread, which races with the answers (the rest is then read
    one by one, and what came is held until the file is closed), and which fails by itself when the connection does.
    """

    def __init__(self, sftp: Any, file: Any) -> None:
        self._sftp = sftp
        self._handle = file.handle
        self._answers: dict[int, tuple[int, Any]] = {}

    def pieces(self, size: int) -> Iterator[bytes]:
        """The first `size` bytes, or all that there are."""
        asked: deque[tuple[int, int, int]] = deque()
        next_start = 0
        while True:
            while next_start < size and len(asked) < _AHEAD:
                length = min(_PIECE, size - next_start)
                asked.append((self._ask(next_start, length), next_start, length))
                next_start += length
            if not asked:
                return
            number, start, length = asked.popleft()
            data = self._answer(number)
            if not data:
                return
            if len(data) < length:
                # A server may answer less than it was asked for.
                start, length = start + len(data), length - len(data)
                asked.appendleft((self._ask(start, length), start, length))
            yield data

    def _ask(self, start: int, length: int) -> int:
        from paramiko.sftp import CMD_READ, int64

        return int(self._sftp._async_request(self, CMD_READ, self._handle, int64(start), length))

    def _async_response(self, kind: int, message: Any, number: int) -> None:
        """An answer came: paramiko calls this within `_read_response`."""
        self._answers[number] = (kind, message)

    def _answer(self, number: int) -> bytes:
        """Empty at the end of the file."""
        from paramiko import SFTPError
        from paramiko.sftp import CMD_DATA

        while number not in self._answers:
            self._sftp._read_response()
        kind, message = self._answers.pop(number)
        if kind == CMD_DATA:
            return bytes(message.get_string())
        try:
            self._sftp._convert_status(message)
        except EOFError:
            return b""
        raise SFTPError("no data, and no error")


# Logging in


def _connected(spec: SftpSource, host: str, where: str) -> paramiko.SSHClient:
    """A client that has logged in."""
    import paramiko

    known = host if spec.port == 22 else f"[{host}]:{spec.port}"
    client = paramiko.SSHClient()
    client.set_log_channel(_LOG)
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    _know(client.get_host_keys(), spec, known)
    secret = _secret(spec)
    try:
        client.connect(
            host,
            spec.port,
            need(resolve(spec.user), "`user`"),
            **secret,
            allow_agent=False,
            look_for_keys=False,
            timeout=spec.connect_timeout,
            banner_timeout=spec.connect_timeout,
            auth_timeout=spec.connect_timeout,
            channel_timeout=spec.read_timeout,
        )
    except paramiko.BadHostKeyException as error:
        client.close()
        raise SourceError(
            f"{where} has another key than the one that is known: {error.key.get_name()} {error.key.fingerprint}",
            hint="somebody may be in between; if the server was given a new key, ask who runs it, and write that one",
        ) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _refusal(client, error, where) from error
    except BaseException:
        client.close()
        raise
    return client


def _refusal(client: paramiko.SSHClient, error: Exception, where: str) -> SourceError:
    """What a failed login means. Ends the connection."""
    import paramiko

    transport = client.get_transport()
    alive = transport is not None and transport.is_active()
    client.close()
    if isinstance(error, paramiko.BadAuthenticationType):
        ways = ", ".join(error.allowed_types)
        return SourceError(f"{where} does not take this way to log in", hint=f"it takes {ways}")
    # A connection that was lost in the middle looks like a refusal, too, and so does no answer.
    silent = _reason(error).startswith("Authentication timeout")
    if isinstance(error, paramiko.AuthenticationException) and alive and not silent:
        return SourceError(f"{where} refuses the login", hint="check `user`, and `password` or `key_file`")
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        return SourceError(f"{where} has no common algorithm with us: {_reason(error)}", hint="it may be too old")
    return SourceError(f"{where} does not answer: {_reason(error)}", hint="is the server up?", transient=True)


def _opened(client: paramiko.SSHClient, timeout: float) -> paramiko.SFTPClient:
    """Its SFTP. By hand, since the timeout must be there before the first answer is waited for."""
    import paramiko

    transport = client.get_transport()
    if transport is None:
        raise EOFError("the connection was lost")
    transport.set_keepalive(_KEEPALIVE_SECONDS)
    channel = transport.open_session(timeout=timeout)
    channel.settimeout(timeout)
    # The driver waits for this answer without end, unless the connection has one.
    end = threading.Timer(timeout, transport.close)
    end.start()
    try:
        channel.invoke_subsystem("sftp")
    finally:
        end.cancel()
    return paramiko.SFTPClient(channel)


def _know(keys: paramiko.HostKeys, spec: SftpSource, name: str) -> None:
    """Fill in the keys that the server may have."""
    from paramiko.hostkeys import InvalidHostKey

    if spec.known_hosts is None:
        key = _public_key(need(resolve(spec.host_key), "`host_key`"))
        keys.add(name, key.get_name(), key)
        return
    file = Path(need(resolve(spec.known_hosts), "`known_hosts`")).expanduser()
    try:
        keys.load(str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read: {_reason(error)}", hint="check `known_hosts`") from error
    except InvalidHostKey as error:
        raise RequestError(f"{file} has a line that is no host and key", hint="lines with @ are not read") from error
    if keys.lookup(name) is None:
        raise RequestError(
            f"{file} has no key of {name}", hint="`ssh-keyscan` prints it; compare it with what those who run it say"
        )


def _public_key(text: str) -> paramiko.PKey:
    import paramiko

    try:
        kind, data = text.split()[:2]
        return paramiko.PKey.from_type_string(kind, base64.b64decode(data, validate=True))
    except (ValueError, IndexError, paramiko.SSHException, paramiko.UnknownKeyType) as error:
        hint = "`ssh-ed25519 AAAA…`, as `ssh-keyscan` prints it behind the host"
        raise RequestError("`host_key` is no public key", hint=hint) from error


def _secret(spec: SftpSource) -> dict[str, Any]:
    """What we prove by who we are."""
    import paramiko

    if spec.key_file is None:
        return {"password": need(resolve(spec.password), "`password`")}
    file = Path(need(resolve(spec.key_file), "`key_file`")).expanduser()
    passphrase = resolve(spec.passphrase)
    try:
        return {"pkey": paramiko.PKey.from_path(file, passphrase.encode() if passphrase else None)}
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {_reason(error)}", hint="check `key_file`") from error
    except (ValueError, TypeError, paramiko.SSHException, paramiko.UnknownKeyType) as error:
        # Not the reason: it may have bytes of the key in it.
        raise RequestError(f"{file} is no private key that can be opened", hint="check it, and `passphrase`") from error


def _where(host: str, port: int) -> str:
    """The server as a URL."""
    shown = f"[{host}]" if ":" in host else host
    return f"sftp://{shown}" if port == 22 else f"sftp://{shown}:{port}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [""])[0][:200].rstrip(": ") or type(error).__name__
