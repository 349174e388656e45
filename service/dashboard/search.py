"""What a person types to find events, as a filter of the log. Below the pages: several show it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

from starlette.requests import Request

from service.cursor import Params, Place, parse_filter, parse_place, parse_time
from service.errors import BadRequest
from service.eventlog import Bounds
from service.filter import Filter
from service.history import Back, History

FIELDS = ("type", "item_id", "account_id", "user_uuid", "source")
PAGE_EVENTS = 50
_PLACE = re.compile(r"\d{1,18}(?:\.[0-9a-f]{8})?")
_MILLISECONDS = 10**11  # a number this large is a time: no log has so many positions


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for: the fields as typed, the filter they are, and where to look back from."""

    typed: Mapping[str, str]
    filter: Filter
    at: Place | datetime | None

    @property
    def query(self) -> str:
        """The filter as a query for the stream and for further rows, with `&` before it."""
        pairs = [(name, word) for name in FIELDS for word in self.typed[name].split()]
        return "&" + urlencode(pairs) if pairs else ""

    @property
    def is_live(self) -> bool:
        """True if new events belong on the page, too."""
        return self.at is None


def typed_fields(request: Request) -> dict[str, str]:
    """Return what was typed into each field, without what surrounds it."""
    return {
        name: " ".join(request.query_params.getlist(name)).replace(",", " ").strip()[:2000]
        for name in (*FIELDS, "at")
    }


def parse_search(typed: Mapping[str, str]) -> Search:
    """Return what is looked for. Raises BadRequest naming the field."""
    params: Params = {name: words for name in FIELDS if (words := typed[name].split())}
    return Search(typed, parse_filter(params), _parse_at(typed["at"]))


def _parse_at(text: str) -> Place | datetime | None:
    if not text:
        return None
    if _PLACE.fullmatch(text) and ("." in text or int(text) < _MILLISECONDS):
        return parse_place(text, "at")
    return parse_time(text.replace(" ", "T", 1), "at")


def parse_before(text: str) -> int:
    """Return the position before which to look. Raises BadRequest."""
    if not text.isdecimal() or len(text) > 18:
        raise BadRequest("before: a position was expected")
    return int(text)


async def look_back(history: History, search: Search, before: int, bounds: Bounds) -> Back:
    """Return a page of events before a position, newest first."""
    return await history.read_back(
        before, search.filter, first=bounds.first_position, limit=PAGE_EVENTS
    )


def describe_filter(filter_: Filter) -> str:
    """Return what a filter lets through, in words."""
    fields = {
        "": filter_.topics,
        "item ": filter_.item_ids,
        "account ": filter_.account_ids,
        "user ": filter_.user_uuids,
        "source ": filter_.sources,
    }
    parts = [
        f"{name}{' or '.join(str(value) for value in sorted(values))}"
        for name, values in fields.items()
        if values is not None
    ]
    return "; ".join(parts) or "everything"
