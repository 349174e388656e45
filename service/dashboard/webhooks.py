"""`/dashboard/webhooks`: every outgoing webhook and how it stands; to make another."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.dashboard.search import describe_filter
from service.dashboard.view import render
from service.dashboard.webhook_form import GROUPS, KNOWN, as_wish
from service.dashboard.webhook_words import health
from service.errors import WebhooksOff
from service.standing import Standings
from service.webhook_admin import WebhookAdmin


class WebhooksPage:
    """The webhooks."""

    def __init__(self, admin: WebhookAdmin, standings: Standings) -> None:
        self._admin = admin
        self._standings = standings

    async def page(self, request: Request) -> Response:
        """Show all webhooks; how to switch them on, if they are off."""
        return await self._show(request, "webhooks.html")

    async def table(self, request: Request) -> Response:
        """Show them again, as they are now."""
        return await self._show(request, "webhooks_table.html")

    async def new(self, request: Request) -> Response:
        """Show the form for a new one."""
        self._admin.webhooks.require()
        values: dict[str, Any] = {"groups": GROUPS, "known": KNOWN, "webhook": None}
        return render(request, "webhook_new.html", title="Add a webhook", **values)

    async def create(self, request: Request) -> Response:
        """Make a webhook and show its secret: the only time."""
        by = request.scope["session"].caller.name
        webhook = await self._admin.create(as_wish(request.scope["form"]), by)
        return render(request, "webhook_made.html", webhook=webhook)

    async def _show(self, request: Request, template: str) -> Response:
        off, rows = None, []
        try:
            for standing in await self._standings.all():
                wants = describe_filter(standing.webhook.filter)
                rows.append((standing, health(standing), wants))
        except WebhooksOff as error:
            off = error
        uncalled = await self._standings.uncalled() if off else 0
        values: dict[str, Any] = {"rows": rows, "off": off, "uncalled": uncalled}
        return render(request, template, title="Webhooks", **values)
