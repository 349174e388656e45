"""`/dashboard/consumers`: how far each is behind, who holds it; to move its place, to forget it."""

from starlette.requests import Request
from starlette.responses import Response

from service.body import parse_begin
from service.consumer import Consumer, Consumers
from service.cursor import resolve
from service.dashboard.door import Form, one
from service.dashboard.search import describe_filter
from service.dashboard.view import render
from service.errors import BadRequest
from service.eventlog import EventLog
from service.window import Window


class ConsumersPage:
    """The named consumers."""

    def __init__(self, consumers: Consumers, eventlog: EventLog, window: Window) -> None:
        self._consumers = consumers
        self._eventlog = eventlog
        self._window = window

    async def page(self, request: Request) -> Response:
        """Show all consumers."""
        return await self._show(request, "consumers.html")

    async def table(self, request: Request) -> Response:
        """Show them again, as they are now."""
        return await self._show(request, "consumers_table.html")

    async def reset(self, request: Request) -> Response:
        """Move a consumer's place; its holders lose it, and come again."""
        form: Form = request.scope["form"]
        consumer = await self._consumers.read(request.path_params["name"])
        start = one(form, "start")
        begin = parse_begin(one(form, "place").strip() if start == "place" else start)
        position = await resolve(begin, self._eventlog, self._window)
        await self._consumers.put(
            consumer.name,
            ack_mode=consumer.ack_mode,
            lease_s=consumer.lease_s,
            filter_=consumer.filter,
            position=position,
            link=await self._eventlog.check(position, None),
            is_reset=True,
        )
        done = f"{consumer.name} goes on after position {position:,}."
        return await self._show(request, "consumers_table.html", done)

    async def delete(self, request: Request) -> Response:
        """Forget a consumer and its place. Its name must be typed."""
        name = request.path_params["name"]
        if one(request.scope["form"], "name") != name:
            raise BadRequest(f"type the consumer's name, {name}, to delete it")
        await self._consumers.delete(name)
        return await self._show(request, "consumers_table.html", f"{name} is deleted.")

    async def _show(self, request: Request, template: str, done: str = "") -> Response:
        consumers = await self._consumers.all()
        rows = [(consumer, describe_filter(consumer.filter)) for consumer in consumers]
        return render(
            request,
            template,
            title="Consumers",
            rows=rows,
            done=done,
            oldest=_oldest,
            head=(await self._eventlog.bounds()).head_position,
        )


def _oldest(consumer: Consumer) -> float:
    return max(shard.lag_s for shard in consumer.shards)
