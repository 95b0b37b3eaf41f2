"""The driver: faults in a random order that a seed gives, until so many have struck.

python -m tests.fault.soak --seed 7 --faults 5000 --workers 3

Each worker has a world and a seed of its own: the given one, and those that follow it. What a seed gives is the order
of the faults and what they do; how far writers and steps have come at a moment is the machine's.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.fault.acting import Acting
from tests.fault.kinds import KINDS
from tests.fault.ledger import DAYS
from tests.fault.neutral import Kind
from tests.fault.scenario import Scenario
from tests.fault.world import new_world

TRIES = 40
PATIENCE_SECONDS = 60
VAIN = 10


@dataclass(frozen=True)
class Suite:
    """Kinds of faults, and what they befall."""

    kinds: list[Kind]
    scenario: Callable[[Any, random.Random, int, bool], Acting]
    """In a world, with the random numbers, of that number; the last says whether the archive is in S3."""
    s3: bool = True
    faults_a_scenario: int = 12


POSTGRES = Suite(KINDS, lambda world, rng, number, s3: Scenario(world, rng, number, s3=s3))


@dataclass
class Tally:
    """What came of it."""

    seed: int
    kinds: list[str]
    struck: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    scenarios: int = 0
    proofs: int = 0
    records: int = 0
    versions: int = 0
    cleaned: int = 0
    seconds: float = 0.0

    def never(self) -> list[str]:
        """Kinds that have not struck at all."""
        return [kind for kind in self.kinds if not self.struck[kind]]

    def table(self) -> str:
        """A summary, as a table of Markdown."""
        lines = ["| Fault | Struck |", "|---|---:|"]
        lines += [f"| {kind} | {self.struck[kind]} |" for kind in self.kinds if self.struck[kind]]
        lines += [f"| **All** | **{self.struck.total()}** |", ""]
        work = f"{self.scenarios} scenarios, {self.seconds:.0f} s of work"
        lines.append(
            f"Seed {self.seed}: {self.struck.total()} faults in {work}, "
            f"{self.proofs} proofs; {self.versions} row versions in the ledgers, {self.cleaned} of them deleted by "
            "cleanups."
        )
        return "\n".join(lines)

    def add(self, other: dict[str, Any]) -> None:
        """Count what another worker did, too."""
        self.struck.update(other.get("struck", {}))
        self.missed.update(other.get("missed", {}))
        for name in ("scenarios", "proofs", "records", "versions", "cleaned", "seconds"):
            setattr(self, name, getattr(self, name) + other.get(name, 0))


class FaultsFailed(AssertionError):
    """A promise was broken; says how to do it again."""


def soak(
    world: Any,
    seed: int,
    faults: int,
    tell: Callable[[str], None] = print,
    save: Callable[[Tally], None] = lambda tally: None,
    suite: Suite = POSTGRES,
) -> Tally:
    """Let so many faults strike; after each scenario `save` is given what has come of it so far.

    Raises:
        FaultsFailed: with the seed, the scenario and the faults.
    """
    rng = random.Random(seed)
    tally, begun = Tally(seed, [kind.name for kind in suite.kinds]), time.monotonic()
    decks: dict[bool, list[Kind]] = {True: [], False: []}
    vain: list[str] = []
    while tally.struck.total() < faults:
        s3 = suite.s3 and tally.scenarios % 8 == 1
        scenario = suite.scenario(world, random.Random(rng.randrange(1 << 62)), tally.scenarios, s3)
        history: list[str] = []
        try:
            with scenario:
                for _ in range(min(suite.faults_a_scenario, faults - tally.struck.total())):
                    kind = _draw(suite.kinds, decks[s3], s3, rng)
                    history.append(_one(scenario, kind, tally))
                    if not history[-1]:
                        # On a slow machine a step may be over too soon, time and again: another scenario will do.
                        decks[s3].insert(0, kind)
                        vain.append(kind.name)
                        few = VAIN + tally.struck.total() // 20
                        assert len(vain) <= few, (
                            f"in {TRIES} tries or {PATIENCE_SECONDS} s these did not strike: {vain}"
                        )
                    if scenario.rng.random() < 0.15:
                        scenario.prove_restored()
                scenario.at_the_end()
                tally.versions += scenario.deaths("updated") + scenario.deaths("deleted")
                tally.cleaned += scenario.deaths("cleanup")
        except Exception as error:
            what = "\n  ".join(history[-8:])
            raise FaultsFailed(f"seed {seed}, {scenario}, after\n  {what}\n{error}") from error
        tally.scenarios += 1
        tally.seconds = time.monotonic() - begun
        tell(f"{tally.struck.total()} faults, {tally.scenarios} scenarios, {tally.seconds:.0f} s")
        save(tally)
    return tally


def _draw(kinds: list[Kind], deck: list[Kind], s3: bool, rng: random.Random) -> Kind:
    """Each kind that fits comes once before any comes again."""
    if not deck:
        deck += [kind for kind in kinds if kind.archive in ("any", "s3" if s3 else "folder")]
        rng.shuffle(deck)
        if s3:
            # Those of S3 first, and not all of what folders meet as well.
            deck[:] = [kind for kind in deck if kind.archive == "any"][:8] + [k for k in deck if k.archive == "s3"]
    return deck.pop()


def _one(scenario: Acting, kind: Kind, tally: Tally) -> str:
    """Let a fault of this kind strike, and prove; sometimes the step is run again at once, sometimes not. What was
    done; empty if it did not strike in many tries."""
    begun = time.monotonic()
    for _ in range(TRIES):
        if time.monotonic() - begun > PATIENCE_SECONDS:
            return ""
        step, day = scenario.rng.choice(kind.steps), scenario.rng.choice(DAYS)
        scenario.prepare(step, day)
        struck = kind.strike(scenario, step, day)
        tally.records += scenario.prove()
        tally.proofs += 1
        if struck:
            tally.struck[kind.name] += 1
            if scenario.rng.random() < 0.3:
                scenario.patiently(step, day)
            return f"{kind.name}: {step} of {day}"
        tally.missed[kind.name] += 1
    return ""


def main() -> None:
    """Run a soak and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--faults", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="what a worker tells the others of")
    given = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if given.seed is None else given.seed
    if given.workers > 1:
        sys.exit(_together(seed, given.faults, given.workers))
    print(f"seed {seed}", flush=True)
    with new_world() as world:
        tally = soak(
            world,
            seed,
            given.faults,
            tell=lambda text: print(f"seed {seed}: {text}", flush=True),
            save=lambda tally: print(json.dumps(vars(tally)), flush=True) if given.json else None,
        )
    if not given.json:
        print(tally.table())


def _together(seed: int, faults: int, workers: int) -> int:
    """Run workers side by side; print the sum of what they did. Returns how many failed."""
    share = -(-faults // workers)
    command = [sys.executable, "-m", "tests.fault.soak", "--json", "--faults", str(share), "--seed"]
    running = [
        subprocess.Popen([*command, str(seed + n)], stdout=subprocess.PIPE, text=True, bufsize=1)
        for n in range(workers)
    ]
    tally, failed = Tally(seed, [kind.name for kind in KINDS]), 0
    with ThreadPoolExecutor(workers) as pool:
        for worker, last in zip(running, pool.map(_listen, running), strict=True):
            failed += worker.wait() != 0
            tally.add(json.loads(last))
    print(tally.table())
    return failed


def _listen(worker: subprocess.Popen[str]) -> str:
    """Pass on what a worker says; the last tally that it told is returned, also when it failed after that."""
    last = "{}"
    for line in worker.stdout or ():
        print(line.strip(), flush=True)
        last = line if line.startswith("{") else last
    return last


if __name__ == "__main__":
    main()
