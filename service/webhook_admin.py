"""What administrators do to outgoing webhooks, as the API and the dashboard both offer it.

Bodies are the API's JSON: one parser, one set of rules. What is done is logged with who did it; a
URL or a header may hold a secret, and is never part of that.
"""

import logging
import secrets
import time
from dataclasses import dataclass

from service.callback import Answer, Callbacks
from service.callback_url import CallbackUrl, parse_callback_url
from service.config import Settings
from service.cursor import Begin, Live, resolve
from service.errors import BadRequest
from service.event import timestamp
from service.eventlog import EventLog
from service.outgoing import Signer
from service.payloads import TEST_EVENT
from service.webhook import Webhooks
from service.webhook_body import parse_change, parse_start, parse_wish
from service.webhook_value import Webhook
from service.window import Window

log = logging.getLogger("causeway.webhook_admin")

SHOWN_BYTES = 1024  # of what came back to a test
_DISABLED = {
    "admin": "an administrator disabled it; enabled, it goes on where it stands",
    "gone": "its callback answered 410 Gone; enable it when the callback is there again",
    "failing": "its callback failed for days on end; enable it when the callback works again",
    "log_diverged": "the log was restored or replaced, and does not continue from its place; "
    "enable it with a start",
    "position_pruned": "what follows its place is no longer kept; enable it with a start",
}


@dataclass(frozen=True, slots=True)
class Tested:
    """What came back to a test event."""

    message_id: str
    answer: Answer

    @property
    def text(self) -> str:
        """The first bytes of the answer, as text."""
        return self.answer.body[:SHOWN_BYTES].decode("utf-8", "replace")


class WebhookAdmin:
    """Makes, changes and tests webhooks. Every call raises WebhooksOff without a secret key."""

    def __init__(
        self,
        settings: Settings,
        webhooks: Webhooks,
        callbacks: Callbacks,
        eventlog: EventLog,
        window: Window,
    ) -> None:
        self.webhooks = webhooks
        self._callbacks = callbacks
        self._eventlog = eventlog
        self._window = window
        self._allow_http = settings.relay_allow_http

    async def create(self, body: bytes, by: str) -> Webhook:
        """Make the webhook that a body wishes for, with a new secret; return it."""
        self.webhooks.require()
        wish = parse_wish(body, allow_http=self._allow_http)
        await self._check(wish.url)
        position, link = await self._place(wish.begin)
        webhook = await self.webhooks.create(
            application=wish.application,
            name=wish.name,
            url=wish.url.text,
            filter_=wish.filter,
            headers=wish.headers,
            is_ordered=wish.is_ordered,
            position=position,
            link=link,
            created_by=by,
        )
        _report("webhook created", webhook.webhook_id, by)
        return webhook

    async def change(self, webhook_id: int, body: bytes, by: str) -> Webhook:
        """Change what a body names; return the webhook then."""
        self.webhooks.require()
        change, url = parse_change(body, allow_http=self._allow_http)
        if url is not None:
            await self._check(url)
        webhook = await self.webhooks.change(webhook_id, change)
        _report("webhook changed", webhook_id, by, fields=sorted(change.fields))
        return webhook

    async def disable(self, webhook_id: int, by: str) -> Webhook:
        """Call it no more until it is enabled; calls under way end."""
        webhook = await self.webhooks.disable(webhook_id, "admin")
        _report("webhook disabled", webhook_id, by)
        return webhook

    async def enable(self, webhook_id: int, body: bytes, by: str) -> Webhook:
        """Call it again, from where it stands or from a `start` further on."""
        begin = parse_start(body)
        start = None if begin is None else await self._place(begin)
        webhook = await self.webhooks.enable(webhook_id, start)
        _report("webhook enabled", webhook_id, by)
        return webhook

    async def rotate(self, webhook_id: int, by: str) -> Webhook:
        """Give it a new secret; the old one signs for a day more."""
        webhook = await self.webhooks.rotate(webhook_id)
        _report("webhook secret rotated", webhook_id, by)
        return webhook

    async def delete(self, webhook_id: int, by: str) -> None:
        """Forget it and its secrets."""
        await self.webhooks.delete(webhook_id)
        _report("webhook deleted", webhook_id, by)

    async def test(self, webhook_id: int, by: str) -> Tested:
        """Send Bridge's test event at once; return what came back. Counts for nothing."""
        webhook = await self.webhooks.read(webhook_id)
        signer, url = Signer(webhook), self._parse_url(webhook)
        message_id = f"test_{secrets.token_hex(16)}"
        headers = signer.headers(message_id, TEST_EVENT, time.time(), position=None, attempt=1)
        answer = await self._callbacks.post(url, headers, TEST_EVENT)
        _report("webhook tested", webhook_id, by)
        return Tested(message_id, answer)

    def _parse_url(self, webhook: Webhook) -> CallbackUrl:
        try:
            return parse_callback_url(webhook.url, allow_http=self._allow_http)
        except ValueError as error:  # the settings have changed since it was made
            raise BadRequest(f"url: {error}") from error

    async def _check(self, url: CallbackUrl) -> None:
        refusal = await self._callbacks.check(url)
        if refusal is not None:
            raise BadRequest(f"url: {refusal}")

    async def _place(self, begin: Begin) -> tuple[int, bytes]:
        """Return the position to begin after and its link, if the log continues from there."""
        if isinstance(begin, Live):  # the head itself: the window may be a moment behind
            bounds = await self._eventlog.bounds()
            return bounds.head_position, bounds.head_link
        position = await resolve(begin, self._eventlog, self._window)
        return position, await self._eventlog.check(position, None)


def explain(webhook: Webhook) -> str:
    """Return the state in a sentence, for whoever was woken by it."""
    if webhook.disabled_reason is not None:
        return _DISABLED.get(webhook.disabled_reason, webhook.disabled_reason)
    if webhook.unreadable is not None:
        return f"{webhook.unreadable}; if it is lost, set the headers anew and rotate the secret"
    if webhook.failing_since is None:
        return "its last call succeeded, or none was made yet"
    failing = f"{webhook.failures} calls failed since {timestamp(webhook.failing_since)}"
    if webhook.open_until is None:
        return failing
    return f"{failing}; one probe at a time until one succeeds, see next_probe_at"


def _report(what: str, webhook_id: int, by: str, **fields: object) -> None:
    log.info(what, extra={"webhook": webhook_id, "by": by, **fields})
