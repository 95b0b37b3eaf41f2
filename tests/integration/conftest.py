"""Fixtures of this suite; those for all suites are in tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from tests.support.tables import kit, one_catalog

__all__ = ["kit", "one_catalog"]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Dagster's storage for one test."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made
