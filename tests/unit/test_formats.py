"""Compression, splitting of CSV into records, and digests: round trips over anything."""

from __future__ import annotations

import csv
import gzip
import io
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from export_pipelines.errors import IntegrityError, SpecError
from export_pipelines.formats.compression import compressor, decompressed
from export_pipelines.formats.csv import copy_options, digest_records, format_digest, records
from export_pipelines.specs.table import Compression, CsvSpec
from export_pipelines.sql import parse_select

KINDS = st.sampled_from(Compression)
PACKED = st.sampled_from([Compression.GZIP, Compression.ZSTD])
DIALECTS = st.builds(CsvSpec, delimiter=st.sampled_from(",;|\t"), quote=st.sampled_from("\"'`"))
FIELDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.text(
    "\"'`,;|\t\n\r\\.", max_size=6
)
TABLES = st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(FIELDS, min_size=n, max_size=n), max_size=12))


def stored(pieces: list[bytes], kind: Compression) -> bytes:
    packer = compressor(kind)
    return b"".join([*(packer.compress(piece) for piece in pieces), packer.flush()])


def unpacked(data: bytes, kind: Compression) -> bytes:
    return b"".join(decompressed(io.BytesIO(data), kind, name="the file"))


def encoded(rows: list[list[str]], dialect: CsvSpec) -> list[bytes]:
    """Each row as COPY writes it: quotes doubled, a newline at the end."""
    made = []
    for row in rows:
        text = io.StringIO()
        writer = csv.writer(
            text, delimiter=dialect.delimiter, quotechar=dialect.quote, lineterminator="\n", quoting=csv.QUOTE_ALL
        )
        writer.writerow(row)
        made.append(text.getvalue().encode())
    return made


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The data in pieces of these sizes, the rest in one."""
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


@given(st.lists(st.binary(max_size=2000), max_size=10), KINDS)
def test_what_was_compressed_unpacks_to_the_same(pieces: list[bytes], kind: Compression) -> None:
    assert unpacked(stored(pieces, kind), kind) == b"".join(pieces)


@given(st.lists(st.binary(max_size=300), max_size=6), KINDS)
def test_compressed_bytes_are_a_function_of_the_pieces_alone(pieces: list[bytes], kind: Compression) -> None:
    assert stored(pieces, kind) == stored(pieces, kind)


@given(st.binary(max_size=3000))
def test_other_programs_read_what_was_written(data: bytes) -> None:
    assert gzip.decompress(stored([data], Compression.GZIP)) == data
    assert zstandard.ZstdDecompressor().decompressobj().decompress(stored([data], Compression.ZSTD)) == data


@given(st.lists(st.binary(max_size=500), min_size=1, max_size=4), PACKED)
def test_several_members_are_read_as_one(parts: list[bytes], kind: Compression) -> None:
    assert unpacked(b"".join(stored([part], kind) for part in parts), kind) == b"".join(parts)


@given(st.binary(max_size=2000), PACKED, st.data())
def test_a_truncated_stream_is_an_error(data: bytes, kind: Compression, draw: st.DataObject) -> None:
    whole = stored([data], kind)
    length = draw.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(IntegrityError, match="the file"):
        unpacked(whole[:length], kind)


@given(st.binary(min_size=1, max_size=2000), PACKED, st.data())
def test_a_flipped_bit_never_gives_other_bytes(data: bytes, kind: Compression, draw: st.DataObject) -> None:
    whole = bytearray(stored([data], kind))
    whole[draw.draw(st.integers(0, len(whole) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    with suppress(IntegrityError):
        # A byte may have no meaning, such as the time in gzip's header.
        assert unpacked(bytes(whole), kind) == data


@pytest.mark.parametrize("kind", [Compression.GZIP, Compression.ZSTD])
def test_garbage_after_the_stream_is_an_error(kind: Compression) -> None:
    with pytest.raises(IntegrityError):
        unpacked(stored([b"rows"], kind) + b"garbage", kind)


@pytest.mark.parametrize("kind", [Compression.GZIP, Compression.ZSTD])
def test_highly_compressible_data_is_unpacked_in_bounded_pieces(kind: Compression) -> None:
    noise = random.Random(1).randbytes(1 << 20)
    for before in (b"", noise):
        data = stored([before, *[b"\0" * (1 << 20)] * 96], kind)
        sizes = [len(piece) for piece in decompressed(io.BytesIO(data), kind, name="the file")]
        assert sum(sizes) == (96 << 20) + len(before)
        assert max(sizes) <= 32 << 20


@given(TABLES, DIALECTS, st.lists(st.integers(0, 40), max_size=20))
def test_records_are_found_again_wherever_the_pieces_are_cut(
    rows: list[list[str]], dialect: CsvSpec, sizes: list[int]
) -> None:
    expected = encoded(rows, dialect)
    found = [record for batch in records(cut(b"".join(expected), sizes), dialect) for record in batch]
    assert found == expected


@given(TABLES.filter(bool), DIALECTS)
def test_a_last_record_that_does_not_end_is_an_error(rows: list[list[str]], dialect: CsvSpec) -> None:
    data = b"".join(encoded(rows, dialect))
    with pytest.raises(IntegrityError, match="does not end"):
        list(records([data[:-1]], dialect))


def test_a_record_of_many_pieces_is_one_record() -> None:
    record = b'"' + b'x""\n' * 300_000 + b'"\n'
    pieces = [record[at : at + 65_536] for at in range(0, len(record), 65_536)]
    assert [r for batch in records(pieces, CsvSpec()) for r in batch] == [record]


@given(st.lists(st.binary(max_size=50), max_size=30), st.randoms())
def test_the_row_digest_does_not_depend_on_the_order(rows: list[bytes], order: random.Random) -> None:
    shuffled = rows[:]
    order.shuffle(shuffled)
    assert digest_records(rows) == digest_records(shuffled)


@given(st.lists(st.binary(max_size=50), max_size=20), st.lists(st.binary(max_size=50), max_size=20))
def test_row_digests_of_parts_add_up(one: list[bytes], other: list[bytes]) -> None:
    assert format_digest(digest_records(one) + digest_records(other)) == format_digest(digest_records(one + other))


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=20), max_size=10), st.lists(st.binary(max_size=20), max_size=10))
def test_other_rows_have_another_digest(one: list[bytes], other: list[bytes]) -> None:
    assert (format_digest(digest_records(one)) == format_digest(digest_records(other))) == (
        sorted(one) == sorted(other)
    )


def test_the_row_digest_counts_rows_that_are_there_twice() -> None:
    assert digest_records([b"a\n", b"a\n"]) != digest_records([b"a\n"])


def test_row_digests_are_16_hex_digits_whatever_the_sum() -> None:
    assert format_digest(0) == "0" * 16
    assert format_digest((1 << 64) + 10) == "000000000000000a"


def test_options_of_copy_are_quoted_as_literals() -> None:
    options = copy_options(CsvSpec(delimiter="'", null="\\N", quote="`", header=False))
    assert options == "FORMAT csv, DELIMITER '''', HEADER false, NULL  E'\\\\N', QUOTE '`', ENCODING 'UTF8'"


@pytest.mark.parametrize(
    "options",
    [
        {"delimiter": "0"},
        {"delimiter": "("},
        {"delimiter": "é"},
        {"delimiter": "\n"},
        {"delimiter": ";;"},
        {"delimiter": '"'},
        {"quote": "1"},
        {"quote": ")"},
        {"quote": "\r"},
        {"quote": ",", "delimiter": ";"},
        {"null": "a,b"},
        {"null": "'x", "quote": "'"},
        {"null": "\n"},
    ],
    ids=repr,
)
def test_dialects_whose_files_could_not_be_read_back_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        CsvSpec.model_validate(options)


def test_a_copy_with_such_a_dialect_is_an_error_of_its_file() -> None:
    with pytest.raises(SpecError, match="delimiter 'x' cannot be used"):
        parse_select("COPY (SELECT 1 AS a) TO STDOUT WITH (FORMAT csv, DELIMITER 'x')", Path("select.sql"))
