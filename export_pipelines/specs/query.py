"""What a request asks of a data set, checked and normalised: the same question has the same `Query`.

Nothing of a request reaches SQL as text: names are those of the definition, values are typed and become parameters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Context, Decimal, InvalidOperation
from uuid import UUID
from zoneinfo import ZoneInfo

from export_pipelines.errors import RequestError
from export_pipelines.specs.dataset import DataSetDefinition, FilterSpec, FilterType, Operator
from export_pipelines.specs.documents import suggest
from export_pipelines.specs.format import Compression, FormatName
from export_pipelines.specs.model import SpecModel

MAX_VALUES = 1_000
"""Values of one `in`."""

MAX_LENGTH = 4_000
"""Characters of one value."""

_SIGNS = {"=": Operator.EQ, "!=": Operator.NE, "<": Operator.LT, "<=": Operator.LE, ">": Operator.GT, ">=": Operator.GE}
_EXPRESSION = re.compile(r"\s*(\w+)\s*(?::(\w+)\s*=|(!=|<=|>=|=|<|>))(.*)", re.DOTALL)


@dataclass(frozen=True)
class RawFilter:
    """A filter as somebody wrote it."""

    name: str
    operator: str = "eq"
    value: object = None
    """Text, number, boolean, or a list of these."""


class Filter(SpecModel):
    """A filter that was checked. Values are canonical texts of the filter's type; `is_null` has `true` or `false`."""

    name: str
    operator: Operator
    values: tuple[str, ...]


class Query(SpecModel):
    """A question to a data set. Equal questions are equal, however they were written."""

    dataset: str
    environment: str = "default"
    columns: tuple[str, ...] = ()
    """Empty for all that may be asked for."""
    filters: tuple[Filter, ...] = ()
    format: FormatName
    compression: Compression
    limit: int | None = None
    """At most so many rows, the first by `order_by`; without it, all, and more than the row limit is an error."""
    neutralise_formulas: bool = True
    delimiter: str = ","
    bom: bool = False

    @property
    def sha256(self) -> str:
        """Digest of the question."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request: `field` is where, as `filters.carrier`."""

    field: str
    message: str
    hint: str = ""


@dataclass(eq=False)
class QueryError(RequestError):
    """All that is wrong with a request."""

    problems: Sequence[Problem] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        first = self.problems[0]
        RequestError.__init__(self, "; ".join(each.message for each in self.problems), hint=first.hint)


@dataclass
class _Checker:
    """Collects what is wrong while a request is read."""

    dataset: DataSetDefinition
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, where: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(where, message, hint))

    def filters(self, raw: Iterable[RawFilter]) -> tuple[Filter, ...]:
        found: dict[tuple[str, Operator], Filter] = {}
        for each in raw:
            checked = self.filter(each)
            if checked is None:
                continue
            if (checked.name, checked.operator) in found:
                self.wrong(f"filters.{each.name}", f"filter {each.name!r} with {each.operator!r} stands there twice")
            found[checked.name, checked.operator] = checked
        given = {name for name, _ in found}
        for name, spec in self.dataset.spec.filters.items():
            if spec.required and name not in given:
                self.wrong(f"filters.{name}", f"filter {name!r} is required", f"add {name}=…")
        return tuple(found[key] for key in sorted(found))

    def filter(self, raw: RawFilter) -> Filter | None:
        where = f"filters.{raw.name}"
        spec = self.dataset.spec.filters.get(raw.name)
        if spec is None:
            known = list(self.dataset.spec.filters)
            hint = suggest(raw.name, known) or f"filters are {', '.join(known) or 'none'}"
            self.wrong(where, f"{self.dataset.id} has no filter {raw.name!r}", hint)
            return None
        try:
            operator = Operator(raw.operator)
        except ValueError:
            operator = None
        if operator is None or operator not in spec.allowed:
            allowed = ", ".join(each.value for each in spec.allowed)
            self.wrong(where, f"filter {raw.name!r} has no operator {raw.operator!r}", f"operators are {allowed}")
            return None
        values = self.values(where, spec, operator, raw.value)
        return Filter(name=raw.name, operator=operator, values=values) if values else None

    def values(self, where: str, spec: FilterSpec, operator: Operator, raw: object) -> tuple[str, ...]:
        """Canonical texts; none when something is wrong."""
        kind = FilterType.BOOLEAN if operator is Operator.IS_NULL else spec.type
        given = _listed(raw) if operator is Operator.IN else [raw]
        if not given or len(given) > MAX_VALUES:
            self.wrong(where, f"{len(given)} values; between 1 and {MAX_VALUES} are allowed")
            return ()
        found: list[str] = []
        for each in given:
            try:
                value = canonical(kind, each, self.dataset.spec.timezone)
            except ValueError as error:
                self.wrong(where, str(error))
                return ()
            if spec.values and operator is not Operator.IS_NULL and value not in spec.values:
                self.wrong(
                    where, f"{value!r} is not among the values of this filter", f"one of {', '.join(spec.values)}"
                )
                return ()
            found.append(value)
        return tuple(dict.fromkeys(sorted(found) if operator is Operator.IN else found))

    def columns(self, raw: Sequence[str]) -> tuple[str, ...]:
        known = self.dataset.spec.columns
        for name in raw:
            if known and name not in known:
                hint = suggest(name, list(known)) or f"columns are {', '.join(known)}"
                self.wrong("columns", f"{self.dataset.id} has no column {name!r}", hint)
        if len(set(raw)) < len(raw):
            self.wrong("columns", "a column stands there twice")
        return () if tuple(raw) == known else tuple(raw)

    def choice(self, where: str, raw: str | None, allowed: Sequence[str]) -> str:
        if raw is None or raw in allowed:
            return raw or allowed[0]
        self.wrong(where, f"{self.dataset.id} has no {where} {raw!r}", f"one of {', '.join(allowed)}")
        return allowed[0]


