"""How each outgoing webhook stands: itself, what it has still to send, what it never will."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.delivery import Backlog, Deliveries
from service.webhook import Webhooks, unknown
from service.webhook_value import Webhook


@dataclass(frozen=True, slots=True)
class Standing:
    """A webhook, its backlog, and the events that it was owed and that have no delivery."""

    webhook: Webhook
    backlog: Backlog
    orphans: int

    @property
    def name(self) -> str:
        """Its name; without one its number."""
        return self.webhook.name or str(self.webhook.webhook_id)

    @property
    def lag_events(self) -> int:
        """Positions between its cursor and the log's head."""
        return max(0, self.webhook.head_position - self.webhook.cursor_position)


class Standings:
    """All outgoing webhooks, for whoever looks at them."""

    def __init__(
        self,
        webhooks: Webhooks,
        deliveries: Deliveries,
        orphans: Callable[[], Mapping[int, int]],
    ) -> None:
        self._webhooks = webhooks
        self._deliveries = deliveries
        self._orphans = orphans

    async def all(self) -> list[Standing]:
        """Return every webhook, by number. Raises WebhooksOff, LogUnavailable."""
        webhooks = await self._webhooks.all()
        backlogs = {one.webhook_id: one for one in await self._deliveries.backlog()}
        orphans = self._orphans()
        return [
            Standing(webhook, backlogs[id_], orphans.get(id_, 0))
            for webhook in webhooks
            if (id_ := webhook.webhook_id) in backlogs  # not deleted between the two
        ]

    async def one(self, webhook_id: int) -> Standing:
        """Return one webhook. Raises UnknownWebhook, WebhooksOff, LogUnavailable."""
        for standing in await self.all():
            if standing.webhook.webhook_id == webhook_id:
                return standing
        raise unknown(webhook_id)

    async def uncalled(self) -> int:
        """Return how many webhooks there are that nothing can be sent for: no secret key is set."""
        if self._webhooks.is_on:
            return 0
        return len(await self._deliveries.backlog())
