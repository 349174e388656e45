"""`/dashboard/events/{position}`: all that is known of one event, and its exact bytes."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from service.consumer import Consumer, Consumers
from service.cursor import parse_place
from service.dashboard.pretty import HEX_MAX, hex_dump, lay_out
from service.dashboard.view import HEADERS, render
from service.dashboard.webhook_words import State, event_state
from service.delivery_list import DeliveryList
from service.errors import NotFound, PositionAhead, WebhooksOff
from service.event import Event
from service.eventlog import EventLog
from service.filter import shard_of
from service.item_status import meaning, status_of
from service.standing import Standing, Standings

DONE, SENT, WAITING, FILTERED = "done", "sent, not acknowledged", "not sent yet", "not wanted"


@dataclass(frozen=True, slots=True)
class Passage:
    """How far a consumer is with one event."""

    name: str
    state: str
    shard: str
    held_by: str | None


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of one event for a webhook."""

    standing: Standing
    state: State
    has_delivery: bool


class EventPage:
    """One event."""

    def __init__(
        self,
        eventlog: EventLog,
        consumers: Consumers,
        standings: Standings,
        deliveries: DeliveryList,
    ) -> None:
        self._eventlog = eventlog
        self._consumers = consumers
        self._standings = standings
        self._deliveries = deliveries

    async def page(self, request: Request) -> Response:
        """Show one event, and where it went."""
        event = await self._read(request)
        passages = [_passage(consumer, event) for consumer in await self._consumers.all()]
        code, info = status_of(event.body)
        return render(
            request,
            "event.html",
            title=f"Event {event.position}",
            event=event,
            layout=lay_out(event.body.decode("utf-8", "replace")),
            dump=hex_dump(event.body),
            dump_max=HEX_MAX,
            passages=passages,
            arrivals=await self._arrivals(event),
            status_code=code,
            status_info=info,
            meaning=None if code is None else meaning(code),
            head=(await self._eventlog.bounds()).head_position,
        )

    async def _arrivals(self, event: Event) -> list[Arrival]:
        """Return what became of it for each webhook; nothing where they are off."""
        try:
            standings = await self._standings.all()
        except WebhooksOff:
            return []
        known = await self._deliveries.of_event(event.position)
        return [
            Arrival(it, event_state(it.webhook, delivery, event), delivery is not None)
            for it in standings
            for delivery in (known.get(it.webhook.webhook_id),)
        ]

    async def body(self, request: Request) -> Response:
        """Answer the exact bytes, as a file: a browser must not take them for a page."""
        event = await self._read(request)
        headers = {
            **HEADERS,
            "content-disposition": f'attachment; filename="event-{event.position}.json"',
        }
        return Response(event.body, 200, headers, "application/octet-stream")

    async def _read(self, request: Request) -> Event:
        place = parse_place(request.path_params["position"], "position")
        if place.position == 0:
            raise NotFound("the first position is 1")
        try:
            await self._eventlog.check(place.position, place.link_digits)
        except PositionAhead as error:
            raise NotFound(error.message) from error
        events = await self._eventlog.read_after(place.position - 1, limit=1)
        if not events:
            raise NotFound(f"there is no event at position {place.position}")
        return events[0]


def _passage(consumer: Consumer, event: Event) -> Passage:
    shard = consumer.shards[shard_of(event, len(consumer.shards))]
    if event.position <= shard.position:
        state = DONE
    elif event.position <= shard.sent_position:
        state = SENT
    else:
        state = WAITING
    if not consumer.filter.matcher()(event):
        state = FILTERED
    return Passage(consumer.name, state, f"{shard.number}/{len(consumer.shards)}", shard.held_by)
