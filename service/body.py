"""The JSON bodies that callers send: read within bounds, and checked part by part.

Whatever is wrong with one is named in a BadRequest. What the fields mean is the business of the
modules that ask for them.
"""

import asyncio
import re
from collections.abc import AsyncIterable, Callable
from typing import Any

import orjson

from service.cursor import Begin, Live, Place, Start, parse_place, parse_time
from service.errors import BadRequest, BodyTimeout, BodyTooLarge
from service.filter import parse_topics

MAX_BYTES = 64 * 1024
TIMEOUT_S = 10.0
_PLACE = re.compile(r"\d{1,18}(?:\.[0-9a-f]{8})?")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_VALUES = 1000


async def read_body(chunks: AsyncIterable[bytes]) -> bytes:
    """Return a request's body. Raises BodyTooLarge, BodyTimeout; reading stops there."""
    body = bytearray()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_BYTES:
                    raise BodyTooLarge(f"a body may have {MAX_BYTES} bytes at the most")
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {TIMEOUT_S:.0f} s") from None
    return bytes(body)


def parse_object(body: bytes, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a body that is a JSON object with none but the `known` ones."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg}") from error
    if not isinstance(value, dict):
        raise BadRequest("the body: a JSON object was expected")
    if strange := sorted(value.keys() - set(known)):
        raise BadRequest(f"unknown field {strange[0][:64]!r}; known are {', '.join(known)}")
    return value


def parse_begin(start: Any) -> Begin:
    """Return where a reader begins: now, start, a position or an id, a time."""
    if start == "now":
        return Live()
    if start == "start":
        return Start()
    if is_integer(start) and 0 <= start < 10**18:
        return Place(start)
    if isinstance(start, str):
        return (
            parse_place(start, "start") if _PLACE.fullmatch(start) else parse_time(start, "start")
        )
    raise BadRequest("start: now, start, a position, an id or an ISO 8601 time was expected")


def parse_types(fields: dict[str, Any], prefix: str = "") -> frozenset[str] | None:
    """Return the topics that the field `types` asks for; None: all. A message has the `prefix`."""
    types = parse_values(fields, "types", is_text, "a list of types", prefix)
    try:
        return None if types is None else parse_topics(types)
    except ValueError as error:
        raise BadRequest(f"{prefix}types: {error}") from error


def parse_values(
    fields: dict[str, Any],
    name: str,
    is_good: Callable[[Any], bool],
    expected: str,
    prefix: str = "",
) -> frozenset[Any] | None:
    """Return the values of a list, or None where it is left out or null."""
    values = fields.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or not 1 <= len(values) <= _MAX_VALUES:
        raise BadRequest(f"{prefix}{name}: {expected} was expected, 1 to {_MAX_VALUES} of them")
    if not all(is_good(value) for value in values):
        raise BadRequest(f"{prefix}{name}: {expected} was expected")
    return frozenset(values)


def parse_flag(fields: dict[str, Any], name: str) -> bool:
    """Return a field that is true or false; false where it is left out."""
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{name}: true or false was expected")
    return value


def is_integer(value: Any) -> bool:
    """True for a whole number of JSON."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    """True for a short text that can be printed; Postgres takes no NUL."""
    return isinstance(value, str) and 0 < len(value) <= 128 and value.isprintable()


def is_uuid(value: Any) -> bool:
    """True for a UUID in its canonical lower case."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None
