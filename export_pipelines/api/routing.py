"""Addresses with a word behind an id, such as `/datasets/a/b/export`: ids have slashes, and may end in that word."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import Match

from export_pipelines.api.service import Service


def id_first(ids: Callable[[Service], Container[str]]) -> type[APIRoute]:
    """A class of routes that leave an address alone whose word is the end of an id: it goes to the route of the id.

    So a data set `a/export` is found below `/datasets/a/export`, and exported below `/datasets/a/export/export`.
    """

    class IdFirst(APIRoute):
        def matches(self, scope: Any) -> tuple[Match, Any]:
            match, child = super().matches(scope)
            _, parameter, word = self.path_format.rpartition("}")
            if match is Match.NONE or not parameter or not word:
                return match, child
            whole = next(iter(child["path_params"].values())) + word
            return (Match.NONE, {}) if whole in ids(scope["app"].state.service) else (match, child)

    return IdFirst
