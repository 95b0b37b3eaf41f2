"""Processes that start quickly: children of one which has everything imported, and never has threads or connections."""

from __future__ import annotations

import multiprocessing
from typing import Any

_PRELOADED = [
    "tests.fault.attempts",
    "tests.fault.kinds",
    "tests.fault.ledger",
    "tests.fault.mysql.ledger",
    "boto3",
    "numpy",
    *(f"export_pipelines.steps.{step}" for step in ("export", "archive", "cleanup", "restore")),
    *(f"export_pipelines.steps.mysql.{module}" for module in ("engine", "settling")),
    *(f"export_pipelines.stores.{store}" for store in ("filesystem", "s3", "s3_reader", "s3_writer")),
]

context: Any = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(_PRELOADED)
