"""Real servers for tests, on 127.0.0.1 and in temporary folders; each ends with the process that started it."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg2
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from export_pipelines.local import binaries
from export_pipelines.local.children import free_port, spawn, stop
from export_pipelines.local.postgres import Address, Server


class ServerDidNotStart(Exception):
    """A server that a test needs is missing or does not start. The test fails; nothing is skipped."""


@dataclass(frozen=True)
class Seaweed:
    """A running S3 server (SeaweedFS) with conditional puts, checksums and real signatures."""

    endpoint: str
    access_key: str
    secret_key: str
    log: Path

    region: str = "us-east-1"

    def environment(self) -> dict[str, str]:
        """The variables by which boto3 and our settings find it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }

    def client(self) -> Any:
        """A boto3 client which does not retry, for looking at the server past our own code."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=60),
        )

    def new_bucket(self) -> str:
        """Make an empty bucket and return its `s3://…` URL."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


@contextmanager
def seaweed_server(folder: Path) -> Iterator[Seaweed]:
    """Run `weed mini` in `folder` (made if missing) until the block is left."""
    folder.mkdir(parents=True, exist_ok=True)
    binary = Path(sysconfig.get_path("scripts")) / "weed"
    if not binary.exists():
        raise ServerDidNotStart(f"{binary} is missing; hint: install the extra `dev`")
    server, process = _start_seaweed(binary, folder)
    try:
        yield server
    finally:
        stop(process, grace_seconds=1)


def _start_seaweed(binary: Path, folder: Path) -> tuple[Seaweed, subprocess.Popen[bytes]]:
    """Start it, at other ports if somebody takes one between the look and the start."""
    attempt = 0
    while True:
        attempt += 1
        # gRPC listens 10000 above each port.
        s3, master, volume, filer, admin = (free_port(offsets=(0, 10000)) for _ in range(5))
        server = Seaweed(f"http://127.0.0.1:{s3}", "test-access", uuid.uuid4().hex, folder / f"weed-{attempt}.log")
        data = folder / f"data-{attempt}"
        data.mkdir()
        command = [
            str(binary), "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
            f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-master.telemetry=false",
            # Each bucket takes a volume, and the usual limit is one for each gigabyte of free disk.
            "-volume.max=10000",
            # These have a port of their own that is always the same, so that a second server would not start.
            "-s3.port.iceberg=0", "-s3.port.lance=0",
        ]  # fmt: skip
        env = {
            **os.environ,
            **server.environment(),
            "GOMEMLIMIT": "1GiB",
            "WEED_S3_SSE_KEY": uuid.uuid4().hex + uuid.uuid4().hex,
        }
        env.pop("AWS_ENDPOINT_URL")
        process = spawn(command, log=server.log, die_with_parent=signal.SIGKILL, env=env, cwd=folder)
        try:
            _wait_for_first_put(server, process)
            return server, process
        except BaseException as error:
            stop(process, grace_seconds=1)
            taken = "address already in use" in server.log.read_text(errors="replace")
            if attempt == 3 or not isinstance(error, ServerDidNotStart) or not taken:
                raise


def _wait_for_first_put(server: Seaweed, process: Any, *, seconds: float = 90) -> None:
    """Wait until an object can be written: the port answers well before that."""
    deadline = time.monotonic() + seconds
    client, bucket, last = server.client(), f"ready-{uuid.uuid4().hex[:8]}", None
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="probe", Body=b"x")
            client.delete_object(Bucket=bucket, Key="probe")
            client.delete_bucket(Bucket=bucket)
            return
        except ClientError as error:
            last = error
            if error.response["Error"]["Code"] in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                bucket = f"ready-{uuid.uuid4().hex[:8]}"
        except BotoCoreError as error:
            last = error
        time.sleep(0.1)
    log = server.log.read_text(errors="replace")[-2000:]
    raise ServerDidNotStart(f"the S3 server did not take an object within {seconds:.0f} s: {last}\n{log}")


