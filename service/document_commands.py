"""`causeway openapi`: the API's description, for tools that make clients and pages of it."""

from typing import Annotated

import typer

from service import terminal
from service.documents import ASYNCAPI, OPENAPI, document_json, document_text


def openapi(
    asyncapi: Annotated[
        bool, typer.Option("--asyncapi", help="The stream's messages instead, AsyncAPI 3.0.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="As JSON, as the service answers it.")
    ] = False,
) -> None:
    """Print the description of the HTTP API: OpenAPI 3.1, as YAML."""
    name = ASYNCAPI if asyncapi else OPENAPI
    terminal.write_line(document_json(name).decode() if json else document_text(name).rstrip())
