"""Features of a Web Feature Service 2.0, page by page."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from export_pipelines.sources.files import need
from export_pipelines.sources.http_client import Call, Client
from export_pipelines.sources.rest import Pages, json_count
from export_pipelines.specs.load_sources import PagingSpec, WfsSource
from export_pipelines.specs.service import resolve

_MEMBER = re.compile(rb"<(?:\w+:)?(?:member|featureMember)[\s>]")
_RETURNED = re.compile(rb'\bnumberReturned="(\d+)"')
_NO_WORD = re.compile(r"\W+")


def wfs_pages(spec: WfsSource, *, prefix: str = "") -> Pages:
    """The pages of a `wfs` source: as many features as the server gives at a time, until there are none."""
    url = need(resolve(spec.url), "the URL")
    parts = urlsplit(url)
    is_json = "json" in spec.output_format.lower()
    params = {
        "service": "WFS",
        "version": "2.0.0",
        "request": "GetFeature",
        "typeNames": spec.type_name,
        "outputFormat": spec.output_format,
        **({"srsName": spec.srs_name} if spec.srs_name else {}),
        **({"CQL_FILTER": spec.cql_filter} if spec.cql_filter else {}),
        # Some servers take what the URL says already, such as the name of a map.
        **dict(parse_qsl(parts.query, keep_blank_values=True)),
    }
    paging = PagingSpec(by="offset", parameter="startIndex", size_parameter="count", size=spec.page_features)
    bare = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    return Pages(
        Client(spec, bare),
        Call(bare, params=params),
        paging,
        json_count("features") if is_json else gml_count,
        "json" if is_json else "gml",
        prefix=prefix,
        stem=_NO_WORD.sub("_", spec.type_name),
        extension=".geojson" if is_json else ".gml",
    )


def gml_count(data: bytes) -> int:
    """How many features a reply in GML has, by what it says or else by its members."""
    said = _RETURNED.search(data[:4096])
    return int(said[1]) if said else len(_MEMBER.findall(data))
