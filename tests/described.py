"""The API's documents as the tests read them, and validators for what they describe."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from jsonschema import Draft7Validator, Draft202012Validator, FormatChecker
from referencing import Registry
from referencing.jsonschema import DRAFT7, DRAFT202012

from service.documents import ASYNCAPI, OPENAPI, document_json

Node = dict[str, Any]

SCHEMAS = Path(__file__).parent / "schemas"
METHODS = ("get", "put", "post", "delete", "head", "options", "patch", "trace")

openapi: Node = json.loads(document_json(OPENAPI))
asyncapi: Node = json.loads(document_json(ASYNCAPI))
_registry = Registry().with_resources(
    [
        ("urn:openapi", DRAFT202012.create_resource(openapi)),
        ("urn:asyncapi", DRAFT7.create_resource(asyncapi)),
    ]
)


def asyncapi_schema() -> Node:
    """Return AsyncAPI's own schema, as the project publishes it."""
    text = gzip.decompress((SCHEMAS / "asyncapi-3.0.0.json.gz").read_bytes())
    schema: Node = json.loads(text)
    return schema


def resolved(document: Node, node: Any) -> Any:
    """Return what a node stands for, if it is a reference within its document."""
    while isinstance(node, dict) and set(node) == {"$ref"}:
        target: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]
        node = target
    return node


def errors(schema: Node, value: object, *, of: str = "openapi") -> list[str]:
    """Return what is wrong with a value, by a schema of one of the documents."""
    kind = Draft7Validator if of == "asyncapi" else Draft202012Validator
    # What is referred to stands in the document: the schema is looked at from there.
    located = _located(schema, f"urn:{of}")
    validator = kind(located, registry=_registry, format_checker=FormatChecker())
    return [
        f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(value)
    ]


def _located(node: Any, base: str) -> Any:
    if isinstance(node, dict):
        return {
            key: base + value if key == "$ref" and value[:1] == "#" else _located(value, base)
            for key, value in node.items()
        }
    return [_located(value, base) for value in node] if isinstance(node, list) else node


def operations() -> Iterator[tuple[str, str, Node]]:
    """Yield (path, METHOD, operation)."""
    for path, item in openapi["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method.upper(), item[method]


def parameters(path: str, operation: Node) -> list[Node]:
    """Return an operation's parameters, those of its path among them."""
    listed = [*openapi["paths"][path].get("parameters", []), *operation.get("parameters", [])]
    return [resolved(openapi, parameter) for parameter in listed]


def query_names(path: str, operation: Node) -> set[str]:
    """Return the names that may stand in an operation's query, a token's among them."""
    schemes = openapi["components"]["securitySchemes"]
    choices = operation["security"] if "security" in operation else openapi["security"]
    wanted = {name for choice in choices for name in choice}
    tokens = {schemes[name]["name"] for name in wanted if schemes[name].get("in") == "query"}
    return tokens | {p["name"] for p in parameters(path, operation) if p["in"] == "query"}


def codes(response: Node) -> set[str]:
    """Return the error codes that a response can have: its examples name all of them."""
    examples = resolved(openapi, response).get("content", {}).get("application/json", {})
    return {
        resolved(openapi, example)["value"]["error"]["code"]
        for example in examples.get("examples", {}).values()
        if isinstance(resolved(openapi, example)["value"].get("error"), dict)
    }


def complaints(path: str, method: str, response: httpx2.Response) -> list[str]:
    """Return where an answer is not as its operation says: status, content type, schema, code."""
    answers = openapi["paths"][path][method.lower()]["responses"]
    answer = resolved(openapi, answers.get(str(response.status_code)))
    if answer is None:
        return [f"{response.status_code} is not described"]
    found = [
        f"{name}: {problem}"
        for name, header in answer.get("headers", {}).items()
        if (value := response.headers.get(name)) is not None
        for problem in _header_errors(resolved(openapi, header)["schema"], value)
    ]
    content = answer.get("content", {})
    media_type = response.headers.get("content-type", "").partition(";")[0]
    if not content or method == "HEAD":
        return found + ([f"a body: {response.content[:99]!r}"] if response.content else [])
    if media_type not in content:
        return [*found, f"{media_type} is not described"]
    if media_type == "application/json" or media_type.endswith("+json"):
        found += errors(content[media_type]["schema"], response.json())
    if response.status_code >= 400 and "error" in response.json():
        code = response.json()["error"]["code"]
        found += [] if code in codes(answer) else [f"{code} is not described"]
    return found


def _header_errors(schema: Node, value: str) -> list[str]:
    is_number = resolved(openapi, schema).get("type") == "integer"
    return errors(schema, int(value) if is_number and value.isdigit() else value)
