"""Where a reader begins: what it asked for, and whether the log still continues from there.

A reader names its place by an id (`1042.9f3ac01b`, which proves itself), by a bare position, by a
time, or by the log's start. The header `Last-Event-ID` wins over the query, because an EventSource
that reconnects repeats its first query.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from service.errors import BadRequest
from service.event import from_unix
from service.filter import Filter, parse_topics
from service.readable import ReadableLog
from service.window import Window

Params = Mapping[str, list[str]]

FILTER_PARAMS = frozenset({"type", "item_id", "account_id", "user_uuid", "source"})
START_PARAMS = frozenset({"after", "from", "since"})
_CHECKPOINT = re.compile(r"([0-9]{1,18})\.([0-9a-f]{8,64})")
_ID = re.compile(r"([0-9]{1,18})(?:\.([0-9a-f]{8}))?")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_INT64 = 2**63
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_VALUES = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """A position that a reader has read up to, and the link's digits if its id gave them."""

    position: int
    link_digits: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """Which events a reader of the stream wants, and how they are to be spelt."""

    filter: Filter
    is_cloudevents: bool
    has_control: bool


@dataclass(frozen=True, slots=True)
class Start:
    """The log's first event that is left."""


@dataclass(frozen=True, slots=True)
class Live:
    """Only what comes from now on."""


Begin = Place | Start | Live | datetime


def parse_query(query: bytes, known: Collection[str]) -> Params:
    """Return the query's values by name. Raises BadRequest naming a parameter that is not known."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            max_num_fields=_MAX_VALUES,
            errors="strict",
        )
    except ValueError as error:
        raise BadRequest("the query is not UTF-8, or has too many parameters") from error
    params: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in known:
            raise BadRequest(
                f"unknown parameter {name[:64]!r}; known are {', '.join(sorted(known))}"
            )
        params.setdefault(name, []).append(value)
    return params


def single(params: Params, name: str) -> str | None:
    """Return the value of a parameter that may stand once. Raises BadRequest if it is repeated."""
    values = params.get(name, [])
    if len(values) > 1:
        raise BadRequest(f"the parameter {name} may stand only once")
    return values[0] if values else None


def parse_filter(params: Params) -> Filter:
    """Return the filter that the query asks for. Raises BadRequest naming a bad value."""
    try:
        topics = parse_topics(params.get("type", []))
    except ValueError as error:
        raise BadRequest(str(error)) from error
    return Filter(
        topics=topics,
        item_ids=_integers(params, "item_id"),
        account_ids=_integers(params, "account_id"),
        user_uuids=_uuids(params),
        sources=_sources(params),
    )


def parse_wish(params: Params, limits: Filter) -> Wish:
    """Return how the query asks for the stream, within `limits`. Raises BadRequest."""
    format_ = single(params, "format") or "bridge"
    if format_ not in ("bridge", "cloudevents"):
        raise BadRequest(f"format={format_[:32]!r}: bridge or cloudevents was expected")
    control = single(params, "control") or "0"
    if control not in ("0", "1"):
        raise BadRequest(f"control={control[:32]!r}: 0 or 1 was expected")
    wanted = parse_filter(params).intersect(limits)
    return Wish(wanted, format_ == "cloudevents", control == "1")


def parse_begin(params: Params, last_event_id: str | None, default: Begin) -> Begin:
    """Return where the reader wants to begin. Raises BadRequest for what cannot be understood."""
    if last_event_id:
        return parse_place(last_event_id, "Last-Event-ID")
    given = [name for name in START_PARAMS if name in params]
    if len(given) > 1:
        raise BadRequest(f"only one of {', '.join(sorted(given))} can say where to begin")
    if (after := single(params, "after")) is not None:
        return parse_place(after, "after")
    if (since := single(params, "since")) is not None:
        return parse_time(since, "since")
    if (start := single(params, "from")) is not None:
        if start != "start":
            raise BadRequest(f"from={start[:32]!r}: the only value is `start`")
        return Start()
    return default


def parse_place(text: str, name: str) -> Place:
    """Return the place that an id or a bare position names. Raises BadRequest, naming `name`."""
    match = _ID.fullmatch(text.strip())
    if match is None:
        raise BadRequest(
            f"{name}={text[:64]!r}: an id such as 1042.9f3ac01b, or a position, was expected"
        )
    return Place(int(match[1]), match[2])


def parse_checkpoint(text: str, name: str) -> tuple[int, str]:
    """Return the position and the link's digits of a checkpoint. Raises BadRequest, naming `name`.

    Eight digits of the link are enough, as in an id.
    """
    match = _CHECKPOINT.fullmatch(text.strip().lower())
    if match is None:
        raise BadRequest(f"{name}={text[:96]!r}: POSITION.LINK was expected, as an audit prints it")
    return int(match[1]), match[2]


async def resolve(begin: Begin, eventlog: ReadableLog, window: Window) -> int:
    """Return the position after which to read.

    Raises LogDiverged, PositionPruned or PositionAhead if the log does not continue from there;
    LogUnavailable if only the database can tell and it is away.
    """
    if isinstance(begin, Place):
        known = window.link_at(begin.position)
        if known is None or not known.hex().startswith(begin.link_digits or ""):
            await eventlog.check(begin.position, begin.link_digits)
        return begin.position
    if isinstance(begin, datetime):
        return await eventlog.find_time(begin) - 1
    if isinstance(begin, Live) and window.position >= 0:
        return window.position
    bounds = await eventlog.bounds()
    return bounds.head_position if isinstance(begin, Live) else bounds.anchor_position


def parse_time(text: str, name: str) -> datetime:
    """Return the moment that `text` names. Raises BadRequest, naming `name`."""
    try:
        if _INTEGER.fullmatch(text):
            return from_unix(int(text))
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # an unescaped + of a time zone
        # Its zone may put a time of the calendar's first or last day outside of it.
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise BadRequest(
            f"{name}={text[:64]!r}: an ISO 8601 time such as 2026-11-23T09:00:00Z, or Unix "
            "milliseconds, was expected"
        ) from None


def _integers(params: Params, name: str) -> frozenset[int] | None:
    values = params.get(name)
    if values is None:
        return None
    for value in values:
        if not _INTEGER.fullmatch(value) or not -_INT64 <= int(value) < _INT64:
            raise BadRequest(f"{name}={value[:64]!r}: an integer of 64 bits was expected")
    return frozenset(int(value) for value in values)


def _uuids(params: Params) -> frozenset[str] | None:
    values = params.get("user_uuid")
    if values is None:
        return None
    lowered = frozenset(value.lower() for value in values)
    for value in lowered:
        if not _UUID.fullmatch(value):
            raise BadRequest(f"user_uuid={value[:64]!r}: a UUID was expected")
    return lowered


def _sources(params: Params) -> frozenset[str] | None:
    values = params.get("source")
    if values is None:
        return None
    for value in values:
        if not value.isprintable():  # no source is named so, and Postgres takes no NUL
            raise BadRequest(f"source={value[:64]!r}: the name of a source was expected")
    return frozenset(values)
