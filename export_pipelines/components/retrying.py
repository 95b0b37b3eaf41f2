"""Another attempt of a step after a transient error, by Dagster's own retries."""

from __future__ import annotations

import dagster as dg

from export_pipelines.specs.retries import RetrySpec


def another_attempt(retries: RetrySpec, before: int) -> dg.RetryRequested:
    """What asks for it, after so many retries `before`: the wait doubles each time."""
    return dg.RetryRequested(max_retries=retries.attempts, seconds_to_wait=retries.delay_seconds * 2**before)
