"""The database that everything is measured on: the embedded PostgreSQL, fsync on, in a folder of its own."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psycopg2

from benchmarks.measure import say
from export_pipelines.catalog.migrate import migrate
from export_pipelines.local import binaries
from export_pipelines.local.postgres import Server

SETTINGS = ("server_version", "shared_buffers", "work_mem", "max_wal_size", "fsync", "synchronous_commit",
            "full_page_writes", "jit", "wal_level", "max_parallel_workers_per_gather")  # fmt: skip

_LINEITEM = """
CREATE TABLE lineitem (
  l_orderkey bigint NOT NULL, l_partkey int NOT NULL, l_suppkey int NOT NULL, l_linenumber int NOT NULL,
  l_quantity numeric(15,2) NOT NULL, l_extendedprice numeric(15,2) NOT NULL, l_discount numeric(15,2) NOT NULL,
  l_tax numeric(15,2) NOT NULL, l_returnflag char(1) NOT NULL, l_linestatus char(1) NOT NULL,
  l_shipdate date NOT NULL, l_commitdate date NOT NULL, l_receiptdate date NOT NULL,
  l_shipinstruct char(25) NOT NULL, l_shipmode char(10) NOT NULL, l_comment varchar(44) NOT NULL)
"""


@dataclass(frozen=True)
class Database:
    """A running server: the source's and the catalog's URL, and where its programs are."""

    source: str
    catalog: str
    programs: Path
    folder: Path

    def connect(self) -> Any:
        """A new connection to the source, in autocommit mode."""
        connection = psycopg2.connect(self.source)
        connection.autocommit = True
        return connection

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements one by one; the rows of the last."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def settings(self) -> dict[str, str]:
        """The settings that decide how fast it is."""
        return {name: str(self.run(f"SHOW {name}")[0][0]) for name in SETTINGS}


@contextmanager
def database(folder: Path) -> Iterator[Database]:
    """Start the server, with an empty source and a migrated catalog the first time; stop it at the end."""
    state = folder / "postgres"
    state.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # root runs it as another user, who must get in
    state.chmod(0o711)
    server = Server(state, fsync=True, die_with_parent=True)
    try:
        address = server.ensure_running(["source", "catalog"])
        migrate(address.url("catalog"), "export_pipelines")
        programs = binaries.installation(state).bin
        yield Database(address.url("source"), address.url("catalog"), programs, folder)
    finally:
        server.stop()


def remove_cluster(folder: Path) -> None:
    """Remove what a server of this folder has outside of it."""
    for made in binaries.data_folders(folder / "postgres"):
        binaries.remove(made)


@contextmanager
def lineitem_csv(scale: float) -> Iterator[IO[bytes]]:
    """TPC-H's lineitem as CSV with its header, while it is generated."""
    program = Path(sysconfig.get_path("scripts")) / "tpchgen-cli"
    command: list[str | Path] = [program, "csv", "-s", f"{scale:g}", "--tables=lineitem", "--stdout", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as generator:
        assert generator.stdout is not None
        yield generator.stdout


def load_lineitem(base: Database, scale: float) -> int:
    """Make and fill TPC-H's lineitem, unless it is there; its rows. Vacuumed, so no reader sets hint bits."""
    if base.run("SELECT to_regclass('lineitem')")[0][0] is None:
        say(f"generating and loading lineitem at scale {scale:g} …")
        with (
            lineitem_csv(scale) as lines,
            closing(base.connect()) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(f"BEGIN; {_LINEITEM}")
            cursor.copy_expert("COPY lineitem FROM STDIN WITH (FORMAT csv, HEADER, FREEZE)", lines, 1 << 20)
            cursor.execute("COMMIT")
        base.run("VACUUM (FREEZE, ANALYZE) lineitem", "CHECKPOINT")
    return int(base.run("SELECT count(*) FROM lineitem")[0][0])
