"""What scenarios of every kind of database have in common: attempts at steps, and faults at their points."""

from __future__ import annotations

import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from export_pipelines.errors import ExportPipelinesError, PartitionBusy
from tests.fault.attempts import Attempt, Halt, LedgerTable, Outcome, Sabotage, day_window
from tests.fault.outside import Outside, chain, living
from tests.fault.proofs import Violated

STEPS = ("export", "archive", "cleanup", "expire")
PATIENCE = 90.0


@dataclass
class Typical:
    """How many points a step has, and how long it takes: learnt on the way, so that moments fall into it."""

    points: dict[str, int]
    seconds: dict[str, float]


class Acting(ABC):
    """One table with its ledger and writers; faults strike its steps."""

    rng: random.Random
    table: LedgerTable
    outside: Outside
    typical: Typical
    excused: int = 0
    """Number of the last death that may be in a damaged file alone."""

    @abstractmethod
    def __enter__(self) -> Any: ...

    @abstractmethod
    def __exit__(self, *exception: object) -> None: ...

    @abstractmethod
    def insert(self, day: str, number: int, long: int = 1) -> None:
        """Let a user insert rows of a day; `long` is how often the text of their notes is repeated."""

    @abstractmethod
    def objects(self) -> dict[str, bytes]:
        """All objects of the archive."""

    @abstractmethod
    def put(self, key: str, data: bytes | None) -> None:
        """Change an object of the archive behind the program's back; None removes it."""

    @abstractmethod
    def deaths(self, how: str) -> int:
        """How many versions ended that way."""

    @abstractmethod
    def last_death(self) -> int:
        """The number of the last death that is noted."""

    @abstractmethod
    def prove(self) -> int:
        """Compare source and archive with the ledger; the number of archived records. Raises Violated."""

    @abstractmethod
    def prove_restored(self, *, at_the_end: bool = False) -> None:
        """Restore all partitions, and compare with the ledger. Raises Violated."""

    @abstractmethod
    def at_the_end(self) -> None:
        """All steps without faults while nobody writes; then the archive is all that there is, and each row once."""

    # Steps

    def attempt(
        self, step: str, day: str, *, halt: Halt | None = None, sabotage: Sabotage | None = None, **changes: Any
    ) -> Attempt:
        """Begin a step in a process of its own; `changes` are those of the table."""
        return Attempt(replace(self.table, **changes), step, day_window(day), halt=halt, sabotage=sabotage)

    def whole(self, step: str, day: str, **options: Any) -> Outcome:
        """An attempt, to its end."""
        return self.ended(step, self.attempt(step, day, **options))

    def ended(self, step: str, attempt: Attempt) -> Outcome:
        """The outcome. Raises Violated if the step failed with what is no error of ours."""
        outcome = attempt.finish()
        self.note()
        if outcome.ended == "broken":
            raise Violated(f"{step} failed with {outcome.error}:\n{outcome.text}")
        if outcome.points:
            self.typical.points[step] = outcome.points
        return outcome

    def at_a_moment(self, step: str, day: str, deed: Callable[[Attempt], object], **options: Any) -> Outcome | None:
        """A step, and a deed at one of its points or at a random moment. None if it did not come to the deed."""
        if self.rng.random() < 0.7:
            number = self.rng.randint(1, self.typical.points[step])
            halt = Halt(self.rng.choice(("before", "after")), number)
            attempt = self.attempt(step, day, halt=halt, **options)
            struck = attempt.halted() and bool(deed(attempt))
            attempt.go_on()
        else:
            attempt = self.attempt(step, day, **options)
            begun = time.monotonic()
            time.sleep(self.rng.uniform(0, self.typical.seconds[step]))
            struck = attempt.running() and bool(deed(attempt))
            outcome = self.ended(step, attempt)
            self.typical.seconds[step] = 0.7 * self.typical.seconds[step] + 0.3 * (time.monotonic() - begun)
            return outcome if struck else None
        outcome = self.ended(step, attempt)
        return outcome if struck else None

    def patiently(self, step: str, day: str) -> Any:
        """A step without faults. What others are at work on, and what a killed server still holds, is waited for."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.direct():
                    return getattr(self.table, step)(day_window(day))
            except ExportPipelinesError as error:
                if not (error.transient or isinstance(error, PartitionBusy)) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    @contextmanager
    def direct(self) -> Iterator[None]:
        """No fault of the S3 proxy."""
        with _environment(self.table.environment):
            yield

    def note(self) -> None:  # noqa: B027 - most have nothing to note
        """Remember, when an attempt has ended, what proofs will ask for."""

    def prepare(self, step: str, day: str) -> None:
        """Let the step have something to do."""
        self.insert(day, 2, self.rng.choice((1, 1, 20)))
        for before in STEPS[: STEPS.index(step)]:
            self.patiently(before, day)

    # The archive, past the program

    def newest(self, day: str) -> dict[str, Any]:
        """The last artifact's manifest of a day."""
        found = [
            m for m in living(chain(self.objects(), self.table.table.id)) if m["export"]["partition"] == day
        ]  # fmt: skip
        return dict(found[-1])

    def newest_records(self, day: str) -> list[dict[str, str]]:
        """The records of the last artifact of a day."""
        found = [artifact for artifact in self.outside.read()[0] if artifact.partition == day]
        return found[-1].records or []


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
