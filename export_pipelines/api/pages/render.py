"""Templates and their words; the addresses of static files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.responses import HTMLResponse

from export_pipelines import __version__
from export_pipelines.api.pages import texts

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"

_FORMATS = {"csv": "CSV", "json": "JSON", "jsonl": "JSON Lines", "parquet": "Parquet", "excel": "Excel"}


def html(template: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """A page, or a part of one."""
    return HTMLResponse(_environment().get_template(template).render(values), status)


@lru_cache(maxsize=64)
def static(name: str) -> str:
    """The address of a static file, which changes with its content, so that browsers may keep it."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "size", "seconds", "moment", "plural"):
        made.filters[name] = getattr(texts, name)
    made.filters["cut"] = texts.cut
    made.globals.update(
        static=static,
        version=__version__,
        state_word=lambda state: texts.STATES.get(state, state),
        format_word=lambda name: _FORMATS.get(name, name),
    )
    return made
