"""MariaDB: our export and cleanup against `mariadb`, a plain Python loop, plain DELETEs, and pt-archiver.

Needs Debian's MariaDB and percona-toolkit: `scripts/debian-packages.sh bench`.
"""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.export import forget
from benchmarks.measure import ratios, say, seconds, spread, table
from benchmarks.server import Database
from benchmarks.worker import in_own_process
from export_pipelines.local.mariadb import Server
from export_pipelines.sources.mysql import MysqlSource

_TABLE = """
CREATE TABLE {name} (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, code VARCHAR(20) NOT NULL, amount DECIMAL(12,2),
  happened DATETIME(6), day DATE, note VARCHAR(100), flag TINYINT, ratio DOUBLE) DEFAULT CHARSET = utf8mb4
"""
_ROWS = """
INSERT INTO {name} SELECT seq, CONCAT('C-', LPAD(seq % 99991, 8, '0')), (seq * 37 % 1000000) / 100,
  TIMESTAMP('2024-01-01') + INTERVAL seq SECOND, DATE('2024-01-01') + INTERVAL (seq DIV 86400) DAY,
  IF(seq % 10 = 0, NULL, CONCAT('note ', MD5(seq), IF(seq % 50 = 0, ', "quoted"', ''))), seq % 2, seq / 7
FROM seq_1_to_{rows}
"""
_BATCH = 10_000


@contextmanager
def mariadb(folder: Path) -> Iterator[str]:
    """The URL of a database `bench` in a server of its own, with fsync on."""
    (folder / "mariadb").mkdir(exist_ok=True)
    server = Server(folder / "mariadb", die_with_parent=True)
    try:
        yield server.ensure_running(["bench"]).url("bench")
    finally:
        server.stop()


def execute(url: str, *statements: str) -> None:
    """Run statements, each committed by itself."""
    with closing(MysqlSource(url).connect()) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def load(url: str, name: str, rows: int) -> None:
    """Make the table anew."""
    execute(url, f"DROP TABLE IF EXISTS {name}", _TABLE.format(name=name), _ROWS.format(name=name, rows=rows))


def client(url: str, program: str = "mariadb") -> list[str]:
    """A command of MariaDB's client with its connection; the password is in the environment (`password`)."""
    parts = urlsplit(url)
    return [program, f"-h{parts.hostname}", f"-P{parts.port}", f"-u{parts.username}"]


def password(url: str) -> dict[str, str]:
    return {**os.environ, "MYSQL_PWD": urlsplit(url).password or ""}