def parse_query(
    dataset: DataSetDefinition,
    *,
    columns: Sequence[str] = (),
    filters: Iterable[RawFilter] = (),
    format: str | None = None,
    compression: str | None = None,
    limit: int | None = None,
    environment: str = "default",
    neutralise_formulas: bool | None = None,
    delimiter: str = ",",
    bom: bool = False,
) -> Query:
    """The question that was meant, normalised. Names of columns are checked as far as the definition lists them.

    Raises:
        QueryError: with everything that is wrong, each with its field.
    """
    check = _Checker(dataset)
    spec = dataset.spec
    chosen = check.choice("format", format, [each.value for each in spec.formats])
    packed = check.choice("compression", compression, [each.value for each in spec.compressions])
    checked_columns, checked_filters = check.columns(columns), check.filters(filters)
    if limit is not None and not 1 <= limit <= spec.row_limit:
        check.wrong("limit", f"limit {limit} is not between 1 and {spec.row_limit}")
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter.isalnum() or delimiter in '"()\r\n\0':
        check.wrong("delimiter", f"delimiter {delimiter!r} cannot be used", "one ASCII sign such as , or ; or a tab")
    if check.problems:
        raise QueryError(check.problems)
    csv = chosen == FormatName.CSV
    neutral = spec.neutralise_formulas if neutralise_formulas is None else neutralise_formulas
    return Query(
        dataset=dataset.id,
        environment=environment,
        columns=checked_columns,
        filters=checked_filters,
        format=FormatName(chosen),
        compression=Compression(packed),
        limit=limit,
        # What does not count for a format does not make two questions of one.
        neutralise_formulas=neutral and csv,
        delimiter=delimiter if csv else ",",
        bom=bom and csv,
    )


def filters_from_parameters(parameters: Iterable[tuple[str, str]]) -> list[RawFilter]:
    """Filters of a URL: `carrier=UA`, `dep_delay__ge=10`, `carrier__in=UA,AA`."""
    found = []
    for key, value in parameters:
        name, mark, operator = key.partition("__")
        found.append(RawFilter(name, operator if mark else "eq", value))
    return found


def filters_of(query: Query) -> list[RawFilter]:
    """The filters of a query as they may be asked again."""
    return [
        RawFilter(each.name, each.operator.value, list(each.values) if each.operator is Operator.IN else each.values[0])
        for each in query.filters
    ]


