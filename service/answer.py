"""Answers of the API: JSON that no cache keeps, and what all of them say in the same words.

Also an answer that is written no faster than its client reads.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.event import timestamp
from service.filter import Filter

PIECE_BYTES = 64 * 1024


class Paced(Response):
    """Written a piece at a time, so that it is under way until it is read.

    `held` is let go of at its end. A client that takes nothing for `timeout_s` is cut.
    """

    def __init__(
        self,
        content: bytes,
        headers: Mapping[str, str],
        media_type: str,
        held: AbstractContextManager[object],
        timeout_s: float,
    ) -> None:
        super().__init__(content, 200, headers, media_type)
        self._held = held
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytes(self.body)
        with self._held:
            head = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **head})
            try:
                for at in range(0, max(1, len(body)), PIECE_BYTES):
                    piece, has_more = body[at : at + PIECE_BYTES], at + PIECE_BYTES < len(body)
                    async with asyncio.timeout(self._timeout_s):
                        await send(
                            {"type": "http.response.body", "body": piece, "more_body": has_more}
                        )
            except TimeoutError:
                scope["extensions"]["causeway.abort"]()
                await send({"type": "http.response.body"})  # returns when the connection is gone


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