@contextmanager
def postgres_server() -> Iterator[Address]:
    """Run the embedded PostgreSQL without fsync in a temporary folder until the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="export-pipelines-"))
    folder.chmod(0o711)  # root runs it as another user, who must get in
    server = Server(folder, fsync=False, die_with_parent=True)
    try:
        yield server.ensure_running()
    finally:
        server.stop()
        for made in [folder, *binaries.data_folders(folder)]:
            binaries.remove(made)


@contextmanager
def new_database(server: Address, template: str = "template1") -> Iterator[str]:
    """Make a database like `template`, give its URL, and drop it at the end, whoever is still connected."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    # Without a log of each page: it is copied, and dropped, in less time.
    run_sql(server.url("postgres"), f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
    try:
        yield server.url(name)
    finally:
        run_sql(server.url("postgres"), f'DROP DATABASE "{name}" WITH (FORCE)')


def run_sql(url: str, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Run one statement by itself and return its rows, if it gives any."""
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@dataclass(frozen=True)
class TlsPostgres:
    """Debian's PostgreSQL, a second version to test against, which takes connections with TLS only."""

    port: int
    password: str
    certificate: Path

    def url(self, database: str = "postgres", sslmode: str = "verify-full") -> str:
        """`sslmode=verify-full` checks the server's certificate against its own copy in `certificate`."""
        root = f"&sslrootcert={self.certificate}" if sslmode.startswith("verify") else ""
        return f"postgresql://tester:{self.password}@localhost:{self.port}/{database}?sslmode={sslmode}{root}"


@contextmanager
def tls_postgres_server() -> Iterator[TlsPostgres]:
    """Run Debian's PostgreSQL with TLS in a temporary folder until the block is left."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not installed:
        raise ServerDidNotStart("Debian's PostgreSQL is missing; hint: run scripts/debian-packages.sh")
    folder = Path(tempfile.mkdtemp(prefix="export-pipelines-tls-"))
    nobody = pwd.getpwnam("nobody")
    user = (nobody.pw_uid, nobody.pw_gid) if os.geteuid() == 0 else None
    server = TlsPostgres(free_port(), uuid.uuid4().hex, folder / "server.crt")
    process = None
    try:
        _prepare_tls(server, folder, installed[-1].parent, user)
        command = [installed[-1], "-D", folder / "data", "-c", f"port={server.port}", "-c", "unix_socket_directories="]
        options = [
            f"ssl_cert_file={server.certificate}",
            f"ssl_key_file={folder / 'server.key'}",
            "ssl=on",
            "fsync=off",
        ]
        for option in options:
            command += ["-c", option]
        process = spawn(command, log=folder / "log", die_with_parent=signal.SIGQUIT, user=user, cwd=folder / "data")
        _wait_for_postgres(server, process, folder / "log")
        yield server
    finally:
        if process:
            stop(process, first=signal.SIGINT)
        binaries.remove(folder)


def _prepare_tls(server: TlsPostgres, folder: Path, programs: Path, user: tuple[int, int] | None) -> None:
    """Make a certificate and a cluster which refuses connections without TLS."""
    folder.chmod(0o711)
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    certificate += ["-addext", "subjectAltName=DNS:localhost", "-out", str(server.certificate)]
    subprocess.run([*certificate, "-keyout", str(folder / "server.key")], check=True, capture_output=True)
    (folder / "password").write_text(server.password)
    (folder / "data").mkdir(mode=0o700)
    for name in ("server.key", "server.crt", "password", "data"):
        if user:
            os.chown(folder / name, *user)
    command: list[str | Path] = [programs / "initdb", "-D", folder / "data", "-U", "tester", "-A", "scram-sha-256"]
    command += ["--pwfile", folder / "password", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
    if spawn(command, log=folder / "log", user=user, cwd=folder / "data").wait(120):
        raise ServerDidNotStart((folder / "log").read_text())
    rules = "hostssl all all all scram-sha-256\nhostnossl all all all reject\n"
    (folder / "data" / "pg_hba.conf").write_text(rules)


def _wait_for_postgres(server: TlsPostgres, process: Any, log: Path, *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            run_sql(server.url(), "SELECT 1")
            return
        except psycopg2.OperationalError:
            time.sleep(0.1)
    raise ServerDidNotStart(log.read_text(errors="replace")[-2000:])