def filter_from_text(text: str) -> RawFilter:
    """A filter of a shell: `carrier=UA`, `dep_delay>=10`, `carrier:in=UA,AA`, `tailnum:is_null=true`.

    Raises:
        RequestError: it is no such text.
    """
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise RequestError(
            f"{text!r} is no filter", hint="write NAME=VALUE, NAME>=VALUE, or NAME:OPERATOR=VALUE (in, contains, …)"
        )
    name, word, sign, value = match.groups()
    return RawFilter(name, word or _SIGNS[sign].value, value)


def canonical(kind: FilterType, raw: object, timezone: str) -> str:
    """The one way to write a value of a type. Raises ValueError: it is none, in a sentence that names it."""
    text = ("true" if raw else "false") if isinstance(raw, bool) else str(raw)
    if isinstance(raw, Mapping | list) or raw is None or len(text) > MAX_LENGTH or not _is_storable(text):
        raise ValueError(f"this is no {kind.value}: a single value of at most {MAX_LENGTH} characters is wanted")
    try:
        return _CANONICAL[kind](text, timezone)
    except (ValueError, OverflowError, InvalidOperation):
        raise ValueError(f"{text[:100]!r} is no {kind.value}{_EXAMPLES.get(kind, '')}") from None


def _is_storable(text: str) -> bool:
    """Whether a database can hold it: halves of characters, which JSON can say, and NUL it cannot."""
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


_EXAMPLES = {
    FilterType.DATE: "; write 2013-01-31",
    FilterType.TIMESTAMP: "; write 2013-01-31T08:00:00 or 2013-01-31T08:00:00+01:00",
    FilterType.BOOLEAN: "; write true or false",
}


def _text(text: str, timezone: str) -> str:
    return text


def _date(text: str, timezone: str) -> str:
    return date.fromisoformat(text.strip()).isoformat()


def _uuid(text: str, timezone: str) -> str:
    return str(UUID(text.strip()))


def _integer(text: str, timezone: str) -> str:
    if not re.fullmatch(r"\s*[+-]?\d{1,30}\s*", text, re.ASCII):
        raise ValueError
    return str(int(text))


def _decimal(text: str, timezone: str) -> str:
    number = Decimal(text.strip())
    if not number.is_finite() or abs(number.adjusted()) > 1_000 or "_" in text:
        raise ValueError
    # The usual context would round to 28 digits.
    plain = format(number.normalize(Context(prec=MAX_LENGTH)), "f")
    return "0" if plain == "-0" else plain


def _boolean(text: str, timezone: str) -> str:
    if text.strip().lower() not in ("true", "false", "1", "0"):
        raise ValueError
    return "true" if text.strip().lower() in ("true", "1") else "false"


def _timestamp(text: str, timezone: str) -> str:
    moment = datetime.fromisoformat(text.strip())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(timezone))
    return moment.astimezone(ZoneInfo("UTC")).isoformat(timespec="microseconds")


_CANONICAL: dict[FilterType, Callable[[str, str], str]] = {
    FilterType.TEXT: _text,
    FilterType.INTEGER: _integer,
    FilterType.DECIMAL: _decimal,
    FilterType.BOOLEAN: _boolean,
    FilterType.DATE: _date,
    FilterType.TIMESTAMP: _timestamp,
    FilterType.UUID: _uuid,
}


def _listed(raw: object) -> list[object]:
    if isinstance(raw, list | tuple):
        return list(raw)
    return list(str(raw).split(",")) if raw not in (None, "") else []


_WORDS = {
    Operator.EQ: "=",
    Operator.NE: "≠",
    Operator.LT: "<",
    Operator.LE: "≤",
    Operator.GT: ">",
    Operator.GE: "≥",
    Operator.IN: "in",
    Operator.CONTAINS: "contains",
    Operator.STARTS_WITH: "starts with",
}


def describe(query: Query) -> str:
    """The question in one line, for mails and the page."""
    parts = [
        f"{each.name} is {'' if each.values == ('true',) else 'not '}null"
        if each.operator is Operator.IS_NULL
        else f"{each.name} {_WORDS[each.operator]} {', '.join(each.values)}"
        for each in query.filters
    ]
    what = f"{', '.join(query.columns)} of {query.dataset}" if query.columns else query.dataset
    first = "" if query.limit is None else f", the first {query.limit:,} rows" if query.limit > 1 else ", the first row"
    return what + (f" where {' and '.join(parts)}" if parts else "") + first
