"""Kinds of faults that have nothing to do with the kind of database: of processes, stores, clocks and schedulers."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tests.fault.acting import STEPS, Acting
from tests.fault.attempts import Attempt
from tests.fault.ledger import DAYS
from tests.fault.proofs import Violated
from tests.fault.sabotage import ClockShift, FaultyCall, FileLimit, Lie

Strike = Callable[[Any, str, str], bool]


@dataclass(frozen=True)
class Kind:
    """A kind of fault, the steps that it can befall, and where the archive must be."""

    name: str
    strike: Strike
    steps: tuple[str, ...] = STEPS
    archive: Literal["any", "folder", "s3"] = "any"


# The process


def killed(s: Acting, step: str, day: str) -> bool:
    outcome = s.at_a_moment(step, day, lambda attempt: attempt.signal(signal.SIGKILL))
    return outcome is not None and outcome.ended == "died"


def terminated(s: Acting, step: str, day: str) -> bool:
    outcome = s.at_a_moment(step, day, lambda attempt: attempt.signal(signal.SIGTERM))
    return outcome is not None and outcome.error == "Interrupted"


def between_or_during(s: Acting, step: str, day: str, change: Callable[[], bool]) -> bool:
    if s.rng.random() < 0.4:
        changed = change()
        s.whole(step, day)
        return changed
    return s.at_a_moment(step, day, lambda _: change()) is not None


# The store


def file_limit(s: Acting, step: str, day: str) -> bool:
    outcome = s.whole(step, day, sabotage=FileLimit(s.rng.choice((0, 1, 50, 300, 1000, 3000))))
    return "larger than is allowed" in outcome.text


def call_of_store(number: int, calls: tuple[str, ...]) -> Strike:
    def strike(s: Acting, step: str, day: str) -> bool:
        sabotage = FaultyCall(s.rng.choice(calls), number, s.rng.choice((1, 1, 2, 3, 4, 6)), s.rng.random() < 0.3)
        return s.whole(step, day, sabotage=sabotage).struck > 0

    return strike


def export_lied(s: Acting, step: str, day: str) -> bool:
    """The store of the exports kept other bytes than it was given: that is no export."""
    outcome = s.whole(step, day, sabotage=Lie((s.table.folder / "exports").as_uri(), s.rng.randrange(1000)))
    if outcome.ended != "done" or not outcome.struck:
        return False
    refused = s.whole("archive", day)
    if refused.error != "IntegrityError":
        raise Violated(f"an export that is damaged was archived: {refused}")
    return True


def archive_lied(s: Acting, step: str, day: str) -> bool:
    """The archive kept other bytes than it was given: reading back must tell."""
    outcome = s.whole(step, day, sabotage=Lie(s.table.archive_url, s.rng.randrange(1000)))
    if outcome.struck and outcome.error != "IntegrityError":
        raise Violated(f"an archive that keeps other bytes was believed: {outcome}")
    return outcome.struck > 0


def tampered(what: str) -> Strike:
    """An object of the archive is altered, cut short or gone: nothing may be deleted by it."""

    def strike(s: Acting, step: str, day: str) -> bool:
        manifest = s.newest(day)
        of_manifest = what.startswith("manifest")
        key = f"{s.table.table.id}/manifests/{manifest['sequence']:08d}.json" if of_manifest else _file_of(s, manifest)
        data = s.objects()[key]
        mark, before = s.last_death(), s.deaths("cleanup")
        s.put(key, _changed(s.rng, data, what.rsplit(maxsplit=1)[-1]))
        outcome = s.whole(step, day)
        if outcome.ended != "refused" or s.deaths("cleanup") != before:
            raise Violated(f"a cleanup went by an archive that is not what it was ({what} {key}): {outcome}")
        if not of_manifest and s.rng.random() < 0.4:
            # The next export makes another file; what was deleted before the damage is in the damaged one alone.
            s.excused = mark
            s.patiently("export", day)
            s.patiently("archive", day)
            s.whole(step, day)
            s.prove()
            s.excused = 0
        s.put(key, data)
        return True

    return strike


def _file_of(s: Acting, manifest: dict[str, Any]) -> str:
    return str(manifest[s.rng.choice(("file", "file", "identity_file"))]["key"])


def _changed(rng: random.Random, data: bytes, how: str) -> bytes | None:
    if how == "gone":
        return None
    at = rng.randrange(len(data))
    return data[:at] if how == "truncated" else data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


# Time, and double work


def clock(s: Acting, step: str, day: str) -> bool:
    """This host's clock is wrong: by minutes or years, before or after."""
    seconds = s.rng.choice((-1, 1)) * s.rng.choice((90, 3600, 86400, 400 * 86400))
    return s.whole(step, day, sabotage=ClockShift(seconds)).struck > 0


def double(s: Acting, step: str, day: str) -> bool:
    """A second scheduler runs the same step, or another one of the same partition, while the first is in the middle."""
    second = s.rng.choice((step, *STEPS))

    def deed(_: Attempt) -> bool:
        s.whole(second, day)
        return True

    return s.at_a_moment(step, day, deed) is not None


def all_at_once(s: Acting, step: str, day: str) -> bool:
    """Four processes begin at the same time, on the same partition and on others."""
    begun = [
        (each, s.attempt(each, s.rng.choice((day, day, *DAYS)))) for each in (step, step, *s.rng.choices(STEPS, k=2))
    ]
    for each, attempt in begun:
        s.ended(each, attempt)
    return True
