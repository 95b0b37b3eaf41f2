"""Which transactions a snapshot saw, by its text alone."""

from __future__ import annotations

import pytest

from export_pipelines.steps.generations import visible


@pytest.mark.parametrize(
    ("xid", "snapshot", "seen"),
    [
        (9, "10:10:", True),
        (10, "10:10:", False),
        (10, "10:20:10,15", False),
        (11, "10:20:10,15", True),
        (15, "10:20:10,15", False),
        (1, "10:20:10,11", True),
        (20, "10:20:10,15", False),
        (4_294_967_306, "4294967300:4294967310:4294967305", True),
        (10, "4294967300:4294967310:4294967305", True),
    ],
)
def test_a_snapshot_sees_what_had_ended_and_nothing_else(xid: int, snapshot: str, seen: bool) -> None:
    assert visible(xid, snapshot) is seen
