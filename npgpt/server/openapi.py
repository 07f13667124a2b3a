"""The OpenAPI 3.1 description, made from the tables of schema.py and a table of what each path answers."""

from npgpt.engine.types import Fields
from npgpt.server.schema import NULL, REQUESTS, STRING, integer, record

OPERATIONS = (  # method, path, what it does, the object that it answers with, or the media type
    ("get", "/v1/models", "The models", "list"),
    ("get", "/v1/models/{id}", "A model", "model"),
    ("delete", "/v1/models/{id}", "Close a fine-tuned model", "model"),
    ("post", "/v1/completions", "Go on with a text", "text_completion"),
    ("post", "/v1/chat/completions", "Answer in a chat", "chat.completion"),
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
    ("post", "/v1/fine_tuning/jobs/{id}/cancel", "Stop a job", "fine_tuning.job"),
    ("get", "/health", "Whether the server serves", "application/json"),
    ("get", "/metrics", "Prometheus's metrics", "text/plain"),
    ("get", "/run", "What the page shows of the model", "application/json"),
)
FAILURES = (400, 401, 403, 404, 405, 408, 413, 429, 500, 503)
STREAMED = {"text_completion", "chat.completion"}


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
        if answer == "list" and method == "get" and path != "/v1/models":
            pages = {"after": STRING, "limit": integer(1, 100)}
            operation["parameters"] += [{"name": n, "in": "query", "schema": s} for n, s in pages.items()]
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
        shape = record(["object", *more], object={"const": answer}, **more)
        content = {"application/json": {"schema": shape}}
    if answer in STREAMED:
        content["text/event-stream"] = {"schema": {}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    failures = {str(status): {"description": "what is wrong", "content": error} for status in FAILURES}
    return {"200": {"description": answer, "content": content}, **failures}


def _body(path: str, models: list[str]) -> Fields:
    if path not in REQUESTS:
        file = {"type": "string", "format": "binary"}
        upload = record(["file", "purpose"], file=file, purpose={"enum": ["fine-tune"]})
        return {"multipart/form-data": {"schema": upload}}
    fields, required = REQUESTS[path]
    nullable = {n: shape if n in required else {"anyOf": [shape, NULL]} for n, shape in fields.items()}
    schema = record(required, closed=True, **(nullable | {"model": {"enum": models}}))
    return {"application/json": {"schema": schema}}
