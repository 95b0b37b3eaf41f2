"""The command line as people use it: a process of its own in the folder of a project.

Commands that are run to their end are forked off a process that has Dagster imported: importing it anew takes longer
than most of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import context


def _run(arguments: tuple[str, ...], root: Path, environment: dict[str, str], out: str, err: str) -> None:
    """In the forked process: become the command."""
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, str(root))  # as `python -m` has it
    for number, name in ((0, os.devnull), (1, out), (2, err)):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    from export_pipelines.cli import main

    main(list(arguments), prog_name="export-pipelines")


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as JSON."""
        return json.loads(self.out)


@dataclass
class CommandLine:
    """`export-pipelines` in the project at `root`, with these variables and none of those of who runs the tests."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    seconds: float = 180
    """How long a command may take."""

    def __call__(self, *arguments: str, **more: str) -> Result:
        """Run a command to its end."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            process = context.Process(
                target=_run, args=(arguments, self.root, self.environment(**more), str(out), str(err))
            )
            process.start()
            process.join(self.seconds)
            if process.exitcode is None:
                process.kill()
                process.join()
            assert process.exitcode is not None
            return Result(process.exitcode, out.read_text(), err.read_text())

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a command, in a session of its own."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @staticmethod
    def command(*arguments: str) -> list[str]:
        """The words to start."""
        return [sys.executable, "-m", "export_pipelines.cli", *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        """All variables of the process."""
        checkout = Path(__file__).parents[2]
        return {**os.environ, "PYTHONPATH": str(checkout), **self.variables, **more}
