"""Child processes that neither outlive us by accident nor die of our Ctrl-C before we have said so."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Runs in the child: it gives up root, ties its life to ours (Linux only), and becomes the program. It is a program of
# its own and no `preexec_fn`, which is unsafe, and warned of, in a process with threads.
# Signals that a shell made us ignore (as it does with `&`) it minds again.
_LAUNCHER = """
import ctypes, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL); signal.signal(signal.SIGHUP, signal.SIG_DFL)
uid, gid, sig, parent = (int(a) for a in sys.argv[1:5])
if uid >= 0:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
if sig and sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, sig)
    if os.getppid() != parent:
        sys.exit("the parent is gone already")
os.execv(sys.argv[5], sys.argv[5:])
"""

# A child that outlives its `Popen` object would be warned of, and stay a zombie once it ends.
_children: list[subprocess.Popen[bytes]] = []


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    die_with_parent: int = 0,
    user: tuple[int, int] | None = None,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that Ctrl-C in our terminal does not reach it; output goes to `log`.

    Args:
        command: an absolute path and its arguments.
        die_with_parent: a signal that it gets when the *thread* that started it ends, even by SIGKILL; 0 for none.
            Only Linux can do this; elsewhere it is ignored.
        user: user and group id to run as; for root only.
    """
    uid, gid = user or (-1, -1)
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(uid), str(gid), str(die_with_parent), str(os.getpid())]
    _children[:] = [child for child in _children if child.poll() is None]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*launcher, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    _children.append(process)
    return process


def stop(process: subprocess.Popen[bytes], *, first: int = signal.SIGTERM, grace_seconds: float = 10) -> None:
    """Ask a child to end, wait, and kill what is left of its process group."""
    if process.poll() is None:
        process.send_signal(first)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(grace_seconds)


def free_port(*, offsets: Sequence[int] = (0,)) -> int:
    """A port of 127.0.0.1 that is free together with those `offsets` above it.

    All are below the range from which systems take ports for outgoing connections (from 32768), so that none of ours
    is taken meanwhile.
    """
    for _ in range(200):
        port = random.randint(15000, 32000 - max(offsets))
        if all(port_is_free(port + offset) for offset in offsets):
            return port
    raise OSError("no free port found on 127.0.0.1")


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def lives(pid: int) -> bool:
    """Whether a process is there, whoever it belongs to."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def group_commands(group: int) -> list[str]:
    """Command lines of all processes of a process group that have not ended."""
    if not Path("/proc/self/stat").exists():
        listed = subprocess.run(["ps", "-axo", "pgid=,stat=,command="], capture_output=True, text=True, check=False)
        rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
        return [row[2] for row in rows if len(row) == 3 and row[0] == str(group) and not row[1].startswith("Z")]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # After the name, which is in parentheses and may hold anything: state, parent, group.
            state, _, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if its_group == str(group) and state != "Z":
                found.append((process / "cmdline").read_text(errors="replace").replace("\0", " "))
    return found
