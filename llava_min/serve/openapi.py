"""The server described for programs: OpenAPI 3.1, made from the table of fields.

in:  serve/fields.py
out: the document of /openapi.json

Read serve/fields.py first.
"""

from typing import Any

from .fields import FIELDS

TEXT: dict[str, Any] = {"type": "string"}
MEDIUM = {
    "type": "object",
    "properties": {"url": TEXT, "detail": {"enum": ["auto", "low", "high"]}},
    "required": ["url"],
}
PART = {
    "type": "object",
    "properties": {
        "type": {"enum": ["text", "image_url", "video_url"]},
        "text": TEXT,
        "image_url": MEDIUM,
        "video_url": MEDIUM,
    },
    "required": ["type"],
}
MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [TEXT, {"type": "array", "items": PART}]},
    },
    "required": ["role", "content"],
}
MESSAGES = {"type": "array", "items": MESSAGE, "minItems": 1}
KNOWN = {
    # fields whose values a program should know how to make
    "messages": MESSAGES,
    "model": TEXT,
    "stream": {"type": "boolean"},
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 100},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": 0},
    "n": {"type": "integer", "minimum": 1, "maximum": 16},
    "logprobs": {"type": "boolean"},
    "stop": {"anyOf": [TEXT, {"type": "array", "items": TEXT, "maxItems": 16}]},
}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def content(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    """A body of this schema."""
    return {kind: {"schema": schema}}


def response(about: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """An answer with a body of this schema, or of any object."""
    return {"description": about, "content": content(schema or {"type": "object"})}


def path(method: str, about: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One path with one method."""
    answer = response("What was asked for.")
    if "chat/completions" in about:
        answer["content"] |= content(TEXT, "text/event-stream")
    found: dict[str, Any] = {
        "summary": about,
        "responses": {"200": answer, "default": response("An error.", ERROR)},
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": content(body)}
    return {method: found}


def document() -> dict[str, Any]:
    """The whole document."""
    fields = {
        name: KNOWN.get(name, {}) | {"description": f"{field.rule}. {field.about}".strip()}
        for name, field in FIELDS.items()
    }
    chat = {"type": "object", "properties": fields, "required": ["messages"]}
    explained = {
        "type": "object",
        "properties": fields | {"answer": TEXT | {"minLength": 1}},
        "required": ["messages", "answer"],
    }
    tokens = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    text = {"type": "object", "properties": {"content": TEXT}, "required": ["content"]}
    ids = {"type": "object", "properties": {"tokens": tokens}, "required": ["tokens"]}
    name = {"name": "name", "in": "path", "required": True, "schema": TEXT}
    about = "Answer messages: chat/completions"
    return {
        "openapi": "3.1.0",
        "info": {"title": "llava_min", "version": "1"},
        "paths": {
            "/v1/chat/completions": path("post", about, chat),
            "/invocations": path("post", f"{about}, as SageMaker calls it", chat),
            "/v1/chat/completions/input_tokens": path("post", "Count tokens.", chat),
            "/explanations": path("post", "Explain an answer to messages.", explained),
            "/tokenize": path("post", "The ids of a text.", text),
            "/detokenize": path("post", "The text of ids.", ids),
            "/v1/models": path("get", "The model that is served."),
            "/v1/models/{name}": path("get", "One model.") | {"parameters": [name]},
            "/health": path("get", "Whether it answers."),
            "/ping": path("get", "Whether it answers, as SageMaker asks."),
            "/metrics": {
                "get": {
                    "summary": "Counts and times, for Prometheus.",
                    "responses": {
                        "200": {"description": "Text.", "content": content(TEXT, "text/plain")},
                        "default": response("An error.", ERROR),
                    },
                }
            },
        },
    }
