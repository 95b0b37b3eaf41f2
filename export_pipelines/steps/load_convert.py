"""From text to typed rows, in one statement; where some do not fit, the statement is cut up until they are found."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from export_pipelines.errors import SourceError
from export_pipelines.sources.postgres import Session
from export_pipelines.sql import quote_identifier, quote_literal
from export_pipelines.steps.load_columns import Filled, Plan

_DATA = ("22", "23", "P0001")
"""SQLSTATEs of what a row may be refused for: data exceptions, constraints, RAISE in a function."""
_KNOWS_VALID = 160000
_CHUNK = 100_000


def is_data(error: SourceError) -> bool:
    """Whether a row is to blame."""
    return error.code.startswith(_DATA)


@dataclass(frozen=True)
class Staged:
    """Rows as text: `relation` has the file's columns and a number a row (`number`), from `first` to `last`."""

    relation: str
    number: str
    first: int
    last: int
    raw: bool = False
    """Whether it is the table of raw rows, which typed rows point to."""


@dataclass(frozen=True)
class Into:
    """Where typed rows go. `ordinal` is the column that takes the number of the record in the file, from 1."""

    relation: str
    ordinal: str | None
    raw_id: bool


@dataclass(frozen=True)
class Misfit:
    """A row that cannot be converted: its number, the column if one is to blame, the reason."""

    number: int
    column: str
    reason: str
    record: str


