"""Identities in COPY's binary format."""

from hypothesis import given
from hypothesis import strategies as st

from export_pipelines.steps.postgres.binary_identities import decoded, encoded

xids = st.integers(0, 2**32 - 1)
ctids = st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 2**16 - 1))


@given(st.lists(st.tuples(xids, ctids)))
def test_identities_come_back_from_the_binary_format_as_they_were(rows: list[tuple[int, tuple[int, int]]]) -> None:
    lines = [b'%d,"(%d,%d)"' % (xmin, block, offset) for xmin, (block, offset) in rows]
    assert decoded(encoded(lines)) == lines


def test_the_binary_format_is_the_servers_own() -> None:
    head = b"PGCOPY\n\xff\r\n\x00" + b"\0\0\0\0" + b"\0\0\0\0"
    row = b"\0\x02" + b"\0\0\0\x04" + b"\0\0\x02\xda" + b"\0\0\0\x06" + b"\0\0\0\x05" + b"\0\x07"
    assert encoded([b'730,"(5,7)"']) == head + row + b"\xff\xff"
