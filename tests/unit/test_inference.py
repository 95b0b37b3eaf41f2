"""Types of columns by their values."""

from __future__ import annotations

import io

import pytest

from export_pipelines.formats.parsing import parse
from export_pipelines.specs.load import FileSpec
from export_pipelines.steps.inference import infer


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-20", "0"], "bigint"),
        (["1", "2.50"], "numeric"),
        (["007", "12"], "text"),
        (["true", "no"], "boolean"),
        (["2025-02-28", "2024-02-29"], "date"),
        (["2025-02-30"], "text"),
        (["2025-02-28 10:11:12", "2025-02-28T10:11"], "timestamp"),
        (["2025-02-28T10:11:12+02:00"], "timestamptz"),
        (["12345678901234567890"], "numeric"),
        (["1", "x"], "text"),
        (["", ""], "text"),
        (["", "5"], "bigint"),
    ],
)
def test_a_column_has_the_narrowest_type_that_all_its_values_fit(values: list[str], kind: str) -> None:
    data = "".join(f"{value},x\n" for value in ["a", *values]).encode()
    found = infer(parse(FileSpec(), None, lambda: io.BytesIO(data), "file.csv"))
    assert found[0].type == kind
