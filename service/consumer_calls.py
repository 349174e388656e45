"""The client's single calls, as values: what to send about named consumers, and what it means.

Pure. `client.call` and `client.call_sync` send them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from service.answers import OtherFilter
from service.wanted import filter_body, filters, moment

DEFAULT_ACK_MODE = "explicit"
DEFAULT_LEASE_S = 30


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `may_miss`: no consumer of that name is the answer None, not an error."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    may_miss: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """What an acknowledgement proves: for which consumer and shard, and under which lease."""

    consumer: str
    shard: str
    lease: int

    def ack(self, id_: str) -> Call:
        """Say that everything up to the event `id_` is done."""
        return Call(
            "POST",
            _path(self.consumer, "/ack"),
            {"position": id_, "shard": self.shard, "lease": self.lease},
        )


def list_consumers() -> Call:
    """Ask for all consumers: `{"consumers": [...]}`."""
    return Call("GET", "/consumers")


def get_consumer(name: str) -> Call:
    """Ask for one consumer: its place, its lag, who holds it."""
    return Call("GET", _path(name))


def delete_consumer(name: str) -> Call:
    """Forget a consumer and its place."""
    return Call("DELETE", _path(name))


def put_consumer(
    name: str,
    *,
    start: str | int | datetime = "now",
    types: Iterable[str] = (),
    item_ids: Iterable[int] = (),
    account_ids: Iterable[int] = (),
    user_uuids: Iterable[str] = (),
    sources: Iterable[str] = (),
    ack_mode: str = DEFAULT_ACK_MODE,
    lease_s: int = DEFAULT_LEASE_S,
    reset: bool = False,
) -> Call:
    """Make a consumer, or change it: it is then as described here, in every field.

    `start` is `now`, `start`, a position, an id or a time: where a new one begins. One that exists
    keeps its place, unless `reset` moves it to `start`, too.
    """
    wanted = filter_body(filters(types, item_ids, account_ids, user_uuids, sources))
    begin = moment(start) if isinstance(start, datetime) else start
    body = {"start": begin, "filter": wanted, "ack_mode": ack_mode, "lease_s": lease_s}
    return Call("PUT", _path(name), body | ({"reset": True} if reset else {}))


def reset_consumer(known: Mapping[str, Any], start: str | int) -> Call:
    """Move a consumer to `start`, leaving it otherwise as `get_consumer` answered it."""
    kept = {field: known[field] for field in ("filter", "ack_mode", "lease_s")}
    return Call("PUT", _path(known["name"]), kept | {"start": start, "reset": True})


@dataclass(frozen=True, slots=True)
class Need:
    """A consumer that a subscription needs: made if there is none, never changed."""

    name: str
    start: str = "now"
    filter: Mapping[str, Any] = field(default_factory=dict)

    @property
    def look(self) -> Call:
        """See whether it is there."""
        return Call("GET", _path(self.name), may_miss=True)

    def missing(self, known: Mapping[str, Any] | None) -> Call | None:
        """Return the call that makes it, None if it is there. Raises OtherFilter."""
        if known is None:
            return Call("PUT", _path(self.name), {"start": self.start, "filter": self.filter})
        if self.filter and known["filter"] != self.filter:
            raise OtherFilter(
                f"the consumer {self.name} has the filter {known['filter']}, asked for was "
                f"{self.filter}: change it with put_consumer, or leave the filter out"
            )
        return None


def _path(name: str, rest: str = "") -> str:
    if name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not a consumer's name")
    return f"/consumers/{quote(name, safe='')}{rest}"
