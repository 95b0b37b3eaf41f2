"""Processes that start quickly: children of one which has everything imported, and never has threads or connections.

All suites share it, and its list. A process of tests has one such parent only, which imports what was named last before
it began: with a list a suite, all others would import everything anew in each child.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

_PRELOADED = [
    *("tests.support.killed", "tests.support.loads", "tests.support.proxy", "tests.support.pulls"),
    *("tests.fault.attempts", "tests.fault.kinds", "tests.fault.ledger", "tests.fault.mysql.ledger"),
    *("alembic.command", "boto3", "dagster", "dagster_postgres", "dotenv", "numpy", "pandas", "pglast", "rich.table"),
    *("dagster._core.execution.plan.active", "dagster._core.instance.factory", "dagster._core.storage.root"),
    *(f"export_pipelines.steps.{step}" for step in ("export", "archive", "cleanup", "restore", "verify", "request")),
    *(f"export_pipelines.steps.{step}" for step in ("land", "load", "load_live")),
    *(f"export_pipelines.steps.{engine}.engine" for engine in ("mysql", "postgres")),
    *(f"export_pipelines.steps.{engine}.settling" for engine in ("mysql", "postgres")),
    *(f"export_pipelines.stores.{store}" for store in ("filesystem", "s3", "s3_reader", "s3_writer")),
    *(f"export_pipelines.components.{module}" for module in ("preview", "project")),
    *(f"export_pipelines.cli.{module}" for module in ("check", "inspection", "launch", "load", "run", "tables")),
]

context: Any = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(_PRELOADED)
