"""Scratch space that cannot be had is told, and is no other error."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import pytest

from export_pipelines.errors import ScratchError
from export_pipelines.scratch import scratch_database
from export_pipelines.steps.postgres.matching import matcher


@pytest.fixture
def no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))


def test_scratch_space_that_cannot_be_made_is_told(no_room: None) -> None:
    with pytest.raises(ScratchError, match="No such file") as caught, scratch_database():
        pass
    assert "TMPDIR" in caught.value.hint
    with pytest.raises(ScratchError), matcher(10) as matches:
        matches.add_records([b"a"], [0])


def test_scratch_space_that_is_full_in_the_middle_is_told() -> None:
    with pytest.raises(ScratchError, match="full") as caught, scratch_database() as database:
        database.execute("COMMIT")
        database.execute("PRAGMA max_page_count = 3")
        database.execute("CREATE TABLE t (x BLOB)")
        database.execute("INSERT INTO t VALUES (randomblob(100000))")
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert caught.value.transient


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="mine"), scratch_database():
        raise ValueError("mine")
