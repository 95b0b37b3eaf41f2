"""Columns of text as Arrow's typed columns, and back into the very text that the source had."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from export_pipelines.errors import FormatError
from export_pipelines.formats.fields import Field, Kind
from export_pipelines.formats.texts import first_where, joined
from export_pipelines.specs.format import ANY_COLUMN, FormatSpec

_MOST_DIGITS = 76
_HINTS = {
    Kind.DATE: "it holds dates of the years 1 to 9999",
    Kind.TIME: "it holds times of a day, before 24:00:00",
    Kind.TIMESTAMP: "it holds times of the years 1 to 9999",
    Kind.TIMESTAMPTZ: "it holds times of the years 1 to 9999, with offsets of whole minutes",
}
# Spelt in more than one way: what is read back may be the same value in another text.
_RESPELT = (Kind.FLOAT, Kind.TIMESTAMPTZ)


def conversion_of(spec: FormatSpec, field: Field) -> str:
    """What was declared for a column; empty if nothing was, or nothing of use."""
    if field.name in spec.conversions:
        return spec.conversions[field.name]
    wild = spec.conversions.get(ANY_COLUMN, "")
    # Without digits that bound it, a number is the one type that Parquet has not; text is what it is anyway.
    return wild if _unbounded(field) and wild != "datetime" else ""


def _unbounded(field: Field) -> bool:
    return field.kind is Kind.NUMERIC or (field.kind is Kind.DECIMAL and _digits(field)[0] > _MOST_DIGITS)


def _digits(field: Field) -> tuple[int, int]:
    """Precision and scale as Arrow has them: PostgreSQL's scale may be negative, or larger than the precision."""
    precision, scale = field.precision or 38, field.scale or 0
    return max(precision - min(scale, 0), scale), max(scale, 0)


def arrow_type(spec: FormatSpec, field: Field) -> Any:
    """The type of a column in the file."""
    import pyarrow as pa

    conversion = conversion_of(spec, field)
    if conversion == "text" or (not conversion and _unbounded(field)):
        return pa.string()
    if conversion == "float":
        return pa.float64()
    if found := re.fullmatch(r"decimal\((\d+),(\d+)\)", conversion):
        return _decimal(int(found[1]), int(found[2]))
    if field.kind is Kind.INTEGER:
        return getattr(pa, f"{'' if field.signed else 'u'}int{field.bits or 64}")()
    if field.kind is Kind.DECIMAL:
        return _decimal(*_digits(field))
    if field.kind is Kind.FLOAT:
        return pa.float32() if field.bits == 32 else pa.float64()
    simple: dict[Kind, Callable[[], Any]] = {
        Kind.BOOLEAN: pa.bool_,
        Kind.DATE: pa.date32,
        Kind.TIME: lambda: pa.time64("us"),
        Kind.TIMESTAMP: lambda: pa.timestamp("us"),
        Kind.TIMESTAMPTZ: lambda: pa.timestamp("us", "UTC"),
        Kind.BINARY: pa.binary,
    }
    return simple.get(field.kind, pa.string)()


def _decimal(precision: int, scale: int) -> Any:
    import pyarrow as pa

    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def typed(column: Any, field: Field, kind: Any, where: str = "Parquet") -> tuple[Any, bool]:
    """A column of text as one of a type, and whether its text comes back by `text_of`.

    Raises:
        FormatError: a value does not fit, or would not come back as what it was.
    """
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_string(kind):
        return column, True
    try:
        values = _cast(column, kind)
    except (pa.ArrowInvalid, ValueError) as error:
        raise _misfit(column, field, kind, where) from error
    if _converted(field, kind):
        return values, False
    same = compute.equal(text_of(values, field, kind), column)
    if compute.all(compute.fill_null(same, True)).as_py() and values.null_count == column.null_count:
        return values, True
    if field.kind in _RESPELT or field.engine == "opensearch":
        return values, False
    raise _misfit(column, field, kind, where, compute.invert(same))


def _converted(field: Field, kind: Any) -> bool:
    """Whether a type is another than that of the column's values, by a conversion that was declared."""
    import pyarrow as pa

    if pa.types.is_floating(kind):
        return field.kind is not Kind.FLOAT
    # A decimal of other digits is the same number, with more or fewer zeros at its end.
    return pa.types.is_decimal(kind) and (field.kind is not Kind.DECIMAL or kind.scale != _digits(field)[1])


def _cast(column: Any, kind: Any) -> Any:
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_boolean(kind):
        return _booleans(column)
    if pa.types.is_time(kind):
        if compute.any(compute.match_substring_regex(column, "^24")).as_py():
            raise ValueError("24:00:00 would become 00:00:00")
        return compute.cast(compute.cast(joined(["1970-01-01 ", column]), pa.timestamp("us")), kind)
    if pa.types.is_binary(kind):
        return pa.array([None if v is None else _unhexed(v) for v in column.to_pylist()], kind)
    return compute.cast(column, kind)


