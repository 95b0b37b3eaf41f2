"""Rows of a file into a table: by COPY alone where that gives the same, else by way of text and one statement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from export_pipelines.errors import SourceError
from export_pipelines.formats.parsing import NotPlain
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.load import LoadSpec
from export_pipelines.sql import quote_identifier, quote_literal
from export_pipelines.steps.copying import copy_in
from export_pipelines.steps.load_columns import Plan
from export_pipelines.steps.load_convert import Conversion, Into, Misfit, Staged, is_data
from export_pipelines.steps.load_quarantine import Quarantine
from export_pipelines.steps.load_reading import RECORDS, LandedFile, raw_pieces, record_pieces
from export_pipelines.targets.names import TableNames

_STAGED = 'pg_temp."load staged"'
_NUMBER = "load number"
_ENDS_AT_DOT = 180000
"""From this version on, COPY of CSV does not take a line of `\\.` for the end."""


@dataclass(frozen=True)
class Destination:
    """The table that is filled. `fresh`: it is empty, and was made in this transaction; then `ordinal` is its column
    for the number of the record, which it gives by itself as well."""

    relation: str
    fresh: bool
    ordinal: str


class Filler:
    """Fills a table from a landed file. All of it, or a SourceError, and then the caller rolls back."""

    def __init__(
        self,
        session: Session,
        names: TableNames,
        spec: LoadSpec,
        file: LandedFile,
        plan: Plan,
        passthrough: bool,
        report: Callable[[int], None],
    ) -> None:
        self._session = session
        self._names = names
        self._spec = spec
        self._file = file
        self._plan = plan
        # Of one column, an empty line may be a record or none.
        self._passthrough = passthrough and not plan.hashed and len(plan.header) > 1
        self._report = report
        self._misfits = Quarantine(spec.quarantine, file)

    def fill(self, into: Destination) -> int:
        """How many rows went in. Tries what is fast first; if the server refuses a row, does it again in the way which
        finds out which.

        Raises:
            TooMany: more records do not fit than may; those of the Filler's `misfits` are the first.
            SourceError, IntegrityError: as they say.
        """
        direct = self._plan.direct if not self._spec.raw and not self._plan.forbidden else None
        self._session.execute("SAVEPOINT filling")
        try:
            rows = self._copy_direct(into, direct) if direct else self._by_text(into, passthrough=self._passthrough)
        except (SourceError, NotPlain) as error:
            if isinstance(error, SourceError) and not is_data(error):
                raise
            self._session.execute("ROLLBACK TO filling")
            self._misfits.close()
            self._misfits = Quarantine(self._spec.quarantine, self._file)
            rows = self._by_text(into, passthrough=False)
        self._session.execute("RELEASE filling")
        return rows

    @property
    def misfits(self) -> Quarantine:
        """What was found so far not to fit."""
        return self._misfits

    def _copy_direct(self, into: Destination, columns: tuple[str, ...]) -> int:
        """COPY into the table itself."""
        options = ""
        if into.fresh:
            # Of a table that is emptied in the same subtransaction, rows are written as frozen: no vacuum does it.
            self._session.execute(f"TRUNCATE {into.relation} RESTART IDENTITY")
            options = "" if into.relation.startswith("pg_temp.") else ", FREEZE"
        listed = ", ".join(map(quote_identifier, columns))
        return self._copy(f"{into.relation} ({listed})", self._passthrough, options)

    def _copy(self, target: str, passthrough: bool, more: str = "") -> int:
        pieces, options = self._pieces(passthrough)
        return copy_in(self._session, target, options + more, pieces, self._report)

    def _pieces(self, passthrough: bool) -> tuple[Iterator[bytes], str]:
        parsed = self._file.parse()
        if not passthrough:
            ctx = self._file.ctx
            return record_pieces(parsed, self._misfits.bad_record, self._plan.hashed, ctx.secret), RECORDS
        spec = self._spec.file
        options = f"FORMAT csv, NULL '', ENCODING 'UTF8', DELIMITER {quote_literal(spec.delimiter)}"
        options += f", QUOTE {quote_literal(spec.quote)}, HEADER {'true' if spec.header else 'false'}"
        return raw_pieces(parsed, escapes_end=self._session.server_version < _ENDS_AT_DOT), options

    def _by_text(self, into: Destination, *, passthrough: bool) -> int:
        staged = self._stage_raw(passthrough) if self._spec.raw else self._stage(passthrough)
        if into.fresh:
            self._session.execute(f"TRUNCATE {into.relation} RESTART IDENTITY")

        def misfit(found: Misfit) -> None:
            number = found.number - staged.first + 1
            raw_id = found.number if staged.raw else None
            self._misfits.bad_row(number, found.column, found.reason, found.record, raw_id)

        target = Into(into.relation, into.ordinal if into.fresh else None, self._spec.raw)
        rows = Conversion(self._session, self._plan, staged, target, misfit).run()
        if into.fresh and into.ordinal == "row_id" and rows:
            sequence = f"pg_get_serial_sequence({quote_literal(into.relation)}, 'row_id')"
            self._session.execute(f"SELECT setval({sequence}, max(row_id)) FROM {into.relation}")
        if not staged.raw:
            self._session.execute(f"DROP TABLE {_STAGED}")
        return rows

    def _stage(self, passthrough: bool) -> Staged:
        body = "".join(f", {quote_identifier(name)} text" for name in self._plan.header)
        number = f'"{_NUMBER}" bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000)'
        self._session.execute(f'CREATE TEMPORARY TABLE "load staged" ({number}{body}) ON COMMIT DROP')
        rows = self._copy(f"{_STAGED} ({self._listed})", passthrough)
        return Staged(_STAGED, _NUMBER, 1, rows)

    def _stage_raw(self, passthrough: bool) -> Staged:
        raw = self._names.raw
        before = self._session.one(f"SELECT coalesce(max(row_id), 0) FROM {raw}")[0]
        rows = self._copy(f"{raw} ({self._listed})", passthrough)
        first = self._session.one(f"SELECT coalesce(min(row_id), 1) FROM {raw} WHERE row_id > %s", (before,))[0]
        return Staged(raw, "row_id", int(first), int(first) + rows - 1, raw=True)

    @property
    def _listed(self) -> str:
        return ", ".join(map(quote_identifier, self._plan.header))
