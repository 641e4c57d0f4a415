"""The OpenAPI document of the HTTP door, served at /openapi.json."""

from __future__ import annotations

from typing import Any

from serving.api.dataplane import LONGEST_TIMEOUT_US
from serving.api.model_view import INPUT, OUTPUT
from serving.api.tensors import DATATYPES

Json = dict[str, Any]


def describe_api(version: str) -> Json:
    """The document, OpenAPI 3.1."""
    model, model_version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    paths: dict[str, Json] = {
        "/v2": _get("serverMetadata", "Name, version and extensions of the server", "ServerMetadata"),
        "/v2/health/live": _get("serverLive", "Whether the server runs", "Live", is_open=True),
        "/v2/health/ready": _get("serverReady", "Whether requests are taken", "Ready", unready="Ready", is_open=True),
        "/v2/models/stats": _get("allStatistics", "Statistics of all models", "Statistics"),
        "/v2/repository/index": _post(
            "repositoryIndex", "The models that are or could be served", "Index", _READY_BODY
        ),
        "/v2/repository/models/{model}/load": _post("load", "Load a model", "Nothing", _ANY_BODY, [_MODEL]),
        "/v2/repository/models/{model}/unload": _post("unload", "Unload a model", "Nothing", _ANY_BODY, [_MODEL]),
        "/metrics": _metrics(),
        "/openapi.json": _get("openapi", "This document", "Document"),
    }
    for path, suffix, parameters in ((model, "", [_MODEL]), (model_version, "OfVersion", [_MODEL, _VERSION])):
        paths[path] = _get(f"modelMetadata{suffix}", "A model's inputs and outputs", "ModelMetadata", parameters)
        paths[f"{path}/ready"] = _get(
            f"modelReady{suffix}", "Whether a model takes requests", "ModelReady", parameters, "ModelReady"
        )
        paths[f"{path}/config"] = _get(f"modelConfig{suffix}", "A model's configuration", "ModelConfig", parameters)
        paths[f"{path}/stats"] = _get(f"statistics{suffix}", "A model's statistics", "Statistics", parameters)
        paths[f"{path}/infer"] = _infer(suffix, parameters)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Strait",
            "version": version,
            "description": "Open Inference Protocol v2 with priorities and deadlines. A tensor's first dimension is the "
            "batch: its items are scheduled one by one and answered together, all or none.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str], **properties: Json) -> Json:
    return {"type": "object", "required": required, "properties": properties}


def _array(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


def _answer(description: str, schema: str) -> Json:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _errors(*statuses: int) -> Json:
    return {str(status): _answer(_ERRORS[status], "Error") for status in statuses}


def _get(
    name: str, summary: str, schema: str, parameters: list[Json] | None = None, unready: str = "", is_open: bool = False
) -> Json:
    responses = {"200": _answer("OK", schema), **({} if is_open else _errors(401))}
    if parameters:
        responses |= _errors(404)
    if unready:
        responses["503"] = _answer("Requests are not taken", unready)
    operation = {"operationId": name, "summary": summary, "parameters": parameters or [], "responses": responses}
    return {"get": operation | ({"security": []} if is_open else {})}


def _post(name: str, summary: str, schema: str, body: Json, parameters: list[Json] | None = None) -> Json:
    responses = {"200": _answer("OK", schema), **_errors(400, 401, 408, 413, 415)}
    if parameters:
        responses |= _errors(404, 500)
    return {
        "post": {
            "operationId": name,
            "summary": summary,
            "parameters": parameters or [],
            "requestBody": {"required": False, "content": {"application/json": {"schema": body}}},
            "responses": responses,
        }
    }


def _metrics() -> Json:
    text = {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "get": {
            "operationId": "metrics",
            "summary": "Metrics for Prometheus",
            "responses": {"200": text, **_errors(401, 404)},
        }
    }


def _infer(suffix: str, parameters: list[Json]) -> Json:
    raw = {"schema": {"type": "string", "format": "binary"}}
    answer = _answer("Answered, in time or late: the parameter `outcome` says which", "InferResponse")
    answer["content"]["application/octet-stream"] = raw
    return {
        "post": {
            "operationId": f"infer{suffix}",
            "summary": "Infer",
            "parameters": [*parameters, *_INFER_HEADERS],
            "requestBody": {
                "required": True,
                "description": "JSON, or JSON followed by the tensors' bytes (Inference-Header-Content-Length)",
                "content": {"application/json": {"schema": _ref("InferRequest")}, "application/octet-stream": raw},
            },
            "responses": {"200": answer, **_errors(400, 401, 404, 408, 413, 415, 429, 500, 503, 504)},
        }
    }


_ERRORS = {
    400: "The request is not as it should be",
    401: "The bearer token is missing or wrong",
    404: "There is no such thing here",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The Content-Encoding is not supported",
    429: "The client has too many requests in flight; see Retry-After",
    500: "The model or the server failed",
    503: "The queue is full or the server is stopping; see Retry-After",
    504: "The deadline is out of reach; the error says when it would have finished",
}

_MODEL: Json = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_VERSION: Json = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "enum": ["1"]}}
_PRIORITY: Json = {
    "type": "integer", "enum": [0, 1, 2], "description": "1 high, 2 low, 0 the model's default, low unless it says otherwise",
}  # fmt: skip
_TIMEOUT: Json = {
    "type": "integer",
    "minimum": 0,
    "maximum": LONGEST_TIMEOUT_US,
    "description": "The deadline in microseconds from arrival; 0 is the model's default",
}


