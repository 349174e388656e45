"""Renders: templates to answers that no browser keeps, and that run nothing but our own files.

Whatever a template shows is escaped (jinja's autoescape); the Content-Security-Policy is there for
the day that it is not.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.dashboard.assets import asset_url
from service.dashboard.session import Session
from service.words import count, number, size, span

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "form-action 'self'",
        "base-uri 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    # Not `no-referrer`: browsers would then send `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# Where to go: path below /dashboard, title. In the order of the question "where did it stop?".
NAVIGATION = (
    ("", "Overview"),
    ("/events", "Events"),
    ("/items", "Items"),
    ("/sources", "Sources"),
    ("/consumers", "Consumers"),
    ("/webhooks", "Webhooks"),
    ("/tokens", "Tokens"),
    ("/log", "Log"),
)


def _moment(moment: datetime | None) -> str:
    """Return a time in UTC to the second."""
    return "never" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _milliseconds(moment: datetime) -> str:
    """Return a time in UTC to the millisecond."""
    utc = moment.astimezone(UTC)
    return f"{utc:%Y-%m-%d %H:%M:%S}.{utc.microsecond // 1000:03d}"


def _ago(moment: datetime) -> str:
    """Return how long ago a time was."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return "just now" if seconds < 1 else f"{span(seconds)} ago"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "moment": _moment,
        "milliseconds": _milliseconds,
        "ago": _ago,
        "span": span,
        "number": number,
        "size": size,
        "count": count,
    }
    environment.globals |= {
        "asset": asset_url,
        "navigation": NAVIGATION,
        "version": __version__,
    }
    return environment


_TEMPLATES = _environment()


def render(request: Request, template: str, /, status: int = 200, **values: Any) -> Response:
    """Answer a whole page, or a part of one for htmx, from a template.

    The session that the door found is `session` in it, or None.
    """
    session: Session | None = request.scope.get("session")
    path = request.url.path.removeprefix("/dashboard")
    text = _TEMPLATES.get_template(template).render(session=session, path=path, **values)
    return Response(text, status, dict(HEADERS), "text/html")
