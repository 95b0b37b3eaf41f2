"""Fixtures of this suite; those for all suites are in tests/conftest.py."""

from tests.support.tables import kit, one_catalog

__all__ = ["kit", "one_catalog"]
