"""`/metrics`, `/livez`, `/readyz`: for Prometheus and for whoever restarts and routes.

Live means that every loop runs; not live means restart. Ready means that a webhook sent here now
would probably be committed, and a stream opened here would be up to date.
"""

from collections.abc import Callable
from typing import Any

import orjson
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from service.metrics import Metrics
from service.peers import Peers

Check = Callable[[], str | None]
Note = Callable[[], str]


class Ops:
    """The three endpoints. A check returns None if it passes, or says in words what is wrong.

    A note says in words what is so, and makes nothing of it.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        live: dict[str, Check],
        ready: dict[str, Check],
        notes: dict[str, Note] | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._metrics = metrics
        self._peers = peers
        self._live = live
        self._ready = ready
        self._notes = notes or {}

    async def metrics(self, _request: Request) -> Response:
        """Answer all metrics in Prometheus' text format; of all workers, if there are some."""
        text = self.expose()
        if self._peers is not None:
            text = await self._peers.gather(text)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def expose(self) -> str:
        """Return this process's own metrics."""
        return generate_latest(self._metrics.registry).decode()

    async def livez(self, _request: Request) -> Response:
        """Answer 200, or 503 if a loop has ended."""
        return _answer(self._live, {})

    async def readyz(self, _request: Request) -> Response:
        """Answer 200, or 503 and what is wrong."""
        return _answer(self._ready, self._notes)


def _answer(checks: dict[str, Check], notes: dict[str, Note]) -> Response:
    results = {name: check() for name, check in checks.items()}
    is_good = all(result is None for result in results.values())
    body: dict[str, Any] = {
        "ok": is_good,
        "checks": {name: result or "ok" for name, result in results.items()},
    }
    if notes:
        body["notes"] = {name: note() for name, note in notes.items()}
    return Response(
        orjson.dumps(body),
        200 if is_good else 503,
        {"cache-control": "no-store"},
        media_type="application/json",
    )
