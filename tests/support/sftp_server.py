"""A local SFTP server of a folder, by paramiko's server side. It can be cut, list what is not there, and answer less
than it is asked for."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import paramiko

from tests.support.threads import in_background

USER, PASSWORD = "shop", "correct horse"
_KEY = paramiko.ECDSAKey.generate()


def public(key: paramiko.PKey) -> str:
    """A public key as definitions have it."""
    return f"{key.get_name()} {key.get_base64()}"


class SftpServer:
    """Serves `root` to one user, by password or by one of the keys `allowed`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.key = _KEY
        self.allowed: list[paramiko.PKey] = []
        self.logins = 0
        self.cut_after: list[int] = []
        """The next files that are read end the connection after so many bytes, one each."""
        self.more_names: list[str] = []
        """Listed as well, with the attributes of the folder's first file."""
        self.silent: set[str] = set()
        """Steps that are not answered until the server ends: `login`, `subsystem`."""
        self.ended = threading.Event()
        self.follows_links = False
        """Whether listings tell of links what they lead to."""
        self.most_bytes = 1 << 20
        """Of one answer."""
        self.ends_at: int | None = None
        """Place from which on files are said to have ended, whatever their size."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._transports: list[paramiko.Transport] = []

    @property
    def source(self) -> dict[str, Any]:
        """A source of all files, for whoever sets the variable SHOP_PASSWORD."""
        login = {"user": USER, "password": {"env": "SHOP_PASSWORD"}, "host_key": public(self.key)}
        return {"type": "sftp", "host": "127.0.0.1", "port": self.port, "path": "/", "settle_seconds": 0, **login}

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.set_log_channel("tests.sftp_server")
            transport.add_server_key(self.key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files, self)
            self._transports.append(transport)
            with suppress(paramiko.SSHException, EOFError):
                transport.start_server(event=threading.Event(), server=_Logins(self))

    def cut(self) -> None:
        """End all connections."""
        for transport in self._transports:
            transport.close()

    def stop(self) -> None:
        self.ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


class _Logins(paramiko.ServerInterface):
    def __init__(self, server: SftpServer) -> None:
        self._server = server

    def get_allowed_auths(self, username: str) -> str:
        return "publickey" if self._server.allowed else "password"

    def check_auth_password(self, username: str, password: str) -> int:
        return self._answer((username, password) == (USER, PASSWORD))

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return self._answer(username == USER and key in self._server.allowed)

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        if "subsystem" in self._server.silent:
            self._server.ended.wait()
        return super().check_channel_subsystem_request(channel, name)

    def _answer(self, right: bool) -> int:
        if "login" in self._server.silent:
            self._server.ended.wait()
        self._server.logins += right
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return int(paramiko.OPEN_SUCCEEDED)


class _Files(paramiko.SFTPServerInterface):
    def __init__(self, server: Any, sftp_server: SftpServer, *_: Any) -> None:
        super().__init__(server)
        self._server = sftp_server

    def _path(self, path: str) -> Path:
        return self._server.root / path.lstrip("/")

    def list_folder(self, path: str) -> Any:
        folder = self._path(path)
        try:
            paths = sorted(folder.iterdir())
            found = [self._attributes(path, path.name) for path in paths]
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        return found + [self._attributes(paths[0], name) for name in self._server.more_names]

    def _attributes(self, path: Path, name: str) -> paramiko.SFTPAttributes:
        status = path.stat() if self._server.follows_links else path.lstat()
        return paramiko.SFTPAttributes.from_stat(status, name)

    def lstat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(self._path(path).lstat())
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    def open(self, path: str, flags: int, attr: Any) -> Any:
        try:
            return _Open(self._server, self._path(path), flags)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)


class _Open(paramiko.SFTPHandle):
    def __init__(self, server: SftpServer, path: Path, flags: int) -> None:
        super().__init__(flags)
        self._server = server
        self.readfile = path.open("rb")
        self._cut_after = server.cut_after.pop(0) if server.cut_after else None

    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))

    def read(self, offset: int, length: int) -> Any:
        if self._cut_after is not None and offset >= self._cut_after:
            # Of the reads that are under way, one does it: the client may be there again.
            self._cut_after = None
            self._server.cut()
        if self._server.ends_at is not None and offset >= self._server.ends_at:
            return paramiko.SFTP_EOF
        return super().read(offset, min(length, self._server.most_bytes))


@contextmanager
def sftp_server(root: Path) -> Iterator[SftpServer]:
    """A server on a free port of 127.0.0.1 until the block is left."""
    server = SftpServer(root)
    with in_background(server):
        yield server
