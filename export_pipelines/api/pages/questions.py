"""The form of a data set, as it comes from a browser: to and from a query, a URL, and lines to copy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

from export_pipelines.specs.dataset import DataSetDefinition, FilterSpec, FilterType, Operator
from export_pipelines.specs.query import Filter, Problem, Query, QueryError, RawFilter, parse_query

Pairs = Sequence[tuple[str, str]]

IS_NULL, NOT_NULL = "null", "not_null"
"""`is_null` as the page offers it: two choices without a value."""

WORDS = {
    Operator.EQ.value: "is",
    Operator.NE.value: "is not",
    Operator.LT.value: "less than",
    Operator.LE.value: "at most",
    Operator.GT.value: "more than",
    Operator.GE.value: "at least",
    Operator.IN.value: "is one of",
    Operator.CONTAINS.value: "contains",
    Operator.STARTS_WITH.value: "starts with",
    IS_NULL: "is empty",
    NOT_NULL: "is not empty",
}
_TIME_WORDS = {
    Operator.LT.value: "before",
    Operator.LE.value: "until",
    Operator.GT.value: "after",
    Operator.GE.value: "from",
}
_SIGNS = {Operator.EQ: "=", Operator.NE: "!=", Operator.LT: "<", Operator.LE: "<=", Operator.GT: ">", Operator.GE: ">="}
_OWN = ("format", "fileType", "compression", "columns", "limit", "email", "delimiter", "bom", "neutralise_formulas")
_MARK = "form"
"""Of an address: `1` if a browser made it of the form, `2` if we did."""
_WHOLE = "2"
_PAGE = ("csrf", _MARK, "add", "anyway", "environment", "show")


@dataclass(frozen=True)
class Condition:
    """One line of a filter in the form; with an empty value it does not count."""

    operator: str
    value: str = ""

    @property
    def counts(self) -> bool:
        """Whether something was entered."""
        return bool(self.value) or self.operator in (IS_NULL, NOT_NULL)


@dataclass
class Form:
    """What stands in the form of a data set."""

    columns: list[str] | None = None
    """None: all."""
    chosen: dict[str, list[str]] = field(default_factory=dict)
    """Of filters with a list of values: those that are ticked."""
    conditions: dict[str, list[Condition]] = field(default_factory=dict)
    format: str = ""
    compression: str = ""
    limit: str = ""
    email: str = ""
    delimiter: str = ","
    bom: bool = False
    neutralise: bool | None = None
    unknown: list[tuple[str, str]] = field(default_factory=list)
    """Filters of the address that there are not: they must not be left out silently."""


def read_form(dataset: DataSetDefinition, pairs: Pairs) -> Form:
    """What a browser sent: the fields of the form, or a URL in the way of the API (`carrier=UA&dep_delay__ge=10`)."""
    from_page = (_MARK, "1") in pairs
    values = dict(pairs)
    form = Form(
        format=values.get("format") or values.get("fileType") or "",
        compression=values.get("compression", ""),
        limit=values.get("limit", "").strip(),
        email=values.get("email", "").strip(),
        delimiter=values.get("delimiter") or ",",
        bom=_yes(values.get("bom")),
        neutralise=_yes(values.get("neutralise_formulas")) if from_page or "neutralise_formulas" in values else None,
    )
    asked = [value for key, value in pairs if key == "columns"]
    if from_page or (asked and (_MARK, _WHOLE) in pairs):
        form.columns = asked
    elif asked:
        form.columns = [name for each in asked for name in each.split(",") if name]
    _read_filters(dataset, form, pairs)
    return form


def _read_filters(dataset: DataSetDefinition, form: Form, pairs: Pairs) -> None:
    operators: dict[str, list[str]] = {}
    for key, value in pairs:
        kind, dot, name = key.partition(".")
        if dot and kind == "op":
            operators.setdefault(name, []).append(value)
        elif dot and kind == "v":
            lines = form.conditions.setdefault(name, [])
            given = operators.get(name, [])
            lines.append(Condition(given[len(lines)] if len(lines) < len(given) else Operator.EQ.value, value.strip()))
        elif dot and kind == "any":
            form.chosen.setdefault(name, []).append(value)
        elif key not in _OWN and key not in _PAGE:
            _read_parameter(dataset, form, key, value)


def _read_parameter(dataset: DataSetDefinition, form: Form, key: str, value: str) -> None:
    name, mark, operator = key.partition("__")
    spec = dataset.spec.filters.get(name)
    operator = operator if mark else Operator.EQ.value
    if spec is None:
        form.unknown.append((key, value))
    elif spec.values and operator in (Operator.EQ, Operator.IN) and name not in form.chosen:
        # Ticks are alternatives: a second condition besides is a line of its own.
        form.chosen[name] = value.split(",") if operator == Operator.IN else [value]
    elif operator == Operator.IS_NULL:
        form.conditions.setdefault(name, []).append(Condition(IS_NULL if _yes(value) else NOT_NULL))
    else:
        form.conditions.setdefault(name, []).append(Condition(operator, value))


def _yes(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "true", "on", "yes")


def query_of(dataset: DataSetDefinition, form: Form, known: Sequence[str], environment: str) -> Query:
    """The query that a form means. `known` are the columns that may be chosen.

    Raises:
        QueryError: with all that is wrong, each with its field.
    """
    problems = list(_own_problems(form, known))
    columns = [] if form.columns is None or set(form.columns) == set(known) else form.columns
    try:
        query = parse_query(
            dataset,
            columns=columns,
            filters=list(_raw_filters(dataset, form)),
            format=form.format or None,
            compression=form.compression or None,
            limit=int(form.limit) if form.limit.isascii() and form.limit.isdigit() and len(form.limit) < 19 else None,
            environment=environment,
            neutralise_formulas=form.neutralise,
            delimiter=form.delimiter,
            bom=form.bom,
        )
    except QueryError as error:
        raise QueryError([*problems, *error.problems]) from None
    if problems:
        raise QueryError(problems)
    return query


def _own_problems(form: Form, known: Sequence[str]) -> Iterator[Problem]:
    if form.columns == []:
        yield Problem("columns", "no column is chosen", "choose at least one")
    for name in form.columns or ():
        if name not in known:
            yield Problem("columns", f"there is no column {name!r}", "choose some of the list")
    if form.limit and not (form.limit.isascii() and form.limit.isdigit() and len(form.limit) < 19):
        yield Problem("limit", f"{form.limit[:40]!r} is no whole number")


def _raw_filters(dataset: DataSetDefinition, form: Form) -> Iterator[RawFilter]:
    for name, values in form.chosen.items():
        spec = dataset.spec.filters.get(name, FilterSpec())
        several = len(values) > 1 or Operator.EQ not in spec.allowed
        yield RawFilter(name, "in", values) if several else RawFilter(name, "eq", values[0])
    for name, lines in form.conditions.items():
        for line in filter(lambda each: each.counts, lines):
            if line.operator in (IS_NULL, NOT_NULL):
                yield RawFilter(name, "is_null", line.operator == IS_NULL)
            elif line.operator == Operator.IN:
                yield RawFilter(name, "in", [each.strip() for each in line.value.split(",") if each.strip()])
            else:
                yield RawFilter(name, line.operator, line.value)
    for key, value in form.unknown:
        yield RawFilter(key.partition("__")[0], key.partition("__")[2] or "eq", value)


# What the template shows


@dataclass(frozen=True)
class Line:
    """A condition as the form shows it."""

    operator: str
    value: str
    kind: str
    """Type of the input."""


def lines_of(spec: FilterSpec, conditions: Iterable[Condition], timezone: str, *, more: bool = False) -> list[Line]:
    """The lines of a filter: those that were entered, one at least, and an empty one with `more`."""
    found = [_line(spec, each, timezone) for each in conditions if each.counts]
    if not found or more:
        found.append(_line(spec, Condition(operators_of(spec)[0][0]), timezone))
    return found


def _line(spec: FilterSpec, condition: Condition, timezone: str) -> Line:
    kind = input_type(spec.type, condition.operator)
    value = condition.value
    if kind == "datetime-local" and value:
        local = _local(value, timezone)
        # An input for times shows nothing of a value that it cannot hold.
        kind, value = (kind, local) if local else ("text", value)
    return Line(condition.operator, value, kind)


def input_type(kind: FilterType, operator: str) -> str:
    """The type of the input for a value."""
    if operator == Operator.IN:
        return "text"
    if kind is FilterType.DATE:
        return "date"
    return "datetime-local" if kind is FilterType.TIMESTAMP else "text"


def operators_of(spec: FilterSpec) -> list[tuple[str, str]]:
    """The operators of a filter, and the words for them."""
    words = WORDS | (_TIME_WORDS if spec.type in (FilterType.DATE, FilterType.TIMESTAMP) else {})
    found = [(each.value, words[each.value]) for each in spec.allowed if each is not Operator.IS_NULL]
    if Operator.IS_NULL in spec.allowed:
        found += [(IS_NULL, words[IS_NULL]), (NOT_NULL, words[NOT_NULL])]
    return found


def _local(value: str, timezone: str) -> str:
    """A time as an input takes it, in the zone of the data set; empty if that would be another time."""
    try:
        given = datetime.fromisoformat(value)
    except ValueError:
        return ""
    zone = ZoneInfo(timezone)
    local = given if given.tzinfo is None else given.astimezone(zone).replace(tzinfo=None, fold=0)
    exact = given.tzinfo is None or local.replace(tzinfo=zone).timestamp() == given.timestamp()
    return local.isoformat(timespec="seconds") if exact and not local.microsecond else ""


def readable_time(value: str, timezone: str) -> str:
    """A time in the zone of the data set, with its offset."""
    local = datetime.fromisoformat(value).astimezone(ZoneInfo(timezone))
    return local.isoformat(" ", "auto")


# Out again


def parameters(query: Query) -> list[tuple[str, str]]:
    """The query as parameters of a URL, only what is said."""
    found = [("columns", ",".join(query.columns))] if query.columns else []
    found += [_parameter(each) for each in query.filters]
    found += [("fileType", query.format.value), ("compression", query.compression.value)]
    if query.limit is not None:
        found.append(("limit", str(query.limit)))
    return found


def _parameter(each: Filter) -> tuple[str, str]:
    key = each.name if each.operator is Operator.EQ else f"{each.name}__{each.operator.value}"
    return key, ",".join(each.values)


def page_address(query: Query) -> str:
    """Path and query of the form that holds this query."""
    pairs = [(key, value) for key, value in parameters(query) if key not in ("fileType", "columns")]
    # Each column by itself: a name may have a comma in it.
    pairs += [("columns", name) for name in query.columns] + [("format", query.format.value), (_MARK, _WHOLE)]
    if query.format == "csv":
        pairs += [("neutralise_formulas", str(query.neutralise_formulas).lower())]
        pairs += [("delimiter", query.delimiter)] if query.delimiter != "," else []
        pairs += [("bom", "true")] if query.bom else []
    return f"/data/{quote(query.dataset)}?{urlencode(pairs)}"


def options_of(dataset: DataSetDefinition, query: Query, environment: str) -> dict[str, object]:
    """What is said of CSV and of the environment beyond what holds without a word; `environment` is the service's
    first."""
    found: dict[str, object] = {} if query.environment == environment else {"environment": query.environment}
    if query.format == "csv":
        neutral = query.neutralise_formulas
        found |= {} if neutral == dataset.spec.neutralise_formulas else {"neutralise_formulas": neutral}
        found |= {} if query.delimiter == "," else {"delimiter": query.delimiter}
        found |= {"bom": True} if query.bom else {}
    return found


def fits_commas(query: Query) -> bool:
    """Whether lists can be told with commas between: nothing in them has one itself."""
    several = [value for each in query.filters if each.operator is Operator.IN for value in each.values]
    return not any("," in each or each != each.strip() for each in (*query.columns, *several))


def body(query: Query, more: Mapping[str, object]) -> dict[str, object]:
    """The query as the body of POST /requests."""
    found: dict[str, object] = {"dataset": query.dataset}
    if query.columns:
        found["columns"] = list(query.columns)
    if query.filters:
        found["filters"] = [_filter_body(each) for each in query.filters]
    found |= {"format": query.format.value, "compression": query.compression.value}
    if query.limit is not None:
        found["limit"] = query.limit
    return {**found, **more}


def _filter_body(each: Filter) -> dict[str, object]:
    value: object = list(each.values) if each.operator is Operator.IN else each.values[0]
    return {"name": each.name, "operator": each.operator.value, "value": value}


def address_line(query: Query, public_url: str, more: Mapping[str, object]) -> str:
    """The query as a URL of the API."""
    options = [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in more.items()]
    text = urlencode([*parameters(query), *options], safe=",")
    return f"{public_url}/datasets/{quote(query.dataset)}/export?{text}"


def curl_line(query: Query, public_url: str, more: Mapping[str, object]) -> str:
    """A line for a shell that asks."""
    text = shlex.quote(json.dumps(body(query, more), ensure_ascii=False))
    return (
        f"curl -sS {shlex.quote(public_url + '/requests')} \\\n"
        '  -H "Authorization: Bearer $EXPORT_PIPELINES_TOKEN" \\\n'
        f"  --json {text}"
    )


def command_line(query: Query, public_url: str, extension: str, more: Mapping[str, object]) -> str:
    """A line for a shell that asks, waits and downloads."""
    parts = ["export-pipelines", "request", query.dataset]
    for each in query.filters:
        parts += ["--filter", _filter_text(each)]
    if query.columns:
        parts += ["--columns", ",".join(query.columns)]
    parts += ["--format", query.format.value]
    if query.compression != "none":
        parts += ["--compression", query.compression.value]
    if query.limit is not None:
        parts += ["--limit", str(query.limit)]
    for name, value in more.items():
        parts += _OPTIONS[name](value)
    parts += ["-o", f"{query.dataset.rpartition('/')[2]}{extension}", "--url", public_url]
    return shlex.join(parts)


_OPTIONS: dict[str, Callable[[object], list[str]]] = {
    "delimiter": lambda value: ["--delimiter", "tab" if value == "\t" else str(value)],
    "bom": lambda value: ["--bom"],
    "neutralise_formulas": lambda value: ["--neutralise-formulas" if value else "--keep-formulas"],
    "environment": lambda value: ["--environment", str(value)],
}


def _filter_text(each: Filter) -> str:
    sign = _SIGNS.get(each.operator)
    return f"{each.name}{sign or f':{each.operator.value}='}{','.join(each.values)}"
