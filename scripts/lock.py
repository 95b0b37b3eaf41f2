"""Write requirements.lock and requirements-bench.lock: exact versions with hashes, for every platform and Python.

uv resolves for all of them at once (a lock made by pip-compile holds for the machine it was made on). The settings of
the local pip are not used, so that no private index or folder leaks in; UV_INDEX_URL names a mirror.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write both locks; options such as `--upgrade` are passed on to uv."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with tempfile.TemporaryDirectory() as scratch:
        uv = find_uv(Path(scratch))
        compile_lock(uv, ["--extra", "demo", "--extra", "dev", "pyproject.toml"], "requirements.lock")
        bench = Path(scratch) / "bench.in"
        bench.write_text("\n".join(project["optional-dependencies"]["bench"]) + "\n")
        compile_lock(uv, [str(bench), "--constraint", "requirements.lock"], "requirements-bench.lock")
    for name in ("requirements.lock", "requirements-bench.lock"):
        refuse_leaks(name)


def find_uv(scratch: Path) -> str:
    """uv of this machine, or one installed for the moment."""
    if found := shutil.which("uv"):
        return found
    subprocess.run([sys.executable, "-m", "venv", scratch / "venv"], check=True)
    subprocess.run([scratch / "venv" / "bin" / "pip", "install", "--quiet", "uv"], check=True)
    return str(scratch / "venv" / "bin" / "uv")


def compile_lock(uv: str, inputs: list[str], output: str) -> None:
    """Resolve for all platforms and Python 3.11 and newer, keeping the pins that still hold."""
    options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--quiet"]
    command = [uv, "pip", "compile", *options, "--custom-compile-command", "make lock", *inputs, "-o", output]
    subprocess.run([*command, *sys.argv[1:]], check=True, cwd=ROOT, env={**os.environ, "UV_NO_CONFIG": "1"})


def refuse_leaks(name: str) -> None:
    """A lock names packages, versions and hashes, no place."""
    leaks = [line for line in (ROOT / name).read_text().splitlines() if "://" in line or line.startswith("-")]
    if leaks:
        sys.exit(f"{name} names a place: {leaks[0]}\nhint: unset UV_FIND_LINKS and the like, and run make lock again")


if __name__ == "__main__":
    main()
