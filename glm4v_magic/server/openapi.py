"""The server's OpenAPI document, made from the models of `protocol` and the table of options."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from glm4v_magic.core.option import Option
from glm4v_magic.core.options import of_requests
from glm4v_magic.server.protocol import ChatRequest, Chunk, Completion, ErrorBody, Model, Models

__all__ = ["document"]

_SCHEMAS = "#/components/schemas/"
_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
_ERRORS = {
    "400": "Something in the request is missing, malformed, or not possible here.",
    "401": "The key is missing or wrong.",
    "404": "There is no such model here.",
    "408": "The request came too slowly.",
    "413": "The request is too long.",
    "429": "Too many requests wait; ask again later.",
    "500": "The answer failed.",
    "503": "Memory ran out.",
}


def document() -> dict[str, Any]:
    """Return the document: paths, and the schemas of all that is sent and received."""
    # What is sent has the form in which it could be read back, fields that are left out included.
    shapes: tuple[type[BaseModel], ...] = (ChatRequest, Completion, Chunk, Models, Model, ErrorBody)
    _, made = models_json_schema(
        [(shape, "validation") for shape in shapes], ref_template=_SCHEMAS + "{model}"
    )
    schemas = made["$defs"]
    request = schemas[ChatRequest.__name__]
    request["properties"] |= {each.name: _property(each) for each in of_requests()}
    request["additionalProperties"] = False
    return {
        "openapi": "3.1.0",
        "info": {"title": "glm4v_magic", "version": version("glm4v_magic")},
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],  # the key is only needed where the server has one
    }


def _property(option: Option) -> dict[str, Any]:
    values = {"type": [_TYPES[option.type], "null"], "description": option.explained()}
    return {**values, "default": None if option.allows_none else option.default}


def _paths() -> dict[str, Any]:
    chat = {
        "summary": "Answer a question.",
        "requestBody": {"required": True, "content": _of("application/json", ChatRequest)},
        "responses": {
            "200": {
                "description": "The answer; with stream, events that hold a Chunk each.",
                "content": _of("application/json", Completion) | _of("text/event-stream", Chunk),
            },
        }
        | _errors(*_ERRORS),
    }
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/v1/chat/completions": {"post": chat},
        "/v1/models": {"get": _got("List the model.", _of("application/json", Models), "401")},
        "/v1/models/{name}": {
            "get": _got("Describe a model.", _of("application/json", Model), "401", "404")
            | {"parameters": [name]}
        },
        "/health": {"get": _got("Tell that the server runs; no key is needed.", {})},
        "/metrics": {"get": _got("Counts and times for Prometheus.", {"text/plain": {}}, "401")},
        "/openapi.json": {"get": _got("This document.", {"application/json": {}}, "401")},
    }


def _got(summary: str, content: dict[str, Any], *errors: str) -> dict[str, Any]:
    right = {"description": summary} | ({"content": content} if content else {})
    return {"summary": summary, "responses": {"200": right} | _errors(*errors)}


def _errors(*statuses: str) -> dict[str, Any]:
    content = _of("application/json", ErrorBody)
    return {each: {"description": _ERRORS[each], "content": content} for each in statuses}


def _of(kind: str, shape: type[BaseModel]) -> dict[str, Any]:
    return {kind: {"schema": {"$ref": _SCHEMAS + shape.__name__}}}
