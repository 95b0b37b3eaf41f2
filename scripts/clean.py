"""Remove .venv and .local, with what the local servers keep outside of them. Standard library only."""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Stop the servers if somebody was killed while using them, and remove all."""
    from export_pipelines.local.binaries import data_folders

    state = ROOT / ".local"
    servers = {"postgres": ("postmaster.pid", signal.SIGQUIT), "mariadb": ("server.pid", signal.SIGKILL)}
    folders = []
    for name, (pid_file, kind) in servers.items():
        places = [state / name, *data_folders(state / name)]
        for folder in places:
            stop(folder / "data", pid_file, kind)
        folders += places
    for folder in [*folders, state, ROOT / ".venv"]:
        if folder.exists():
            print(f"removing {folder}")
            shutil.rmtree(folder)


def stop(data: Path, pid_file: str, kind: signal.Signals) -> None:
    """End the server of a data folder, if one runs."""
    with suppress(OSError, ValueError):
        pid = int((data / pid_file).read_text().split()[0])
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and str(data) not in command.read_text().replace("\0", " "):
            return
        os.kill(pid, kind)
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.05)


if __name__ == "__main__":
    main()
