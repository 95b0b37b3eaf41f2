"""The OpenAPI document, and the application that it describes, which needs no project to be described."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from export_pipelines import __version__
from export_pipelines.api import datasets, digests, downloads, exports, health, reading, requests, uploaded, uploading
from export_pipelines.api.description import DESCRIPTION, SUMMARY, TAGS
from export_pipelines.api.problems import MEDIA_TYPE

_ROUTERS = tuple(
    each.router for each in (datasets, requests, downloads, exports, uploading, uploaded, reading, digests, health)
)


class Described(FastAPI):
    """FastAPI, whose document says exactly what is answered."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    _only_problems(operation["responses"])
            self.openapi_schema = document
        return self.openapi_schema


def _only_problems(responses: dict[str, Any]) -> None:
    """FastAPI adds its own media type to that of problems."""
    for response in responses.values():
        content = response.get("content", {})
        if MEDIA_TYPE in content:
            content.pop("application/json", None)


def described(**options: Any) -> FastAPI:
    """The application with its routers; nothing that they need is there yet."""
    app = Described(
        title="export-pipelines",
        summary=SUMMARY,
        description=DESCRIPTION,
        version=__version__,
        openapi_tags=TAGS,
        redirect_slashes=False,
        # Their pages load parts from elsewhere; docs/reference/api.md is made from the same document.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        **options,
    )
    for each in _ROUTERS:
        app.include_router(each)
    return app


def allowed_methods(path: str) -> set[str]:
    """Methods that an address of the API knows; Starlette tells those of one route only."""
    routes = [route for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    pattern = next((route.path for route in routes if route.path_regex.match(path)), None)
    return {method for route in routes if route.path == pattern for method in route.methods or ()}
