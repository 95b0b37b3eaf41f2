"""The environment is made from the lock, whatever this machine's Python lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ["requirements.lock", "requirements-bench.lock"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Only what bootstrap reads."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "bootstrap.py", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    return tmp_path


def bootstrap(
    checkout: Path, code: str, env: dict[str, str] | None = None, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run a piece of the bootstrap program, as `python3 scripts/bootstrap.py` would."""
    script = f"import sys; sys.path.insert(0, {str(checkout / 'scripts')!r}); import bootstrap; {code}"
    return subprocess.run(
        [python, "-c", script], capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False
    )


@pytest.mark.parametrize("name", LOCKS)
def test_lock_names_packages_and_hashes_and_no_place(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    assert lines
    assert [line for line in lines if "/" in line or line.startswith("-") or "@" in line] == []
    requirements = [line for line in lines if not line.startswith(" ")]
    assert all("==" in line and line.endswith("\\") for line in requirements)


def test_lock_holds_on_every_platform() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "numpy==" in lock
    assert "python_full_version" in lock, "a lock made for one Python only has no markers"


def test_nothing_is_done_when_nothing_changed(checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (checkout / ".venv" / "pyvenv.cfg").write_text("home = somewhere\n")
    (checkout / "export_pipelines").mkdir()
    env = {"PYTHONPATH": str(ROOT)}
    assert bootstrap(checkout, "bootstrap.STAMP.write_text(bootstrap.fingerprint())", env).returncode == 0
    started = time.monotonic()
    result = bootstrap(checkout, "bootstrap.make_environment = bootstrap.install = None; bootstrap.main()", env)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert time.monotonic() - started < 30
    (checkout / "requirements.lock").write_text("changed\n")
    result = bootstrap(checkout, "print(bootstrap.is_current())", env)
    assert result.stdout == "False\n"


def test_too_old_python_is_refused_with_the_remedy(checkout: Path) -> None:
    code = "bootstrap.OLDEST = (3, 99); bootstrap.VERSION = '3.9'; bootstrap.main()"
    result = bootstrap(checkout, code)
    assert result.returncode == 1
    assert "Python 3.9 is too old" in result.stderr
    assert "make PYTHON=" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("missing", [[], ["ensurepip"]], ids=["complete", "without ensurepip"])
def test_environment_with_pip_is_made_whatever_python_lacks(checkout: Path, tmp_path: Path, missing: list[str]) -> None:
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({missing!r}))\n")
    # The interpreter below the tests' own environment: as on a machine where nothing was made yet.
    python = str(Path(sys.base_prefix) / "bin" / "python3")
    result = bootstrap(checkout, "bootstrap.make_environment()", {"PYTHONPATH": str(blocker)}, python)
    assert result.returncode == 0, result.stderr
    made = checkout / ".venv" / "bin" / "python"
    assert subprocess.run([made, "-m", "pip", "--version"], capture_output=True, check=True).stdout
