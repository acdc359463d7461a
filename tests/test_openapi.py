"""The API document says what the handlers do: no more, no less."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from marshmallow import fields
from marshmallow.experimental.context import Context
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from baselayer import openapi
from baselayer.errors import ApiError
from baselayer.fields import Number, Text
from baselayer.handler import ANY, PUBLIC, Endpoint
from shell_service import document, schemas
from shell_service.scopes import MEANINGS
from shell_service.settings import load

SETTINGS = load()
SHELLS = {"sh": "/bin/sh"}
DOCUMENT = document.build("http://localhost:5000", SETTINGS.jobs, SETTINGS.limits, SHELLS)
ENDPOINTS: dict[tuple[str, str], Endpoint] = {
    (route.template, method): declared
    for route in document.routes()
    for method, (declared, _) in route.endpoints().items()
}
OPERATIONS: dict[tuple[str, str], dict[str, Any]] = {
    (path, method.upper()): operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
EACH = pytest.mark.parametrize("where", OPERATIONS, ids=lambda where: f"{where[1]} {where[0]}")


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    """A validator of a schema of the document, which may refer to its components."""
    root = Resource.from_contents(DOCUMENT, default_specification=DRAFT202012)
    rooted = json.loads(json.dumps(schema).replace('"#/', '"urn:document#/'))
    registry: Registry[Any] = Registry().with_resource("urn:document", root)
    return Draft202012Validator(rooted, registry=registry, format_checker=FormatChecker())


def test_it_is_a_valid_document() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()  # type: ignore[arg-type]


def test_it_has_the_routes_and_no_others() -> None:
    assert set(OPERATIONS) == set(ENDPOINTS)


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)


@EACH
def test_every_operation_is_described(where: tuple[str, str]) -> None:
    operation = OPERATIONS[where]
    assert re.match(r"[A-Z].{5,80}[^.]$", operation["summary"])
    assert operation["description"]
    assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    for parameter in operation["parameters"]:
        assert parameter["description"], parameter["name"]


@EACH
def test_every_operation_names_its_scope(where: tuple[str, str]) -> None:
    operation, declared = OPERATIONS[where], ENDPOINTS[where]
    if declared.scope == PUBLIC:
        assert "x-required-scope" not in operation
        assert {} in operation["security"] or operation["security"] == []
    elif declared.scope == ANY:
        assert operation["x-required-scope"] is None
        assert {"token": []} in operation["security"]
    else:
        assert operation["x-required-scope"] == declared.scope
        assert f"`{declared.scope}`: {MEANINGS[declared.scope]}" in operation["description"]
        assert {"bearer": [declared.scope]} in operation["security"]


@EACH
def test_every_operation_has_samples_that_parse(where: tuple[str, str]) -> None:
    curl, python = OPERATIONS[where]["x-codeSamples"]
    subprocess.run(["bash", "-n"], input=curl["source"], text=True, check=True)
    compile(python["source"], "sample", "exec")
    for sample in (curl, python):
        assert "{job_id}" not in sample["source"]
        assert ("TOKEN" in sample["source"]) == (ENDPOINTS[where].scope != PUBLIC)


@EACH
def test_declared_errors_are_documented(where: tuple[str, str]) -> None:
    responses, declared = OPERATIONS[where]["responses"], ENDPOINTS[where]
    for kind in openapi.possible_errors(declared, where[1]):
        assert responses[str(kind.status)] == {"$ref": f"#/components/responses/{kind.__name__}"}
    assert "500" not in responses
    assert ("401" in responses) or declared.scope == PUBLIC
    assert {"200", "400", "503"} <= set(responses)


def test_no_endpoint_has_two_errors_of_one_status() -> None:
    for (_, method), declared in ENDPOINTS.items():
        statuses = [kind.status for kind in openapi.possible_errors(declared, method)]
        assert len(set(statuses)) == len(statuses)


@EACH
def test_examples_of_bodies_load(where: tuple[str, str]) -> None:
    operation, declared = OPERATIONS[where], ENDPOINTS[where]
    if declared.body is None:
        assert "requestBody" not in operation
        return
    content = operation["requestBody"]["content"]["application/json"]
    with Context(schemas.JobRules(SETTINGS.jobs, SHELLS)):
        declared.body().load(content["example"])
    validator(content["schema"]).validate(content["example"])


@EACH
def test_bodies_are_required_where_saying_nothing_is_refused(where: tuple[str, str]) -> None:
    operation, declared = OPERATIONS[where], ENDPOINTS[where]
    if declared.body is not None:
        with Context(schemas.JobRules(SETTINGS.jobs, SHELLS)):
            assert operation["requestBody"]["required"] == bool(declared.body().validate({}))


@EACH
def test_examples_of_answers_are_what_their_schemas_say(where: tuple[str, str]) -> None:
    declared = ENDPOINTS[where]
    content = OPERATIONS[where]["responses"]["200"]["content"][declared.media]
    if declared.answer is None:
        assert "example" not in content
        return
    validator(content["schema"]).validate(content["example"])
    data = content["example"]["data"]
    record = data[0] if declared.answer.many else data
    assert set(record) == set(declared.answer.fields)


@pytest.mark.parametrize("kind", ApiError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_examples_of_errors_are_what_their_schemas_say(kind: type[ApiError]) -> None:
    response = DOCUMENT["components"]["responses"].get(kind.__name__)
    if response is None:
        assert kind.status == 405  # can come from anywhere
        return
    for content in response["content"].values():
        validator(content["schema"]).validate(content["example"])


def test_requests_refuse_what_they_do_not_know() -> None:
    components = DOCUMENT["components"]["schemas"]
    names = {schema.__name__ for schema in openapi.request_schemas(document.routes())}
    assert {"JobRequest", "BatchRequest", "LimitsRequest"} <= names
    assert {name for name, schema in components.items() if schema.get("additionalProperties") is False} == names


def test_every_field_is_described() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        if name not in ("Error", "Problem"):
            silent = {field for field, spec in schema.get("properties", {}).items() if "description" not in spec}
            assert not silent, name


def test_scopes_are_explained() -> None:
    text = DOCUMENT["components"]["securitySchemes"]["token"]["description"]
    assert all(f"`{name}`: {meaning}" in text for name, meaning in MEANINGS.items())


# What requests may hold: (field of a job, value, whether it is taken). Schema and marshmallow must agree.
VALUES = [
    ("code", "echo", True),
    ("code", ["echo 1", "echo 2"], True),
    ("code", "", False),
    ("code", [], False),
    ("code", 3, False),
    ("code", "a\0b", False),
    ("name", "a.b-c_D9", True),
    ("name", "a b", False),
    ("name", "", False),
    ("name", "x" * 101, False),
    ("shell", "sh", True),
    ("shell", "fish", False),
    ("timeout", 0.5, True),
    ("timeout", None, True),
    ("timeout", 0, False),
    ("timeout", SETTINGS.limits.timeout.max + 1, True),  # some users may: looked at where the job is stored
    ("timeout", 2**53 + 2, False),
    ("timeout", "1", False),
    ("priority", 10, True),
    ("priority", 11, False),
    ("priority", True, False),
    ("delay", 0, True),
    ("delay", -1, False),
    ("run_at", "2030-01-31T12:00:00Z", True),
    ("run_at", 12, False),
    ("retries", SETTINGS.jobs.max_retries, True),
    ("retries", SETTINGS.jobs.max_retries + 1, False),
    ("on_lost", "requeue", True),
    ("on_lost", "ignore", False),
    ("env", {"A_1": "x"}, True),
    ("env", {"1A": "x"}, False),
    ("env", {"A": 1}, False),
    ("args", ["a", ""], True),
    ("args", ["a\0"], False),
    ("args", ["a"] * 1001, False),
    ("limits", {}, True),
    (
        "limits",
        {"memory": "256MiB", "processes": 2.0, "cpu": 0.5, "file_size": "1.5GiB", "disk": 4096, "output": "9"},
        True,
    ),
    ("limits", {"memory": 2**24, "cpu_seconds": 0.1, "open_files": 16}, True),
    ("limits", {"memory": 2**24 - 1}, False),
    ("limits", {"disk": 4095}, False),
    ("limits", {"memory": 10**18}, False),
    ("limits", {"memory": "1 GB"}, False),
    ("limits", {"memory": "1e9"}, False),
    ("limits", {"memory": "9" * 400}, False),
    ("limits", {"memory": -1}, False),
    ("limits", {"memory": True}, False),
    ("limits", {"memory": None}, False),
    ("limits", {"processes": 1}, False),
    ("limits", {"processes": 2.5}, False),
    ("limits", {"processes": "64"}, False),
    ("limits", {"cpu": 0}, False),
    ("limits", {"open_files": 15}, False),
    ("limits", {"output": -1}, False),
    ("limits", {"timeout": 5}, False),
    ("limits", {"uid": 0}, False),
    ("limits", None, False),
    ("limits", [], False),
    ("network", True, True),
    ("network", 1, False),
    ("network", "host", False),
    ("network", None, False),
    ("secrets", ["A", "_b9"], True),
    ("secrets", ["A-B"], False),
    ("secrets", ["../A"], False),
    ("secrets", ["9A"], False),
    ("secrets", ["A" * 65], False),
    ("secrets", [f"S{number}" for number in range(51)], False),
    ("secrets", ["A", "A"], False),
    ("secrets", "A", False),
    ("secrets_in_env", True, True),
    ("secrets_in_env", "yes", False),
    ("unknown", 1, False),
]


@pytest.mark.parametrize(("name", "value", "taken"), VALUES, ids=lambda value: repr(value)[:30])
def test_document_and_check_agree(name: str, value: Any, taken: bool) -> None:
    body = {"code": "echo", name: value}
    with Context(schemas.JobRules(SETTINGS.jobs, SHELLS)):
        assert (not schemas.JobRequest().validate(body)) == taken
    assert validator({"$ref": "#/components/schemas/JobRequest"}).is_valid(body) == taken


def test_a_job_starts_at_a_time_or_after_a_while() -> None:
    both = {"code": "echo", "run_at": "2030-01-31T12:00:00Z", "delay": 3}
    assert not validator({"$ref": "#/components/schemas/JobRequest"}).is_valid(both)


def attributes(field: fields.Field[Any]) -> dict[str, Any]:
    from apispec.ext.marshmallow import OpenAPIConverter

    converter = OpenAPIConverter("3.1.0", lambda schema: None, None)  # type: ignore[arg-type]
    converter.add_attribute_function(openapi._attributes)
    found: dict[str, Any] = converter.field2property(field)
    return found


def test_our_own_fields() -> None:
    assert attributes(Text(pattern="[a-z]+"))["pattern"] == "^(?:[a-z]+)$"
    half_open = attributes(Number(low=0, high=5, closed=False))
    assert half_open["exclusiveMinimum"] == 0 and half_open["maximum"] == 5 and "minimum" not in half_open
    assert attributes(Number(low=0, high=5))["minimum"] == 0
