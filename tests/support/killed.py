"""A process that does a table's steps until it is killed with SIGKILL at a chosen edge. Nothing of it can clean up."""

from __future__ import annotations

import importlib
import os
import signal
from dataclasses import dataclass
from typing import Any, Literal

from tests.support.processes import context
from tests.support.tables import Kit


@dataclass(frozen=True)
class Edge:
    """The `number`-th call of a function (`module:Class.function`), and on which side of it the process dies."""

    side: Literal["before", "after"]
    function: str
    number: int = 1

    def __str__(self) -> str:
        return f"{self.side} {self.function.split(':')[1]} {self.number}"

    def arm(self) -> None:
        """Make this process die there."""
        module, _, path = self.function.partition(":")
        owner: Any = importlib.import_module(f"export_pipelines.{module}")
        *classes, name = path.split(".")
        for each in classes:
            owner = getattr(owner, each)
        original, calls = getattr(owner, name), [0]

        def deadly(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if self.side == "before" and calls[0] == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if self.side == "after" and calls[0] == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, deadly)


def run_until(edge: Edge, kit: Kit, steps: tuple[str, ...]) -> int | None:
    """Do the steps in a process of their own which dies at the edge; its exit code, -9 if it did."""
    process = started(kit, steps, edge)
    process.join(180)
    if process.exitcode is None:
        process.kill()
    return process.exitcode


def started(kit: Kit, steps: tuple[str, ...], edge: Edge | None = None) -> Any:
    """A process that does the steps."""
    process = context.Process(target=_work, args=(edge, kit, steps))
    process.start()
    return process


def _work(edge: Edge | None, kit: Kit, steps: tuple[str, ...]) -> None:
    if edge is not None:
        edge.arm()
    for step in steps:
        getattr(kit, step)()
