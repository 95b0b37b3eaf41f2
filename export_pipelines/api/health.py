"""`/health`: for those who watch over the service. `/metrics`: numbers for Prometheus."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from export_pipelines.api.auth import Reader
from export_pipelines.api.problems import responses
from export_pipelines.errors import ExportPipelinesError

if TYPE_CHECKING:
    from export_pipelines.api.service import Service

router = APIRouter(tags=["health"])

WAIT_SECONDS = 5.0
_KEEP_SECONDS = 2.0
WORKER = "export_pipelines_worker"
"""Name of the worker's connection that listens."""


class Live(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """One thing that the service needs."""

    ok: bool
    detail: str = ""


class Ready(BaseModel):
    """Whether all that is needed is there. `degraded`: requests are taken, and wait until a worker is there."""

    status: Literal["ok", "degraded", "unavailable"] = Field(examples=["ok"])
    checks: dict[str, Check] = Field(description="catalog, store and worker.")


class Healthcheck(BaseModel):
    """`OK`, or `unavailable`."""

    status: Literal["OK", "unavailable"]


class Health:
    """Looks at what is needed, not more often than every two seconds."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="health")
        self._last: tuple[Ready, float] | None = None

    def look(self) -> Ready:
        """How things are."""
        if self._last is None or self._last[1] < time.monotonic():
            self._last = (self._look(), time.monotonic() + _KEEP_SECONDS)
        return self._last[0]

    def _look(self) -> Ready:
        futures: dict[str, Future[Any]] = {
            "catalog": self._pool.submit(self._worker),
            "store": self._pool.submit(self._store),
        }
        deadline = time.monotonic() + WAIT_SECONDS
        found: dict[str, Any] = {}
        for name, future in futures.items():
            try:
                found[name] = future.result(max(0.0, deadline - time.monotonic()))
            except NotYet:
                found[name] = Check(ok=False, detail=f"no answer within {WAIT_SECONDS:.0f} s")
            except ExportPipelinesError as error:
                found[name] = Check(ok=False, detail=type(error).__name__)
        worker = found["catalog"] if isinstance(found["catalog"], bool) else None
        if worker is not None:
            found["catalog"] = Check(ok=True)
        found["worker"] = Check(ok=bool(worker), detail="" if worker else "no worker is connected: requests wait")
        there = found["catalog"].ok and found["store"].ok
        return Ready(status="ok" if there and worker else "degraded" if there else "unavailable", checks=found)

    def _worker(self) -> bool:
        """Whether a worker is connected; that we can ask says that the catalog is there, and its tables."""
        found = self._service.pool.rows(
            "SELECT EXISTS (SELECT FROM request) AS any, EXISTS (SELECT FROM pg_stat_activity "
            "WHERE application_name = %(name)s AND datname = current_database()) AS there",
            {"name": WORKER},
        )
        return bool(found[0]["there"])

    def _store(self) -> Check:
        self._service.store.head("requests/none")
        return Check(ok=True)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@router.get("/health/live")
async def live() -> Live:
    """The process answers. No token is needed."""
    return Live()


@router.get(
    "/health/ready",
    response_model=Ready,
    responses={503: {"model": Ready, "description": "Something that is needed is away."}},
)
def ready(request: Request) -> Response:
    """Whether catalog, store and worker are there. No token is needed. 503 when requests cannot be taken."""
    health: Health = request.app.state.health
    found = health.look()
    return JSONResponse(found.model_dump(), 503 if found.status == "unavailable" else 200)


@router.get(
    "/healthcheck",
    response_model=Healthcheck,
    responses={503: {"model": Healthcheck, "description": "Something that is needed is away."}},
)
def healthcheck(request: Request) -> Response:
    """Whether calls can be answered: catalog and store are there. No token is needed, and nothing else is told."""
    health: Health = request.app.state.health
    there = health.look().status != "unavailable"
    return JSONResponse({"status": "OK" if there else "unavailable"}, 200 if there else 503)


@router.get(
    "/metrics",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **responses()},
    response_class=Response,
)
def metrics(request: Request, user: Reader) -> Response:
    """Numbers for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
