"""The relay: takes what webhooks are owed, signs it, posts it, writes down how it ended.

One loop claims for all webhooks at once; each attempt is a task; `recorder.py` writes the results.
Each webhook has room for so many calls and no more, so a slow or dead callback delays nobody but
itself. At least once: a process that is killed leaves claims behind, which are due again when their
lease ends.
"""

import asyncio
import logging
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from service.callback import Answer, Callbacks
from service.callback_url import CallbackUrl, parse_callback_url
from service.config import Settings
from service.delivery import Claimed, Deliveries, Ended, Outlook, Room
from service.errors import WebhooksOff
from service.latency import Receipts
from service.metrics import Metrics
from service.outgoing import Signer
from service.recorder import Recorder
from service.tracing import Attempt, Traces
from service.verdict import Verdict, judge
from service.waiting import end
from service.webhook import Webhook, Webhooks

log = logging.getLogger("causeway.relay")

BUSY_S = 0.02
RELOAD_S = 15.0  # one that could not be loaded is tried again so often
FLUSH_S = 2.0
ANSWER_KEPT_BYTES = 1024
LEASE_MARGIN_S = 10.0


@dataclass(slots=True)
class _Route:
    """A webhook, ready to be called. `url` is None if the settings do not allow its URL (any more).

    `may_have_more`: the last claim did not take all there was.
    """

    webhook: Webhook
    signer: Signer
    url: CallbackUrl | None
    scanned_to: int = 0
    scanned_link: bytes | None = None
    may_have_more: bool = True


