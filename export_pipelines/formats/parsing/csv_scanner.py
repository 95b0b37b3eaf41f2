"""CSV cut into records: lines, quotes and all kinds of line ends; with the line of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.parsing.base import BadRecord, shown
from export_pipelines.specs.load import FileSpec

_WORTH = 1 << 10
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BEFORE = re.compile(rb"[ \t]+(?=[,\n])")
_BEHIND = re.compile(rb"([,\n])[ \t]+")


@dataclass(frozen=True)
class Dialect:
    """How the values of a file are written. One byte each; without a `quote` there are no quoted values.

    Of the patterns, only classes of characters are repeated possessively: groups that are go wrong in Python 3.11.2.
    """

    delimiter: bytes
    quote: bytes
    trim: bool
    nulls: frozenset[str]

    @classmethod
    def of(cls, spec: FileSpec, name: str) -> Dialect:
        """Raises RequestError for signs that cannot be told apart."""
        tabs = spec.format == "auto" and spec.delimiter == "," and name.lower().endswith((".tsv", ".tab"))
        delimiter, quote = ("\t" if tabs else spec.delimiter), spec.quote
        fit = len(delimiter) == 1 and len(quote) <= 1 and (delimiter + quote).isascii() and delimiter != quote
        if not fit or set(delimiter + quote) & set("\r\n\0"):
            raise RequestError(
                f"delimiter {delimiter!r} and quote {quote!r} cannot be used",
                hint="one ASCII character each; an empty quote where nothing is quoted",
            )
        return cls(delimiter.encode(), quote.encode(), spec.trim, frozenset(spec.null_words))

    @property
    def verbatim(self) -> bool:
        """Whether a well-formed record is one of COPY's plain dialect as it is."""
        return self.delimiter == b"," and self.quote == b'"' and not self.trim and not self.nulls

    @cached_property
    def _field(self) -> bytes:
        delimiter, quote = re.escape(self.delimiter), re.escape(self.quote)
        if not quote:
            return rb"[^" + delimiter + rb"\r\n]*+"
        space = rb"[ \t]*+" if self.trim else b""
        quoted = (
            space + quote + rb"(?:[^" + quote + rb"]++|" + quote * 2 + rb")*" + quote + rb"(?!" + quote + rb")" + space
        )
        return rb"(?:" + quoted + rb"|[^" + delimiter + quote + rb"\r\n]*+)"

    @cached_property
    def fields(self) -> re.Pattern[bytes]:
        """The well-formed part of a record."""
        return re.compile(self._field + rb"(?:" + re.escape(self.delimiter) + self._field + rb")*")

    @cached_property
    def record(self) -> re.Pattern[bytes]:
        """A record with its line end, which is the group."""
        return re.compile(self.fields.pattern + rb"(\r\n|\n|\r)")

    @cached_property
    def records(self) -> re.Pattern[bytes]:
        """As many records as there are."""
        return re.compile(rb"(?:" + self.fields.pattern + rb"(?:\r\n|\n|\r))*")

    @cached_property
    def _each(self) -> re.Pattern[bytes]:
        return re.compile(rb"(?:\A|" + re.escape(self.delimiter) + rb")(" + self._field + rb")")

    def split(self, record: bytes) -> list[bytes]:
        """The fields of a well-formed record as they are written."""
        if not self.quote or self.quote not in record:
            return record.split(self.delimiter)
        return self._each.findall(record)

    def count(self, record: bytes, most: int) -> int:
        """How many values a record has. Of more than `most` it is not told how many more, where that takes memory."""
        if not self.quote or self.quote not in record:
            return record.count(self.delimiter) + 1
        return sum(1 for _ in islice(self._each.finditer(record), most + 1))

    def value(self, field: bytes) -> str | None:
        """What a field says. Raises UnicodeDecodeError."""
        if self.trim:
            field = field.strip(b" \t")
        quoted = bool(self.quote) and field.startswith(self.quote)
        if quoted:
            field = field[1:-1].replace(self.quote * 2, self.quote)
            field = field.strip(b" \t") if self.trim else field
        text = field.decode()
        return None if (not text and not quoted) or text in self.nulls else text

    def plain_block(self, block: bytes) -> bytes | None:
        """Lines without quotes in COPY's plain dialect; None if that takes a look at each value."""
        if self.delimiter != b",":
            if b"," in block or b'"' in block:
                return None
            block = block.replace(self.delimiter, b",")
        elif self.quote != b'"' and b'"' in block:
            return None
        block = b"\n" + block
        if self.trim:
            block = _BEFORE.sub(b"", _BEHIND.sub(rb"\1", block))
        for word in self._plain_nulls:
            for left in (b",", b"\n"):
                for right in (b",", b"\n"):
                    while (found := left + word + right) in block:
                        block = block.replace(found, left + right)
        return block[1:]

    @cached_property
    def _plain_nulls(self) -> tuple[bytes, ...]:
        # A word with a comma would be two values here.
        return tuple(word.encode() for word in self.nulls if word and not set(word) & set(",\r\n"))

    def lines(self, count: int) -> re.Pattern[bytes]:
        """As many records of so many values as there are, each in one line."""
        delimiter, quote = re.escape(self.delimiter), re.escape(self.quote)
        field = rb"[^" + delimiter + quote + rb"\r\n]*+"
        if quote:
            field = (
                rb"(?:"
                + quote
                + rb"(?:[^"
                + quote
                + rb"\r\n]++|"
                + quote * 2
                + rb")*"
                + quote
                + rb"(?!"
                + quote
                + rb")|"
                + field
                + rb")"
            )
        more = rb"(?:" + delimiter + field + rb"){%d}" % (count - 1)
        return re.compile(rb"(?:" + field + more + rb"\r?\n)*")


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines that are records: no quotes, no NUL, valid UTF-8, ended by newlines."""

    line: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Lines:
    """Records that are a line each and have as many values as there are columns; valid UTF-8, ended by newlines."""

    line: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One well-formed record without its line end."""

    line: int
    data: bytes


