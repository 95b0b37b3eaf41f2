"""The worker begins requests at once, in their order, ends them as they should end, and loses none."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export_pipelines.catalog.audit import Actor
from export_pipelines.local.postgres import Address
from tests.support.served import Served, served, until
from tests.support.servers import new_database, run_sql


@pytest.fixture(scope="module")
def project(
    postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A project whose worker takes two requests at a time."""
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as storage,
        served(tmp_path_factory.mktemp("served") / "p", source, storage, service="concurrency: 2") as made,
    ):
        made.start()
        yield made


def test_a_request_becomes_a_run_with_a_file_and_a_materialisation(project: Served) -> None:
    row = project.ended(project.upto(1000).id)
    assert (row.state, row.rows, row.attempts) == ("succeeded", 1000, 1), row
    assert project.run_status(row.run_id) == "SUCCESS"
    found = run_sql(
        project.storage, "SELECT asset_key FROM event_logs WHERE run_id = %s AND asset_key IS NOT NULL", (row.run_id,)
    )
    assert ('["g", "numbers_request"]',) in found
    tags = dict(run_sql(project.storage, "SELECT key, value FROM run_tags WHERE run_id = %s", (row.run_id,)))
    assert tags["export_pipelines/request"] == row.id
    assert tags["export_pipelines/user"] == "ann"