def _header(name: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": schema}


_INFER_HEADERS: list[Json] = [
    _header("X-Priority", _PRIORITY),
    _header("X-Timeout-Us", _TIMEOUT),
    _header("Inference-Header-Content-Length", {"type": "integer", "minimum": 1}),
]

_STRING: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_FREE: Json = {"type": "object"}
_DATATYPE: Json = {"type": "string", "enum": list(DATATYPES)}
_SHAPE: Json = _array({"type": "integer"}, minItems=1)
_READY_BODY: Json = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
_ANY_BODY: Json = {"type": "object"}
_DURATION: Json = _ref("Duration")
_PHASES = {"compute_input": _DURATION, "compute_infer": _DURATION, "compute_output": _DURATION}
_TENSOR_METADATA: Json = _object(["name", "datatype", "shape"], name=_STRING, datatype=_DATATYPE, shape=_SHAPE)
_TENSOR_CONFIG: Json = _object(
    ["name", "data_type", "dims"], name=_STRING, data_type=_STRING, dims=_array({"type": "integer"})
)

_SCHEMAS: dict[str, Json] = {
    "Error": _object(["error"], error=_STRING),
    "Nothing": {"type": "object", "maxProperties": 0},
    "Document": _FREE,
    "Live": _object(["live"], live={"type": "boolean"}),
    "Ready": _object(["ready"], ready={"type": "boolean"}),
    "ModelReady": _object(["name", "ready"], name=_STRING, ready={"type": "boolean"}),
    "ServerMetadata": _object(
        ["name", "version", "extensions"], name=_STRING, version=_STRING, extensions=_array(_STRING)
    ),
    "ModelMetadata": _object(
        ["name", "versions", "platform", "inputs", "outputs"],
        name=_STRING,
        versions=_array(_STRING),
        platform=_STRING,
        inputs=_array(_TENSOR_METADATA),
        outputs=_array(_TENSOR_METADATA),
    ),
    "ModelConfig": _object(
        ["name", "platform", "max_batch_size", "input", "output"],
        name=_STRING,
        platform=_STRING,
        max_batch_size=_COUNT,
        input=_array(_TENSOR_CONFIG),
        output=_array(_TENSOR_CONFIG),
    ),
    "InferRequest": _object(
        ["inputs"],
        id=_STRING,
        parameters={
            "type": "object",
            "properties": {"priority": _PRIORITY, "timeout": _TIMEOUT, "binary_data_output": {"type": "boolean"}},
        },
        inputs=_array(
            _object(
                ["name", "datatype", "shape"],
                name={"type": "string", "enum": [INPUT]},
                datatype=_DATATYPE,
                shape=_SHAPE,
                parameters={"type": "object", "properties": {"binary_data_size": _COUNT}},
                data={"type": "array", "description": "Flat, or nested as `shape` says"},
            ),
            minItems=1,
            maxItems=1,
        ),
        outputs=_array(
            _object(
                ["name"],
                name={"type": "string", "enum": [OUTPUT]},
                parameters={"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
            ),
            maxItems=1,
        ),
    ),
    "InferResponse": _object(
        ["model_name", "model_version", "parameters", "outputs"],
        model_name=_STRING,
        model_version=_STRING,
        id=_STRING,
        parameters=_object(
            ["outcome", "latency_us", "queue_us", "batch_size", "predicted_us"],
            outcome={"type": "string", "enum": ["met", "late"]},
            latency_us=_COUNT,
            queue_us=_COUNT,
            batch_size=_COUNT,
            predicted_us=_COUNT,
        ),
        outputs=_array(
            _object(
                ["name", "datatype", "shape"],
                name=_STRING,
                datatype=_DATATYPE,
                shape=_SHAPE,
                parameters={"type": "object", "properties": {"binary_data_size": _COUNT}},
                data={"type": "array", "description": "Flat; NaN and the infinities are null"},
            )
        ),
    ),
    "Duration": _object(["count", "ns"], count=_COUNT, ns=_COUNT),
    "Statistics": _object(
        ["model_stats"],
        model_stats=_array(
            _object(
                ["name", "version", "last_inference", "inference_count", "execution_count", "inference_stats"],
                name=_STRING,
                version=_STRING,
                last_inference=_COUNT,
                inference_count=_COUNT,
                execution_count=_COUNT,
                inference_stats=_object(
                    ["success", "fail", "queue", *_PHASES],
                    success=_DURATION,
                    fail=_DURATION,
                    queue=_DURATION,
                    cache_hit=_DURATION,
                    cache_miss=_DURATION,
                    **_PHASES,
                ),
                batch_stats=_array(_object(["batch_size", *_PHASES], batch_size=_COUNT, **_PHASES)),
            )
        ),
    ),
    "Index": _array(
        _object(["name", "version", "state", "reason"], name=_STRING, version=_STRING, state=_STRING, reason=_STRING)
    ),
}
