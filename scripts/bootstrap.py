"""Make .venv and install the locked packages and this project into it. Standard library only.

Nothing is done when the lock, pyproject.toml and Python are those of the last time. The environment is made with
whatever this machine has: the venv module with pip, without pip (Debian without python3-venv) together with a pip found
elsewhere, or, for root on Debian, python3-venv installed first.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".installed"
OLDEST = (3, 11)
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
DEBIAN_WHEELS = Path("/usr/share/python-wheels")


def main() -> None:
    """Bring .venv up to date."""
    use_new_enough_python()
    with (ROOT / "pyproject.toml").open() as project:
        fcntl.flock(project, fcntl.LOCK_EX)  # two `make` at once: the second waits
        link_definitions()
        if is_current():
            return
        if not works(PYTHON, "import pip"):
            make_environment()
        install()


def use_new_enough_python() -> None:
    """Go on with a newer Python of this machine if the present one is too old."""
    if sys.version_info[:2] >= OLDEST:
        return
    for minor in range(19, OLDEST[1] - 1, -1):
        newer = shutil.which(f"python3.{minor}")
        if newer and works(newer, "import venv"):
            os.execv(newer, [newer, *sys.argv])
    fail(
        f"Python {VERSION} is too old: 3.11 or newer is needed",
        "install python3.11 or newer, or name one: make PYTHON=/path/to/python3.11",
    )


def link_definitions() -> None:
    """Make the links by which `dg` finds the three folders of definitions. They are not in the repository, since not
    every way of a copy keeps links."""
    folder = ROOT / "export_pipelines" / "defs"
    folder.mkdir(exist_ok=True)
    for name in ("assets", "resources", "schedules"):
        link = folder / name
        if not link.is_symlink():
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..") / ".." / name)


def is_current() -> bool:
    """Whether what is installed is what the lock says."""
    try:
        return STAMP.read_text() == fingerprint() and works(PYTHON, "import export_pipelines")
    except OSError:
        return False


def fingerprint() -> str:
    """Digest of all that decides what gets installed."""
    digest = hashlib.sha256()
    for name in ("requirements.lock", "pyproject.toml", ".venv/pyvenv.cfg"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def make_environment() -> None:
    """Make .venv with a pip in it, by the first way that works here."""
    say(f"making .venv with Python {VERSION}")
    for way in (with_venv, without_ensurepip, with_virtualenv, with_debian_package):
        remove(VENV)
        if way() and works(PYTHON, "import pip"):
            return
    remove(VENV)
    fail(
        "no virtual environment with pip can be made: this Python has neither ensurepip nor pip",
        "install one of them and run make again; on Debian and Ubuntu: sudo apt-get install python3-venv",
    )


def with_venv() -> bool:
    """The usual way."""
    return works(sys.executable, "import ensurepip; ensurepip.version()") and run(sys.executable, "-m", "venv", VENV)


def without_ensurepip() -> bool:
    """An environment without pip, filled by a pip from outside."""
    outside = outside_pips()
    if not outside or not run(sys.executable, "-m", "venv", "--without-pip", VENV):
        return False
    return any(run(*pip, "install", "--quiet", "pip") for pip in outside)


def outside_pips() -> "list[list[str | Path]]":
    """Commands that run a pip on .venv: of this Python, of Debian's wheels, of any other Python, or uv."""
    pips: list[list[str | Path]] = [
        [PYTHON, wheel / "pip"] for wheel in sorted(DEBIAN_WHEELS.glob("pip-*.whl"), reverse=True)
    ]
    if works(sys.executable, "import pip"):
        pips.append([sys.executable, "-m", "pip", "--python", PYTHON])
    for name in ("pip3", "pip"):
        if shutil.which(name):
            pips.append([name, "--python", PYTHON])
    if shutil.which("uv"):
        pips.append(["env", f"VIRTUAL_ENV={VENV}", "uv", "pip"])
    return pips


def with_virtualenv() -> bool:
    """The virtualenv package, which carries a pip of its own."""
    if works(sys.executable, "import virtualenv"):
        return run(sys.executable, "-m", "virtualenv", "--quiet", VENV)
    return bool(shutil.which("virtualenv")) and run("virtualenv", "--quiet", "-p", sys.executable, VENV)


def with_debian_package() -> bool:
    """Root on Debian may install what is missing."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    say("installing python3-venv with apt-get, since this Python has no ensurepip and no pip")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    package = f"python{VERSION}-venv"
    command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", package]
    return (run(*command) or (run("apt-get", "update", "-qq") and run(*command))) and with_venv()


def install() -> None:
    """Install exactly the locked files, then this project in place."""
    say("installing the locked packages, about a minute")
    lock = ROOT / "requirements.lock"
    pip: list[str | Path] = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    # The lock is complete, so that there is nothing to resolve: `pip check` says so below.
    if not run(*pip, "--require-hashes", "--no-deps", "-r", lock):
        fail("the packages could not be installed", "see pip's message above; behind a mirror, set PIP_INDEX_URL")
    if not run(*pip, "--no-deps", "--no-build-isolation", "-e", ROOT):
        fail("the project could not be installed into .venv", "see pip's message above")
    if not run(PYTHON, "-m", "pip", "--quiet", "check"):
        fail("the installed packages do not fit together", "make the lock anew: make lock")
    STAMP.write_text(fingerprint())


def works(python: "str | Path", code: str) -> bool:
    """Whether a Python runs this code."""
    with contextlib.suppress(OSError):
        result = subprocess.run(
            [python, "-W", "ignore", "-c", code],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        return result.returncode == 0
    return False


def run(*command: "str | Path") -> bool:
    """Run a command, its output shown; False if it fails."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, check=False, cwd=ROOT).returncode == 0
    return False


def remove(folder: Path) -> None:
    """Remove a folder if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def say(text: str) -> None:
    """Tell what takes time."""
    print("bootstrap: " + text, file=sys.stderr, flush=True)


def fail(message: str, hint: str) -> None:
    """End with what was wrong and what to do."""
    sys.exit(f"bootstrap: {message}\nhint: {hint}")


if __name__ == "__main__":
    main()
