"""Remove .venv and .local, with what the embedded server keeps outside of them. Standard library only."""

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
    """Stop the server if somebody was killed while using it, and remove all."""
    from export_pipelines.local.binaries import data_folders

    state = ROOT / ".local"
    folders = [state / "postgres", *data_folders(state / "postgres")]
    for folder in folders:
        stop(folder / "data")
    for folder in [*folders, state, ROOT / ".venv"]:
        if folder.exists():
            print(f"removing {folder}")
            shutil.rmtree(folder)


def stop(data: Path) -> None:
    """End the server of a cluster, if one runs."""
    with suppress(OSError, ValueError):
        pid = int((data / "postmaster.pid").read_text().split()[0])
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and str(data) not in command.read_text().replace("\0", " "):
            return
        os.kill(pid, signal.SIGQUIT)
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.05)


if __name__ == "__main__":
    main()
