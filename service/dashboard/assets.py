"""The dashboard's own files, read and compressed once. Names carry a digest: kept for a year."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from service.errors import NotFound

FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file, plain and compressed."""

    content: bytes
    compressed: bytes
    media_type: str
    digest: str


@cache
def assets() -> dict[str, Asset]:
    """Return every file by its path below `static/`."""
    return {
        str(path.relative_to(FOLDER)): _asset(path)
        for path in sorted(FOLDER.rglob("*"))
        if path.suffix in _TYPES
    }


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:12]
    return Asset(content, gzip.compress(content, 9, mtime=0), _TYPES[path.suffix], digest)


def asset_url(name: str) -> str:
    """Return where a file is: another place when its content is another."""
    return f"/dashboard/static/{name}?v={assets()[name].digest}"


async def serve_asset(request: Request) -> Response:
    """Answer one file. Needs no session: the login page has its style from here."""
    asset = assets().get(request.path_params["name"])
    if asset is None:
        raise NotFound("there is no such file")
    is_current = request.query_params.get("v") == asset.digest
    headers = {
        "cache-control": "public, max-age=31536000, immutable" if is_current else "no-cache",
        "x-content-type-options": "nosniff",
        "vary": "accept-encoding",
    }
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        return Response(asset.compressed, 200, headers, asset.media_type)
    return Response(asset.content, 200, headers, asset.media_type)
