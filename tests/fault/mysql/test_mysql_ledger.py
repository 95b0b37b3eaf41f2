"""The ledger suite on MariaDB: whatever strikes, no row version is lost, doubled, or deleted unarchived.

FAULT_SEED=7 pytest tests/fault/mysql      the same faults in the same order again
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import pytest

from tests.fault.mysql.kinds import KINDS
from tests.fault.mysql.scenario import MysqlScenario
from tests.fault.mysql.world import MysqlWorld, new_mysql_world
from tests.fault.soak import Suite, soak

pytestmark = pytest.mark.debian

SEED = int(os.environ.get("FAULT_SEED", "20250101"))
MARIADB = Suite(KINDS, lambda world, rng, number, s3: MysqlScenario(world, rng, number), s3=False)


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
@pytest.mark.parametrize("number", range(1, 4))
def test_no_row_version_is_lost_by_many_more_faults(
    world: MysqlWorld, number: int, record_property: Callable[[str, object], None]
) -> None:
    strike(world, SEED + number, 60, record_property)