class Relay:
    """Delivers for all webhooks. `run` and `record` are loops for the supervisor."""

    def __init__(
        self,
        settings: Settings,
        webhooks: Webhooks,
        deliveries: Deliveries,
        callbacks: Callbacks,
        metrics: Metrics,
        traces: Traces | None = None,
    ) -> None:
        self._settings = settings
        self._webhooks = webhooks
        self._deliveries = deliveries
        self._callbacks = callbacks
        self._metrics = metrics
        self._traces = traces
        self._recorder = Recorder(
            deliveries,
            metrics,
            disable_after_s=settings.relay_disable_after_s,
            on_settled=self._settled,
        )
        self._routes: dict[int, _Route] = {}
        self._left_out: set[int] = set()  # could not be loaded
        self._reload_at = float("-inf")
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._claiming = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self.record = self._recorder.run

    @property
    def lease_s(self) -> float:
        """How long a claim lasts: an attempt that has begun always ends within it."""
        return 2 * self._settings.relay_timeout_s + LEASE_MARGIN_S

    def wake(self) -> None:
        """Look for work now: a hint."""
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more; what is under way goes on."""
        self._is_stopping = True

    async def drain(self, within_s: float) -> None:
        """Stop, let calls that are open end within `within_s`, and write everything down.

        What a claim under way brings is sent, too. A call that is cut is due again at once, for
        another process: it may get there twice.
        """
        self.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                async with self._claiming:
                    pass
                if self._tasks:
                    await asyncio.wait(self._tasks)
        await end(set(self._tasks))
        await self._recorder.flushed(FLUSH_S)

    async def run(self) -> None:
        """Claim and send, for ever. Raises LogUnavailable for the supervisor to begin anew."""
        while True:
            self._wake.clear()  # before the look: what comes after it wakes us again
            wait_s = self._settings.poll_s
            async with self._claiming:
                if not self._is_stopping:
                    wait_s = await self._claim()
            if wait_s > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()

    async def _claim(self) -> float:
        """Claim and send what there is room for; return when to look again, in seconds."""
        began = self._loop.time()
        room = self._settings.relay_concurrency
        rooms = [
            Room(
                *(id_, route.webhook.version, room - self._recorder.in_flight[id_]),
                *(route.scanned_to, route.scanned_link),
            )
            for id_, route in self._routes.items()
        ]
        claimed, outlooks = await self._deliveries.claim(
            rooms, lease_s=self.lease_s, backfill_per_s=self._settings.relay_backfill_per_s
        )
        for one in claimed:
            self._send(one, began + self.lease_s - self._settings.relay_timeout_s)
        for gone in self._routes.keys() - outlooks.keys():
            del self._routes[gone]
        wait_s = self._settings.poll_s
        for id_, outlook in outlooks.items():
            wait_s = min(wait_s, self._follow(id_, outlook))
        changed = {id_ for id_, outlook in outlooks.items() if outlook.outcome == "changed"}
        if changed - self._left_out or (changed and began >= self._reload_at):
            await self._load()
            self._left_out = changed - self._routes.keys()
            return 0.0
        return wait_s

    def _follow(self, id_: int, outlook: Outlook) -> float:
        """Keep what a claim says of a webhook; return in how many seconds it should be asked."""
        route = self._routes.get(id_)
        if outlook.outcome == "disabled":
            self._recorder.report(id_, str(outlook.reason))
        if route is None:
            return self._settings.poll_s
        if outlook.scanned_to is not None:
            route.scanned_to, route.scanned_link = outlook.scanned_to, outlook.scanned_link
        has_room = self._recorder.in_flight[id_] < self._settings.relay_concurrency
        route.may_have_more = outlook.outcome in ("more", "busy") or not has_room
        if outlook.outcome == "more" and has_room:
            return 0.0
        if outlook.outcome == "busy":
            return BUSY_S
        return self._settings.poll_s if outlook.wait_s is None else max(0.0, outlook.wait_s)

    async def _load(self) -> None:
        """Take up webhooks as they are now."""
        self._reload_at = self._loop.time() + RELOAD_S
        routes: dict[int, _Route] = {}
        try:
            webhooks = await self._webhooks.enabled()
        except WebhooksOff as off:
            log.error("webhooks are not called", extra={"reason": off.message})
            webhooks = []
        for webhook in webhooks:
            known = self._routes.get(webhook.webhook_id)
            if known is None or known.webhook.version != webhook.version:
                known = _Route(webhook, Signer(webhook), self._parse_url(webhook))
            routes[webhook.webhook_id] = known
        self._routes = routes

    def _parse_url(self, webhook: Webhook) -> CallbackUrl | None:
        try:
            return parse_callback_url(webhook.url, allow_http=self._settings.relay_allow_http)
        except ValueError as error:
            extra = {"webhook": webhook.webhook_id, "reason": str(error)}
            log.error("a webhook's URL is not allowed", extra=extra)
            return None

    def _send(self, claimed: Claimed, until: float) -> None:
        """Start an attempt; it does not begin after `until` (the loop's clock)."""
        self._recorder.begin(claimed.webhook_id)
        task = self._loop.create_task(self._attempt(claimed, until))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempt(self, claimed: Claimed, until: float) -> None:
        """Make one attempt and hand over its result; whatever happens, there is one."""
        route = self._routes.get(claimed.webhook_id)
        began, started_at = time.time(), datetime.now(UTC)
        trace = None if self._traces is None else self._traces.attempt(claimed.link)
        answer, verdict = _UNSENT, _RELEASED
        try:
            if not claimed.body:  # pruned, or erased
                answer = Answer(None, "event_gone", b"", 0.0, None)
                verdict = Verdict("event_gone", "exhausted", claimed.step + 1)
            elif route is not None and self._loop.time() < until:
                answer = await self._post(route, claimed, claimed.body, began, trace)
                verdict = judge(
                    answer.status,
                    answer.error,
                    answer.retry_after_s,
                    step=claimed.step,
                    early_s=claimed.early_s,
                    jitter=random.random(),  # noqa: S311
                )
        except Exception as error:
            log.error("attempt failed", extra={"webhook": claimed.webhook_id}, exc_info=error)
            answer = Answer(None, "internal", b"", time.time() - began, None)
            verdict = judge(
                None, "internal", None, step=claimed.step, early_s=claimed.early_s, jitter=1.0
            )
        finally:
            self._end(claimed, answer, verdict, started_at)
            if self._traces is not None and trace is not None and verdict is not _RELEASED:
                self._traces.attempted(trace, claimed, answer, verdict)

    async def _post(
        self, route: _Route, claimed: Claimed, body: bytes, now_s: float, trace: Attempt | None
    ) -> Answer:
        if route.url is None:
            return Answer(None, "address_denied", b"", 0.0, None)
        headers = route.signer.headers(
            *(claimed.id, body, now_s),
            position=claimed.position,
            attempt=claimed.attempt,
            traceparent=None if trace is None else trace.traceparent,
        )
        return await self._callbacks.post(route.url, headers, body)

    def _end(
        self, claimed: Claimed, answer: Answer, verdict: Verdict, started_at: datetime
    ) -> None:
        if verdict is not _RELEASED:
            self._metrics.relay_attempts.labels(verdict.error or "success").inc()
        if verdict.state == "exhausted":
            self._metrics.relay_exhausted.inc()
        is_final = verdict.state in ("delivered", "exhausted")
        if is_final and claimed.is_measured and claimed.received_at is not None:
            # What was given up counts too, as late as it is: the figure hides no failure.
            receipts = Receipts.of([claimed.received_at.timestamp()])
            self._metrics.delivery.observe_many("webhook", time.time(), receipts)
        self._recorder.end(
            Ended(
                claimed.webhook_id,
                claimed.position,
                claimed.claim,
                claimed.attempt,
                verdict.state,
                claimed.step if verdict is _RELEASED else verdict.step,
                verdict.due_in_s,
                started_at,
                round(answer.duration_s * 1000),
                answer.status,
                verdict.error,
                answer.body[:ANSWER_KEPT_BYTES],
                verdict.pause_s,
                claimed.link,
            )
        )

    def _settled(self, webhook_ids: set[int], has_changed: bool) -> None:
        """Look for more where there may be some: room was given back, a held event let go."""
        routes = [self._routes.get(id_) for id_ in webhook_ids]
        if has_changed or any(
            route and (route.may_have_more or route.webhook.is_ordered) for route in routes
        ):
            self.wake()


_UNSENT = Answer(None, None, b"", 0.0, None)
_RELEASED = Verdict(None, "released", 0)