class Scanner:
    """Cuts UTF-8 into records. Memory: a piece and the longest record, at most `limit` bytes."""

    def __init__(self, dialect: Dialect, pieces: Iterator[bytes], limit: int) -> None:
        self._dialect = dialect
        self._pieces = pieces
        self._limit = limit
        self._buffer = b""
        self._place = 0
        self._ended = False
        self.line = 1
        """Of the next record."""

    def skip_lines(self, number: int) -> None:
        """Leave out lines, whatever is in them."""
        for _ in range(number):
            while not (end := self._line_end()):
                if not self._more():
                    self._place = len(self._buffer)
                    return
            self._place = end
            self.line += 1

    def next(self) -> Record | BadRecord | None:
        """The next record; None at the end.

        Raises:
            IntegrityError: a quoted value does not end.
            RequestError: a record is longer than the limit.
        """
        while True:
            found = self._match()
            if found is not None:
                return found
            if not self._more():
                return None

    def blocks(self, count: int) -> Iterator[Block | Lines | Record | BadRecord]:
        """All that is left, many lines at a time where nothing is special about them, of so many columns."""
        # Where values are trimmed, each in quotes takes a look of its own.
        plain = count > 1 and not self._dialect.trim and self._dialect.quote not in (b"", b",")
        pattern = self._dialect.lines(count) if plain else None
        while True:
            if self._place == len(self._buffer) and not self._more():
                return
            if block := self._block():
                yield block
                continue
            while (found := self._lines(pattern) or self._match()) is not None:
                yield found
            if not self._more():
                return

    def _lines(self, pattern: re.Pattern[bytes] | None) -> Lines | None:
        match = pattern.match(self._buffer, self._place) if pattern else None
        if match is None or match.end() - self._place < _WORTH:
            return None
        data = match[0]
        if b"\0" in data:
            return None
        try:
            data.isascii() or data.decode()
        except UnicodeDecodeError:
            return None
        line = self.line
        self._place = match.end()
        self.line += data.count(b"\n")
        return Lines(line, data.replace(b"\r\n", b"\n"))

    def _block(self) -> Block | None:
        """The whole lines of the buffer, unless they need a closer look."""
        end = self._buffer.rfind(b"\n", self._place) + 1
        if end <= self._place:
            return None
        data = self._buffer[self._place : end]
        if (self._dialect.quote and self._dialect.quote in data) or b"\0" in data:
            return None
        line, lines = self.line, data.count(b"\n")
        if b"\r" in data:
            if data.count(b"\r") != data.count(b"\r\n"):
                return None
            data = data.replace(b"\r\n", b"\n")
        try:
            data.isascii() or data.decode()
        except UnicodeDecodeError:
            return None
        self._place = end
        self.line += lines
        return Block(line, data)

    def _match(self) -> Record | BadRecord | None:
        """The record at the buffer's place; None if the buffer ends before it does."""
        buffer, place = self._buffer, self._place
        if place == len(buffer):
            return None
        if match := self._dialect.record.match(buffer, place):
            # Its other half may be behind the buffer's end.
            if match[1] == b"\r" and match.end() == len(buffer) and not self._ended:
                return None
            return self._took(buffer[place : match.start(1)], match.end())
        well_formed = self._dialect.fields.match(buffer, place)
        stop = well_formed.end() if well_formed else place
        if stop == len(buffer):
            return None
        if self._is_open(stop):
            if self._ended:
                raise self._unclosed(stop)
            return None
        return self._bad(stop)

    def _is_open(self, stop: int) -> bool:
        """Whether at `stop` a quoted value begins which the buffer does not end."""
        if not self._dialect.quote or self._buffer[stop : stop + 1] != self._dialect.quote:
            return False
        before = stop
        while self._dialect.trim and before > self._place and self._buffer[before - 1 : before] in (b" ", b"\t"):
            before -= 1
        return before == self._place or self._buffer[before - 1 : before] == self._dialect.delimiter

    def _took(self, data: bytes, end: int) -> Record | BadRecord:
        line = self.line
        self._place = end
        self.line += 1 + (len(_LINE_END.findall(data)) if self._dialect.quote and self._dialect.quote in data else 0)
        if b"\0" in data:
            return BadRecord(line, "it has a NUL byte", shown(data))
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError as error:
                reason = f"byte {error.start + 1} of the record (0x{data[error.start]:02x}) is not UTF-8"
                return BadRecord(line, reason, shown(data))
        return Record(line, data)

    def _bad(self, stop: int) -> BadRecord | None:
        """What is malformed ends with its line."""
        end = self._line_end(stop)
        if not end:
            return None
        data = self._buffer[self._place : end].rstrip(b"\r\n")
        column = len(self._dialect.split(self._buffer[self._place : stop]))
        line = self.line + self._lines_until(stop)
        self._advance(end)
        sign = self._dialect.quote.decode()
        where = f"value {column} (line {line})"
        return BadRecord(line, f"{where} has a quote ({sign}) that neither begins nor ends it", shown(data))

    def _unclosed(self, stop: int) -> IntegrityError:
        column = len(self._dialect.split(self._buffer[self._place : stop]))
        line = self.line + self._lines_until(stop)
        return IntegrityError(
            f"line {line}: value {column} begins with a quote that is never closed",
            hint="double a quote within a value, or set `quote` in the definition",
        )

    def _lines_until(self, stop: int) -> int:
        return len(_LINE_END.findall(self._buffer, self._place, stop))

    def _advance(self, end: int) -> None:
        self.line += self._lines_until(end)
        self._place = end

    def _line_end(self, start: int | None = None) -> int:
        """Behind the line end after a place; 0 if the buffer has none that is sure."""
        match = _LINE_END.search(self._buffer, self._place if start is None else start)
        if match is None or (match[0] == b"\r" and match.end() == len(self._buffer) and not self._ended):
            return 0
        return match.end()

    def _more(self) -> bool:
        """Read on, at least as much as is left: a long record is not looked at for each piece. False at the end."""
        if self._ended:
            return False
        rest = [self._buffer[self._place :]]
        size = wanted = len(rest[0])
        if size > self._limit:
            raise self._too_long()
        while size <= 2 * wanted:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            rest.append(piece)
            size += len(piece)
        self._buffer, self._place = b"".join(rest), 0
        if self._ended and self._buffer and not self._buffer.endswith((b"\n", b"\r")):
            self._buffer += b"\n"
        return bool(self._buffer)

    def _too_long(self) -> RequestError:
        return RequestError(
            f"the record at line {self.line} is longer than {self._limit} bytes",
            hint="a quote may be missing that closes a value; or set `max_line_bytes`",
        )


