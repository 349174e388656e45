"""`POST /webhooks/bridge[/{source}]`: cap the body, verify, parse, append, answer.

200 means committed; any other answer means that Bridge must send the event again. Everything that
can be refused before the body is read is refused before. A raw ASGI endpoint, because it is the hot
path and needs nothing of a request object.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from time import perf_counter

from starlette.types import Receive, Scope, Send

from service.address import AllowList
from service.appender import Appender
from service.config import Settings
from service.deadline import Deadline
from service.errors import (
    AddressNotAllowed,
    BadSignature,
    BodyTimeout,
    BodyTooLarge,
    Problem,
    UnknownSource,
)
from service.event import NewEvent, parse_event
from service.eventlog import Appended
from service.intake import Intake
from service.metrics import Metrics
from service.signature import matching_secret
from service.sources import DEFAULT_SOURCE, Sources
from service.tracing import Traces

_SIGNATURE = b"bridgeapi-signature"
_SECRET_NAMES = ("current", "previous")
UNKNOWN = "-"  # the metrics' label of sources that do not exist: a caller cannot make up labels

Now = Callable[[], datetime]


class HungUp(Exception):
    """The caller closed the connection before its body was here: there is nobody to answer."""


def _now() -> datetime:
    return datetime.now(UTC)


class ReceiveWebhook:
    """The endpoint. One call, one event."""

    def __init__(
        self,
        settings: Settings,
        sources: Sources,
        appender: Appender,
        intake: Intake,
        metrics: Metrics,
        traces: Traces | None = None,
        now: Now = _now,
    ) -> None:
        self._allow_list = AllowList(settings.allowed_ips, settings.trusted_proxies)
        self._max_bytes = settings.body_max_bytes
        self._timeout_s = settings.body_timeout_s
        self._sources = sources
        self._append = appender.append
        self._intake = intake
        self._metrics = metrics
        self._outcome = cache(metrics.webhooks_received.labels)
        self._match = cache(metrics.signature_matches.labels)
        self._loop = asyncio.get_running_loop()
        self._traces = traces
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = perf_counter()
        source = scope["path_params"].get("source", DEFAULT_SOURCE)
        label = source if self._sources.secrets(source) else UNKNOWN
        try:
            appended = await self._accept(scope, receive, source)
        except Problem as problem:
            self._count(label, problem.code, began)
            raise
        except HungUp:
            self._count(label, "hung_up", began)
            return
        self._count(label, "duplicate" if appended.is_known else "accepted", began)
        await _answer(appended, send)
        if self._traces is not None:
            caller = next((v for k, v in scope["headers"] if k == b"traceparent"), None)
            self._traces.received(appended, perf_counter() - began, caller)

    async def _accept(self, scope: Scope, receive: Receive, source: str) -> Appended:
        """Take one call to its commit. Raises the Problem that is its answer, or HungUp."""
        self._check_address(scope)
        secrets = self._sources.secrets(source)
        if secrets is None:
            raise UnknownSource(f"no secret is known for the source {source[:64]!r}")
        self._intake.check()
        header = _signature(scope)
        body = await self._read_body(receive)
        received_at = self._now()
        self._verify(body, header, source, secrets)
        event = parse_event(body, source, received_at)
        self._observe_delay(event)
        return await self._append(event)

    def _check_address(self, scope: Scope) -> None:
        peer = scope["client"][0] if scope["client"] else None
        if not self._allow_list.lets_in(peer, scope["headers"]):
            raise AddressNotAllowed("this address may not call webhooks (CAUSEWAY_ALLOWED_IPS)")

    async def _read_body(self, receive: Receive) -> bytes:
        """Read the body, never holding more than the cap and one chunk of the server's."""
        chunks: list[bytes] = []
        size = 0
        try:
            with Deadline(self._loop, self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise HungUp
                    chunks.append(message["body"])
                    size += len(message["body"])
                    if size > self._max_bytes:
                        raise BodyTooLarge(f"a body may have {self._max_bytes} bytes at the most")
                    if not message["more_body"]:
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError:
            raise BodyTimeout(f"the body was not here within {self._timeout_s:g} s") from None

    def _verify(self, body: bytes, header: str, source: str, secrets: tuple[str, ...]) -> None:
        matched = matching_secret(body, header, secrets)
        if matched is None:
            raise BadSignature("BridgeApi-Signature does not match the body and the secret")
        self._match(source, _SECRET_NAMES[matched]).inc()

    def _observe_delay(self, event: NewEvent) -> None:
        if event.occurred_at is not None and not event.is_repeatable:  # the test's is of 2021
            delay = (event.received_at - event.occurred_at).total_seconds()
            self._metrics.source_delay.observe(max(0.0, delay))

    def _count(self, label: str, outcome: str, began: float) -> None:
        self._outcome(label, outcome).inc()
        self._metrics.webhook_response.observe(perf_counter() - began)


def _signature(scope: Scope) -> str:
    values = [value for key, value in scope["headers"] if key == _SIGNATURE]
    if not values:
        raise BadSignature("the header BridgeApi-Signature is missing")
    return b",".join(values).decode("latin-1")


async def _answer(appended: Appended, send: Send) -> None:
    """Send the empty 200, with the position for whoever debugs."""
    headers = [
        (b"content-length", b"0"),
        (b"causeway-position", str(appended.position).encode()),
    ]
    if appended.is_known:
        headers.append((b"causeway-duplicate", b"true"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
