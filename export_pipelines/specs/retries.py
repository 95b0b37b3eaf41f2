"""How often something is tried again."""

from __future__ import annotations

from pydantic import Field

from export_pipelines.specs.model import SpecModel


class RetrySpec(SpecModel):
    """Retries of a step after a transient error (connection lost, store busy)."""

    attempts: int = Field(default=2, ge=0, le=20)
    """How many times a step is tried again."""
    delay_seconds: float = Field(default=5.0, ge=0)
    """Wait before the first; it doubles each time."""
