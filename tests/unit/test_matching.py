"""Matching rows to records by content."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export_pipelines.steps.postgres import matching
from export_pipelines.steps.postgres.matching import matcher

_CONTENTS = st.lists(st.sampled_from([b"", b"a", b"b", b"c", b"a\nb", b"\x00" * 40]), max_size=40)


def pairs_of(records: list[bytes], rows: list[bytes], batch_rows: int = 7) -> list[tuple[int, int]]:
    """(row, record) of each match; identities are the rows' numbers."""
    with matcher(len(records)) as found:
        for first in range(0, len(records), 3):
            part = records[first : first + 3]
            found.add_records(part, range(first, first + len(part)))
        for first in range(0, len(rows), 5):
            part = rows[first : first + 5]
            found.add_rows(part, [b"%d" % n for n in range(first, first + len(part))])
        batches = list(found.matches(batch_rows))
    assert all(0 < len(identities) <= batch_rows for identities, _ in batches)
    return [(int(i), n) for identities, numbers in batches for i, n in zip(identities, numbers, strict=True)]


@pytest.mark.parametrize("part_rows", [1 << 20, 3])
@settings(deadline=None)  # the first call imports numpy
@given(records=_CONTENTS, rows=_CONTENTS)
def test_each_row_gets_at_most_one_record_of_its_content(
    records: list[bytes], rows: list[bytes], part_rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_PART_ROWS", part_rows)
        pairs = pairs_of(records, rows)
    assert all(rows[row] == records[record] for row, record in pairs)
    assert len({row for row, _ in pairs}) == len({record for _, record in pairs}) == len(pairs)
    assert len(pairs) == (Counter(records) & Counter(rows)).total()
    assert [row for row, _ in pairs] == sorted(row for row, _ in pairs)


def test_contents_that_share_half_of_their_digest_are_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(content: bytes, seed: int) -> bytes:
        return b"\x01" * 8 + content.ljust(8, b"\0")

    monkeypatch.setattr(matching, "xxh3_128_digest", half)
    assert pairs_of([b"a"], [b"b"]) == []
    assert pairs_of([b"a"], [b"a"]) == [(0, 0)]


def test_a_hundred_thousand_rows_find_their_records() -> None:
    records = [b"%d" % (n % 90_000) for n in range(100_000)]
    rows = [b"%d" % n for n in range(95_000)]
    with matcher(len(records)) as found:
        found.add_records(records, range(len(records)))
        found.add_rows(rows, rows)
        matched = [pair for batch in found.matches(50_000) for pair in zip(*batch, strict=True)]
    assert len(matched) == 90_000
    assert all(int(identity) == number % 90_000 for identity, number in matched)