def checked_raw(dialect: Dialect, pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """The pieces as they are, as long as COPY takes them apart as the scanner does.

    Raises:
        NotPlain: a quote neither begins nor ends a value.
        RequestError: a record is longer than the limit.
    """
    from export_pipelines.formats.parsing.base import NotPlain

    rest, seen = b"", 0
    for piece in pieces:
        if dialect.quote not in piece and dialect.quote not in rest:
            end = piece.rfind(b"\n")
            rest = piece[end + 1 :] if end >= 0 else rest + piece
            seen = 0
        else:
            rest += piece
            if len(rest) >= 2 * seen:
                rest = rest[_well_formed(dialect, rest) :]
                seen = len(rest)
                if not _may_go_on(dialect, rest):
                    raise NotPlain("a value has a quote within")
        if len(rest) > limit:
            raise RequestError(f"a record is longer than {limit} bytes", hint="set `max_line_bytes`")
        yield piece


def _well_formed(dialect: Dialect, data: bytes) -> int:
    """How many bytes are whole records. A carriage return at the very end may be half of a line end."""
    match = dialect.records.match(data)
    end = match.end() if match else 0
    if end == len(data) and data.endswith(b"\r"):
        return data.rfind(b"\n", 0, end - 1) + 1 if dialect.quote not in data else end
    return end


def _may_go_on(dialect: Dialect, rest: bytes) -> bool:
    """Whether more bytes may make what is left a well-formed record."""
    match = dialect.fields.match(rest)
    stop = match.end() if match else 0
    if stop == len(rest):
        return True
    opens = stop == 0 or rest[stop - 1 : stop] == dialect.delimiter
    return opens and rest[stop : stop + 1] == dialect.quote
