"""The ledger suite: whatever strikes, no row version is lost, doubled, or deleted without a verified archive.

FAULT_SEED=7 pytest tests/fault/test_ledger.py      the same faults in the same order again
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.ledger import DAYS
from tests.fault.outside import BrokenChain
from tests.fault.proofs import Violated, prove_restored
from tests.fault.scenario import Scenario
from tests.fault.soak import soak
from tests.fault.world import World, new_world
from tests.support.servers import run_sql
from tests.support.tables import run_each

SEED = int(os.environ.get("FAULT_SEED", "20250101"))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Servers of this suite's own, since it kills them."""
    with new_world() as world:
        yield world


def strike(world: World, seed: int, faults: int, record: Callable[[str, object], None]) -> None:
    tally = soak(world, seed, faults)
    record("faults", json.dumps(tally.struck))
    assert tally.struck.total() == faults
    assert tally.never() == []


@pytest.mark.timeout(900)
def test_no_row_version_is_lost_doubled_or_deleted_unarchived(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    strike(world, SEED, 46, record_property)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(1, 5))
def test_no_row_version_is_lost_by_many_more_faults(
    world: World, number: int, record_property: Callable[[str, object], None]
) -> None:
    strike(world, SEED + number, 60, record_property)


# The proofs themselves: each finds what it is there to find.


@pytest.fixture
def scenario(world: World) -> Iterator[Scenario]:
    """Archived rows, half of them cleaned up, and nobody who writes."""
    scenario = Scenario(world, random.Random(), 1000, s3=False)
    scenario.by_key, scenario.partitioned = False, False
    scenario.table.select = scenario.table.delete = None
    spec = {"table": "t", "time_column": "at", "compression": "none"}
    scenario.table.spec = {"cleanup": scenario.table.spec["cleanup"], **spec}
    with scenario:
        scenario.writers.stop()
        scenario.prepare("cleanup", DAYS[0])
        scenario.prepare("cleanup", DAYS[1])
        scenario.patiently("cleanup", DAYS[0])
        scenario.prove()
        scenario.prove_restored()
        yield scenario


def as_the_program(scenario: Scenario, statement: str) -> None:
    """As if a cleanup did it."""
    run_each(scenario.world.source, "SET application_name = 'export_pipelines'", statement)


def unnoted(scenario: Scenario, statement: str) -> None:
    """Past the ledger."""
    run_each(scenario.world.source, "SET session_replication_role = replica", statement)


def manifests(scenario: Scenario) -> list[Path]:
    return sorted((scenario.table.folder / "archive").rglob("manifests/*.json"))


def of_file(scenario: Scenario, day: str) -> Path:
    return scenario.table.folder / "archive" / str(scenario.newest(day)["file"]["key"])


def _delete_unarchived(scenario: Scenario) -> None:
    as_the_program(scenario, f"DELETE FROM t WHERE at >= '{DAYS[2]}'")


def _damage_the_only_copy(scenario: Scenario) -> None:
    path = of_file(scenario, DAYS[0])
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def _remove_the_only_copy(scenario: Scenario) -> None:
    of_file(scenario, DAYS[0]).unlink()


def _lose_a_row(scenario: Scenario) -> None:
    unnoted(scenario, "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t)")


def _keep_a_deleted_row(scenario: Scenario) -> None:
    dead = "SELECT id, at, note, amount::numeric, life, version FROM ledger.birth JOIN ledger.death USING (version)"
    unnoted(scenario, f"INSERT INTO t (id, at, note, amount, life, version) {dead} WHERE how = 'cleanup' LIMIT 1")


def _archive_other_content(scenario: Scenario) -> None:
    unnoted(scenario, f"UPDATE t SET note = 'another' WHERE at >= '{DAYS[2]}'")
    scenario.patiently("export", DAYS[2])
    scenario.patiently("archive", DAYS[2])


def _tell_of_a_deletion_that_never_was(scenario: Scenario) -> None:
    last = manifests(scenario)[-1]
    receipt = json.loads(last.read_text())
    assert receipt["kind"] == "cleanup"
    receipt["artifact_sequence"] = scenario.newest(DAYS[1])["sequence"]
    last.write_text(json.dumps(receipt))


def _restore_a_row_twice(scenario: Scenario) -> None:
    run_sql(scenario.world.source, "INSERT INTO restored SELECT * FROM restored LIMIT 1")


def _restore_two_versions(scenario: Scenario) -> None:
    run_sql(
        scenario.world.source,
        "UPDATE restored SET life = (SELECT max(life) FROM restored r WHERE r.partition = restored.partition)",
    )


def _leave_a_row_out_of_the_restore(scenario: Scenario) -> None:
    run_sql(scenario.world.source, f"DELETE FROM restored WHERE partition = '{DAYS[0]}'")


def _restore_other_content(scenario: Scenario) -> None:
    run_sql(scenario.world.source, "UPDATE restored SET note = 'another'")


VIOLATIONS: dict[str, tuple[Callable[[Scenario], None], str]] = {
    "deleted and not archived": (_delete_unarchived, "in no verified archive"),
    "archive damaged": (_damage_the_only_copy, "in no verified archive"),
    "archive gone": (_remove_the_only_copy, "in no verified archive"),
    "row lost": (_lose_a_row, "not in the source"),
    "row not deleted": (_keep_a_deleted_row, "not alive by the ledger"),
    "other content": (_archive_other_content, "does not say what"),
    "false receipt": (_tell_of_a_deletion_that_never_was, "no cleanup deleted"),
    "restored twice": (_restore_a_row_twice, "given twice"),
    "two versions restored": (_restore_two_versions, "two versions"),
    "not restored": (_leave_a_row_out_of_the_restore, "not given by the restore"),
    "restored otherwise": (_restore_other_content, "other content"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_proofs_find_each_broken_promise(scenario: Scenario, name: str) -> None:
    violate, says = VIOLATIONS[name]
    violate(scenario)
    with pytest.raises(Violated, match=says):
        scenario.prove()
        prove_restored(scenario.world.source, list(DAYS[:2]))


@pytest.mark.parametrize("how", ["gone", "altered"])
def test_the_proofs_find_a_broken_chain(scenario: Scenario, how: str) -> None:
    first = manifests(scenario)[0]
    first.unlink() if how == "gone" else first.write_text(first.read_text().replace('"run"', '"another"'))
    with pytest.raises(BrokenChain):
        scenario.prove()


def test_the_ledger_notes_each_version_and_how_it_ended(scenario: Scenario) -> None:
    url = scenario.world.source
    before = run_sql(url, "SELECT count(*) FROM ledger.birth")[0][0]
    [(row,)] = run_sql(url, "INSERT INTO t (id, at, note, amount) VALUES (1, '2025-01-03', 'a', 1) RETURNING life")
    run_sql(url, "UPDATE t SET note = 'b' WHERE id = 1")
    run_sql(url, "DELETE FROM t WHERE id = 1")
    found: list[tuple[Any, ...]] = run_sql(
        url, f"SELECT note, how FROM ledger.birth JOIN ledger.death USING (version) WHERE life = {row} ORDER BY version"
    )
    assert found == [("a", "updated"), ("b", "deleted")]
    assert run_sql(url, "SELECT count(*) FROM ledger.birth")[0][0] == before + 2
