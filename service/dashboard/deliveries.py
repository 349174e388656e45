"""`/dashboard/webhooks/{id}/deliveries...`: further rows of the list; one delivery's attempts."""

from starlette.requests import Request
from starlette.responses import Response

from service.dashboard.view import render
from service.dashboard.webhook_list import WebhookList, webhook_id
from service.dashboard.webhook_words import delivery_state, outcome, shown
from service.delivery_admin import DeliveryAdmin
from service.delivery_wish import parse_position
from service.standing import Standings


class DeliveriesPage:
    """What became of a webhook's events."""

    def __init__(self, admin: DeliveryAdmin, standings: Standings, lists: WebhookList) -> None:
        self._admin = admin
        self._standings = standings
        self._lists = lists

    async def rows(self, request: Request) -> Response:
        """Show the rows that the query asks for, and how to get those after them."""
        listed = await self._lists.deliveries(request)
        if listed.problem is not None:
            raise listed.problem
        id_ = webhook_id(request)
        return render(request, "delivery_rows.html", listed=listed, webhook_id=id_)

    async def page(self, request: Request) -> Response:
        """Show one delivery and its attempts."""
        return await self._show(request, "delivery.html")

    async def part(self, request: Request) -> Response:
        """Show it again, as it is now."""
        return await self._show(request, "delivery_part.html")

    async def replay(self, request: Request) -> Response:
        """Send its event again, at once."""
        by = request.scope["session"].caller.name
        outcome_ = await self._admin.replay_one(webhook_id(request), _position(request), by)
        done = {
            "queued": "It is sent again now: the attempt appears here.",
            "pending": "It is on its way already: it is sent now.",
        }
        return await self._show(request, "delivery_part.html", done.get(outcome_, outcome_))

    async def _show(self, request: Request, template: str, done: str = "") -> Response:
        id_, position = webhook_id(request), _position(request)
        standing = await self._standings.one(id_)
        delivery, attempts = await self._admin.deliveries.read(id_, position)
        tries = [(one, outcome(one.status, one.error), shown(one)) for one in attempts]
        return render(
            request,
            template,
            title=f"Delivery of {position} to {standing.name}",
            it=standing,
            delivery=delivery,
            state=delivery_state(delivery),
            tries=tries,
            done=done,
        )


def _position(request: Request) -> int:
    return parse_position(request.path_params["position"])