class Conversion:
    """Fills a table from staged rows. What does not fit is told to `misfit`, and left out."""

    def __init__(
        self, session: Session, plan: Plan, staged: Staged, into: Into, misfit: Callable[[Misfit], None]
    ) -> None:
        self._session = session
        self._plan = plan
        self._staged = staged
        self._into = into
        self._misfit = misfit
        self._numbered = staged.raw
        self._left_out: list[int] = []

    def run(self) -> int:
        """Rows that were converted. Raises SourceError for what no single row is to blame for."""
        self._forbid()
        first, last = self._staged.first, self._staged.last
        if first > last:
            return 0
        done = self._try(first, last)
        if done is None and self._find_invalid():
            done = self._try(first, last)
        return self._in_chunks(first, last) if done is None else done

    def _in_chunks(self, first: int, last: int) -> int:
        self._index()
        done = 0
        ranges = [(low, min(low + _CHUNK - 1, last)) for low in range(first, last + 1, _CHUNK)][::-1]
        while ranges:
            low, high = ranges.pop()
            count = self._try(low, high)
            if count is not None:
                done += count
            elif low == high:
                self._blame(low)
            else:
                middle = (low + high) // 2
                ranges += [(middle + 1, high), (low, middle)]
        return done

    def _try(self, low: int, high: int) -> int | None:
        """Convert the rows of a range: how many, or None if one of them does not fit."""
        self._session.execute("SAVEPOINT conversion")
        try:
            count = self._session.change(self._insert(low, high))
        except SourceError as error:
            if not is_data(error):
                raise
            self._reason = error.message.removeprefix("query failed: ")
            self._session.execute("ROLLBACK TO conversion; RELEASE conversion")
            return None
        self._session.execute("RELEASE conversion")
        return count

    def _insert(self, low: int, high: int) -> str:
        names = [quote_identifier(filled.name) for filled in self._plan.filled]
        values = [filled.expression for filled in self._plan.filled]
        number = f"staged.{quote_identifier(self._staged.number)}"
        if self._into.ordinal:
            ordinal = f"{number} - {self._staged.first - 1}"
            names, values = [*names, quote_identifier(self._into.ordinal)], [*values, ordinal]
        if self._into.raw_id:
            names, values = [*names, "raw_id"], [*values, number if self._staged.raw else "NULL"]
        return (
            f"INSERT INTO {self._into.relation} ({', '.join(names)}) SELECT {', '.join(values)} "
            f"FROM {self._staged.relation} AS staged WHERE {self._range(low, high)}"
        )

    def _range(self, low: int, high: int) -> str:
        number = f"staged.{quote_identifier(self._staged.number)}"
        where = f"{number} BETWEEN {low} AND {high}"
        # Those of the range only: there may be many, and each statement names them.
        if left := self._left_out[bisect_left(self._left_out, low) : bisect_right(self._left_out, high)]:
            where += f" AND {number} <> ALL('{{{', '.join(map(str, left))}}}'::bigint[])"
        return where

    def _index(self) -> None:
        if not self._numbered:
            self._session.execute(f"CREATE INDEX ON {self._staged.relation} ({quote_identifier(self._staged.number)})")
            self._numbered = True

    def _forbid(self) -> None:
        """Leave out rows with a value in a column that the policy forbids."""
        if not self._plan.forbidden:
            return
        tests = {name: f"{quote_identifier(name)} IS NOT NULL" for name in self._plan.forbidden}
        self._leave_out(tests, lambda name: f"the file has a value in column {name!r}, which the definition lacks")

    def _find_invalid(self) -> bool:
        """Leave out rows which the server can tell to be unfit without an error. Whether there were any."""
        tests: dict[str, str] = {}
        for filled in self._plan.filled:
            value = quote_identifier(filled.source)
            if not filled.plain:
                continue
            parts = [f"{value} IS NULL"] if filled.column.not_null else []
            if self._session.server_version >= _KNOWS_VALID and filled.expression != value:
                parts.append(f"NOT pg_input_is_valid({value}, {quote_literal(filled.column.type)})")
            if parts:
                tests[filled.source] = f"({' OR '.join(parts)})"
        by_source = {filled.source: filled for filled in self._plan.filled if filled.plain}
        return bool(tests) and self._leave_out(tests, lambda name: _unfit(by_source[name]))

    def _leave_out(self, tests: dict[str, str], reason: Callable[[str], str]) -> bool:
        """Tell rows for which a test is true. Reads some at a time, since there may be many."""
        names, any_of = list(tests), " OR ".join(tests.values())
        which = " ".join(f"WHEN {test} THEN {place}" for place, test in enumerate(tests.values()))
        number, low, found_any = quote_identifier(self._staged.number), self._staged.first, False
        while True:
            found = self._session.execute(
                f"SELECT {number}, CASE {which} END, to_json(staged)::text FROM {self._staged.relation} AS staged "
                f"WHERE {self._range(low, self._staged.last)} AND ({any_of}) ORDER BY 1 LIMIT 1000"
            )
            for ordinal, place, record in found:
                self._drop(Misfit(ordinal, names[place], reason(names[place]), record))
            found_any = found_any or bool(found)
            if len(found) < 1000:
                return found_any
            low = int(found[-1][0]) + 1

    def _blame(self, number: int) -> None:
        """Tell a single row that does not fit, with the column that is to blame if it is a conversion."""
        reason, column = self._reason, ""
        where = self._range(number, number)
        for filled in self._plan.filled:
            self._session.execute("SAVEPOINT blame")
            try:
                self._session.execute(
                    f"SELECT {filled.expression} FROM {self._staged.relation} AS staged WHERE {where}"
                )
            except SourceError as error:
                reason, column = error.message.removeprefix("query failed: "), filled.source or filled.name
                self._session.execute("ROLLBACK TO blame; RELEASE blame")
                break
            self._session.execute("RELEASE blame")
        record = self._session.execute(
            f"SELECT to_json(staged)::text FROM {self._staged.relation} AS staged WHERE {where}"
        )
        self._drop(Misfit(number, column, reason, record[0][0] if record else ""))

    def _drop(self, misfit: Misfit) -> None:
        insort(self._left_out, misfit.number)
        self._misfit(misfit)


def _unfit(filled: Filled) -> str:
    needed = " and must have a value" if filled.column.not_null else ""
    return f"the value of column {filled.source!r} is no {filled.column.type}{needed}"


def digest_text(columns: Sequence[str], qualifier: str = "") -> str:
    """The content of a row as text, by which two rows are equal or not, whatever their types."""
    prefix = f"{qualifier}." if qualifier else ""
    return f"ROW({', '.join(prefix + quote_identifier(column) for column in columns)})::text"
