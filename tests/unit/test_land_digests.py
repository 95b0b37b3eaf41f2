"""Rows that were seen are known by their digest, whatever their order."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export_pipelines.steps import land_digests
from export_pipelines.steps.land_digests import DIGEST_BYTES, Seen, Sieve, digests_seen, keep_sorted

_rows = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"d\n", b"e\n"]), max_size=8)


@settings(deadline=None)
@given(_rows, _rows)
def test_only_rows_that_were_not_seen_are_written(before: list[bytes], now: list[bytes]) -> None:
    kept, _, _ = _pull(before, b"")
    assert len(kept) == DIGEST_BYTES * len(set(before))
    again, written, changed = _pull(now, kept)
    assert written == [row for row in now if row not in before]
    assert changed == (set(now) != set(before))
    assert again == _pull(sorted(now), b"")[0]


def _pull(rows: list[bytes], before: bytes) -> tuple[bytes, list[bytes], bool]:
    written: list[bytes] = []
    kept = io.BytesIO()
    with digests_seen(lambda: io.BytesIO(before)) as (seen, now):
        with now.open("wb") as file:
            sieve = Sieve(seen, written.append, file)
            for row in rows:
                sieve.take(row)
            sieve.flush()
        changed = keep_sorted(now, kept.write, seen)
    return kept.getvalue(), written, changed


def test_many_rows_are_kept_in_order_and_found_again() -> None:
    rows = [b"%d\n" % number for number in range(300_000)]
    kept, written, changed = _pull(rows * 2, b"")
    assert (len(written), changed) == (600_000, True)
    pairs = [struct.unpack_from("<QQ", kept, place) for place in range(0, len(kept), DIGEST_BYTES)]
    assert pairs == sorted(set(pairs))
    assert len(pairs) == 300_000
    assert _pull(rows[::-1], kept) == (kept, [], False)
    less, written, changed = _pull([*rows[1:], b"new\n"], kept)
    assert (len(less), written, changed) == (len(kept), [b"new\n"], True)


def test_rows_are_told_apart_with_tiny_blocks_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, bound in {"_BLOCK": 2, "_LOOKUP": 8, "_CHUNK": 1 << 10, "_PART_BYTES": 256}.items():
        monkeypatch.setattr(land_digests, name, bound)
    rows = [b"%d\n" % number for number in range(1500)]
    kept, _, _ = _pull(rows + rows[:9] * 200, b"")
    assert len(kept) == DIGEST_BYTES * len(rows)
    assert _pull(rows[::-1], kept) == (kept, [], False)
    changed = [*rows[10:], b"changed\n", b"new\n"]
    less, written, differs = _pull(changed, kept)
    assert (written, differs) == ([b"changed\n", b"new\n"], True)
    assert less == _pull(changed[::-1], b"")[0]
    assert _pull(rows[10:], kept)[1:] == ([], True)


_halves = st.integers(0, 2)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.tuples(_halves, _halves)), st.lists(st.tuples(_halves, _halves), max_size=6))
def test_digests_of_equal_halves_are_told_apart(
    tmp_path: Path, there: set[tuple[int, int]], wanted: list[tuple[int, int]]
) -> None:
    path = tmp_path / "digests"
    path.write_bytes(b"".join(_bytes(pair) for pair in sorted(there)))
    found = Seen(path).holds(b"".join(_bytes(pair) for pair in wanted))
    assert list(found) == [pair in there for pair in wanted]


def _bytes(pair: tuple[int, int]) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in pair)
