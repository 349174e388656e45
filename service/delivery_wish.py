"""What administrators ask of deliveries, checked: lists of them, and replays of a range.

What is wrong is named in a BadRequest.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.body import (
    is_integer,
    is_text,
    is_uuid,
    parse_flag,
    parse_object,
    parse_types,
    parse_values,
)
from service.cursor import (
    FILTER_PARAMS,
    Params,
    Place,
    Start,
    parse_filter,
    parse_place,
    parse_time,
    single,
)
from service.delivery_list import STATES
from service.errors import BadRequest
from service.filter import Filter
from service.replay import ALL, EXHAUSTED
from service.replay import STATES as REPLAY_STATES

PARAMS = FILTER_PARAMS | {"state", "since", "until", "before", "after", "limit"}
DEFAULT_LIMIT = 50
MAX_LIMIT = 500
DEFAULT_PER_S = 50.0
MIN_PER_S, MAX_PER_S = 0.01, 1000.0
_FIELDS = (
    *("state", "types", "item_ids", "account_ids", "user_uuids", "sources"),
    *("from", "until", "rate", "dry_run"),
)
_PLACE = re.compile(r"\d{1,18}(?:\.[0-9a-f]{8})?")
_NUMBER = re.compile(r"[0-9]{1,18}")
_INT64 = 2**63

Bound = Place | Start | datetime


@dataclass(frozen=True, slots=True)
class Listing:
    """Which deliveries to list: of events received from `since` on and before `until`, and at
    positions after `after` and before `before`."""

    state: str | None
    filter: Filter
    since: datetime | None
    until: datetime | None
    after: int | None
    before: int | None
    limit: int


@dataclass(frozen=True, slots=True)
class ReplayWish:
    """What to send again: from one bound to another, positions inclusive, times exclusive."""

    state: str
    filter: Filter
    begin: Bound | None
    end: Bound | None
    per_s: float
    is_dry_run: bool


def parse_listing(params: Params) -> Listing:
    """Return the list that a query asks for."""
    state = single(params, "state")
    if state is not None and state not in STATES:
        raise BadRequest(f"state={state[:32]!r}: one of {', '.join(STATES)} was expected")
    since, until = single(params, "since"), single(params, "until")
    limit = single(params, "limit") or str(DEFAULT_LIMIT)
    if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= MAX_LIMIT:
        raise BadRequest(f"limit={limit[:32]!r}: a number from 1 to {MAX_LIMIT} was expected")
    return Listing(
        state,
        parse_filter(params),
        None if since is None else parse_time(since, "since"),
        None if until is None else parse_time(until, "until"),
        _position(params, "after"),
        _position(params, "before"),
        int(limit),
    )


def parse_replay(body: bytes) -> ReplayWish:
    """Return the replay that a body asks for."""
    fields = parse_object(body, _FIELDS)
    state = fields.get("state", EXHAUSTED)
    if state not in REPLAY_STATES:
        raise BadRequest(f"state: one of {', '.join(REPLAY_STATES)} was expected")
    begin, end = _parse_bound(fields, "from"), _parse_bound(fields, "until")
    if state == ALL and begin is None:
        raise BadRequest("from: `all` needs a beginning: start, a position, an id or a time")
    if isinstance(end, Start):
        raise BadRequest("until: a position, an id or an ISO 8601 time was expected")
    rate = fields.get("rate", DEFAULT_PER_S)
    is_number = is_integer(rate) or isinstance(rate, float)
    if not is_number or not MIN_PER_S <= rate <= MAX_PER_S:
        raise BadRequest(f"rate: events a second, {MIN_PER_S:g} to {MAX_PER_S:g}, were expected")
    filter_ = Filter(
        topics=parse_types(fields),
        item_ids=parse_values(fields, "item_ids", _is_id, "a list of integers"),
        account_ids=parse_values(fields, "account_ids", _is_id, "a list of integers"),
        user_uuids=parse_values(fields, "user_uuids", is_uuid, "a list of UUIDs in lower case"),
        sources=parse_values(fields, "sources", is_text, "a list of sources"),
    )
    return ReplayWish(state, filter_, begin, end, float(rate), parse_flag(fields, "dry_run"))


def parse_position(text: str) -> int:
    """Return the position that a path names."""
    if not _NUMBER.fullmatch(text):
        raise BadRequest(f"{text[:32]!r}: a position was expected")
    return int(text)


def _position(params: Params, name: str) -> int | None:
    text = single(params, name)
    return None if text is None else parse_place(text, name).position


def _parse_bound(fields: dict[str, Any], name: str) -> Bound | None:
    value = fields.get(name)
    if value is None:
        return None
    if value == "start":
        return Start()
    if is_integer(value) and 0 <= value < 10**18:
        return Place(value)
    if isinstance(value, str):
        return parse_place(value, name) if _PLACE.fullmatch(value) else parse_time(value, name)
    raise BadRequest(f"{name}: a position, an id or an ISO 8601 time was expected")


def _is_id(value: Any) -> bool:
    return is_integer(value) and -_INT64 <= value < _INT64