def by_client(url: str, name: str) -> None:
    """All rows by MariaDB's own client, its output thrown away."""
    command = [*client(url), "-B", "--quick", "bench", "-e", f"SELECT * FROM {name}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=password(url))


def by_loop(url: str, name: str, file: Path) -> None:
    """All rows as a Python program of old does it: a server-side cursor, batches of 10,000, csv and gzip."""
    from pymysql.cursors import SSCursor

    with (
        closing(MysqlSource(url).connect()) as connection,
        connection.cursor(SSCursor) as cursor,
        gzip.open(file, "wt", newline="") as out,
    ):
        writer = csv.writer(out)
        cursor.execute(f"SELECT * FROM {name}")
        writer.writerow([column[0] for column in cursor.description])
        while rows := cursor.fetchmany(_BATCH):
            writer.writerows(rows)


def by_deletes(url: str, name: str, rows: int, batch: int) -> None:
    """Plain DELETEs of ranges of keys, each committed."""
    ranges = (f"id BETWEEN {first} AND {first + batch - 1}" for first in range(1, rows + 1, batch))
    execute(url, *(f"DELETE FROM {name} WHERE {each}" for each in ranges))


def by_pt_archiver(url: str, name: str, file: Path) -> None:
    """pt-archiver at its best settings."""
    parts = urlsplit(url)
    source = f"h={parts.hostname},P={parts.port},u={parts.username},p={parts.password},D=bench,t={name}"
    options = ["--bulk-delete", "--limit", str(_BATCH), "--commit-each", "--no-check-charset", "--where", "1=1"]
    # Without this it leaves the last row.
    command = ["pt-archiver", "--source", source, *options, "--no-safe-auto-increment", "--file", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def ours(base: Database, url: str, name: str, steps: Sequence[str]) -> dict[str, Any]:
    """Our steps, each in a process of its own; the figures of the last, with `sum` of the seconds of all."""
    job = {"source": url, "catalog": base.catalog, "folder": str(base.folder / "files"), "table": name}
    figures = [in_own_process({**job, "engine": "mysql", "step": step}) for step in steps]
    return {**figures[-1], "sum": sum(each["seconds"] for each in figures), "peak": max(f["peak_mb"] for f in figures)}


def run(base: Database, pairs: int, rows: int) -> str:
    """Measure; the result as Markdown."""
    with mariadb(base.folder) as url:
        return f"{_export(base, url, pairs, rows)}\n{_cleanup(base, url, pairs, rows)}"


def run_memory(base: Database, most: int) -> str:
    """Memory and time of each step by the rows of one partition; the result as Markdown."""
    sizes = [most // 20, most // 4, most]
    steps = ("export", "archive", "cleanup")
    found: dict[str, list[str]] = {step: [] for step in steps}
    with mariadb(base.folder) as url:
        for rows in sizes:
            load(url, "mixed", rows)
            _fresh(base)
            for step in steps:
                figures = ours(base, url, "mixed", [step])
                found[step].append(f"{figures['peak']:.0f} MB, {figures['seconds']:.1f} s")
                say(f"mysql memory, {rows:,} rows, {step}: {found[step][-1]}")
    return table(["", *(f"{rows:,} rows" for rows in sizes)], [[step, *found[step]] for step in steps])


def _fresh(base: Database) -> None:
    shutil.rmtree(base.folder / "files", ignore_errors=True)
    forget(base)


def _export(base: Database, url: str, pairs: int, rows: int) -> str:
    load(url, "mixed", rows)
    by_client(url, "mixed")
    theirs, loops, mine, peak = [], [], [], 0.0
    for number in range(pairs):
        theirs.append(seconds(lambda: by_client(url, "mixed")))
        _fresh(base)
        figures = ours(base, url, "mixed", ["export"])
        mine.append(figures["seconds"])
        peak = max(peak, figures["peak"])
        loops.append(seconds(lambda: by_loop(url, "mixed", base.folder / "loop.csv.gz")))
        say(f"mysql export {number + 1}/{pairs}: {theirs[-1]:.2f} s, loop {loops[-1]:.2f} s, ours {mine[-1]:.2f} s")
    lines = [
        ["`mariadb -B --quick` to nowhere", spread(theirs).text(), "1"],
        ["our export step, csv.gz", spread(mine).text(), ratios(mine, theirs).text()],
        ["`SSCursor`, csv, gzip, 10,000 rows at a time", spread(loops).text(), ratios(loops, theirs).text()],
    ]
    return (
        f"{rows:,} rows of 8 columns; {pairs} pairs; the loop takes {ratios(loops, mine).text(1)} × our time; peak "
        f"memory of our process {peak:.0f} MB.\n\n" + table(["", "seconds", "ratio of the pairs"], lines)
    )


def _cleanup(base: Database, url: str, pairs: int, rows: int) -> str:
    plain, mine, whole, rivals, peak = [], [], [], [], 0.0
    for number in range(pairs):
        load(url, "mixed", rows)
        plain.append(seconds(lambda: by_deletes(url, "mixed", rows, 50_000)))
        load(url, "mixed", rows)
        _fresh(base)
        before = ours(base, url, "mixed", ["export", "archive"])
        figures = ours(base, url, "mixed", ["cleanup"])
        assert figures["deleted"] == rows, figures
        mine.append(figures["seconds"])
        whole.append(before["sum"] + figures["seconds"])
        peak = max(peak, figures["peak"])
        load(url, "mixed", rows)
        file = base.folder / "pt-archiver.csv"
        file.unlink(missing_ok=True)
        rivals.append(seconds(partial(by_pt_archiver, url, "mixed", file)))
        say(
            f"mysql cleanup {number + 1}/{pairs}: plain {plain[-1]:.2f} s, ours {mine[-1]:.2f} s, with export and "
            f"archive {whole[-1]:.2f} s, pt-archiver {rivals[-1]:.2f} s"
        )
    lines = [
        ["plain DELETEs of 50,000 keys", spread(plain).text(), "1"],
        ["our cleanup", spread(mine).text(), ratios(mine, plain).text()],
        ["our export, archive and cleanup", spread(whole).text(), ratios(whole, plain).text()],
        ["pt-archiver, `--bulk-delete --limit 10000 --commit-each --file`", spread(rivals).text(), ""],
    ]
    return (
        f"{rows:,} rows deleted; {pairs} pairs; pt-archiver takes {ratios(rivals, whole).text(1)} × the time of all "
        f"our steps together; peak memory of our cleanup {peak:.0f} MB.\n\n"
        + table(["", "seconds", "ratio of the pairs"], lines)
    )
