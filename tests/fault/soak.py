"""The driver: faults in a random order that a seed gives, until so many have struck.

python -m tests.fault.soak --seed 7 --faults 5000
"""

from __future__ import annotations

import argparse
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fault.kinds import KINDS, Kind
from tests.fault.ledger import DAYS
from tests.fault.proofs import deaths
from tests.fault.scenario import Scenario
from tests.fault.world import World, new_world

TRIES = 60
FAULTS_A_SCENARIO = 10


@dataclass
class Tally:
    """What came of it."""

    seed: int
    struck: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    scenarios: int = 0
    proofs: int = 0
    records: int = 0
    versions: int = 0
    cleaned: int = 0
    seconds: float = 0.0

    def table(self) -> str:
        """A summary, as a table of Markdown."""
        lines = ["| Fault | Struck |", "|---|---:|"]
        lines += [f"| {kind.name} | {self.struck[kind.name]} |" for kind in KINDS if self.struck[kind.name]]
        lines += [f"| **All** | **{self.struck.total()}** |", ""]
        lines.append(
            f"Seed {self.seed}: {self.struck.total()} faults in {self.scenarios} scenarios and {self.seconds:.0f} s; "
            f"{self.proofs} proofs; {self.versions} row versions in the ledgers, {self.cleaned} of them deleted by "
            "cleanups."
        )
        return "\n".join(lines)


class FaultsFailed(AssertionError):
    """A promise was broken; says how to do it again."""


def soak(world: World, seed: int, faults: int, tell: Callable[[str], None] = print) -> Tally:
    """Let so many faults strike. Raises FaultsFailed with the seed, the scenario and the fault."""
    rng = random.Random(seed)
    tally, begun = Tally(seed), time.monotonic()
    decks: dict[bool, list[Kind]] = {True: [], False: []}
    while tally.struck.total() < faults:
        s3 = tally.scenarios % 5 == 1
        scenario = Scenario(world, random.Random(rng.randrange(1 << 62)), tally.scenarios, s3=s3)
        history: list[str] = []
        try:
            with scenario:
                for _ in range(min(FAULTS_A_SCENARIO, faults - tally.struck.total())):
                    history.append(_one(scenario, _draw(decks[s3], s3, rng), tally))
                    if scenario.rng.random() < 0.25:
                        scenario.prove_restored()
                scenario.at_the_end()
                tally.versions += deaths(world.source, "updated") + deaths(world.source, "deleted")
                tally.cleaned += deaths(world.source, "cleanup")
        except Exception as error:
            what = "\n  ".join(history[-8:])
            raise FaultsFailed(f"seed {seed}, {scenario}, after\n  {what}\n{error}") from error
        tally.scenarios += 1
        tally.seconds = time.monotonic() - begun
        tell(f"{tally.struck.total()} faults, {tally.scenarios} scenarios, {tally.seconds:.0f} s")
    return tally


def _draw(deck: list[Kind], s3: bool, rng: random.Random) -> Kind:
    """Each kind that fits comes once before any comes again."""
    if not deck:
        deck += [kind for kind in KINDS if kind.archive in ("any", "s3" if s3 else "folder")]
        # In S3 scenarios those of S3 come more often than what folders meet as well.
        deck[:] = [kind for kind in deck if not s3 or kind.archive == "s3" or rng.random() < 0.3]
        rng.shuffle(deck)
    return deck.pop()


def _one(scenario: Scenario, kind: Kind, tally: Tally) -> str:
    """Let a fault of this kind strike, and prove; sometimes the step is run again at once, sometimes not."""
    for _ in range(TRIES):
        step, day = scenario.rng.choice(kind.steps), scenario.rng.choice(DAYS)
        scenario.prepare(step, day)
        struck = kind.strike(scenario, step, day)
        tally.records += scenario.prove()
        tally.proofs += 1
        if struck:
            tally.struck[kind.name] += 1
            if scenario.rng.random() < 0.4:
                scenario.patiently(step, day)
            return f"{kind.name}: {step} of {day}"
        tally.missed[kind.name] += 1
    raise AssertionError(f"{kind.name} did not strike in {TRIES} tries")


def main() -> None:
    """Run a soak and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--faults", type=int, default=5000)
    given = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    with new_world() as world:
        tally = soak(world, seed, given.faults, lambda text: print(text, flush=True))
    print(tally.table())


if __name__ == "__main__":
    main()
