"""Timing in pairs, and tables of medians.

A machine is never quite quiet. Both sides of a comparison therefore take turns, and the ratio is that of the pairs:
what slows the machine down for a minute slows both sides of a pair.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Median and range of some measurements."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    def text(self, digits: int = 2) -> str:
        """`median (min–max)`."""
        return f"{self.median:.{digits}f} ({min(self.values):.{digits}f}–{max(self.values):.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(tuple(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratio of each pair."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def seconds(action: Callable[[], object]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def in_own_process(module: str, job: Mapping[str, Any], **variables: str) -> dict[str, Any]:
    """Run a module with a job as JSON on its stdin; the figures that it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(job).encode(),
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, **variables},
    )
    return dict(json.loads(done.stdout))


def peak_memory(process: int | str = "self") -> float:
    """Greatest resident memory of a process so far, in MB (10**6 bytes); of another than this one on Linux only."""
    status = Path(f"/proc/{process}/status")
    if status.exists():
        # Not getrusage: its figure includes the process that we were forked from.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)
