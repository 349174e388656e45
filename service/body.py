"""The bodies that callers send to the API, read within bounds; what is wrong in them is named."""

import asyncio
import re
from collections.abc import AsyncIterable, Callable
from typing import Any

import orjson

from service.errors import BadRequest, BodyTimeout, BodyTooLarge

BODY_MAX_BYTES = 64 * 1024
BODY_TIMEOUT_S = 10.0
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_VALUES = 1000


async def read_body(chunks: AsyncIterable[bytes]) -> bytes:
    """Return the body. Raises BodyTooLarge, BodyTimeout; reading stops there."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in chunks:
                body += chunk
                if len(body) > BODY_MAX_BYTES:
                    raise BodyTooLarge(f"a body may have {BODY_MAX_BYTES} bytes at the most")
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None
    return bytes(body)


def parse_object(body: bytes, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Return a JSON object with no other fields than `known`. Raises BadRequest."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"{name} is not JSON: {error.msg}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"{name}: a JSON object was expected")
    if strange := sorted(value.keys() - set(known)):
        raise BadRequest(f"unknown field {strange[0][:64]!r}; known are {', '.join(known)}")
    return value


def values_of(
    fields: dict[str, Any],
    name: str,
    is_good: Callable[[Any], bool],
    expected: str,
    prefix: str = "",
) -> frozenset[Any] | None:
    """Return a field's list as a set, or None where it is left out. Raises BadRequest."""
    values = fields.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or not 1 <= len(values) <= _MAX_VALUES:
        raise BadRequest(f"{prefix}{name}: {expected} was expected, 1 to {_MAX_VALUES} of them")
    if not all(is_good(value) for value in values):
        raise BadRequest(f"{prefix}{name}: {expected} was expected")
    return frozenset(values)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 128 and value.isprintable()


def is_uuid(value: Any) -> bool:
    return isinstance(value, str) and _UUID.fullmatch(value) is not None
