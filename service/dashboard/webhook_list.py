"""What several pages show of a webhook: the deliveries asked for, its newest replays."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request

from service.cursor import Params
from service.dashboard.webhook_words import State, delivery_state, outcome
from service.delivery_admin import DeliveryAdmin
from service.delivery_list import Delivery, Reach
from service.delivery_wish import parse_listing
from service.errors import BadRequest
from service.replay import Replay
from service.webhook import unknown

FIELDS = ("state", "type", "item_id")
_INT64 = 2**63
REPLAYS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """A delivery with how it is and how its last call ended."""

    delivery: Delivery
    state: State
    last: State | None


@dataclass(frozen=True, slots=True)
class Deliveries:
    """A page of deliveries; `next` is the query for the page after it, empty at the end."""

    typed: Mapping[str, str]
    rows: list[Row]
    query: str
    next: str
    reach: Reach | None
    problem: BadRequest | None = None


class WebhookList:
    """The lists of one webhook."""

    def __init__(self, admin: DeliveryAdmin) -> None:
        self._admin = admin

    async def deliveries(self, request: Request) -> Deliveries:
        """Return the deliveries that the query asks for; what is wrong with it, if it can't be."""
        typed = {name: request.query_params.get(name, "").strip()[:500] for name in FIELDS}
        before = request.query_params.get("before", "")
        params: Params = {name: words for name in FIELDS if (words := _words(typed[name]))}
        if before:
            params = {**params, "before": [before]}
        query = urlencode([(name, text) for name, text in typed.items() if text])
        try:
            listing = parse_listing(params)
        except BadRequest as error:
            return Deliveries(typed, [], query, "", None, error)
        listed = await self._admin.list(webhook_id(request), listing)
        following = f"before={listed.next}&{query}".rstrip("&") if listed.next else ""
        return Deliveries(
            typed, [_row(it) for it in listed.deliveries], query, following, listed.reach
        )

    async def replays(self, request: Request) -> list[Replay]:
        """Return the newest replays."""
        return (await self._admin.replays.all(webhook_id(request)))[:REPLAYS]


def webhook_id(request: Request) -> int:
    """Return the number that the path names. Raises UnknownWebhook."""
    text: str = request.path_params["id"]
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < _INT64):
        raise unknown(text)
    return int(text)


def _row(delivery: Delivery) -> Row:
    last = None
    if delivery.status is not None or delivery.error is not None:
        last = outcome(delivery.status, delivery.error)
    return Row(delivery, delivery_state(delivery), last)


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()
