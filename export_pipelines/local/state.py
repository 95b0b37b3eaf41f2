"""What the servers of a project have in common: locks, files for their owner alone, and looks at other processes."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's lock, alone, while in the block. It goes with the process, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_private(path: Path, values: Mapping[str, object]) -> None:
    """Replace a JSON file, whole, by one that only its owner can read."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(values, file)
    new.replace(path)


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Ask again and again; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def command_of(pid: int) -> str:
    """Command line of a process, "" if there is none or it has ended and waits for its parent."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            return ""
    found = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return "" if "<defunct>" in found.stdout else found.stdout


def tail(log: Path) -> str:
    """The end of a log, "" if there is none."""
    return log.read_text(errors="replace")[-1500:] if log.exists() else ""