def _booleans(column: Any) -> Any:
    import pyarrow as pa
    from pyarrow import compute

    true = compute.is_in(column, pa.array(["t", "true"], column.type))
    known = compute.or_(true, compute.is_in(column, pa.array(["f", "false"], column.type)))
    if not compute.all(compute.or_(known, compute.is_null(column))).as_py():
        raise ValueError("neither true nor false")
    return compute.if_else(compute.is_valid(column), true, None)


def _unhexed(text: str) -> bytes:
    if not text.startswith("\\x"):
        raise ValueError("no hexadecimal digits")
    return bytes.fromhex(text[2:])


def _misfit(column: Any, field: Field, kind: Any, where: str, wrong: Any = None) -> FormatError:
    """The error for the first value that does not fit."""
    import pyarrow as pa

    if wrong is None:
        wrong = pa.array([not _fits(column[row : row + 1], kind) for row in range(len(column))])
    known = _HINTS.get(field.kind, "")
    declare = f"declare `conversions: {{{field.name}: text}}`"
    return FormatError(
        f"column {field.name!r} has {first_where(column, wrong)!r}, which {where} does not hold as {kind}",
        hint=f"{known}; {declare}" if known else declare,
    )


def _fits(one: Any, kind: Any) -> bool:
    import pyarrow as pa

    try:
        _cast(one, kind)
    except (pa.ArrowInvalid, ValueError):
        return False
    return True


# -- back


def text_of(values: Any, field: Field, kind: Any) -> Any:
    """A typed column as the text that the source has for it."""
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return values
    if pa.types.is_boolean(kind):
        return compute.if_else(values, "t", "f")
    if pa.types.is_binary(kind):
        return pa.array([None if v is None else "\\x" + v.hex() for v in values.to_pylist()], pa.string())
    text = compute.cast(values, pa.string())
    if pa.types.is_floating(kind):
        return _floats(text, values, field)
    if pa.types.is_decimal(kind):
        return _decimals(text)
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        return _times(text, field)
    return compute.utf8_lpad(text, 4, "0") if field.type.startswith("year") else text


def _decimals(text: Any) -> Any:
    """Arrow writes small ones with an exponent, which no server does."""
    from pyarrow import compute

    return _replaced(text, compute.match_substring(text, "E"), lambda value: format(Decimal(value), "f"))


def _times(text: Any, field: Field) -> Any:
    from pyarrow import compute

    if field.kind is Kind.TIMESTAMPTZ:
        text = compute.replace_substring_regex(text, "Z$", "")
    if field.engine == "mysql":
        # `2025-01-01 12:00:00.` and as many digits as the type says.
        return compute.utf8_slice_codeunits(text, 0, 19 + (field.precision + 1 if field.precision else 0))
    text = compute.replace_substring_regex(text, r"\.?0+$", "") if len(text) else text
    return joined([text, "+00"]) if field.kind is Kind.TIMESTAMPTZ else text


def _floats(text: Any, values: Any, field: Field) -> Any:
    """Arrow's shortest digits in the server's spelling, which has other bounds for an exponent."""
    import pyarrow as pa
    from pyarrow import compute

    mysql = field.engine == "mysql"
    if values.type == pa.float32() and mysql:
        # There a float is read as the double that it is.
        text = compute.cast(compute.cast(values, pa.float64()), pa.string())
    size = compute.abs(values)
    single = values.type == pa.float32() and not mysql
    # Of a double, Arrow writes the exponent from here on.
    most = 1e6 if single else 1e10
    odd = compute.or_(
        compute.greater_equal(size, most), compute.and_(compute.less(size, 1e-4), compute.not_equal(size, 0))
    )
    odd = compute.or_(odd, compute.is_nan(values))
    limit = 6 if single else 15
    return _replaced(text, odd, lambda value: spelt(value, limit, mysql=mysql))


def spelt(digits: str, limit: int, *, mysql: bool = False) -> str:
    """A float as PostgreSQL prints it (or MySQL): with an exponent if that is below -4 or not below `limit`."""
    special = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(digits)
    if special:
        return special
    sign, figures, exponent = Decimal(digits).as_tuple()
    text = "".join(map(str, figures))
    power = len(text) + int(exponent) - 1
    text = text.rstrip("0") or "0"
    minus = "-" if sign else ""
    if -4 <= power < limit:
        return minus + format(Decimal(digits).copy_abs().normalize(), "f")
    mantissa = text[0] + ("." + text[1:] if len(text) > 1 else "")
    return f"{minus}{mantissa}e{power}" if mysql else f"{minus}{mantissa}e{power:+03d}"


def _replaced(text: Any, mask: Any, change: Callable[[str], str]) -> Any:
    """Texts of which a mask is true, changed one by one."""
    import pyarrow as pa
    from pyarrow import compute

    mask = compute.fill_null(mask, False)
    if not compute.any(mask).as_py():
        return text
    found = [change(value) for value in compute.filter(text, mask).to_pylist()]
    return compute.replace_with_mask(text, mask, pa.array(found, text.type))
