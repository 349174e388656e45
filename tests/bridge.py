"""A Bridge for tests: functions that make events, sign them as Bridge does, and send them."""

import itertools
import json
from datetime import UTC, datetime

import httpx2

from service.event import NewEvent, parse_event
from service.signature import HEADER, sign
from tests.running import SECRET

TEST_EVENT = (
    b'{"content":{"item_id":1234567890,"status":0,'
    b'"user_uuid":"9a95b38f-f98b-417a-988b-9d0d584893e7"},'
    b'"timestamp":1611681789,"type":"TEST_EVENT"}'
)
USER = "9a95b38f-f98b-417a-988b-9d0d584893e7"
_numbers = itertools.count(1)


def body(type_: str = "item.account.updated", **content: object) -> bytes:
    """Return a distinct event's bytes, with `content` beside a number that makes it distinct."""
    number = next(_numbers)
    fields = {"item_id": 4568477, "account_id": 22908770, "user_uuid": USER, "n": number} | content
    timestamp = 1_612_782_588_323 + number
    return json.dumps({"content": fields, "timestamp": timestamp, "type": type_}).encode()


def new_event(type_: str = "item.account.updated", **content: object) -> NewEvent:
    """Return a distinct event as the receiver hands it to the appender."""
    return parse_event(body(type_, **content), "default", datetime.now(UTC))


async def post(
    url: str,
    payload: bytes,
    *,
    secrets: tuple[str, ...] = (SECRET,),
    source: str = "",
    client: httpx2.AsyncClient | None = None,
) -> httpx2.Response:
    """Send one signed call, as Bridge does."""
    path = f"/webhooks/bridge/{source}" if source else "/webhooks/bridge"
    headers = {HEADER: sign(payload, secrets), "content-type": "application/json"}
    if client is not None:
        return await client.post(url + path, content=payload, headers=headers)
    async with httpx2.AsyncClient() as own:
        return await own.post(url + path, content=payload, headers=headers)
