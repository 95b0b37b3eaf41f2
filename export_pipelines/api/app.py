"""The application: routers, error handling, the page and the outermost layer put together."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI

from export_pipelines.api import health, problems, reading
from export_pipelines.api.document import allowed_methods, described
from export_pipelines.api.guard import Guard
from export_pipelines.api.launching import TableRuns
from export_pipelines.api.metrics import Metrics
from export_pipelines.api.service import Service
from export_pipelines.settings import Settings, load_settings

THREADS = 40
"""Calls that are answered at the same time; more wait their turn."""

REFRESH_SECONDS = 3.0
"""Between two looks for changed definitions."""

log = logging.getLogger("export_pipelines.api")


def create_app(settings: Settings) -> FastAPI:
    """The application of a project whose databases are there and whose settings are in the environment.

    Raises:
        ExportPipelinesError: the project's service cannot be served as it is.
    """
    service = Service(settings)
    app = described(lifespan=_lifespan)
    app.state.service = service
    app.state.metrics = metrics = Metrics(service)
    app.state.table_runs = TableRuns(service)
    app.state.health = health.Health(service)
    problems.install(app, allowed_methods)
    _install_page(app, service)
    app.add_middleware(Guard, service=service, metrics=metrics)
    return app


def _install_page(app: FastAPI, service: Service) -> None:
    from export_pipelines.api import pages

    pages.install(app, service)


def from_environment() -> FastAPI:
    """For processes that uvicorn starts by itself."""
    return settled(create_app(load_settings()))


def settled(app: FastAPI) -> FastAPI:
    """The application of a process that does nothing else until it ends. Python's garbage collector does not look
    through what there is by now again, which would hold up every answer for some tenths of a second."""
    gc.collect()
    gc.freeze()
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    service: Service = app.state.service
    # The first who asks does not wait for it.
    await anyio.to_thread.run_sync(importlib.import_module, "export_pipelines.steps.request")
    service.watcher.start()
    service.later(lambda: reading.warm(service))
    refreshing = asyncio.create_task(_refresh(service))
    try:
        yield
    finally:
        refreshing.cancel()
        app.state.health.close()
        await anyio.to_thread.run_sync(service.close)


async def _refresh(service: Service) -> None:
    """Take in definitions that have changed, for as long as the service lives."""
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        try:
            await anyio.to_thread.run_sync(service.refresh)
        except Exception:
            log.exception("the definitions cannot be read anew")
