"""`/dashboard/webhooks/{id}/replays`: a range sent again: counted first, then begun and watched."""

from starlette.requests import Request
from starlette.responses import Response

from service.dashboard.search import describe_filter
from service.dashboard.view import render
from service.dashboard.webhook_form import as_replay
from service.dashboard.webhook_list import WebhookList, webhook_id
from service.delivery_admin import DeliveryAdmin
from service.delivery_wish import parse_replay
from service.errors import UnknownReplay


class ReplaysPage:
    """The replays of a webhook."""

    def __init__(self, admin: DeliveryAdmin, lists: WebhookList) -> None:
        self._admin = admin
        self._lists = lists

    async def part(self, request: Request) -> Response:
        """Show the newest replays, as far as they are now."""
        id_ = webhook_id(request)
        replays = await self._lists.replays(request)
        return render(request, "replays.html", replays=replays, webhook_id=id_)

    async def count(self, request: Request) -> Response:
        """Say how many events would be sent, and offer to send just those: the dry run."""
        id_, wish = webhook_id(request), parse_replay(as_replay(request.scope["form"]))
        wanted, events = await self._admin.count(id_, wish)
        return render(
            request,
            "replay_counted.html",
            webhook_id=id_,
            wanted=wanted,
            events=events,
            chosen=describe_filter(wanted.filter),
        )

    async def begin(self, request: Request) -> Response:
        """Begin what was counted."""
        id_, wish = webhook_id(request), parse_replay(as_replay(request.scope["form"]))
        wanted, events = await self._admin.count(id_, wish)
        by = request.scope["session"].caller.name
        await self._admin.begin(id_, wanted, events, by)
        return await self.part(request)

    async def cancel(self, request: Request) -> Response:
        """Stop one; what it queued is sent nevertheless."""
        id_, text = webhook_id(request), request.path_params["replay_id"]
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise UnknownReplay(f"the webhook {id_} has no replay {text[:32]!r}")
        await self._admin.cancel(id_, int(text), request.scope["session"].caller.name)
        return await self.part(request)
