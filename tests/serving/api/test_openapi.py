"""The OpenAPI document says what the server does: its routes, its parameters and its answers."""

from __future__ import annotations

import json
import re
from typing import Any

import aiohttp
import aiohttp.web
import pytest
from api_server import FakeRepository, serving_plane

from serving.api.http import _Routes, api_document, start_http
from serving.api.infer_call import LONGEST_TIMEOUT_US
from serving.api.refusal import Kind
from serving.executors.cpu import CpuExecutor
from serving.models.tensors import DATATYPES

API = api_document("1.2")
SCHEMAS = API["components"]["schemas"]


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [r for v in value.values() for r in references(v)]
    return [r for v in value for r in references(v)] if isinstance(value, list) else []


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    """A part of the document, or the component that it refers to."""
    if "$ref" not in value:
        return value
    _, _, group, name = value["$ref"].split("/")
    return API["components"][group][name]


def operations() -> list[tuple[str, str, dict[str, Any], list[dict[str, Any]]]]:
    """Path, method, description and parameters of each operation."""
    return [
        (
            path,
            method,
            item[method],
            [resolved(p) for p in [*item.get("parameters", []), *item[method].get("parameters", [])]],
        )
        for path, item in API["paths"].items()
        for method in item
        if method != "parameters"
    ]


def test_the_document_is_whole() -> None:
    assert API["info"]["version"] == "1.2"
    groups = ("parameters", "responses", "schemas")
    defined = {f"#/components/{group}/{name}" for group in groups for name in API["components"][group]}
    assert set(references(API)) == defined, "all are defined, and all are used"
    names = [operation["operationId"] for _, _, operation, _ in operations()]
    assert len(names) == len(set(names))
    for path, _, operation, parameters in operations():
        assert {p["name"] for p in parameters if p["in"] == "path"} == set(re.findall(r"{(\w+)}", path))
        assert "200" in operation["responses"]


async def test_the_document_lists_exactly_the_routes(executor: CpuExecutor) -> None:
    async with serving_plane(executor) as plane:
        app = aiohttp.web.Application()
        _Routes(plane).add_to(app.router)
        routes = {
            (r.method.lower(), r.resource.canonical) for r in app.router.routes() if r.method != "HEAD" and r.resource
        }
        assert routes == {(method, path) for path, method, _, _ in operations()}


def test_the_document_has_the_limits_and_names_of_the_server() -> None:
    tensor = SCHEMAS["InferRequest"]["properties"]["inputs"]["items"]["properties"]
    assert tensor["datatype"]["enum"] == list(DATATYPES)
    timeouts = [
        API["components"]["parameters"]["XTimeoutUs"]["schema"],
        SCHEMAS["InferRequest"]["properties"]["parameters"]["properties"]["timeout"],
    ]
    assert [schema["maximum"] for schema in timeouts] == [LONGEST_TIMEOUT_US] * 2
    for path, _, operation, _ in operations():
        if path.endswith("/infer"):
            routing = {Kind.NO_METHOD, Kind.UNEXPECTED}  # not of an operation
            assert set(operation["responses"]) == {"200", *(str(kind.status) for kind in set(Kind) - routing)}


def fits(value: Any, schema: dict[str, Any], where: str = "") -> None:
    """A small check of a value against a schema: types, required fields, enumerations."""
    schema = resolved(schema)
    kinds = {
        "object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float),
        "null": type(None),
    }  # fmt: skip
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert any(isinstance(value, kinds[one]) for one in types), f"{where}: {value!r}"
    assert "enum" not in schema or value in schema["enum"], f"{where}: {value!r}"
    for key in schema.get("required", []):
        assert key in value, f"{where}: no {key}"
    for key, inner in schema.get("properties", {}).items():
        if key in value:
            fits(value[key], inner, f"{where}.{key}")
    if isinstance(value, list) and "items" in schema:
        for one in value:
            fits(one, schema["items"], f"{where}[]")


@pytest.mark.parametrize("model", ["double", "nowhere"])
async def test_answers_are_as_documented(executor: CpuExecutor, model: str) -> None:
    body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    async with serving_plane(executor, repository=FakeRepository()) as plane, aiohttp.ClientSession() as session:
        listener = await start_http(plane)
        root = f"http://127.0.0.1:{listener.port}"
        async with session.get(f"{root}/openapi.json") as response:
            assert json.loads(await response.read()) == api_document(plane.server_metadata()["version"])
        for path, method, operation, _ in operations():
            if "application/json" not in operation["responses"]["200"].get("content", {}):
                continue
            url = root + path.format(model=model, version="1")
            sent = {"json": body if path.endswith("infer") else {}} if method == "post" else {}
            async with session.request(method, url, **sent) as response:
                described = resolved(operation["responses"][str(response.status)])
                schema = described["content"]["application/json"]["schema"]
                fits(json.loads(await response.read()), schema, path)
        await listener.close()
