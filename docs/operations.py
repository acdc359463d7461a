"""The API reference: pages of operations, from the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]

_METHODS = ("post", "get", "put", "patch", "delete")  # the order on a page: making things comes first


def page(document: Json, tags: set[str]) -> str:
    """All operations with one of these tags, as Markdown, in the order of the document."""
    found = [
        _operation(document, path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in sorted(operations.items(), key=lambda item: _METHODS.index(item[0]))
        if tags & set(operation["tags"])
    ]
    return "\n\n".join(found)


def _operation(document: Json, path: str, method: str, operation: Json) -> str:
    parts = [
        f"## {operation['summary']}",
        f'<p class="endpoint"><span class="method {method}">{method.upper()}</span> <code>{path}</code></p>',
        operation["description"],
        _parameters(operation["parameters"]),
        _body(document, operation.get("requestBody")),
        _samples(operation),
        _answer(document, operation["responses"]["200"]),
        _errors(document, operation["responses"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _parameters(parameters: list[Json]) -> str:
    if not parameters:
        return ""
    rows = [
        f"| `{item['name']}` | {item['in']} | {_kind(item['schema'])} | {_meaning(item, item['schema'])} |"
        for item in parameters
    ]
    return "\n".join(["| parameter | in | type | meaning |", "|---|---|---|---|", *rows])


def _body(document: Json, body: Json | None) -> str:
    if body is None:
        return ""
    schema = _resolve(document, body["content"]["application/json"]["schema"])
    needed = "" if body["required"] else " May be left out."
    return f"**Body**, as JSON.{needed}\n\n{_fields(document, schema, request=True)}"


def _answer(document: Json, response: Json) -> str:
    ((media, content),) = response["content"].items()
    schema = content["schema"]
    data = schema.get("properties", {}).get("data")
    if data is None:
        return f"**Answer**: `{media}`, not in the envelope."
    array = data.get("type") == "array"
    record = _resolve(document, data["items"] if array else data)
    noun = "a list of records" if array else "a record"
    table = _fields(document, record, request=False)
    example = json.dumps(content["example"], indent=2, ensure_ascii=False)
    lead = f"**Answer**: `data` is {noun}." if record.get("properties") else "**Answer**: `data` is empty."
    block = f"```json\n{example}\n```"
    return "\n\n".join(part for part in (lead, _folded("Fields", table), _folded("Example", block)) if part)


def _errors(document: Json, responses: Json) -> str:
    rows = []
    for status, response in responses.items():
        if status >= "300":
            found = _resolve(document, response)
            code = next(iter(found.get("content", {}).values()), {}).get("example", {}).get("data", {}).get("code")
            rows.append(f"| {status} | {f'`{code}`' if code else ''} | {cell(found['description'])} |")
    table = "\n".join(["| status | code | meaning |", "|---|---|---|", *rows])
    return _folded("Other answers", table)


def _samples(operation: Json) -> str:
    """Tabs that need no script: of two radio buttons the chosen one shows what stands beside it."""
    name, parts = operation["operationId"], []
    before = '<div class="tabs">'  # a line that begins with a block's tag begins raw HTML
    for number, sample in enumerate(operation["x-codeSamples"]):
        chosen = "" if number else " checked"
        language = {"Shell": "sh", "Python": "python"}[sample["lang"]]
        parts += [
            f'{before}<input type="radio" name="{name}" id="{name}-{number}"{chosen}>'
            f'<label for="{name}-{number}">{sample["label"]}</label><div class="tab">',
            f"```{language}\n{sample['source'].rstrip()}\n```",
        ]
        before = "</div>"
    return "\n\n".join([*parts, "</div></div>"])


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>" if content else ""


def _fields(document: Json, schema: Json, *, request: bool) -> str:
    rows = []
    for name, spec in schema.get("properties", {}).items():
        shown = f"`{name}`"
        if request and name in schema.get("required", ()):
            shown += " *required*"
        rows.append(f"| {shown} | {_kind(spec)} | {_meaning(spec, _resolve(document, spec))} |")
        rows += _inner(document, name, spec)
    return "\n".join(["| field | type | meaning |", "|---|---|---|", *rows]) if rows else ""


def _inner(document: Json, name: str, spec: Json) -> list[str]:
    """The fields of a small record inside a record; those of a list's items have a place of their own."""
    found = _resolve(document, spec)
    if spec.get("type") == "array" or not found.get("properties") or len(found["properties"]) > 12:
        return []
    return [
        f"| `{name}.{inner}` | {_kind(detail)} | {_meaning(detail, detail)} |"
        for inner, detail in found["properties"].items()
    ]


def _resolve(document: Json, schema: Json) -> Json:
    for choice in ("allOf", "anyOf"):
        schema = next((item for item in schema.get(choice, ()) if "$ref" in item), schema)
    if "$ref" not in schema:
        return schema
    found: Json = document
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def _kind(schema: Json) -> str:
    """The type in words, with its bounds."""
    if "oneOf" in schema:
        return " or ".join(_kind(choice) for choice in schema["oneOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if value is not None) + _null(schema)
    if any(key in schema for key in ("$ref", "allOf", "anyOf")):
        return "record" + _null(schema)
    kinds = schema.get("type", "any")
    kind = next((one for one in kinds if one != "null"), "") if isinstance(kinds, list) else kinds
    if schema.get("format") == "date-time":
        kind = "time"
    elif kind == "array":
        kind = f"list of {_kind(schema['items'])}"
    elif kind == "object":
        values = schema.get("additionalProperties")
        kind = f"map to {_kind(values)}" if isinstance(values, dict) else "map"
    elif kind in ("integer", "number"):
        kind = {"integer": "whole number", "number": "number"}[kind] + _range(schema)
    elif kind == "boolean":
        kind = "true or false"
    elif kind == "string":
        kind = "text" + _length(schema)
    return kind + _null(schema)


def _null(schema: Json) -> str:
    kinds = schema.get("type")
    nullable = (isinstance(kinds, list) and "null" in kinds) or {"type": "null"} in schema.get("anyOf", ())
    return " or null" if nullable else ""


def _range(schema: Json) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f", above {_figure(schema['exclusiveMinimum'])}" + (f" to {_figure(high)}" if high is not None else "")
    return f", {_figure(low)} to {_figure(high)}" if low is not None and high is not None else ""


def _figure(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:,.10g}"


def _length(schema: Json) -> str:
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    return f", {low:,} to {high:,} characters" if high is not None else ""


def _meaning(described: Json, schema: Json) -> str:
    text = described.get("description") or schema.get("description", "")
    if schema.get("default") not in (None, ""):
        text += f" Default: `{json.dumps(schema['default'], ensure_ascii=False)}`."
    return cell(text)


def cell(text: str) -> str:
    """`text` as the content of a table's cell; what stands in backticks is shown as it is."""
    parts = text.replace("|", "\\|").replace("\n", " ").split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))
