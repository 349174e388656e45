"""The API, described: `/openapi.json` for the requests, `/asyncapi.json` for the stream's messages.

Both are written by hand as YAML beside this module and converted once, when a process starts. The
tests hold them equal to the routes, the parameters and the errors.
"""

from functools import cache
from pathlib import Path

import orjson
import yaml
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent
OPENAPI, ASYNCAPI = "openapi", "asyncapi"
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader  # 0.03 s, not 0.3


class Documents:
    """The two endpoints. They need no token: there is nothing in them that the README has not."""

    def __init__(self) -> None:
        self._openapi = document_json(OPENAPI)
        self._asyncapi = document_json(ASYNCAPI)

    async def openapi(self, _request: Request) -> Response:
        """Answer the OpenAPI document."""
        return Response(self._openapi, media_type="application/json")

    async def asyncapi(self, _request: Request) -> Response:
        """Answer the AsyncAPI document."""
        return Response(self._asyncapi, media_type="application/json")


def document_text(name: str) -> str:
    """Return a document as it was written."""
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def document_json(name: str) -> bytes:
    """Return a document as JSON."""
    # Either loader is a safe one.
    return orjson.dumps(yaml.load(document_text(name), Loader=_LOADER))  # noqa: S506  # nosec B506
