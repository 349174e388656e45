"""`/dashboard/items`: what happened to a bank connection or a user, and how it is now."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.dashboard.search import Search, look_back, parse_search
from service.dashboard.view import render
from service.errors import BadRequest
from service.event import Event
from service.eventlog import Bounds, EventLog
from service.filter import Filter
from service.history import Back, History
from service.item_status import Meaning, meaning, status_of

_INTEGER = re.compile(r"-?[0-9]{1,19}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_STATUS_TOPICS = frozenset({"item.refreshed", "item.deleted"})
_ITEMS_MAX = 12
_BUDGET_S = 0.1


@dataclass(frozen=True, slots=True)
class ItemStatus:
    """The last that Bridge said of an item. `position` is None if it never said anything."""

    item_id: int
    position: int | None = None
    received_at: datetime | None = None
    is_deleted: bool = False
    code: object = None
    info: object = None
    meaning: Meaning | None = None


class Items:
    """The search, and what it found."""

    def __init__(self, eventlog: EventLog, history: History) -> None:
        self._eventlog = eventlog
        self._history = history

    async def page(self, request: Request) -> Response:
        """Show the form; with `q`, the item or user of that id: its state and its events."""
        text = request.query_params.get("q", "").strip()
        values: dict[str, Any] = {"title": "Items", "q": text[:128], "problem": None}
        if not text:
            return render(request, "items.html", search=None, **values)
        try:
            search = _search(text)
        except BadRequest as error:
            values["problem"] = error
            return render(request, "items.html", 400, search=None, **values)
        bounds = await self._eventlog.bounds()
        back = await look_back(self._history, search, bounds.head_position + 1, bounds)
        statuses = [await self._status(item, bounds) for item in _items(search, back)]
        return render(
            request,
            "items.html",
            search=search,
            back=back,
            bounds=bounds,
            statuses=statuses,
            is_user=search.filter.user_uuids is not None,
            **values,
        )

    async def _status(self, item_id: int, bounds: Bounds) -> ItemStatus:
        wanted = Filter(topics=_STATUS_TOPICS, item_ids=frozenset({item_id}))
        back = await self._history.read_back(
            bounds.head_position + 1,
            wanted,
            first=bounds.first_position,
            limit=1,
            budget_s=_BUDGET_S,
        )
        return _status_of(item_id, back.events[0]) if back.events else ItemStatus(item_id)


def _status_of(item_id: int, event: Event) -> ItemStatus:
    is_deleted = event.topic == "item.deleted"
    code, info = (None, None) if is_deleted else status_of(event.body)
    known = None if is_deleted else meaning(code)
    return ItemStatus(item_id, event.position, event.received_at, is_deleted, code, info, known)


def _search(text: str) -> Search:
    """Return the search for an item's number or a user's UUID. Raises BadRequest."""
    fields = dict.fromkeys(("type", "item_id", "account_id", "user_uuid", "source", "at"), "")
    if _INTEGER.fullmatch(text):
        return parse_search(fields | {"item_id": text})
    if _UUID.fullmatch(text):
        return parse_search(fields | {"user_uuid": text})
    raise BadRequest("an item's number or a user's UUID was expected")


def _items(search: Search, back: Back) -> list[int]:
    """Return the items to tell the state of: the one asked for, or those of the user's events."""
    if search.filter.item_ids is not None:
        return list(search.filter.item_ids)
    seen = dict.fromkeys(e.item_id for e in back.events if e.item_id is not None)
    return list(seen)[:_ITEMS_MAX]
