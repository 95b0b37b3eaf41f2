"""The base of all models of what users write."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SpecModel(BaseModel):
    """Base: immutable, and an unknown field is an error, since it is most often a misspelt one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
