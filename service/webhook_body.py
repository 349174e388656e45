"""The JSON that administrators send about webhooks, checked: what is wrong is named."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.body import (
    is_text,
    parse_begin,
    parse_flag,
    parse_object,
    parse_types,
    parse_values,
)
from service.callback_url import CallbackUrl, parse_callback_url
from service.cursor import Begin
from service.errors import BadRequest
from service.filter import Filter
from service.webhook_value import Change

MASK = "***"  # what answers show in place of a header's value
_MAX_HEADERS = 20
_APPLICATION = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")  # RFC 9110, 5.6.2: a token
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]{0,4094}[!-~])?")
# Ours, and HTTP's own: with another value the call would be another one, or none.
_RESERVED = re.compile(
    r"host|connection|keep-alive|transfer-encoding|te|trailer|upgrade|expect|user-agent"
    r"|bridgeapi-signature|traceparent|tracestate|(content|proxy|webhook|causeway)-.*",
    re.IGNORECASE,
)
_CHANGEABLE = ("name", "url", "types", "sources", "headers")


@dataclass(frozen=True, slots=True)
class WebhookWish:
    """How a new webhook should be."""

    url: CallbackUrl = field(repr=False)
    application: str
    name: str | None
    filter: Filter
    headers: Mapping[str, str] = field(repr=False)
    is_ordered: bool
    begin: Begin


def parse_wish(body: bytes, *, allow_http: bool) -> WebhookWish:
    """Return the wish of a POST. Raises BadRequest naming what is wrong."""
    fields = parse_object(body, (*_CHANGEABLE, "application", "ordered", "start"))
    application = fields.get("application", "default")
    if not isinstance(application, str) or not _APPLICATION.fullmatch(application):
        raise BadRequest("application: 1 to 63 of a-z, 0-9, `.`, `_` and `-` were expected")
    return WebhookWish(
        url=_parse_url(fields.get("url"), allow_http),
        application=application,
        name=_parse_name(fields.get("name")),
        filter=Filter(topics=parse_types(fields), sources=_parse_sources(fields)),
        headers=_parse_headers(fields.get("headers")),
        is_ordered=parse_flag(fields, "ordered"),
        begin=parse_begin(fields.get("start", "now")),
    )


def parse_change(body: bytes, *, allow_http: bool) -> tuple[Change, CallbackUrl | None]:
    """Return the change of a PATCH, and its URL if that is part of it. Raises BadRequest."""
    fields = parse_object(body, (*_CHANGEABLE, "ordered"))
    if "ordered" in fields:
        raise BadRequest("ordered: it can't be changed; make another webhook")
    url = _parse_url(fields["url"], allow_http) if "url" in fields else None
    named = {"topics" if name == "types" else name for name in fields}
    change = Change(
        fields=frozenset(named),
        name=_parse_name(fields.get("name")),
        url="" if url is None else url.text,
        topics=parse_types(fields),
        sources=_parse_sources(fields),
        headers=_parse_headers(fields.get("headers")),
    )
    return change, url


def parse_start(body: bytes) -> Begin | None:
    """Return where an enabled webhook goes on, or None: where it stands. Raises BadRequest."""
    fields = parse_object(body or b"{}", ("start",))
    return parse_begin(fields["start"]) if "start" in fields else None


def _parse_url(value: Any, allow_http: bool) -> CallbackUrl:
    if not isinstance(value, str):
        raise BadRequest("url: the URL to call was expected")
    try:
        return parse_callback_url(value, allow_http=allow_http)
    except ValueError as error:
        raise BadRequest(f"url: {error}") from error


def _parse_name(value: Any) -> str | None:
    if value is not None and not is_text(value):
        raise BadRequest("name: 1 to 128 characters on one line were expected")
    name: str | None = value
    return name


def _parse_sources(fields: dict[str, Any]) -> frozenset[str] | None:
    return parse_values(fields, "sources", is_text, "a list of sources")


def _parse_headers(value: Any) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MAX_HEADERS:
        raise BadRequest(f"headers: an object of {_MAX_HEADERS} names and values at most")
    for name, text in value.items():
        if not _HEADER_NAME.fullmatch(name):
            raise BadRequest(f"headers: {name[:64]!r} is not a header's name")
        if _RESERVED.fullmatch(name):
            raise BadRequest(f"headers: {name} is not yours to set")
        # The value itself is a secret: no message shows it.
        if not isinstance(text, str) or not _HEADER_VALUE.fullmatch(text):
            raise BadRequest(f"headers: {name}: 1 to 4096 visible ASCII characters were expected")
        if text == MASK:
            raise BadRequest(f"headers: {name}: that is the mask; send the value itself")
    if len({name.lower() for name in value}) < len(value):
        raise BadRequest("headers: a name stands twice, in other cases")
    return value
