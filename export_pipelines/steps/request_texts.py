"""The text of a data set's own query, as its file has it, or derived from a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from export_pipelines.errors import SpecError
from export_pipelines.specs.dataset import DataSetDefinition, Operator
from export_pipelines.sql import parameters_used, render

SIGNS = {
    Operator.EQ: "=",
    Operator.NE: "<>",
    Operator.LT: "<",
    Operator.LE: "<=",
    Operator.GT: ">",
    Operator.GE: ">=",
}
"""Operators that are a sign in SQL."""


def select_text(dataset: DataSetDefinition) -> str:
    """The query, `%%` made `%`. Raises SpecError: it has a parameter."""
    if dataset.select_sql is None:
        return f"SELECT *\nFROM {dataset.spec.table}"
    file = dataset.folder / "select.sql"
    if used := _parameters_used(dataset):
        name = sorted(used)[0]
        line = dataset.select_sql[: dataset.select_sql.find(f"%({name})s")].count("\n") + 1
        raise SpecError(
            f"parameter %({name})s has no value in a data set",
            file=file,
            line=line,
            hint="what people ask for is put around the query by `filters`",
        )
    return render(dataset.select_sql, {}, file=file)


def _parameters_used(dataset: DataSetDefinition) -> set[str]:
    if dataset.engine == "mysql":
        from export_pipelines import sql_mysql

        return sql_mysql.parameters_used(dataset.select_sql or "")
    return parameters_used(dataset.select_sql or "")


def masked_list(dataset: DataSetDefinition, names: Sequence[str], quote: Callable[[str], str]) -> str:
    """The select list of a derived query, without excluded columns and with masks.

    Raises:
        SpecError: a column to exclude or mask is not there.
    """
    spec = dataset.spec
    for option, given in (("exclude_columns", spec.exclude_columns), ("mask_columns", tuple(spec.mask_columns))):
        if unknown := sorted(set(given) - set(names)):
            raise SpecError(
                f"{spec.table} has no columns {unknown}",
                file=dataset.folder / "defs.yaml",
                field=option,
                hint=f"it has {', '.join(names)}",
            )
    masks = {name: f"({mask}) AS {quote(name)}" for name, mask in spec.mask_columns.items()}
    return ", ".join(masks.get(name, quote(name)) for name in names if name not in spec.exclude_columns)
