"""The OpenAPI 3.1 description, made from the tables of schema.py and a table of what each path answers."""

from npgpt.engine.types import Fields
from npgpt.server.schema import QUERIES, REQUESTS, UPLOAD
from npgpt.text.records import NULL, STRING, record

OPERATIONS = (  # method, path, what it does, the object that it answers with, or the media type
    ("get", "/v1/models", "The models", "list"),
    ("get", "/v1/models/{id}", "A model", "model"),
    ("delete", "/v1/models/{id}", "Delete a fine-tuned model", "model"),
    ("post", "/v1/completions", "Go on with a text", "text_completion"),
    ("post", "/v1/chat/completions", "Answer in a chat", "chat.completion"),
    ("post", "/v1/responses", "Answer, and keep the answer", "response"),
    ("get", "/v1/responses/{id}", "An answer that was kept", "response"),
    ("delete", "/v1/responses/{id}", "Delete an answer", "response"),
    ("get", "/v1/responses/{id}/input_items", "What an answer was given to", "list"),
    ("post", "/v1/embeddings", "Vectors of texts", "list"),
    ("get", "/v1/files", "The files", "list"),
    ("post", "/v1/files", "Upload a file", "file"),
    ("get", "/v1/files/{id}", "A file", "file"),
    ("delete", "/v1/files/{id}", "Delete a file", "file"),
    ("get", "/v1/files/{id}/content", "What is in a file", "application/octet-stream"),
    ("get", "/v1/fine_tuning/jobs", "The jobs", "list"),
    ("post", "/v1/fine_tuning/jobs", "Fine-tune a model", "fine_tuning.job"),
    ("get", "/v1/fine_tuning/jobs/{id}", "A job", "fine_tuning.job"),
    ("get", "/v1/fine_tuning/jobs/{id}/events", "What a job said", "list"),
    ("get", "/v1/fine_tuning/jobs/{id}/checkpoints", "The checkpoints of a job", "list"),
    ("post", "/v1/fine_tuning/jobs/{id}/cancel", "Stop a job", "fine_tuning.job"),
    ("post", "/explain", "A page on why a text was written", "text/html"),
    ("get", "/health", "Whether the server serves", "application/json"),
    ("get", "/metrics", "Prometheus's metrics", "text/plain"),
    ("get", "/run", "What the page shows of the model", "application/json"),
)
FAILURES = (400, 401, 403, 404, 405, 408, 413, 429, 500, 503)
STREAMED = {"text_completion", "chat.completion", "response"}


def describe(version: str, models: list[str]) -> Fields:
    """Return the description of a server of these models."""
    fault: Fields = {"message": STRING, "type": STRING, "param": {"type": ["string", "null"]}}
    fault["code"] = fault["param"]
    components = {
        "schemas": {"Error": record(["error"], error=record(fault, **fault))},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    paths: dict[str, Fields] = {}
    for method, path, what, answer in OPERATIONS:
        operation: Fields = {"summary": what, "responses": _responses(answer), "parameters": []}
        if "{id}" in path:
            operation["parameters"].append({"name": "id", "in": "path", "required": True, "schema": STRING})
        if method == "get":
            operation["parameters"] += _query(QUERIES.get(path, {}))
        if method == "post" and (path in REQUESTS or answer == "file"):
            operation["requestBody"] = {"required": True, "content": _body(path, models)}
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "npgpt", "version": version},
        "paths": paths,
        "components": components,
        "security": [{"key": []}, {}],
    }


def _responses(answer: str) -> Fields:
    if "/" in answer:
        json = answer == "application/json"
        content = {answer: {"schema": {"type": "object"} if json else STRING}}
    else:
        more: Fields = {"data": {"type": "array"}} if answer == "list" else {}
        properties: Fields = {"object": {"const": answer}, **more}
        shape = {"type": "object", "properties": properties, "required": [*properties]}
        content = {"application/json": {"schema": shape}}
    if answer in STREAMED:
        content["text/event-stream"] = {"schema": {}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    failures = {str(status): {"description": "what is wrong", "content": error} for status in FAILURES}
    return {"200": {"description": answer, "content": content}, **failures}


def _query(parameters: Fields) -> list[Fields]:
    found: list[Fields] = []
    for name, schema in parameters.items():
        keys = {"style": "deepObject", "explode": True} if schema.get("type") == "object" else {}
        found.append({"name": name, "in": "query", "schema": schema, **keys})
    return found


def _body(path: str, models: list[str]) -> Fields:
    if path not in REQUESTS:
        file = {"type": "string", "format": "binary"}
        upload = published({**UPLOAD, "properties": UPLOAD["properties"] | {"file": file}})
        return {"multipart/form-data": {"schema": upload}}
    fields, required = REQUESTS[path]
    schema = published(record(required, **(fields | {"model": {"enum": models}})))
    return {"application/json": {"schema": schema}}


def published(schema: Fields) -> Fields:
    """Return a schema of the tables as others read it: what is not required may be null, at every depth."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [published(one) for one in schema["anyOf"]]}
    if "items" in schema:
        return {**schema, "items": published(schema["items"])}
    if "properties" not in schema:
        return schema
    properties = {
        name: published(one) if name in schema["required"] else {"anyOf": [published(one), NULL]}
        for name, one in schema["properties"].items()
    }
    return {**schema, "properties": properties}
