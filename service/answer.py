"""Answers of the API: JSON that no cache keeps, and what all of them say in the same words."""

from datetime import datetime
from typing import Any

import orjson
from starlette.responses import Response

from service.event import timestamp
from service.filter import Filter


def reply(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `content` as JSON."""
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(orjson.dumps(content), status, headers, "application/json")


def moment_or_none(moment: datetime | None) -> str | None:
    """Return a moment as `timestamp` does; None as it is."""
    return None if moment is None else timestamp(moment)


def describe_filter(filter_: Filter) -> dict[str, list[Any]]:
    """Return a filter as callers write it: names of what it is limited to, each with its values."""
    fields = {
        "types": filter_.topics,
        "item_ids": filter_.item_ids,
        "account_ids": filter_.account_ids,
        "user_uuids": filter_.user_uuids,
        "sources": filter_.sources,
    }
    return {name: sorted(values) for name, values in fields.items() if values is not None}
