"""`python -m benchmarks`: run all or some of the benchmarks and print their tables."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from benchmarks import (
    cleanup,
    export,
    landings,
    load,
    memory,
    mysql,
    partitions,
    pulling,
    reading,
    requests,
    restore,
    service,
    startup,
    verify,
)
from benchmarks.measure import say
from benchmarks.server import database, remove_cluster

NAMES = (
    "export",
    "cleanup",
    "partitions",
    "startup",
    "memory",
    "restore",
    "load",
    "pulling",
    "landings",
    "reading",
    "verify",
    "mysql",
    "mysql-memory",
    "requests",
    "service",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all when absent")
    parser.add_argument("--data", type=Path, help="folder for database and files; kept. A temporary one when absent")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each side (5)")
    parser.add_argument("--scale", type=float, default=1.0, help="TPC-H scale of lineitem (1)")
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows that a cleanup deletes (2000000)")
    parser.add_argument("--most", type=int, default=20_000_000, help="rows of the memory benchmark's last (20000000)")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    folder = given.data or Path(tempfile.mkdtemp(prefix="export-pipelines-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with database(folder.resolve()) as base:
            say("server: " + ", ".join(f"{name} {value}" for name, value in base.settings().items()))
            measure = {
                "export": lambda: export.run(base, given.pairs, given.scale),
                "cleanup": lambda: cleanup.run(base, given.pairs, given.scale, given.rows),
                "partitions": lambda: partitions.run(base, given.pairs),
                "startup": lambda: startup.run(base, given.pairs),
                "restore": lambda: restore.run(base, given.pairs, given.scale),
                "load": lambda: load.run(base, given.pairs, given.scale),
                "pulling": lambda: pulling.run(base, given.pairs, given.scale),
                "landings": lambda: landings.run(base, given.pairs),
                "reading": lambda: reading.run(base, given.scale),
                "verify": lambda: verify.run(base, given.pairs, given.scale),
                "memory": lambda: memory.run(base, given.most),
                "mysql": lambda: mysql.run(base, given.pairs, given.rows // 2),
                "requests": lambda: requests.run(base, given.pairs),
                "service": lambda: service.run(base, given.pairs),
                "mysql-memory": lambda: mysql.run_memory(base, given.most),
            }
            results = {name: measure[name]() for name in given.names or NAMES}
    finally:
        if given.data is None:
            remove_cluster(folder.resolve())
            shutil.rmtree(folder)
    for name, text in results.items():
        say(f"\n## {name}\n\n{text}")


if __name__ == "__main__":
    main()
