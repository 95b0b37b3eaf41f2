"""The reference page of the HTTP API, from its OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from export_pipelines.api.document import described

_SILENT = {"400", "401", "403", "408", "413", "414", "422", "429", "431", "500", "503"}
"""What every operation may answer; told once."""


def api(note: str) -> str:
    """Every operation with its parameters and answers, then every object."""
    document = described().openapi()
    parts = [
        f"# HTTP API\n\n{note}",
        "The service itself tells this at `/openapi.json`.\n",
        document["info"]["description"].strip().replace("\n### ", "\n## ").replace("### In three", "## In three")
        + "\n",
        "Every operation may answer 400, 401, 403, 408, 413, 414, 422, 429, 431, 500 or 503 with a problem; the other "
        "statuses stand below.\n",
    ]
    for tag in document["tags"]:
        parts += [f"## {tag['name'].capitalize()}\n", tag["description"] + "\n"]
        parts += [_operation(*each) for each in _operations(document, tag["name"])]
    parts.append("## Objects\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        if schema.get("properties"):
            parts.append(_object(name, schema))
    return "\n".join(parts)


def _operations(document: dict[str, Any], tag: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if tag in operation.get("tags", ()):
                yield method.upper(), path, operation


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    lines = [f"### {method} {path}\n", operation["description"] + "\n"]
    if parameters := operation.get("parameters"):
        lines.append("| parameter | in | type | meaning |\n|---|---|---|---|")
        lines += [_parameter(each) for each in parameters]
        lines.append("")
    if body := operation.get("requestBody"):
        schema = next(iter(body["content"].values()))["schema"]
        lines.append(f"Body: {_type(schema)}.\n")
    lines.append("| status | answer |\n|---|---|")
    lines += [_answer(status, each) for status, each in operation["responses"].items() if status not in _SILENT]
    lines.append("")
    return "\n".join(lines)


def _parameter(each: dict[str, Any]) -> str:
    meaning = _flat(each.get("description", each["schema"].get("description", "")))
    must = " Required." if each.get("required") else ""
    return f"| `{each['name']}` | {each['in']} | {_type(each['schema'])} | {meaning}{must} |"


def _answer(status: str, response: dict[str, Any]) -> str:
    content = response.get("content", {})
    types = [
        "a file" if schema.get("format") == "binary" else _type(schema) if schema else media
        for media, each in content.items()
        for schema in [each.get("schema", {})]
    ]
    what = ", ".join(dict.fromkeys(each for each in types if not each.startswith("application/")))
    return f"| {status} | {_flat(response['description'])}{f' ({what})' if what else ''} |"


def _object(name: str, schema: dict[str, Any]) -> str:
    lines = [f"### {name}\n", _flat(schema.get("description", "")) + "\n", "| field | type | meaning |\n|---|---|---|"]
    required = set(schema.get("required", ()))
    for field, each in schema["properties"].items():
        default = (
            "" if field in required or each.get("default") is None else f" Default: `{json.dumps(each['default'])}`."
        )
        lines.append(f"| `{field}` | {_type(each)} | {_flat(each.get('description', ''))}{default} |")
    for example in schema.get("examples", ()):
        lines += ["", "```json", json.dumps(example, indent=2), "```"]
    lines.append("")
    return "\n".join(lines)


def _type(schema: dict[str, Any]) -> str:
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if options := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(_type(each) for each in options))
    if "const" in schema:
        return f"`{schema['const']}`"
    if values := schema.get("enum"):
        return ", ".join(f"`{each}`" for each in values)
    match schema.get("type"):
        case "array":
            return f"list of {_type(schema.get('items', {}))}"
        case "object":
            inner = schema.get("additionalProperties")
            return f"mapping to {_type(inner)}" if isinstance(inner, dict) else "mapping"
        case "string":
            return "time" if schema.get("format") == "date-time" else "text"
        case "integer" | "number":
            return "number"
        case "boolean":
            return "true or false"
        case "null":
            return "null"
    return "anything"


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
