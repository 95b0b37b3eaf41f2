"""Rows of a table by the keys of a sidecar: read (and locked), and deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice

from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.sources.mysql_inspect import BaseTable
from export_pipelines.sources.mysql_types import ResultColumn, literal
from export_pipelines.sources.mysql_wire import Columns
from export_pipelines.sql_mysql import MysqlDelete, quote_identifier
from export_pipelines.steps.keys import PLAIN, parse
from export_pipelines.steps.mysql.reading import described, sidecar_lines, text_of, unescaped

_INTEGERS = (1, 2, 3, 8, 9)
# Keys of one statement: a longer list costs the optimizer more than another statement does.
_LIST = 1000
# Keys that a range may span for each that is wanted. What is not wanted is read and locked as well.
_SPARSE = 4
_DIGEST = 33


@dataclass(frozen=True)
class Read:
    """What was found. `rows` counts all rows that were read; `whole` says that these are all of a range of keys, and
    each of them is matched by delete.sql."""

    matched: list[bytes]
    rows: int
    whole: bool = False
    span: str = ""


@dataclass(frozen=True)
class Locator:
    """Finds rows of one table by key."""

    session: MysqlSession
    table: BaseTable
    statement: MysqlDelete
    key: tuple[ResultColumn, ...]
    texts: str
    """Expressions of key and content."""

    def read(self, identities: Sequence[bytes], *, lock: bool, matching: bool = True) -> Read:
        """The rows with these keys, as identities of now; with `matching` those that delete.sql matches."""
        suffix = " FOR UPDATE" if lock else ""
        keys = [identity[:-_DIGEST] for identity in identities]
        if span := self._span(keys):
            return self._read_span(span, suffix, matching=matching)
        found: list[bytes] = []
        for condition in self._conditions(keys):
            query = self.statement.selection(self.texts, condition) if matching else self._select(condition)
            self._run(query + suffix, lambda columns: found.extend(sidecar_lines(columns, keyed=True)))
        return Read(found, len(found))

    def delete(self, identities: Sequence[bytes]) -> int:
        """Delete the rows with these keys; how many there were."""
        conditions = self._conditions([identity[:-_DIGEST] for identity in identities])
        return sum(self.session.change(f"DELETE FROM {self.table.sql} WHERE {each}") for each in conditions)

    def delete_range(self, read: Read) -> int:
        """Delete all rows of the range that was read; how many there were."""
        return self.session.change(f"DELETE FROM {self.table.sql} WHERE {read.span}")

    def _read_span(self, span: str, suffix: str, *, matching: bool) -> Read:
        """All rows of a range of keys: those that delete.sql does not match are read, too, but not told of."""
        verdict = self.statement.matches() if matching else "TRUE"
        found: list[bytes] = []
        total = 0

        def take(columns: Columns) -> None:
            nonlocal total
            verdicts, *texts = columns
            total += len(verdicts)
            wanted = [verdict == b"1" for verdict in verdicts]
            found.extend(sidecar_lines([list(compress(each, wanted)) for each in texts], keyed=True))

        self._run(f"SELECT {verdict}, {self.texts} FROM {self.table.sql} WHERE {span}{suffix}", take)
        return Read(found, total, len(found) == total, span)

    def _select(self, condition: str) -> str:
        return f"SELECT {self.texts} FROM {self.table.sql} WHERE {condition}"

    def _run(self, query: str, take: Callable[[Columns], object]) -> None:
        self.session.stream(query, take)

    def _span(self, keys: Sequence[bytes]) -> str:
        """A range of whole numbers that is not much more than these; empty if there is none."""
        if self.statement.partitions:
            # A range is read from the whole table, of which delete.sql names a part.
            return ""
        if len(self.key) != 1 or self.key[0].type_code not in _INTEGERS or len(keys) < 2:
            return ""
        numbers = list(map(int, keys))
        first, last = min(numbers), max(numbers)
        if last - first >= _SPARSE * len(numbers):
            return ""
        return f"{quote_identifier(self.key[0].name)} BETWEEN {first} AND {last}"

    def _conditions(self, keys: Sequence[bytes]) -> Iterator[str]:
        """Conditions that select these keys, some of them each."""
        names = [quote_identifier(column.name) for column in self.key]
        values = parse([unescaped(key) + b"\n" for key in keys], PLAIN)
        while chunk := list(islice(values, _LIST)):
            if len(names) == 1:
                literals = ", ".join(literal(self.key[0], value[0]) for value in chunk)
                yield f"{names[0]} IN ({literals})"
                continue
            each = (
                " AND ".join(
                    f"{name} = {literal(column, value)}"
                    for name, column, value in zip(names, self.key, row, strict=True)
                )
                for row in chunk
            )
            yield "(" + " OR ".join(f"({condition})" for condition in each) + ")"


def locator(session: MysqlSession, table: BaseTable, statement: MysqlDelete, key: Sequence[str]) -> Locator:
    """A locator by that key of the table as it is now."""
    columns = described(session, table)
    of_key = tuple(columns[name.lower()] for name in key)
    texts = f"{text_of(of_key, PLAIN)}, {text_of(list(columns.values()), PLAIN)}"
    return Locator(session, table, statement, of_key, texts)
