"""`/dashboard/webhooks/{id}`: one webhook: how it is, its settings, what can be done to it."""

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.dashboard.door import one
from service.dashboard.view import HEADERS, render
from service.dashboard.webhook_form import GROUPS, KNOWN, as_change, as_start
from service.dashboard.webhook_list import WebhookList, webhook_id
from service.dashboard.webhook_words import health, outcome
from service.delivery_list import STATES
from service.errors import BadRequest
from service.standing import Standings
from service.webhook_admin import WebhookAdmin

NEEDS_START = ("log_diverged", "position_pruned")


@dataclass(frozen=True, slots=True)
class Done:
    """What was done: said once, with the secret that it gave."""

    text: str
    secret: str = ""


class WebhookPage:
    """One webhook."""

    def __init__(self, admin: WebhookAdmin, standings: Standings, lists: WebhookList) -> None:
        self._admin = admin
        self._standings = standings
        self._lists = lists

    async def page(self, request: Request) -> Response:
        """Show a webhook, its replays and its newest deliveries."""
        values = await self._values(request)
        listed = await self._lists.deliveries(request)
        replays = await self._lists.replays(request)
        values |= {"listed": listed, "replays": replays, "states": STATES, "done": None}
        return render(request, "webhook.html", title=f"Webhook {values['it'].name}", **values)

    async def standing(self, request: Request) -> Response:
        """Show how it is now."""
        return render(request, "webhook_standing.html", **await self._values(request))

    async def change(self, request: Request) -> Response:
        """Change its settings."""
        await self._admin.change(
            webhook_id(request), as_change(request.scope["form"]), _by(request)
        )
        return await self._show(request, Done("The settings are changed."))

    async def rotate(self, request: Request) -> Response:
        """Give it a new secret and show it: the only time."""
        webhook = await self._admin.rotate(webhook_id(request), _by(request))
        return await self._show(request, Done("The secret is rotated.", webhook.secret))

    async def disable(self, request: Request) -> Response:
        """Call it no more."""
        await self._admin.disable(webhook_id(request), _by(request))
        return await self._show(
            request, Done("It is disabled: nothing is sent until it is enabled.")
        )

    async def enable(self, request: Request) -> Response:
        """Call it again."""
        start = as_start(request.scope["form"])
        await self._admin.enable(webhook_id(request), start, _by(request))
        return await self._show(request, Done("It is enabled: what waits is sent at once."))

    async def delete(self, request: Request) -> Response:
        """Forget it. Its name, or its number without one, must be typed."""
        id_ = webhook_id(request)
        name = (await self._standings.one(id_)).name
        if one(request.scope["form"], "name").strip() != name:
            raise BadRequest(f"type the webhook's name, {name}, to delete it")
        await self._admin.delete(id_, _by(request))
        return Response(status_code=200, headers={**HEADERS, "hx-redirect": "/dashboard/webhooks"})

    async def test(self, request: Request) -> Response:
        """Send Bridge's test event, and show what came back."""
        tested = await self._admin.test(webhook_id(request), _by(request))
        answer = tested.answer
        state = outcome(answer.status, answer.error)
        return render(request, "webhook_tested.html", tested=tested, state=state)

    async def _show(self, request: Request, done: Done) -> Response:
        return render(request, "webhook_part.html", done=done, **await self._values(request))

    async def _values(self, request: Request) -> dict[str, Any]:
        standing = await self._standings.one(webhook_id(request))
        webhook = standing.webhook
        return {
            "it": standing,
            "webhook": webhook,
            "health": health(standing),
            "groups": GROUPS,
            "known": KNOWN,
            "needs_start": webhook.disabled_reason in NEEDS_START,
        }


def _by(request: Request) -> str:
    name: str = request.scope["session"].caller.name
    return name
