"""The ledger suite on MariaDB: whatever strikes, no row version is lost, doubled, or deleted unarchived.

FAULT_SEED=7 pytest tests/fault/mysql      the same faults in the same order again
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.ledger import DAYS
from tests.fault.mysql.kinds import KINDS
from tests.fault.mysql.ledger import TRIGGER
from tests.fault.mysql.proofs import prove_mysql_restored
from tests.fault.mysql.scenario import MysqlScenario
from tests.fault.mysql.world import MysqlWorld, new_mysql_world
from tests.fault.proofs import Violated
from tests.fault.soak import Suite, soak
from tests.support.mariadb import run_mysql

pytestmark = pytest.mark.debian

SEED = int(os.environ.get("FAULT_SEED", "20250101"))
MARIADB = Suite(KINDS, lambda world, rng, number, s3: MysqlScenario(world, rng, number), s3=False, faults_a_scenario=8)


@pytest.fixture(scope="module")
def world() -> Iterator[MysqlWorld]:
    """Servers of this suite's own, since it kills them."""
    with new_mysql_world() as world:
        yield world


def strike(world: MysqlWorld, seed: int, faults: int, record: Callable[[str, object], None]) -> None:
    tally = soak(world, seed, faults, suite=MARIADB)
    record("faults", json.dumps({f"MariaDB: {kind}": times for kind, times in tally.struck.items()}))
    assert tally.struck.total() == faults
    assert tally.never() == []


@pytest.mark.timeout(1200)
def test_no_row_version_is_lost_doubled_or_deleted_unarchived(
    world: MysqlWorld, record_property: Callable[[str, object], None]
) -> None:
    strike(world, SEED, 48, record_property)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("number", range(1, 3))
def test_no_row_version_is_lost_by_many_more_faults(
    world: MysqlWorld, number: int, record_property: Callable[[str, object], None]
) -> None:
    strike(world, SEED + number, 60, record_property)


# The proofs themselves: each finds what it is there to find.


@pytest.fixture
def scenario(world: MysqlWorld) -> Iterator[MysqlScenario]:
    """Archived rows, half of them cleaned up, and nobody who writes."""
    scenario = MysqlScenario(world, random.Random(), 0)
    scenario.table.spec["compression"] = "none"
    with scenario:
        scenario.stop_writers()
        scenario.prepare("cleanup", DAYS[0])
        scenario.prepare("cleanup", DAYS[1])
        scenario.patiently("cleanup", DAYS[0])
        scenario.prove()
        scenario.prove_restored()
        yield scenario


def of_file(scenario: MysqlScenario, day: str) -> Path:
    return scenario.table.folder / "archive" / str(scenario.newest(day)["file"]["key"])


def _delete_unarchived(scenario: MysqlScenario) -> None:
    run_mysql(scenario.world.source, "DELETE FROM t WHERE at >= %s", (DAYS[2],))


def _damage_the_only_copy(scenario: MysqlScenario) -> None:
    path = of_file(scenario, DAYS[0])
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def _remove_the_only_copy(scenario: MysqlScenario) -> None:
    of_file(scenario, DAYS[0]).unlink()


def _lose_a_row(scenario: MysqlScenario) -> None:
    run_mysql(scenario.world.admin, f"DROP TRIGGER {TRIGGER}")
    run_mysql(scenario.world.admin, "DELETE FROM t LIMIT 1")


def _keep_a_deleted_row(scenario: MysqlScenario) -> None:
    run_mysql(scenario.world.admin, "DROP TRIGGER stamp_insert")
    run_mysql(scenario.world.admin, "DROP TRIGGER ledger_insert")
    dead = "SELECT id, at, note, amount, life, version FROM ledger.birth JOIN ledger.death USING (version)"
    columns = "(id, at, note, amount, life, version)"
    run_mysql(scenario.world.admin, f"INSERT INTO t {columns} {dead} WHERE how = 'cleanup' LIMIT 1")


def _archive_other_content(scenario: MysqlScenario) -> None:
    for trigger in ("stamp_update", "ledger_update"):
        run_mysql(scenario.world.admin, f"DROP TRIGGER {trigger}")
    run_mysql(scenario.world.admin, "UPDATE t SET note = 'another' WHERE at >= %s", (DAYS[2],))
    scenario.patiently("export", DAYS[2])
    scenario.patiently("archive", DAYS[2])


def _tell_of_a_deletion_that_never_was(scenario: MysqlScenario) -> None:
    last = sorted((scenario.table.folder / "archive").rglob("manifests/*.json"))[-1]
    receipt = json.loads(last.read_text())
    assert receipt["kind"] == "cleanup"
    receipt["artifact_sequence"] = scenario.newest(DAYS[1])["sequence"]
    last.write_text(json.dumps(receipt))


def _restored(statement: str) -> Callable[[MysqlScenario], None]:
    return lambda scenario: run_mysql(scenario.world.admin, statement) and None


VIOLATIONS: dict[str, tuple[Callable[[MysqlScenario], None], str]] = {
    "deleted and not archived": (_delete_unarchived, "in no verified archive"),
    "archive damaged": (_damage_the_only_copy, "in no verified archive"),
    "archive gone": (_remove_the_only_copy, "in no verified archive"),
    "row lost": (_lose_a_row, "not in the source"),
    "row not deleted": (_keep_a_deleted_row, "not alive by the ledger"),
    "other content": (_archive_other_content, "does not say what"),
    "false receipt": (_tell_of_a_deletion_that_never_was, "no cleanup deleted"),
    "restored twice": (_restored("INSERT INTO ledger.restored SELECT * FROM ledger.restored LIMIT 1"), "given twice"),
    "two versions restored": (_restored("UPDATE ledger.restored SET life = 1"), "two versions"),
    "not restored": (_restored(f"DELETE FROM ledger.restored WHERE part = '{DAYS[0]}'"), "not given by the restore"),
    "restored otherwise": (_restored("UPDATE ledger.restored SET note = 'another'"), "other content"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_proofs_find_each_broken_promise(scenario: MysqlScenario, name: str) -> None:
    violate, says = VIOLATIONS[name]
    violate(scenario)
    with pytest.raises(Violated, match=says):
        scenario.prove()
        prove_mysql_restored(scenario.world.admin, list(DAYS[:2]))


def test_the_ledger_notes_each_version_and_how_it_ended(scenario: MysqlScenario) -> None:
    admin = scenario.world.admin
    run_mysql(admin, "INSERT INTO t (id, at, note, amount) VALUES (1, '2025-01-03', 'a', 1)")
    [(life,)] = run_mysql(admin, "SELECT life FROM t WHERE id = 1")
    run_mysql(admin, "UPDATE t SET note = 'b' WHERE id = 1")
    run_mysql(scenario.world.source, "DELETE FROM t WHERE id = 1")
    noted = "SELECT note, how FROM ledger.birth JOIN ledger.death USING (version) WHERE life = %s ORDER BY version"
    assert run_mysql(admin, noted, (life,)) == [("a", "updated"), ("b", "cleanup")]
